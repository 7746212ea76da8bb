"""Watch a Lightning training: one callback, scalars in the trainer's logger, sentences when classes merge."""

import logging
import warnings

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from collapsar.monitor import MonitorOptions
from collapsar.monitor.lightning import CollapseCallback

warnings.filterwarnings("ignore", module="lightning")  # about loaders without workers
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.manual_seed(0)
torch.set_num_threads(1)
counts, names = [80, 80, 80, 20, 20, 20], ["zero", "one", "two", "three", "four", "five"]
images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
rows = torch.cat([(labels == k).nonzero().flatten()[:n] for k, n in enumerate(counts)])


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.fc = nn.Linear(16, len(counts))

    def training_step(self, batch, batch_idx):
        strength = 0.0009 if self.current_epoch < 12 else 0.009  # half of lambda_z
        features = self.body(batch[0])
        loss = nn.functional.cross_entropy(self.fc(features), batch[1])
        loss = loss + strength * 3 * self.fc.weight.square().sum() + 0.01 * self.fc.bias.square().sum()
        return loss + strength / 3 * len(rows) / len(batch[1]) * features.square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


callback = CollapseCallback(class_names=names, options=MonitorOptions(say=print))
trainer = lightning.Trainer(
    max_epochs=40,
    accelerator="cpu",
    callbacks=[callback],
    logger=False,  # yours: "nc/..." goes to whatever logger is there
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Classifier(), DataLoader(TensorDataset(images[rows], labels[rows]), batch_size=50, shuffle=True))
