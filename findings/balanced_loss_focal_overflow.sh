#!/bin/sh
# balanced-loss 0.1.1 (class-balanced losses for imbalanced data), loss_type="focal_loss", torch 2.13.0, float32.
# Expected: the worse a sample is classified the more it costs: with the true class's logit at z and gamma = 2 the term
#   (1 - p)^2 * -log p is about -z for large -z, and its gradient about -1.
# Seen: as expected down to z = -88. From -89 on, where exp(-z) leaves the range of float32, the sample's own term is 0 and
#   its gradient NaN, so that one badly missed sample, as rare classes have them, turns every weight into NaN.
# In Collapsar: criteria are read by their values at moderate logits, and this one is told to be no cross-entropy.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 balanced-loss==0.1.1
"$folder/venv/bin/python" - <<'PY'
import torch
from balanced_loss import Loss

criterion = Loss(loss_type="focal_loss", fl_gamma=2)
seen = {}
for z in (-5.0, -50.0, -88.0, -89.0, -200.0):
    logits = torch.tensor([[z, 0.0, 0.0]], requires_grad=True)
    loss = criterion(logits, torch.tensor([0]))
    loss.backward()
    exact = torch.tensor([z, 0.0, 0.0], dtype=torch.float64)
    chance = torch.sigmoid(exact)
    terms = torch.nn.functional.softplus(torch.where(torch.arange(3) == 0, -exact, exact))
    expected = float((torch.where(torch.arange(3) == 0, 1 - chance, chance) ** 2 * terms).sum())
    seen[z] = (float(loss.detach()), expected, float(logits.grad[0, 0]))
    print(f"logit {z:6.0f}: loss {seen[z][0]:8.3f}, by its formula {expected:8.3f}, gradient {seen[z][2]:.3f}")
assert all(abs(seen[z][0] - seen[z][1]) < 1e-3 for z in (-5.0, -50.0, -88.0))
assert all(seen[z][0] < 1 and seen[z][2] != seen[z][2] for z in (-89.0, -200.0)), "mended: this finding is out of date"
PY
