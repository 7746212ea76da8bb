"""A fixed choice among all networks with the same logits: features h - c with the bias b + W c, and no common row.

An offset of the features that the bias cancels, or a constant added to all logits, changes no prediction. But norms of
features, head and bias change with it, and so would every penalty that is read from norms. Here the offset is chosen by
quantities that do not change with it.

Example:
    >>> from collapsar.diagnose.measurement import measure
    >>> X, W, b = np.array([[1.0, 0], [0, 1], [-1, -1]]), np.array([[2.0, 0], [0, 2], [-2, -2]]), np.zeros(3)
    >>> here, there = (without_offset(measure(X + c, [0, 1, 2], W, b - W.sum(axis=1) * c)) for c in (0, 5))
    >>> bool(np.allclose(here.class_means, there.class_means)), bool(np.allclose(here.b, there.b))
    (True, True)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Vector
from collapsar.diagnose.measurement import Measurement

# An offset that the pull on the bias explains is accepted up to this many times the spread of the class means.
_FAR = 2.0
# Forces on the head below this share of the penalty's say nothing about the offset.
_FAINT = 0.01
_ROUNDS = 20


def without_offset(m: Measurement, lambda_w: float | NDArray[np.float64] | None = None) -> Measurement:
    """The same predictions, by features, head and bias that do not depend on the offset they were given with.

    Nonnegative features are moved to their floor, which is zero where it is natural. Others are moved to where the
    model of penalised features has its optimum, and from there to where the head is nearest to rest: the first is
    exact at an optimum, the second at rest, and if nothing pulls on the bias both are the mean over the samples.
    A head without bias has no free offset. A row that all logits share is always removed: a penalty holds it at zero.
    """
    scales = np.ones(m.num_classes) if m.loss_form.scales is None else m.loss_form.scales
    common = (1 / scales) / np.linalg.norm(1 / scales)
    price = common if lambda_w is None else common * lambda_w  # the cheapest common row, whatever each row costs
    W = m.weight - np.outer(common, price @ m.weight) / (price @ common) if np.any(price) else m.weight
    if m.bias is None:
        return replace(m, weight=W)
    own = replace(m, weight=W, bias=m.bias - common * (common @ m.bias))
    c = np.nanmin(m.class_means, axis=0) if m.least is None else m.least
    if not m.nonnegative:
        c = _offset(own, lambda_w)
    n, means = m.class_counts.astype(np.float64), np.nan_to_num(m.class_means)
    return replace(
        own,
        bias=own.b + W @ c,
        class_means=m.class_means - c,
        least=None if m.least is None else m.least - c,
        weight_gradient=m.weight_gradient - np.outer(m.bias_gradient, c),
        energy=m.energy - 2 * float(c @ (n @ means)) + n.sum() * float(c @ c),
    )


def _offset(m: Measurement, lambda_w: float | NDArray[np.float64] | None) -> Vector:
    """The origin of signed features.

    At an optimum lambda_h N mean(h) = -W'g, g the loss's pull on the bias, and <pull on W, W> + lambda_h sum n ||h||^2
    = 0: hence lambda_h = -<pull on W about the mean, W> / sum n ||h - mean||^2 whatever the offset. At rest the pull on
    W is -lambda_w W: least squares for what is left, if the pull on the bias is strong enough to tell.
    """
    n, means, g = m.mass, np.nan_to_num(m.class_means), m.bias_gradient
    mean = n @ means / n.sum()
    spread = float(n @ np.sum((means - mean) ** 2, axis=1))
    pull = m.weight_gradient - np.outer(g, mean)
    lambda_h = -float(np.sum(pull * m.weight)) / spread if spread > 0 else 0.0
    c = mean
    if lambda_h > 0:
        step = m.weight.T @ g / (lambda_h * n.sum())
        if n.sum() * (step @ step) <= _FAR**2 * spread:
            c = mean + step
    start, size = m.weight_gradient - np.outer(g, c), float(np.sum(m.weight**2))
    if not (spread > 0 and size > 0):
        return c
    move = np.zeros_like(c)
    for _ in range(_ROUNDS if lambda_w is None else 1):
        fitted = -float(np.sum((start - np.outer(g, move)) * m.weight)) / size
        held = np.reshape(fitted if lambda_w is None else lambda_w, (-1, 1)) * m.weight
        faint = _FAINT * float(np.linalg.norm(held)) * np.sqrt(n.sum() / spread)
        move = (start + held).T @ g / (g @ g + faint**2) if faint > 0 else move
    return c + move
