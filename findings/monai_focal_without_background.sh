#!/bin/sh
# monai 1.6.1, losses.FocalLoss(use_softmax=True, include_background=False), torch 2.13.0.
# Expected: softmax over all channels, and the background's term left out of the loss, as docs.monai.io/en/stable/losses.html
#   says of include_background and as DiceLoss(softmax=True, include_background=False) of the same package does.
# Seen: the channel is cut off before the softmax. Of two classes one is left, whose softmax is 1: the loss and its gradient
#   are 0 whatever the scores, and nothing is learned. Of more, the foreground classes are told from each other alone and
#   never from the background, whose score has no gradient: the loss of a sample of class 1 is the same for any score of
#   class 0. No error, no warning.
# In Collapsar: a criterion is read by its values and gradients; this one is told to be no cross-entropy.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 monai==1.6.1
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
from monai.losses import DiceLoss, FocalLoss

warnings.simplefilter("error", UserWarning)
random = torch.Generator().manual_seed(0)
largest, moved = {}, {}
for K in (2, 3):
    labels = torch.randint(K, (64,), generator=random)
    target = torch.nn.functional.one_hot(labels, K).float()[:, :, None]
    for name, criterion in (
        ("DiceLoss", DiceLoss(softmax=True, include_background=False)),
        ("FocalLoss", FocalLoss(use_softmax=True, include_background=False)),
    ):
        scores = (3 * torch.randn(64, K, 1, generator=random)).requires_grad_()
        loss = criterion(scores, target)
        loss.backward()
        largest[name, K] = scores.grad.abs().amax(dim=(0, 2)).tolist()
        raised = criterion(scores.detach() + 5 * torch.eye(K)[0][:, None], target)
        moved[name, K] = abs(float(raised) - loss.item())
        print(f"{name} of {K} classes: {loss.item():.4f}, with the background's scores raised by 5 {raised:.4f}; "
              f"largest gradient by class {[round(g, 4) for g in largest[name, K]]}")
assert min(largest["DiceLoss", 2]) > 0 and min(largest["DiceLoss", 3]) > 0
assert largest["FocalLoss", 2] == [0, 0] and largest["FocalLoss", 3][0] == 0, "softmax over all: this finding is out of date"
assert moved["FocalLoss", 2] == moved["FocalLoss", 3] == 0 and moved["DiceLoss", 3] > 1e-3
PY
