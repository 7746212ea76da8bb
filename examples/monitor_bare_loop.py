"""Watch a training loop of your own: the monitor says when the three small classes begin to merge."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from collapsar.monitor import CollapseMonitor, MonitorOptions

torch.manual_seed(0)
torch.set_num_threads(1)
counts, names = [80, 80, 80, 20, 20, 20], ["zero", "one", "two", "three", "four", "five"]
images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
rows = torch.cat([(labels == k).nonzero().flatten()[:n] for k, n in enumerate(counts)])
images, labels = images[rows], labels[rows]

body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
head = nn.Linear(16, len(counts))
model = nn.Sequential(body, head)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

with CollapseMonitor(model, class_names=names, options=MonitorOptions(say=print)) as monitor:
    for epoch in range(1, 41):
        strength = 0.0009 if epoch <= 12 else 0.009  # half of lambda_z; the small classes merge from .0149 on
        for batch in torch.randperm(len(labels)).split(50):
            features = body(images[batch])
            loss = nn.functional.cross_entropy(head(features), labels[batch])
            loss = loss + strength * 3 * head.weight.square().sum() + 0.01 * head.bias.square().sum()
            loss = loss + strength / 3 * len(labels) / len(batch) * features.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(labels[batch])  # adds up what the head has just received
        monitor.end_epoch()  # evaluates, logs to collapse.jsonl, and speaks when there is something to say
