"""A head on frozen features: a convex problem, solved and compared with the trained head; and each mitigation solved.

If only the head is trained its features are given, and

    min over W, b   mean loss(W h + b) + (1/2) sum_k lambda_k ||w_k||^2 + (lambda_b / 2)||b||^2

is multinomial logistic regression. The solver is scipy's L-BFGS. Its result is certified: the least value over b is
strongly convex in W, so no head is better than the value at W minus sum_k ||g_k||^2 / (2 lambda_k), g the gradient.

Example:
    >>> features, labels = np.eye(3)[[0, 0, 0, 0, 1, 2]], np.array([0, 0, 0, 0, 1, 2])
    >>> found = frozen_head(features, labels, np.zeros((3, 3)), np.zeros(3), lambda_w=0.5)
    >>> found.optimum.outvoted, found.remedies[0].name, found.remedies[0].outvoted
    ((1, 2), 'logit adjustment', ())
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.known import KnownTraining
from collapsar.core.loss import Loss
from collapsar.core.types import Matrix, Vector
from collapsar.diagnose.agreement import head_forces
from collapsar.diagnose.measurement import Measurement, measure

LARGEST = 1 << 29
"""N d K, the multiplications of one evaluation, up to which heads are solved; beyond, each takes seconds."""

_MOST_STEPS, _MEMORY = 3000, 20


@dataclass(frozen=True, eq=False)
class Solved:
    """A head at the optimum of one objective.

    Attributes:
        name: of the mitigation; "optimum" for the training's own objective.
        objective: its value there.
        gap: by how much it may lie above the least value, relative to it; certified.
        recalls: shape (K,), share of each class's samples that the head gets right; NaN without samples.
        outvoted: classes with samples of which none is recognised.
    """

    name: str
    objective: float
    gap: float
    recalls: Vector
    outvoted: tuple[int, ...]

    @property
    def mean_recall(self) -> float:
        """The mean over classes: balanced accuracy."""
        return float(np.nanmean(self.recalls))


@dataclass(frozen=True, eq=False)
class FrozenHead:
    """A trained head compared with the optimum on its features.

    Attributes:
        lambda_w: penalty of the head, one number or one per class.
        lambda_b: of the bias; inf without one.
        objective: of the head as trained.
        optimum: of the same objective.
        remedies: optima of the objectives under mitigations.
    """

    lambda_w: float | Vector
    lambda_b: float
    objective: float
    optimum: Solved
    remedies: tuple[Solved, ...]

    @property
    def excess(self) -> float:
        """By how much the trained head's objective exceeds the optimum's, relatively; accurate to ``optimum.gap``."""
        return self.objective / self.optimum.objective - 1


def frozen_head(
    features: ArrayLike,
    labels: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    lambda_w: float | ArrayLike,
    lambda_b: float = 0.0,
    loss: Loss | None = None,
) -> FrozenHead:
    """Solve the head on features that are given, as trained and under each mitigation.

    Logit adjustment trains with log(n_k / N) added to the scores; with a free bias that is the plain optimum with these
    subtracted from its bias. Class weights 1/n and balanced sampling have the same objective.

    Args:
        features: shape (N, d), of the training samples.
        labels: shape (N,).
        weight: W, shape (K, d), as trained; the solver starts there.
        bias: shape (K,); None for a head without one.
        lambda_w: > 0, its penalty, one number or one per class.
        lambda_b: of the bias; 0: free.
        loss: as trained; plain cross-entropy by default.

    Raises:
        ValueError: a penalty is out of range, a shape disagrees, or the problem is too large.
    """
    X, W = np.asarray(features), np.asarray(weight, dtype=np.float64)
    rows = np.asarray(lambda_w, dtype=np.float64) * np.ones(len(W))
    if not ((rows > 0) & (rows < np.inf)).all():
        raise ValueError(
            f"`lambda_w` must be finite and > 0, got {lambda_w!r}: without weight decay a head on features that can be "
            "separated has no optimum"
        )
    if not lambda_b >= 0:
        raise ValueError(f"`lambda_b` must be >= 0, got {lambda_b!r}")
    if X.size * len(W) > LARGEST:
        raise ValueError(
            f"`features` must be smaller to solve heads on them: N d K is {X.size * len(W):.2g}, more than "
            f"{LARGEST:.2g}; use a sample of each class"
        )
    plain = Loss() if loss is None else loss
    here = measure(X, labels, W, bias, plain)
    price_b = np.inf if bias is None else float(lambda_b)
    n = np.maximum(here.class_counts, 1).astype(np.float64)
    share, base = n / n.sum(), np.zeros(len(W)) if plain.offsets is None else plain.offsets
    changed = {
        "logit adjustment": replace(plain, offsets=base + np.log(share)),
        "class weights 1/n, or balanced sampling": replace(plain, class_weights=1 / n),
    }
    remedies = tuple(
        _solved(name, X, labels, replace(here, loss_form=other), rows, price_b) for name, other in changed.items()
    )
    return FrozenHead(
        lambda_w=float(rows[0]) if np.ptp(rows) == 0 else rows,
        lambda_b=price_b,
        objective=_cost(here, rows, price_b)[0],
        optimum=_solved("optimum", X, labels, here, rows, price_b),
        remedies=remedies,
    )


def frozen_of(
    features: ArrayLike, labels: ArrayLike, m: Measurement, known: KnownTraining
) -> tuple[FrozenHead | None, str]:
    """The head of a network solved on the features that it was measured on, and ""; or None, and why there is none.

    It uses the known penalties, otherwise those read from the gradient.
    """
    forces = head_forces(m, known.priced_w, known.lambda_b)
    lambda_w = forces.fitted_w if known.priced_w is None else known.priced_w
    if not np.all(np.asarray(lambda_w) > 0):
        return None, (
            "The head on frozen features is not solved: its penalty is unknown, and its gradient shows none. Give "
            "lambda_w, the weight decay it was trained with."
        )
    try:
        return frozen_head(
            features, labels, m.weight, m.bias, lambda_w=lambda_w, lambda_b=known.lambda_b or 0.0, loss=m.loss_form
        ), ""
    except ValueError as error:
        return None, f"The head on frozen features is not solved: {error}."


def _cost(m: Measurement, rows: Vector, lambda_b: float) -> tuple[float, Matrix, Vector]:
    """Loss and penalty of a head, and their gradients in W and b."""
    total = m.loss + 0.5 * float(rows @ np.sum(m.weight**2, axis=1))
    G = m.weight_gradient + rows[:, None] * m.weight
    if m.bias is None:
        return total, G, np.zeros(0)
    return total + 0.5 * lambda_b * float(m.bias @ m.bias), G, m.bias_gradient + lambda_b * m.bias


def _solved(name: str, X: NDArray, labels: ArrayLike, start: Measurement, rows: Vector, lambda_b: float) -> Solved:
    """L-BFGS from the head of ``start``, under its loss."""
    from scipy.optimize import minimize

    K, d = start.weight.shape

    def at(x: Vector) -> Measurement:
        W, b = x[: K * d].reshape(K, d), x[K * d :]
        return measure(X, labels, W, b if b.size else None, start.loss_form)

    def value(x: Vector) -> tuple[float, Vector]:
        total, G, g = _cost(at(x), rows, lambda_b)
        return total, np.concatenate([G.ravel(), g])

    def of_bias(b: Vector, W: Vector) -> tuple[float, Vector]:
        total, gradient = value(np.concatenate([W, b]))
        return total, gradient[K * d :]

    options: Any = {"maxiter": _MOST_STEPS, "maxfun": 2 * _MOST_STEPS, "maxcor": _MEMORY, "ftol": 0.0, "gtol": 1e-9}
    first = np.concatenate([start.weight.ravel(), np.zeros(0) if start.bias is None else start.bias])
    x = minimize(value, first, jac=True, method="L-BFGS-B", options=options).x
    if start.bias is not None and lambda_b == 0:  # the bound below is that of the least value over b
        x[K * d :] = minimize(of_bias, x[K * d :], args=(x[: K * d],), jac=True, method="L-BFGS-B", options=options).x
    best = at(x)
    total, G, g = _cost(best, rows, lambda_b)
    short = float(np.sum(np.sum(G**2, axis=1) / (2 * rows)))
    if g.size and lambda_b > 0:
        short += float(g @ g) / (2 * lambda_b)
    lost = tuple(int(k) for k in np.flatnonzero(best.accuracies == 0))
    return Solved(name, total, short / total, best.accuracies, lost)
