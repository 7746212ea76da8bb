#!/bin/sh
# torch 2.13.0, CrossEntropyLoss with class weights and label smoothing at once.
# Expected: the targets are, as described, "a mixture of the original ground truth and a uniform distribution", and the weight
#   of a sample is its class's: whatever the weights, the best prediction for a sample is its own class, with 1 - eps + eps/K.
# Seen: the smoothed part is shared out by the weights of the *other* classes. Ten classes, five of 500 samples and five of 5,
#   weights 1/n, eps = 0.1: a sample of a frequent class is best predicted with .15 for its own class and .17 for each rare
#   one. A linear model on data that one could not separate better, one feature for each class, recognises no sample of the
#   frequent classes; with either setting alone it recognises all.
# In Collapsar: the loss is read as one of weights and smoothing, with a caution that says what is left of a label.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch

counts = torch.tensor([500] * 5 + [5] * 5)
labels = torch.repeat_interleave(torch.arange(10), counts)
features = torch.eye(10, dtype=torch.float64)[labels]


def trained(**settings):
    criterion, model = torch.nn.CrossEntropyLoss(**settings), torch.nn.Linear(10, 10, bias=False).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = criterion(model(features), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    shares = model(features).detach().softmax(1)
    right = (shares.argmax(1) == labels)[:2500].double().mean().item()
    print(f"{' and '.join(settings):27s} frequent classes: {right:.0%} right, own {shares[0, 0]:.2f}, rare {shares[0, 9]:.2f}")
    return right


weights = 1 / counts.double()
alone = trained(weight=weights), trained(label_smoothing=0.1)
together = trained(weight=weights, label_smoothing=0.1)
assert (alone, together) == ((1.0, 1.0), 0.0), "the targets are uniform mixtures: this finding is out of date"
PY
