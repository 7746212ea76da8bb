#!/bin/sh
# heavyball 3.2.1, UnscaledAdamW, torch 2.13.0.
# Expected: "AdamW without bias correction on the second moment", as its docstring says: steps of about lr whatever the size
#   of the gradient, and a decay beside them that is no penalty of the loss.
# Seen: the mean of the normalised gradients is multiplied by the square root of the second moment again before the step,
#   so that Adam's scaling cancels: under a constant gradient g each step is lr * g, SGD's, to the last digit. With
#   gradients of .001 steps go a thousandth as far as those of AdamW of the same package, and the decay is
#   a penalty: a weight that the loss pulls rests where its gradient is -weight_decay * w. The second moment is corrected
#   after all. No error, no warning.
# In Collapsar: what a decay amounts to is tried, not named: of this one it tells the penalty weight_decay, as of SGD.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 heavyball==3.2.1
"$folder/venv/bin/python" -W ignore - <<'PY'
import heavyball
import torch

heavyball.utils.compile_mode = None  # as it is written, without a compiler


def moved(make, gradient, steps=200):
    """How far a weight goes under a constant gradient."""
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = make([weight], lr=1e-3)
    for _ in range(steps):
        weight.grad = torch.full((2, 2), gradient)
        optimizer.step()
    return -float(weight.detach().mean())


def rest(make, decay, scale):
    """The penalty in whose balance a weight rests that a square of this size pulls to 1: -gradient over weight."""
    weight = torch.nn.Parameter(torch.full((2, 2), 0.8))
    optimizer = make([weight], lr=0.05, weight_decay=decay)
    for _ in range(800):
        weight.grad = scale * (weight.detach() - 1)
        optimizer.step()
    return float((scale * (1 - weight.detach()) / weight.detach()).mean())


seen = {}
for name, make in (
    ("UnscaledAdamW", heavyball.UnscaledAdamW),
    ("AdamW", heavyball.AdamW),
    ("AdamW of torch", torch.optim.AdamW),
    ("SGD of torch", torch.optim.SGD),
):
    seen[name] = [moved(make, g) for g in (1.0, 0.001)], [rest(make, 0.1, scale) for scale in (1.0, 0.25)]
    way, penalties = seen[name]
    print(f"{name:15s} gradients of 1 and .001: moves by {way[0]:.3g} and {way[1]:.3g}; "
          f"weight_decay .1 balances a penalty of {penalties[0]:.3f} and {penalties[1]:.3f}")
for name in ("AdamW", "AdamW of torch"):
    (large, small), penalties = seen[name]
    assert abs(large - 0.2) < 0.01 and abs(small - 0.2) < 0.01 and max(abs(p) for p in penalties) < 0.05
(large, small), penalties = seen["UnscaledAdamW"]
assert abs(large - 0.2) < 1e-4 and abs(small - 0.0002) < 1e-7, "steps do not go with the gradient: out of date"
assert all(abs(p - 0.1) < 1e-3 for p in penalties), "the decay is no penalty: this finding is out of date"
PY
