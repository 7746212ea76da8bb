"""Is this (W, H, b) a global optimum, and if not, in which direction can one improve it?

With more features than classes the non-convex problem has no bad local minima: a critical point is global iff
the gradient of the loss, as a matrix on the scaled predictions, has spectral norm <= lambda_z; otherwise the
top singular pair is a direction of negative curvature (Hong & Ling, JMLR 25(192), 2024, Thm 6; Zhu et al.,
NeurIPS 2021).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.checks import must_be_positive
from collapsar.core.problem import Problem
from collapsar.core.types import Matrix, Vector


class Verdict(enum.Enum):
    """What a point is; the value is the sentence for the user."""

    NOT_CRITICAL = "the gradient is not zero: train longer, then classify the point"
    GLOBAL = "a global optimum: critical, and the gradient's spectral norm is within lambda_z"
    SADDLE = "a strict saddle: critical, and the returned direction has negative curvature"
    UNDECIDED = "critical but not global, with no unused feature dimension to descend in: give W more rows than classes"


@dataclass(frozen=True)
class Landscape:
    """The verdict and the numbers behind it.

    Attributes:
        verdict: what the point is.
        gradient_norm: norm of the gradient in (W, H, b), relative to the size of its own terms.
        spectral_norm: that of the loss's gradient on the scaled predictions.
        lambda_z: the value it is compared with.
        curvature: d2(objective)/dt2 along ``direction``, 2 (lambda_z - spectral_norm) < 0; NaN unless a
            saddle.
        direction: (dW, dH), the shapes of W and H; None unless a saddle. Both signs descend.
    """

    verdict: Verdict
    gradient_norm: float
    spectral_norm: float
    lambda_z: float
    curvature: float
    direction: tuple[Matrix, Matrix] | None


def landscape(
    problem: Problem,
    W: ArrayLike,
    H: ArrayLike,
    b: ArrayLike | None = None,
    *,
    lambda_w: float,
    labels: ArrayLike | None = None,
    tol: float = 1e-6,
) -> Landscape:
    """Classify a point of the non-convex problem with signed features.

    The objective is sum q_k CE(W'h_k + b) + (lambda_w/2)||W||^2 + (lambda_h/2) sum m_k ||h_k||^2 +
    (lambda_b/2)||b||^2 with lambda_h = lambda_z^2 / lambda_w, mitigations included.

    Args:
        problem: K classes, signed features.
        W: shape (d, K), the head's weight, one column per class.
        H: shape (d, K), class means, or (d, N), one column per sample with ``labels``.
        b: shape (K,); zeros by default.
        lambda_w: > 0, penalty of W.
        labels: shape (N,), class of each column of H; needed unless H has one column per class, in order.
        tol: relative size up to which a gradient counts as zero.

    Returns:
        The verdict.

    Raises:
        ValueError: features are nonnegative or normalised, a shape disagrees, an entry is not finite, or
            ``lambda_w`` is not > 0.

    Example:
        >>> import numpy as np
        >>> p = Problem([10, 10], lambda_z=0.01)
        >>> at_zero = landscape(p, np.zeros((3, 2)), np.zeros((3, 2)), lambda_w=0.1)
        >>> at_zero.verdict.name, round(at_zero.spectral_norm, 4)
        ('SADDLE', 0.1581)
    """
    if problem.features != "signed" or problem.normalization is not None:
        kind = '"nonnegative"' if problem.normalization is None else "normalised"
        raise ValueError(f"`problem` must have signed features with a penalty: no such test is known for {kind} ones")
    must_be_positive(lambda_w=lambda_w)
    w, h, bias, classes = _checked(problem, W, H, b, labels)
    per_class = np.bincount(classes, minlength=problem.num_classes)
    share, mass = (problem.loss_share / per_class)[classes], (problem.mass / per_class)[classes]
    lambda_h = problem.lambda_z**2 / lambda_w

    G = _loss_gradient(problem, w.T @ h + bias[:, None], classes, share)
    free = np.zeros_like(bias) if problem.lambda_b == np.inf else bias * problem.lambda_b
    pulls = [(h @ G.T, lambda_w * w), (w @ G, lambda_h * h * mass)]
    if problem.lambda_b < np.inf:
        pulls.append((G.sum(axis=1), free))
    size = problem.lambda_z + sum(float(np.linalg.norm(x) + np.linalg.norm(y)) for x, y in pulls)
    gradient_norm = float(np.sqrt(sum(np.sum((x + y) ** 2) for x, y in pulls))) / size

    U, s, Vt = np.linalg.svd(-G / np.sqrt(mass), full_matrices=False)
    norm, lambda_z = float(s[0]), problem.lambda_z
    if not gradient_norm <= tol:
        return Landscape(Verdict.NOT_CRITICAL, gradient_norm, norm, lambda_z, float("nan"), None)
    if norm <= lambda_z * (1 + 10 * tol):
        return Landscape(Verdict.GLOBAL, gradient_norm, norm, lambda_z, float("nan"), None)
    spare = _spare_dimension(np.hstack([np.sqrt(lambda_w) * w, np.sqrt(lambda_h * mass) * h]), lambda_z, tol)
    if spare is None:
        return Landscape(Verdict.UNDECIDED, gradient_norm, norm, lambda_z, float("nan"), None)
    balance = (lambda_h / lambda_w) ** 0.25
    direction = np.outer(spare, U[:, 0]) * balance, np.outer(spare, Vt[0] / np.sqrt(mass)) / balance
    return Landscape(Verdict.SADDLE, gradient_norm, norm, lambda_z, 2 * (lambda_z - norm), direction)


def _spare_dimension(factors: Matrix, lambda_z: float, tol: float) -> Vector | None:
    """A unit vector a of feature space that neither W nor H uses; along it Z moves by t^2 u v' M^(-1/2) only."""
    left, used, _ = np.linalg.svd(factors)
    unused = factors.shape[0] > used.size or used[-1] <= np.sqrt(tol) * max(used[0], np.sqrt(lambda_z))
    return left[:, -1] if unused else None


def _loss_gradient(problem: Problem, logits: Matrix, classes: NDArray[np.intp], share: Vector) -> Matrix:
    """Gradient of the loss in the logits before scales and temperatures, shape (K, columns)."""
    tau = problem.temperatures[classes]
    U = tau * (problem.scales[:, None] * logits) + problem.offsets[:, None]
    odds = np.exp(U - U.max(axis=0))
    Y = np.full_like(U, problem.loss.smoothing / problem.num_classes)
    Y[classes, np.arange(classes.size)] += 1 - problem.loss.smoothing
    return problem.scales[:, None] * (odds / odds.sum(axis=0) - Y) * (tau * share)


def _checked(
    problem: Problem, W: ArrayLike, H: ArrayLike, b: ArrayLike | None, labels: ArrayLike | None
) -> tuple[Matrix, Matrix, Vector, NDArray[np.intp]]:
    K = problem.num_classes
    w, h = np.asarray(W, dtype=np.float64), np.asarray(H, dtype=np.float64)
    bias = np.zeros(K) if b is None else np.asarray(b, dtype=np.float64)
    if w.ndim != 2 or w.shape[1] != K:
        raise ValueError(f"`W` must have shape (d, {K}), one column per class, got {w.shape}")
    if h.ndim != 2 or h.shape[0] != w.shape[0]:
        raise ValueError(f"`H` must have {w.shape[0]} rows like `W`, got shape {h.shape}")
    classes = np.arange(K) if labels is None else np.asarray(labels).astype(np.intp)
    if classes.shape != (h.shape[1],):
        raise ValueError(f"`labels` must name the class of each of the {h.shape[1]} columns of `H`")
    if bias.shape != (K,):
        raise ValueError(f"`b` must have shape ({K},), got {bias.shape}")
    for name, value in (("W", w), ("H", h), ("b", bias)):
        if not np.isfinite(value).all():
            raise ValueError(f"`{name}` must be finite")
    if not np.array_equal(np.unique(classes), np.arange(K)):
        raise ValueError(f"`labels` must contain each class 0..{K - 1} at least once")
    if problem.lambda_b == np.inf and bias.any():
        raise ValueError("`b` must be zero where `lambda_b` is inf (no bias); give a finite `lambda_b`")
    return w, h, bias, classes
