#!/bin/sh
# pytorch-optimizer 4.1.0 (import pytorch_optimizer), torch 2.13.0: RAdam, LaProp, Grams, AdamP, AdamWSN, Prodigy.
# Expected: weight_decouple=False adds the decay to the gradient instead of shrinking the weights beside the step, as the
#   arguments are described, so that weight_decay=0.5 ends elsewhere than weight_decay=0 (AdaBelief, AdaMax, DiffGrad do).
# Seen: in these six every step is the same, to the last bit, whatever weight_decay is; no error, no warning. A network
#   trained so has no penalty at all. With weight_decouple=True the decay acts.
# In Collapsar: what a weight decay does is tried on a copy of the optimizer; one that changes no step is said to.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 pytorch-optimizer==4.1.0
"$folder/venv/bin/python" - <<'PY'
import pytorch_optimizer
import torch


def end(name, decay, decoupled):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.float64))
    kind = getattr(pytorch_optimizer, name)
    optimizer = kind([weight], lr=0.01, weight_decay=decay, weight_decouple=decoupled)
    for _ in range(100):
        weight.grad = torch.randn(4, 3, dtype=torch.float64)
        optimizer.step()
    return weight.detach()


ignored = []
for name in ("AdaBelief", "AdaMax", "DiffGrad", "RAdam", "LaProp", "Grams", "AdamP", "AdamWSN", "Prodigy"):
    coupled, decoupled = (float((end(name, 0.5, way) - end(name, 0.0, way)).abs().max()) for way in (False, True))
    print(f"{name:10s} decay moves a weight by {coupled:.2g} (coupled), {decoupled:.2g} (decoupled)")
    ignored += [name] if coupled == 0 and decoupled > 0 else []
expected = ["RAdam", "LaProp", "Grams", "AdamP", "AdamWSN", "Prodigy"]
assert ignored == expected, f"ignored by {ignored}: this finding is out of date"
PY
