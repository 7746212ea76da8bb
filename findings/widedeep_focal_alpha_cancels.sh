#!/bin/sh
# pytorch-widedeep 1.7.0, losses.FocalLoss(alpha, gamma), which Trainer makes of objective="binary_focal_loss", torch 2.13.0.
# Expected: by its description the focal loss of arxiv.org/abs/1708.02002, for two classes too: alpha is the weight of the
#   positive class beside 1 - alpha of the negative one, and a loss has the gradient of its own values.
# Seen: with one output alpha does nothing. Every sample is counted as a positive of its own class and as a negative of the
#   other, with alpha and 1 - alpha, which add up to 1: the same to the last digit for alpha .01 and .99. A bias alone, fit
#   to one positive in ten, ends at .1 (gamma 0) where alpha = .9 has .5. And (1 - p)^gamma is taken for a constant: the
#   gradient is not that of the loss, but .80 and .66 of it at p = .1 with gamma 1 and 2. No error, no warning.
# In Collapsar: a criterion is read by its values and gradients, and this one is told to be no cross-entropy.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps pytorch-widedeep==1.7.0
"$folder/venv/bin/python" - <<'PY'
import importlib.util
import sys
import types
import typing

import torch

place = importlib.util.find_spec("pytorch_widedeep").submodule_search_locations
package = types.ModuleType("pytorch_widedeep")  # its losses, without the models for text and images
package.__path__ = list(place)
names = types.ModuleType("pytorch_widedeep.wdtypes")
vars(names).update({name: getattr(typing, name) for name in ("List", "Tuple", "Union", "Literal", "Optional")})
names.Tensor = torch.Tensor
sys.modules |= {package.__name__: package, names.__name__: names}
from pytorch_widedeep.losses import FocalLoss  # noqa: E402

labels = (torch.arange(200) % 10 == 0).double()[:, None]


def focal(scores, alpha, gamma):
    """The loss of the paper."""
    chance = torch.sigmoid(torch.where(labels > 0, scores, -scores))
    return (-torch.where(labels > 0, alpha, 1 - alpha) * (1 - chance) ** gamma * chance.log()).mean()


def rest(loss):
    """Where a bias alone ends, as a chance of the positive class."""
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(bias.expand(200, 1))
        value.backward()
        return value

    optimizer.step(closure)
    return float(torch.sigmoid(bias.detach()))


scores = torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ends, values = {}, {}
for alpha in (0.01, 0.25, 0.9, 0.99):
    criterion = FocalLoss(alpha=alpha, gamma=0.0)
    values[alpha] = [float(FocalLoss(alpha=alpha, gamma=gamma)(scores.float(), labels)) for gamma in (0.0, 1.0, 2.0)]
    ends[alpha] = rest(lambda x: criterion(x.float(), labels)), rest(lambda x: focal(x, alpha, 0.0))
    print(f"alpha {alpha}: losses {[round(v, 4) for v in values[alpha]]}; a bias ends at {ends[alpha][0]:.3f}, "
          f"in the paper's loss at {ends[alpha][1]:.3f}")
slopes = []
for gamma in (1.0, 2.0):
    x = torch.tensor(-2.1972, requires_grad=True)  # p = .1, twice the same sample
    loss = lambda z: FocalLoss(gamma=gamma)(z.expand(2, 1), torch.ones(2, 1))  # noqa: E731, B023
    loss(x).backward()
    slope = float((loss(x.detach() + 0.01) - loss(x.detach() - 0.01)) / 0.02)
    slopes.append(float(x.grad) / slope)
    print(f"gamma {gamma:g}: gradient {float(x.grad):.4f}, slope of the values {slope:.4f}")
assert all(abs(ends[alpha][1] - expected) < 1e-3 for alpha, expected in ((0.9, 0.5), (0.25, 1 / 28), (0.99, 11 / 12)))
assert all(abs(own - 0.1) < 1e-3 for own, _ in ends.values()), "alpha acts now: this finding is out of date"
assert all(abs(a - b) < 1e-6 for own in values.values() for a, b in zip(own, values[0.25]))
assert all(ratio < 0.9 for ratio in slopes), "the gradient is the slope: this finding is out of date"
PY
