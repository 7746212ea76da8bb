#!/bin/sh
# timm 1.0.31, torch 2.13.0: MADGRAD(decoupled_decay=True), which create_optimizer_v2 makes of opt="madgradw".
# Expected: decay beside the step, as the "w" says and as the other optimizers of timm with one have it: a weight that
#   nothing pulls falls by e in 1 / (lr * weight_decay) steps, and one that the loss pulls to .3 rests below.
# Seen: the method keeps the initial weights and adds up all gradients; each step goes a tenth of the way back to what the
#   two say, which the decay never touches. A weight that nothing pulls keeps 96 % of itself, after 100 steps as after
#   5000, where AdamW leaves 1e-11; one that is pulled to .3 rests at .3 with a weight_decay of .5 and of 5, where AdamW
#   has .2. Nothing is decayed, no penalty acts, and no class can merge by it. No error, no warning.
# In Collapsar: what a decay does is tried; of this one no clock and no penalty is told.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps timm==1.0.31
"$folder/venv/bin/python" - <<'PY'
import importlib.util
from pathlib import Path

import torch

package = importlib.util.find_spec("timm")  # its module alone: the whole needs torchvision
place = Path(package.submodule_search_locations[0]) / "optim" / "madgrad.py"
spec = importlib.util.spec_from_file_location("madgrad", place)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


def end(kind, decay, steps, pull):
    """A weight of 1, pulled to .3 by a square or by nothing."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = kind([weight], lr=0.01, weight_decay=decay)
    for _ in range(steps):
        weight.grad = pull * (weight.detach() - 0.3)
        optimizer.step()
    return float(weight.detach())


def madgradw(*arguments, **settings):
    return module.MADGRAD(*arguments, decoupled_decay=True, momentum=0.9, **settings)


left = {steps: (end(madgradw, 0.5, steps, 0.0), end(torch.optim.AdamW, 0.5, steps, 0.0)) for steps in (100, 5000)}
rest = {decay: (end(madgradw, decay, 5000, 0.1), end(torch.optim.AdamW, decay, 5000, 0.1)) for decay in (0.0, 0.5, 5.0)}
for steps, (mad, adam) in left.items():
    print(f"nothing pulls, {steps} steps at lr * weight_decay = .005: MADGRADW {mad:.4f}, AdamW {adam:.3g}")
for decay, (mad, adam) in rest.items():
    print(f"pulled to .3, weight_decay {decay}: MADGRADW {mad:.4f}, AdamW {adam:.4f}")
assert left[5000][1] < 1e-9
assert rest[5.0][1] < 0.25
assert abs(left[5000][0] - left[100][0]) < 1e-4, "the decay adds up now: this finding is out of date"
assert all(abs(mad - 0.3) < 1e-4 for mad, _ in rest.values()), "the decay acts now: this finding is out of date"
PY
