#!/bin/sh
# torch-optimizer 0.3.0 (import torch_optimizer), torch 2.13.0: SGDW, decoupled weight decay.
# Expected: a step without gradient multiplies every weight by 1 - lr * weight_decay, as its paper and torch.optim.AdamW
#   have it, so that weights shrink toward 0 whatever their sign.
# Seen: it subtracts the constant lr * weight_decay instead. A weight of 2 falls to 1.5 in 100 steps, one of -2 moves away
#   from 0 to -2.5, and one of 0 to -0.5: no shrinkage, but a drift toward minus infinity; no error, no warning.
# In Collapsar: what a weight decay does is tried on a copy of the optimizer; of this one it says that its penalty cannot
#   be told, and reads the penalty from the head's gradient.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 torch-optimizer==0.3.0
"$folder/venv/bin/python" - <<'PY'
import torch
import torch_optimizer

start, lr, decay, steps = torch.tensor([2.0, -2.0, 0.0]), 0.01, 0.5, 100


def end(kind):
    weight = torch.nn.Parameter(start.clone())
    optimizer = kind([weight], lr=lr, weight_decay=decay)
    for _ in range(steps):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    return weight.detach()


shrunk, moved = end(torch.optim.AdamW), end(torch_optimizer.SGDW)
print("AdamW of torch        ", shrunk.tolist())
print("SGDW of torch-optimizer", moved.tolist())
assert torch.allclose(shrunk, start * (1 - lr * decay) ** steps)
assert torch.allclose(moved, start - steps * lr * decay), "this finding is out of date"
PY
