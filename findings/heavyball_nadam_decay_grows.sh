#!/bin/sh
# heavyball 3.2.1, NAdam(weight_decay=...), decoupled_weight_decay=False as by default, torch 2.13.0.
# Expected: the decay is added to the gradient, as by torch.optim.NAdam with the same argument: a weight that nothing pulls
#   falls to 0, one that the loss pulls to 5 rests at 5 / (1 + weight_decay).
# Seen: it is added to the gradient, and weight_decay * w is then taken out of the normalised step again, which is about 1
#   whatever the gradient: the step is lr * (1 - weight_decay * w). Small weights fall more slowly than they should, and
#   those above 1 / weight_decay grow without end: with weight_decay=.5 a weight of 5 that nothing pulls is 7 million
#   after 3000 steps, and one that is pulled to 5 nearly as far. With decoupled_weight_decay=True it decays. No warning.
# In Collapsar: the decay is tried with small weights, where this one holds the balance of the penalty weight_decay, and that
#   is told; it holds below 1 / weight_decay only.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 heavyball==3.2.1
"$folder/venv/bin/python" -W ignore - <<'PY'
import heavyball
import torch

heavyball.utils.compile_mode = None  # as it is written, without a compiler


def end(make, start, pulled, **settings):
    """A weight after 3000 steps, pulled to where it starts by a square or by nothing."""
    weight = torch.nn.Parameter(torch.full((2, 2), start))
    optimizer = make([weight], lr=0.01, **settings)
    for _ in range(3000):
        weight.grad = pulled * (weight.detach() - start)
        optimizer.step()
    return float(weight.detach().mean())


seen = {}
for decay, start in ((0.1, 5.0), (0.1, 20.0), (0.5, 1.0), (0.5, 5.0)):
    for pulled in (0, 1):
        ends = [end(make, start, pulled, weight_decay=decay) for make in (torch.optim.NAdam, heavyball.NAdam)]
        ends.append(end(heavyball.NAdam, start, pulled, weight_decay=decay, decoupled_weight_decay=True))
        seen[decay, start, pulled] = ends
        print(f"weight_decay {decay}, from {start:g}, {'pulled there' if pulled else 'free':12s}: torch {ends[0]:.4g}, "
              f"heavyball {ends[1]:.4g}, decoupled {ends[2]:.4g}")
    assert abs(seen[decay, start, 1][0] - start / (1 + decay)) < 1e-3 and seen[decay, start, 0][0] < start / 10
for key, (_, coupled, decoupled) in seen.items():
    assert decoupled <= key[1] * 1.01
    if key[0] * key[1] > 1:
        assert coupled > 5 * key[1], "it decays: this finding is out of date"
PY
