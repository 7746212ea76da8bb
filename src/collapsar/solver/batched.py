"""Tens of thousands of problems of two or three clusters at once, each with its own certificate, status and states.

A phase diagram asks for the optimum at every cell of a grid. One at a time, that is mostly overhead from many small
array operations; here the problems lie side by side on one axis, and a Newton step for them all is one pass over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.clusters import PER_CLUSTER
from collapsar.core.loss import Loss
from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.states import CLASS_STATES, past
from collapsar.core.threads import one_thread_below
from collapsar.core.types import Array
from collapsar.solver.batch_model import BatchModel
from collapsar.solver.batch_newton import minimise_lines
from collapsar.solver.certificate import GAP_FLOOR
from collapsar.solver.solution import Solution
from collapsar.solver.solve import checked_settings, solve_near
from collapsar.solver.status import Status
from collapsar.solver.symmetry import Blocks, Quotient, quotient

_CHUNK_NUMBERS = 240_000  # entries of the Hessians worked on at once: they should stay in the cache


@dataclass(frozen=True, eq=False)
class ProblemBatch:
    """B problems of J clusters each; vectors per cluster have shape (B, J), per problem (B,).

    Attributes:
        sizes: k, classes per cluster.
        share: q, loss share of one class; sum_j k_j q_j = 1.
        mass: m, feature mass of one class.
        scales: delta.
        temperatures: tau.
        offsets: iota.
        smoothing: eps.
        lambda_z: price of Z.
        lambda_b: penalty of the bias; inf: no bias, 0: free bias.
        features: the feature model, the same for all.
    """

    sizes: Array
    share: Array
    mass: Array
    scales: Array
    temperatures: Array
    offsets: Array
    smoothing: Array
    lambda_z: Array
    lambda_b: Array
    features: FeatureModel

    def __post_init__(self) -> None:
        if self.features not in get_args(FeatureModel):
            raise ValueError(f'`features` must be "signed" or "nonnegative", got {self.features!r}')
        shape = np.shape(self.sizes)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"`sizes` must have shape (problems, clusters), neither of them 0, got {shape}")
        for name, (rule, good) in _RULES.items():
            value, wanted = getattr(self, name), shape[:1] if name in _PER_PROBLEM else shape
            if value.shape != wanted:
                raise ValueError(f"`{name}` must have shape {wanted} to go with `sizes`, got {value.shape}")
            _check(name, value, rule, good(value))
        classes, loss = self.sizes.sum(axis=1), np.sum(self.sizes * self.share, axis=1)
        _check("sizes", classes, "two classes or more in all", classes >= 2)
        _check("share", loss, "such that sum_j k_j q_j = 1", np.abs(loss - 1) <= 1e-9)

    @classmethod
    def plain(
        cls,
        sizes: ArrayLike,
        counts: ArrayLike,
        lambda_z: ArrayLike,
        lambda_b: ArrayLike = np.inf,
        features: FeatureModel = "signed",
    ) -> Self:
        """Plain training: loss share n / N, feature mass n.

        Args:
            sizes: k, shape (B, J) or (J,).
            counts: n, samples per class of each cluster, (B, J) or (J,); need not be whole, as only ratios enter.
            lambda_z: shape (B,) or a number.
            lambda_b: shape (B,) or a number.
            features: the feature model.

        Raises:
            ValueError: an argument is out of range or the shapes do not fit together.

        Example:
            >>> ProblemBatch.plain([5, 5], [500, 100], lambda_z=[0.003, 0.0036], lambda_b=0.02).num_problems
            2
        """
        try:
            k, n = (np.atleast_2d(np.asarray(value, dtype=np.float64)) for value in (sizes, counts))
            z, b = (np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in (lambda_z, lambda_b))
            shape = np.broadcast_shapes(k.shape, n.shape, (*z.shape, 1), (*b.shape, 1))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`sizes`, `counts`, `lambda_z` and `lambda_b` must be numbers that fit: {error}"
            ) from None
        k, n = np.broadcast_to(k, shape), np.broadcast_to(n, shape)
        _check("counts", n, _POSITIVE[0], _POSITIVE[1](n))
        one, per_problem = np.ones(shape), shape[:1]
        share = n / np.sum(k * n, axis=1, keepdims=True)
        scalars = (np.zeros(per_problem), np.broadcast_to(z, per_problem), np.broadcast_to(b, per_problem))
        return cls(k, share, n, one, one, np.zeros(shape), *scalars, features)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Self:
        """The problems of a list, all of one feature model and one number of clusters.

        Raises:
            ValueError: the list is empty, the problems are not alike, or their features are normalised.

        Example:
            >>> ProblemBatch.of([Problem("500x5,100x5", 0.003), Problem("50x2,20", 0.01)]).sizes.tolist()
            [[5.0, 5.0], [2.0, 1.0]]
        """
        if not len(problems):
            raise ValueError("`problems` must hold at least one problem")
        if any(problem.normalization is not None for problem in problems):
            raise ValueError("`problems` must have a feature penalty: solve normalised features one by one with solve")
        qs = [quotient(problem) for problem in problems]
        for what, values in (
            ("feature model", {q.features for q in qs}),
            ("number of clusters", {q.num_clusters for q in qs}),
        ):
            if len(values) > 1:
                raise ValueError(f"`problems` must share one {what}, got {sorted(values)}; solve them in groups")
        return cls(**{name: np.array([getattr(q, name) for q in qs]) for name in _RULES}, features=qs[0].features)

    @property
    def num_problems(self) -> int:
        """B."""
        return self.sizes.shape[0]

    def quotient(self, i: int) -> Quotient:
        """Problem i in the form of the other algorithms; its classes are in the order of the clusters."""
        labels = np.repeat(np.arange(self.sizes.shape[1]), self.sizes[i].astype(np.intp))
        return Quotient(
            labels,
            *(getattr(self, name)[i] for name in PER_CLUSTER),
            smoothing=float(self.smoothing[i]),
            lambda_z=float(self.lambda_z[i]),
            lambda_b=float(self.lambda_b[i]),
            features=self.features,
        )

    def problem(self, i: int) -> Problem:
        """Problem i as a value: one sample per class, whose loss weight and feature mass carry the counts."""
        q = self.quotient(i)
        share, mass, offsets, scales, temperatures = (
            v[q.labels] for v in (q.share, q.mass, q.offsets, q.scales, q.temperatures)
        )
        loss = Loss(share, offsets, scales, temperatures, q.smoothing)
        return Problem(np.ones(q.num_classes, dtype=np.int64), q.lambda_z, q.lambda_b, loss, mass, q.features)


_Rule = tuple[str, Callable[[Array], NDArray[np.bool_]]]
_POSITIVE: _Rule = ("finite and > 0", lambda x: (x > 0) & (x < np.inf))
_RULES: dict[str, _Rule] = {
    "sizes": ("whole numbers >= 1", lambda x: (x >= 1) & (x == np.floor(x)) & (x < np.inf)),
    "share": _POSITIVE,
    "mass": _POSITIVE,
    "scales": _POSITIVE,
    "temperatures": _POSITIVE,
    "offsets": ("finite", np.isfinite),
    "smoothing": ("in [0, 1)", lambda x: (x >= 0) & (x < 1)),
    "lambda_z": _POSITIVE,
    "lambda_b": (">= 0 (inf: no bias, 0: free bias)", lambda x: x >= 0),
}
_PER_PROBLEM = ("smoothing", "lambda_z", "lambda_b")


def _check(name: str, value: Array, rule: str, good: NDArray[np.bool_]) -> None:
    if not good.all():
        at = np.unravel_index(int(np.argmin(good)), good.shape)
        raise ValueError(f"`{name}` must be {rule}, got {value[at]:g} for problem {at[0]}")


@dataclass(frozen=True, eq=False)
class BatchResult:
    """Certified points of B problems of J clusters.

    Attributes:
        batch: what was solved.
        alpha: shape (B, J), within-cluster contrasts; 0 for single classes.
        C: shape (B, J, J), block means of Z, [logit cluster, class cluster].
        b: shape (B, J), bias per cluster.
        primal: shape (B,), objective at the point, nats.
        dual: shape (B,), lower bound of the optimum, nats.
        status: shape (B,), a :class:`Status` per problem.
        num_steps: shape (B,).
        solutions: by problem, what :func:`solve` returned where the batch did not close the gap, with its proof.
        states: shape (B, J), "separated", "merged" or "vanished" as in :attr:`Solution.class_states`.
    """

    batch: ProblemBatch
    alpha: Array
    C: Array
    b: Array
    primal: Array
    dual: Array
    status: NDArray[np.object_]
    num_steps: NDArray[np.int64]
    solutions: dict[int, Solution]
    states: NDArray[np.str_]

    @property
    def one_by_one(self) -> NDArray[np.bool_]:
        """Shape (B,): the batch did not close this problem's gap, and :func:`solve` took over."""
        return np.isin(np.arange(self.batch.num_problems), list(self.solutions))

    @property
    def gap(self) -> Array:
        """Each point is at most this much above its optimum, nats. Never below 0."""
        return np.maximum(self.primal - self.dual, 0.0)

    @property
    def relative_gap(self) -> Array:
        """What ``tol`` bounds: gap / max(|primal|, 2e-3)."""
        return self.gap / np.maximum(np.abs(self.primal), GAP_FLOOR)

    def blocks(self, i: int) -> Blocks:
        """The point of problem i; with ``batch.quotient(i)`` anybody can certify it again."""
        return Blocks(self.alpha[i], self.C[i], self.b[i])


