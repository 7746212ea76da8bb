"""The deep feature model by descent on its factors: free features, decayed layers with biases, ReLUs between them.

The column form gives every class a direction of its own. From three layers on that need not be the cheapest way to
keep classes apart: with ReLUs between the layers fewer directions do. There is no certificate here; the lowest of
many descents is an upper bound of the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.optimize import minimize

from collapsar.core.types import Vector
from collapsar_studies.against_theory import lost

WIDER = 2  # units in each layer beyond the number of classes; more change nothing
STEPS = 1500


@dataclass(frozen=True)
class DescentProblem:
    """k_a classes of n_a images and k_b of n_b; L layers above free features h >= 0 that cost decay / N.

    Attributes:
        layers: L >= 1 decayed layers with decayed biases, the head included.
        decay: wd > 0.
    """

    k_a: int
    k_b: int
    n_a: int
    n_b: int
    layers: int
    decay: float

    @cached_property
    def counts(self) -> Vector:
        """n, shape (K,)."""
        return np.repeat([float(self.n_a), float(self.n_b)], [self.k_a, self.k_b])

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Of H, then weight and bias of every layer."""
        K = self.k_a + self.k_b
        d = K + WIDER
        return [(d, K), *[(d, d), (d, 1)] * (self.layers - 1), (K, d), (K, 1)]

    def factors(self, x: Vector) -> list[Vector]:
        """The matrices of ``shapes`` in a vector."""
        ends = np.cumsum([a * b for a, b in self.shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(x, ends[:-1]), self.shapes, strict=True)]


@dataclass(frozen=True)
class DescentPoint:
    """Where a descent ended.

    Attributes:
        x: All factors.
        value: The objective, nats.
        Z: Shape (K, K), [logit, class], the head's bias not included.
        b: Shape (K,).
    """

    x: Vector
    value: float
    Z: Vector
    b: Vector


def _objective(x: Vector, problem: DescentProblem) -> tuple[float, Vector]:
    """Loss and decay, and the gradient by back-propagation."""
    n, decay, parts = problem.counts, problem.decay, problem.factors(x)
    share, K = n / n.sum(), len(n)
    (H, *_), (W, b) = parts, parts[-2:]
    inputs = [H]
    for weight, bias in zip(parts[1:-2:2], parts[2:-2:2], strict=True):
        inputs.append(np.maximum(weight @ inputs[-1] + bias, 0))
    u = W @ inputs[-1] + b
    u = u - u.max(axis=0)
    mass = np.exp(u)
    loss = float(share @ (np.log(mass.sum(axis=0)) - np.diag(u)))
    value = loss + decay / 2 * (float(share @ np.sum(H**2, axis=0)) + sum(float(np.sum(p**2)) for p in parts[1:]))
    back = (mass / mass.sum(axis=0) - np.eye(K)) * share
    gradient = [back @ inputs[-1].T + decay * W, back.sum(axis=1, keepdims=True) + decay * b]
    back = W.T @ back
    for i in range(problem.layers - 2, -1, -1):
        weight, bias = parts[1 + 2 * i], parts[2 + 2 * i]
        back = back * (inputs[i + 1] > 0)
        gradient = [back @ inputs[i].T + decay * weight, back.sum(axis=1, keepdims=True) + decay * bias, *gradient]
        back = weight.T @ back
    gradient = [back + decay * share * H, *gradient]
    return value, np.concatenate([g.ravel() for g in gradient])


def descend(problem: DescentProblem, start: Vector) -> DescentPoint:
    """The local minimum that L-BFGS-B reaches.

    Args:
        problem: The problem.
        start: All factors in one vector; negative features are set to zero.
    """
    d, K = problem.shapes[0]
    bounds = [(0.0, None)] * (d * K) + [(None, None)] * (start.size - d * K)
    inside = np.concatenate([np.maximum(start[: d * K], 0), start[d * K :]])
    options = {"maxiter": STEPS, "maxfun": 2 * STEPS, "ftol": 1e-12, "gtol": 1e-8, "maxcor": 20}
    found = minimize(_objective, inside, (problem,), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    *_, W, b = parts = problem.factors(found.x)
    h = parts[0]
    for weight, bias in zip(parts[1:-2:2], parts[2:-2:2], strict=True):
        h = np.maximum(weight @ h + bias, 0)
    return DescentPoint(found.x, float(found.fun), W @ h, b[:, 0])


def _starts(problem: DescentProblem, count: int, seed: int) -> list[Vector]:
    """Random factors of several sizes."""
    rng = np.random.default_rng(seed)
    spread = np.sqrt(problem.counts.sum() / problem.counts)
    out = []
    for size in np.geomspace(0.7, 2.2, count):
        H, *layers = (rng.standard_normal(shape) for shape in problem.shapes)
        scaled = [size * 0.5 * np.abs(H) * spread]
        scaled += [0.0 * p if p.shape[1] == 1 else 1.5 * size / np.sqrt(p.shape[1]) * p for p in layers]
        out.append(np.concatenate([p.ravel() for p in scaled]))
    return out


def descent_switch(problem: DescentProblem, low: float, high: float, starts: int = 8, seed: int = 0) -> float:
    """The decay from which on most of the minority is collapsed in the lowest point that any descent reaches.

    Args:
        problem: The problem; its decay is not used.
        low: A decay below the switch.
        high: One above it.
        starts: Random starts at every decay tried, besides the best found at the decay before.
        seed: Of the starts.

    Returns:
        To 3%; ``high`` where most of the minority is apart even there.
    """
    fresh, kept = _starts(problem, starts, seed), list[DescentPoint]()
    without = [x * np.concatenate([np.tile(problem.counts == problem.n_a, problem.shapes[0][0]),
                                   np.ones(x.size - np.prod(problem.shapes[0]))]) for x in fresh]  # fmt: skip

    def gone(decay: float) -> bool:
        here = replace(problem, decay=decay)
        found = [descend(here, x) for x in [*fresh, *without, *(point.x for point in kept)]]
        found.sort(key=lambda point: point.value)
        kept[:] = found[:4]
        return 2 * int(lost(found[0].Z, problem.k_a).sum()) > problem.k_b

    if not gone(high):
        return high
    while high / low > 1.03:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if gone(middle) else (middle, high)
    return high
