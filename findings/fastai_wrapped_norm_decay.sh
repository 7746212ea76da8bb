#!/bin/sh
# fastai 2.8.12, Learner with wd=, and a torch optimizer by OptimWrapper, torch 2.13.0.
# Expected: wd_bn_bias=False, the default, keeps weight decay from norms and biases, as docs.fast.ai/learner.html says
#   of it, with whatever optimizer opt_func makes.
# Seen: it does with fastai's own Adam and SGD. With partial(OptimWrapper, opt=torch.optim.AdamW), the usual way to
#   one of torch's, norms and biases are decayed as everything is: the learner notes what is exempt in the wrapper,
#   which torch's optimizer never asks, so that wd_bn_bias=True changes nothing. No warning.
# In Collapsar: a wrapper's decay is read from the groups of the optimizer inside, norms and biases with it; the
#   decayed gain of a norm before the head is then the penalty on the features that it is.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 fastcore==2.2.41 \
    fasttransform==0.0.5 fastprogress==1.0.5 fastdownload==0.0.8 plum-dispatch==2.9.0 cloudpickle==3.1.2 \
    pandas==3.1.1 matplotlib==3.11.2 pyyaml==6.0.3 scipy==1.17.1 scikit-learn==1.9.1 requests==2.34.2
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps fastai==2.8.12  # without images and text
"$folder/venv/bin/python" -W ignore - <<'PY'
from functools import partial

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import SGD, Adam, OptimWrapper
from torch import nn

samples = [(torch.ones(4), torch.tensor(i % 3)) for i in range(12)]
loader = torch.utils.data.DataLoader(samples, batch_size=12)


def shrunk(opt_func, decay_all=False):
    """By which factor an epoch of one step without gradient changes each kind of parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    learner = Learner(
        DataLoaders(loader, loader), model, lambda scores, labels: 0 * scores.sum(), lr=0.1, opt_func=opt_func,
        wd=0.5, wd_bn_bias=decay_all,
    )
    with learner.no_logging():
        learner.fit(1)
    return [round(float(p.detach().mean()), 4) for p in (model[2].weight, model[2].bias, model[1].weight)]


kinds = {"fastai's Adam": Adam, "fastai's SGD": SGD}
kinds |= {f"torch's {kind.__name__}": partial(OptimWrapper, opt=kind) for kind in (torch.optim.AdamW, torch.optim.SGD)}
seen = {name: (shrunk(opt_func), shrunk(opt_func, decay_all=True)) for name, opt_func in kinds.items()}
for name, (exempt, everything) in seen.items():
    print(f"{name:13s} head, its bias, norm: {exempt}; with wd_bn_bias=True {everything}")
assert all(everything == [0.95, 0.95, 0.95] for _, everything in seen.values())
assert all(seen[f"fastai's {name}"][0] == [0.95, 1, 1] for name in ("Adam", "SGD"))
for name in ("AdamW", "SGD"):
    assert seen[f"torch's {name}"][0] == [0.95, 0.95, 0.95], "norms and biases are exempt: this finding is out of date"
PY