def solve_batch(
    problems: ProblemBatch | Sequence[Problem],
    tol: float = 1e-9,
    *,
    max_steps: int = 60,
    line: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> BatchResult:
    """The optima of many problems of one small number of clusters, each with a certificate; none of them raises.

    Problems whose gap the batch does not close are solved one by one with :func:`collapsar.solve`; the result says
    which. With nonnegative features these are above all the ones whose classes share a direction.

    Args:
        problems: a batch, or a list of problems of one feature model and one number of clusters. Meant for one to
            four clusters: the work per problem grows like J^6.
        tol: bound on each duality gap relative to max(|primal|, 2e-3).
        max_steps: Newton steps at most in the batch.
        line: this many problems in a row differ little from one to the next, as along an axis of a grid, and are
            solved faster together. B is a multiple of it.
        progress: called with (problems done, problems in all); may raise to interrupt.

    Returns:
        Points, certificates, states and statuses.

    Raises:
        ValueError: an argument is out of range, or the problems are not alike.

    Example:
        >>> r = solve_batch(ProblemBatch.plain([5, 5], [500, 100], [0.003, 0.0036, 0.0045, 0.008], lambda_b=0.02))
        >>> r.states[:, 1].tolist(), bool((r.relative_gap <= 1e-9).all())
        (['separated', 'merged', 'vanished', 'vanished'], True)
    """
    checked_settings(tol, max_steps, None, throw=False)
    batch = problems if isinstance(problems, ProblemBatch) else ProblemBatch.of(problems)
    B, J = batch.sizes.shape
    if line < 1 or B % line:
        raise ValueError(f"`line` must be >= 1 and divide the {B} problems, got {line!r}")
    result = BatchResult(
        batch,
        *(np.empty(shape) for shape in ((B, J), (B, J, J), (B, J), (B,), (B,))),
        status=np.full(B, Status.OPTIMAL, dtype=object),
        num_steps=np.zeros(B, dtype=np.int64),
        solutions={},
        states=np.full((B, J), CLASS_STATES[0]),
    )
    near: Solution | None = None
    size = max(64, _CHUNK_NUMBERS // (J * J + J - 1) ** 2)
    parts = max(1, round(B / max(size, line)))  # all of one size: a short one costs almost as much as a long one
    size = -(-B // line // parts) * line
    for first in range(0, B, size):
        part = slice(first, min(first + size, B))
        with one_thread_below(J):
            _solve_part(result, part, line, tol, max_steps)
        for i in np.flatnonzero(~(result.relative_gap[part] <= tol)) + first:
            near = _solve_one(result, int(i), tol, near)
        if progress is not None:
            progress(part.stop, B)
    return result


def _solve_part(result: BatchResult, part: slice, line: int, tol: float, max_steps: int) -> None:
    """Fill in a slice of the result."""
    model = _model(result.batch, part)
    point = minimise_lines(model, line, tol, max_steps)
    k, v, J = model.sizes, point.v, model.num_clusters
    several = k > 1
    alpha = np.where(several, v[-1] / (model.root * np.sqrt(np.maximum(1 - 1 / k, 0.5))), 0.0)
    S = np.einsum("icb,cjb->ijb", model.basis, v[:-1])
    root_k = np.sqrt(k)
    result.alpha[part] = alpha.T
    result.C[part] = np.moveaxis(S / (root_k[:, None] * model.root), -1, 0)
    result.b[part] = (np.einsum("icb,cb->ib", model.basis, point.beta) / root_k).T
    result.primal[part], result.dual[part], result.num_steps[part] = point.primal, point.dual, point.num_steps
    merge = model.tau * model.delta * (1 - result.batch.smoothing[part]) * model.share / k / (model.root / root_k)
    apart = several & (~past(model.lambda_z, merge) if model.features == "signed" else alpha > 0)
    alive = np.any(v[:-1] != 0, axis=0) if J > 1 else np.zeros_like(apart)
    states = np.where(apart | (~several & alive), 0, np.where(alive, 1, 2))
    result.states[part] = np.array(CLASS_STATES)[states].T


def _solve_one(result: BatchResult, i: int, tol: float, near: Solution | None) -> Solution:
    """Problem i by the general solver, started from the previous one; kept if its gap is the smaller one."""
    solution = solve_near(result.batch.problem(i), near, tol)
    result.solutions[i] = solution
    if not solution.certificate.gap < result.gap[i]:
        result.status[i] = solution.status
        return solution
    blocks = _onto_clusters(solution, result.batch.quotient(i))
    result.alpha[i], result.C[i], result.b[i] = blocks.alpha, blocks.C, blocks.b
    result.primal[i], result.dual[i] = solution.certificate.primal, solution.certificate.dual
    result.status[i], result.num_steps[i] = solution.status, solution.num_steps
    firsts = np.searchsorted(result.batch.quotient(i).labels, np.arange(result.alpha.shape[1]))
    result.states[i] = [solution.class_states[k] for k in firsts]
    return solution


def _onto_clusters(solution: Solution, q: Quotient) -> Blocks:
    """A solution, whose clusters may be unions of those of q, per cluster of q."""
    theirs = solution.quotient.labels[np.searchsorted(q.labels, np.arange(q.num_clusters))]
    contrast = np.where(solution.quotient.sizes > 1, solution.blocks.alpha, 0.0)
    other = solution.blocks.C - np.diag(contrast / solution.quotient.sizes)
    alpha = contrast[theirs]
    C = other[np.ix_(theirs, theirs)] + np.diag(alpha / q.sizes)
    return Blocks(np.where(q.sizes > 1, alpha, 0.0), C, solution.blocks.b[theirs])


def _model(batch: ProblemBatch, part: slice) -> BatchModel:
    """A slice of the batch with the problems on the last axis, in the coordinates of the algorithm."""
    k, share, mass, delta, tau, iota = (np.ascontiguousarray(getattr(batch, n)[part].T) for n in PER_CLUSTER)
    J, B = k.shape
    basis = _complement(np.sqrt(k) / delta)
    on = np.eye(J)[:, :, None]
    rows = (delta / np.sqrt(k))[:, None] * basis  # scaled logit of a unit of zeta, per cluster
    slope = np.empty((J, J, J, B))
    slope[:, :, : J - 1] = rows[:, None] - rows
    several = np.where(k > 1, 1.0, 0.0)
    contrast = several * delta / np.sqrt(np.maximum(1 - 1 / k, 0.5))
    slope[:, :, J - 1] = -contrast * (1 - 1 / k + on / k)
    slope *= tau[:, None]
    lambda_b = batch.lambda_b[part]
    return BatchModel(
        sizes=k,
        others=k[:, None] - on,
        basis=basis,
        slope=slope,
        shift=iota[:, None] - iota,
        share=k * share,
        root=np.sqrt(k * mass),
        delta=delta,
        tau=tau,
        smooth=batch.smoothing[part] / k.sum(axis=0),
        lambda_z=np.ascontiguousarray(batch.lambda_z[part]),
        lambda_b=np.where(lambda_b == np.inf, 0.0, lambda_b),
        biased=lambda_b < np.inf,
        features=batch.features,
    )


def _complement(normal: Array) -> Array:
    """Orthonormal vectors orthogonal to one with positive entries, (J, B) to (J, J - 1, B).

    A Householder reflection without its last column.
    """
    J = normal.shape[0]
    w = normal / np.sqrt(np.sum(normal**2, axis=0))  # positive entries: no cancellation below
    w[-1] += 1.0
    return np.eye(J)[:, : J - 1, None] - w[:, None] * w[: J - 1] / w[-1]
