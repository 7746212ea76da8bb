"""Prior correction: logits trained under one class prior, used under another."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn


def prior_correction(
    train_share: ArrayLike | Tensor,
    target_prior: ArrayLike | Tensor | None = None,
    *,
    offsets: ArrayLike | Tensor | None = None,
) -> Tensor:
    """What to add to the logits so that their softmax is the posterior under ``target_prior``.

    A network trained with loss shares q and logit offsets iota outputs g with softmax(g + iota) the posterior under
    the prior q; under pi it is softmax(g + iota - log q + log pi) (Saerens et al., 2002). After balanced sampling for
    data that are imbalanced in use: q uniform, pi the frequencies. After training without a mitigation for balanced
    use: q = n/N, pi uniform. Scales and temperatures of the training loss have no such interpretation.

    Args:
        train_share: q, shape (K,), positive, of any sum: ``Problem.loss_share``, ``ClassAwareSampler.loss_share``.
        target_prior: pi, shape (K,), positive, of any sum; None: all classes equally frequent.
        offsets: iota, shape (K,), added to the logits in the training loss; None: none.

    Returns:
        float64 of shape (K,), with mean 0.

    Raises:
        ValueError: a share is not positive and finite or shapes disagree.

    Example:
        >>> prior_correction([0.9, 0.1]).round(decimals=4).tolist()
        [-1.0986, 1.0986]
    """
    q = _copied(train_share)
    pi = torch.ones_like(q) if target_prior is None else _copied(target_prior)
    iota = torch.zeros_like(q) if offsets is None else _copied(offsets)
    for name, value in (("train_share", q), ("target_prior", pi)):
        if value.ndim != 1 or not bool((torch.isfinite(value) & (value > 0)).all()):
            raise ValueError(f"`{name}` must be finite numbers > 0, one for each class, got {value.tolist()}")
    if pi.shape != q.shape or iota.shape != q.shape:
        raise ValueError(f"`target_prior` and `offsets` must have {q.numel()} entries, as `train_share` has")
    correction = iota - q.log() + pi.log()
    return correction - correction.mean()


def fold_into_bias(head: nn.Linear, correction: Tensor) -> None:
    """Add a correction to a head's bias permanently, giving it a bias if it has none.

    Args:
        head: the last layer.
        correction: shape (K,).

    Raises:
        ValueError: the shape is not (K,).

    Example:
        >>> head = nn.Linear(4, 2, bias=False)
        >>> fold_into_bias(head, prior_correction([0.9, 0.1]))
        >>> head.bias.detach().round(decimals=4).tolist()
        [-1.0986..., 1.0986...]
    """
    if correction.shape != (head.out_features,):
        raise ValueError(f"`correction` must have shape ({head.out_features},), got {tuple(correction.shape)}")
    shift = correction.to(dtype=head.weight.dtype, device=head.weight.device)
    old = 0.0 if head.bias is None else head.bias.detach()
    head.bias = nn.Parameter(old + shift)


def _copied(values: ArrayLike | Tensor) -> Tensor:
    # a copy: read-only arrays, like a Problem's, would make torch warn
    return (values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))).to(torch.float64)
