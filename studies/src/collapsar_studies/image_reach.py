"""How far a small linear map of the images tells each class from the rest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar

EXPLAINED = 0.9  # networks' normalised features are within-class variation to a tenth: lambda_h N / wd is 1.03 to 1.2


def image_reach(images: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Contrast of each class in the output of the linear map of unit norm that ridge regression finds for it.

    The ridge is that with which class membership explains ``EXPLAINED`` of the output's variance, the smallest where it
    never does, the largest where it always does. The contrast is the slope of the output on class membership.

    Args:
        images: shape (N, ...), as the network gets them.
        labels: shape (N,), 0..K-1.

    Returns:
        Shape (K,).

    Example:
        >>> labels = np.repeat([0, 1, 2], [40, 40, 20])
        >>> np.round(image_reach(2 * np.eye(3)[labels], labels), 2)
        array([2.49, 2.49, 2.45])
    """
    flat = np.asarray(images, dtype=np.float64).reshape(len(labels), -1)
    flat = flat - flat.mean(axis=0)
    values, vectors = np.linalg.eigh(flat @ flat.T / len(labels))
    values = np.maximum(values, 0.0)
    out = []
    for k in range(int(labels.max()) + 1):
        member = (labels == k) - np.mean(labels == k)
        target, size = vectors.T @ member, float(member @ member)

        def outcome(log_ridge: float, target: NDArray[np.float64] = target, size: float = size) -> tuple[float, float]:
            kept = values / (values + np.exp(log_ridge)) * target
            weight = float(np.sum(values / (values + np.exp(log_ridge)) ** 2 * target**2)) / len(labels)
            along = float(kept @ target)
            return along**2 / float(kept @ kept) / size, along / size / weight**0.5

        low, high = np.log(values[-1]) + np.array([-25.0, 5.0])
        if outcome(low)[0] <= EXPLAINED or outcome(high)[0] >= EXPLAINED:
            out.append(outcome(low if outcome(low)[0] <= EXPLAINED else high)[1])
            continue
        out.append(
            outcome(root_scalar(lambda x, f=outcome: f(x)[0] - EXPLAINED, bracket=(low, high), xtol=1e-14).root)[1]
        )
    return np.array(out)
