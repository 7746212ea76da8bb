#!/bin/sh
# pytorch-optimizer 4.1.0 (import pytorch_optimizer), torch 2.13.0: Ranger, with the settings it comes with.
# Expected: as in RAdam, from which it takes its rectification, no step is made while the variance of the step size is not
#   tractable (the first five steps), or plain steps with degenerated_to_sgd=True.
# Seen: in these five steps it goes up the gradient, by lr times the mean gradient: the step size that stands for "no step",
#   -1 times lr, is used as one. From ones, the loss |w|^2 / 2 of eight weights rises from 4.0 to 9.7 at lr=0.1, while RAdam
#   of the same package stands still. Its momentum then takes it further, and it is above 4.0 after twenty steps.
# In Collapsar: what an optimizer's decay does is tried over sixty steps, none is believed by its first one.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 pytorch-optimizer==4.1.0
"$folder/venv/bin/python" - <<'PY'
import pytorch_optimizer
import torch


def losses(name, **settings):
    weight = torch.nn.Parameter(torch.ones(8))
    optimizer = getattr(pytorch_optimizer, name)([weight], lr=0.1, **settings)
    found = []
    for _ in range(21):
        loss = weight.square().sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


ranger, radam, plain = losses("Ranger"), losses("RAdam"), losses("Ranger", degenerated_to_sgd=True)
for name, found in (("Ranger", ranger), ("RAdam", radam), ("Ranger, degenerated_to_sgd", plain)):
    print(f"{name:28s}", " ".join(f"{loss:.2f}" for loss in found[:8]), f"... {found[-1]:.2f} after 20 steps")
assert all(before < after for before, after in zip(ranger[:5], ranger[1:6])), "it goes down: this finding is out of date"
assert ranger[20] > ranger[0] == radam[5]
assert plain[5] < plain[0]
PY
