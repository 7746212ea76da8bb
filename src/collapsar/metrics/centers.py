"""NC4: does the head decide like the nearest class centre? A count against *fixed* centres.

The class means are known only after a pass over the data, so NC4 needs a second pass, or the means of an earlier one
(of the last epoch, say). That is the price of one-pass moments. ``NeuralCollapse`` takes such centres as an option and
counts while it accumulates.

Source: Papyan, Han & Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training",
PNAS 2020, (NC4) and Fig. 7, with the bias included in the decision of the head.

Example:
    >>> import torch
    >>> centers = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> features, labels = torch.tensor([[0.9, 0.1], [0.2, 0.7], [0.6, 0.5]]), torch.tensor([0, 1, 1])
    >>> center_agreement(features, labels, centers, weight=torch.eye(2)).tolist()
    [1, 2]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from collapsar.metrics.moments import checked_batch

_BLOCK_NUMBERS = 1 << 22


def nearest_centers(features: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the centre nearest to each row in Euclidean distance, shape (B,), int64.

    Args:
        features: Shape (B, d).
        centers: Shape (K, d); a row of NaN (an unseen class) is never nearest. Among centres that are equally near
            up to rounding, any may be returned.

    Raises:
        ValueError: If every centre is NaN or the shapes do not fit.
    """
    if features.ndim != 2 or centers.ndim != 2 or features.shape[1] != centers.shape[1]:
        raise ValueError(
            f"`features` (B, d) and `centers` (K, d) must share d; got {tuple(features.shape)} and "
            f"{tuple(centers.shape)}. Pass class means of the same features"
        )
    seen = torch.isfinite(centers).all(dim=1).nonzero().flatten()
    if len(seen) == 0:
        raise ValueError("`centers` must hold at least one finite row; got none. Run a first pass over the data")
    known = centers[seen].double()
    # ‖h − μ‖² = ‖h‖² − 2⟨h, μ⟩ + ‖μ‖², and the first term does not matter. Moving the origin into the data
    # keeps the others small even if class means are far from zero.
    origin = known.mean(dim=0)
    known = known - origin
    lengths = known.square().sum(dim=1)
    rows = max(1, _BLOCK_NUMBERS // len(seen))
    nearest = [
        torch.addmm(lengths, block.double() - origin, known.T, alpha=-2).argmin(dim=1) for block in features.split(rows)
    ]
    return seen[torch.cat(nearest)] if nearest else seen.new_zeros(0)


@torch.no_grad()
def center_agreement(features: Any, labels: Any, centers: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return per class how many samples the head and the nearest centre decide alike, shape (K,), int64.

    NC4 is the sum of these counts over batches divided by the number of samples: 1 at collapse. The counts of
    disjoint batches add up.

    Args:
        features: Shape (B, d), what the head receives.
        labels: Shape (B,), the true classes, by which the count is split.
        centers: Fixed class centres, shape (K, d), NaN rows for unseen classes.
        weight: Head weight, shape (K, d).
        bias: Head bias, shape (K,), or None.

    Raises:
        ValueError: As ``checked_batch`` and ``nearest_centers``.
    """
    num_classes = len(centers)
    features, labels = checked_batch(features, labels, num_classes, centers.shape[1])
    weight = weight.detach().to(features.device, torch.float64)
    offset = weight.new_zeros(num_classes) if bias is None else bias.detach().to(weight)
    rows = max(1, _BLOCK_NUMBERS // num_classes)
    decided = [torch.addmm(offset, block.double(), weight.T).argmax(dim=1) for block in features.split(rows)]
    agree = torch.cat(decided) == nearest_centers(features, centers.to(features.device))
    return torch.bincount(labels[agree], minlength=num_classes)
