"""Newton's method on many small problems at once, each with its own rank, step length and stopping point.

An iteration takes a proximal-gradient step where that changes which parts of Z live, and elsewhere a Newton step on the
living part, along which objective and price are smooth. Problems whose certificate is closed leave the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Array, Mask
from collapsar.solver.batch_model import BatchModel, Softmax, lower_bound
from collapsar.solver.batch_price import Frame, Price, price_of
from collapsar.solver.certificate import GAP_FLOOR
from collapsar.solver.start import asymptotic_logits

Index = NDArray[np.intp]

_NOISE = 1e-15  # relative rounding error of the objective
# Newton decrement of the last step, relative to the objective. A step squares it: after that Z is good to ten digits,
# or to eight where a class stands at its threshold.
_CONVERGED = 1e-14
_LONGEST = 6.0  # change of a logit difference in one step, nats: beyond it a softmax's quadratic model is void
_RIDGE = 1e-14  # relative to a diagonal entry: a smaller pivot is rounding
_PATIENCE = 2  # a converged point whose certificate stays open this often is not an optimum of the whole problem
_STRIDE = 4  # one in this many problems along a line is solved first
_STARTS = (1.0, 0.5, 0.1, 0.0)  # multiples of the asymptotic optimum from which the start is chosen


@dataclass(frozen=True)
class BatchPoint:
    """Points with their bounds.

    Attributes:
        v: shape (J, J, B).
        beta: shape (J - 1, B).
        primal: shape (B,).
        dual: shape (B,).
        num_steps: shape (B,).
    """

    v: Array
    beta: Array
    primal: Array
    dual: Array
    num_steps: NDArray[np.int64]

    @classmethod
    def empty(cls, model: BatchModel) -> BatchPoint:
        """Room for the points of all problems."""
        J, B = model.num_clusters, model.lambda_z.size
        v, beta = np.zeros((J, J, B)), np.zeros((J - 1, B))
        return cls(v, beta, np.full(B, np.inf), np.full(B, -np.inf), np.zeros(B, dtype=np.int64))

    def fill(self, at: Index, found: BatchPoint) -> None:
        """Take over the points of some problems."""
        for f in fields(self):
            getattr(self, f.name)[..., at] = getattr(found, f.name)


@dataclass
class _Work:
    """The problems still being worked on and where they stand: the one thing here that changes in place."""

    model: BatchModel
    price: Price
    v: Array
    beta: Array
    value: Array
    P: Softmax
    stretch: Array
    idle: Mask  # whether the last Newton step led nowhere
    tries: NDArray[np.int64]  # certificates that stayed open
    index: Index

    def take(self, which: Index) -> _Work:
        if which.size == self.index.size:
            return self
        model, P = self.model.take(which), _cut(self.P, which)
        rest = (self.stretch[which], self.idle[which], self.tries[which], self.index[which])
        return _Work(model, self.price, self.v[..., which], self.beta[:, which], self.value[which], P, *rest)

    def move(self, which: Index, v: Array, beta: Array, value: Array, P: Softmax) -> None:
        if which.size == self.value.size:
            self.v, self.beta, self.value, self.P = v, beta, value, P
            return
        for own, new in zip((self.v, self.beta, self.value, *self.P), (v, beta, value, *P), strict=True):
            own[..., which] = new


def minimise_lines(model: BatchModel, line: int, tol: float, max_steps: int) -> BatchPoint:
    """The same as :func:`minimise_batch` for problems along lines, each little different from the next.

    Some are solved first, the others from points interpolated between them: half the iterations of a cold start.

    Args:
        model: the problems.
        line: how many of them make a line; B is a multiple of it.
        tol: as for :func:`minimise_batch`.
        max_steps: as for :func:`minimise_batch`, in each of the two rounds.
    """
    if line < 2 * _STRIDE:
        return minimise_batch(model, tol, max_steps)
    at = np.arange(line)
    known = np.unique([*at[::_STRIDE], line - 1])
    between = np.setdiff1d(at, known)
    after = np.searchsorted(known, between)
    low, high = known[after - 1], known[after]
    lines = np.arange(0, model.lambda_z.size, line)[:, None]
    out = BatchPoint.empty(model)
    some = (lines + known).ravel()
    out.fill(some, minimise_batch(model.take(some), tol, max_steps))
    others, ends = (lines + between).ravel(), [(lines + end).ravel() for end in (low, high)]
    way = np.tile((between - low) / (high - low), lines.size)
    v, beta = ((1 - way) * x[..., ends[0]] + way * x[..., ends[1]] for x in (out.v, out.beta))
    out.fill(others, minimise_batch(model.take(others), tol, max_steps, (v, beta)))
    return out


def minimise_batch(
    model: BatchModel, tol: float, max_steps: int, start: tuple[Array, Array] | None = None
) -> BatchPoint:
    """The best points found for B problems, with lower bounds.

    Args:
        model: the problems.
        tol: relative duality gap at which a problem is left alone.
        max_steps: iterations at most; 5 to 15 are usual.
        start: v of shape (J, J, B) and beta of shape (J - 1, B) to start from; by default a form of the optimum for
            weak penalties.
    """
    work = _start(model) if start is None else _work(model, price_of(model), *start)
    out = BatchPoint.empty(model)
    for step in range(1, max_steps + 1):
        last = step == max_steps
        ready = np.flatnonzero(_iterate(work) | last)
        if not ready.size:
            continue
        some = work.take(ready)
        dual = lower_bound(some.model, some.P)
        closed = (some.value - dual) / np.maximum(np.abs(some.value), GAP_FLOOR) <= tol
        work.tries[ready] += 1
        leave = np.flatnonzero(closed | last | (work.tries[ready] > _PATIENCE))
        at = some.index[leave]
        out.v[..., at], out.beta[:, at] = some.v[..., leave], some.beta[:, leave]
        out.primal[at], out.dual[at], out.num_steps[at] = some.value[leave], dual[leave], step
        stay = np.delete(np.arange(work.index.size), ready[leave])
        if not stay.size:
            break
        if leave.size:
            work = work.take(stay)
    return out


def _cut(P: Softmax, which: Index) -> Softmax:
    return P if which.size == P.loss.size else Softmax(*(part[..., which] for part in P))


def _evaluate(model: BatchModel, price: Price, v: Array, beta: Array) -> tuple[Array, Softmax]:
    P = model.softmax(v, beta)
    return P.loss + model.bias_price(beta) + price.value(model, v), P


def _start(model: BatchModel) -> _Work:
    """The best of a few multiples of the asymptotic form of the optimum."""
    price = price_of(model)
    form = _asymptotic(model)
    beta = np.zeros((model.num_clusters - 1, model.lambda_z.size))
    v = _STARTS[0] * form
    value, P = _evaluate(model, price, v, beta)
    for factor in _STARTS[1:]:
        other_value, other_P = _evaluate(model, price, factor * form, beta)
        better = other_value < value
        v, value = np.where(better, factor * form, v), np.where(better, other_value, value)
        P = Softmax(*(np.where(better, new, old) for new, old in zip(other_P, P, strict=True)))
    return _work(model, price, v, beta, value, P)


def _work(
    model: BatchModel, price: Price, v: Array, beta: Array, value: Array | None = None, P: Softmax | None = None
) -> _Work:
    """All problems at the beginning."""
    if value is None or P is None:
        value, P = _evaluate(model, price, v, beta)
    B = value.size
    return _Work(
        model, price, v, beta, value, P, np.ones(B), np.zeros(B, dtype=bool), np.zeros(B, dtype=np.int64), np.arange(B)
    )


def _asymptotic(model: BatchModel) -> Array:
    """The optimum for weak penalties, in the coordinates of the batch."""
    k, root, on = model.sizes, np.sqrt(model.sizes), np.arange(model.num_clusters)
    root_mass = model.root / root
    price = model.lambda_z * root_mass * k / (model.tau * model.share)
    alpha, C = asymptotic_logits(k, root_mass, price, model.delta, model.tau, model.shift, model.smooth)
    C[on, on] = -alpha * (1 - 1 / k)  # the own logit is 0 up to the shift along 1/delta, which the basis removes
    v = np.empty_like(C)
    v[:-1] = np.einsum("icb,ijb->cjb", model.basis, root[:, None] * model.root * C)
    v[-1] = alpha * root_mass * np.sqrt(np.maximum(k - 1, 0.0))
    return v


def _iterate(work: _Work) -> Mask:
    """One step of every problem; says which have converged."""
    model, J = work.model, work.model.num_clusters
    slope_v, slope_beta = model.gradient(work.P, work.beta)
    H = model.hessian(work.P)
    stepped = _proximal_step(work, slope_v, slope_beta, H)
    rest = np.flatnonzero(~stepped)
    done = np.zeros_like(stepped)
    if rest.size:
        part = work.take(rest)
        slope = np.concatenate([slope_v.reshape(J * J, -1), slope_beta])
        if part is work:
            return _newton_step(work, work.price.frame(work.model, work.v, slope, H))
        frame = part.price.frame(part.model, part.v, slope[:, rest], H[..., rest])
        done[rest] = _newton_step(part, frame)
        work.move(rest, part.v, part.beta, part.value, part.P)
        work.idle[rest] = part.idle
    return done


def _proximal_step(work: _Work, slope_v: Array, slope_beta: Array, H: Array) -> Mask:
    """A step for problems in which it changes what lives or Newton's method is stuck; says where it helped."""
    J = work.model.num_clusters
    n = np.arange(J * J + J - 1)
    bend = H[n, n] / work.stretch
    reach = np.abs(work.model.slope).max(axis=0).swapaxes(0, 1) / (_LONGEST * work.model.root)
    np.maximum(bend[: J * J], (np.abs(slope_v) * reach).reshape(J * J, -1), out=bend[: J * J])
    trial, changed = work.price.proximal(work.model, work.v, slope_v, bend[: J * J])
    which = np.flatnonzero(changed | work.idle)
    stepped = np.zeros_like(changed)
    if which.size:
        steepest = np.sum(bend[J * J :], axis=0)
        beta = work.beta - np.where(work.idle, slope_beta / np.where(steepest > 0, steepest, 1.0), 0.0)
        v, beta = trial[..., which], beta[:, which]
        value, P = _evaluate(work.model.take(which), work.price, v, beta)
        before, noise = work.value[which], _NOISE * np.maximum(np.abs(work.value[which]), GAP_FLOOR)
        good = value <= before + noise
        work.move(which[good], v[..., good], beta[:, good], value[good], _cut(P, np.flatnonzero(good)))
        work.stretch[which] = np.where(good, np.minimum(4 * work.stretch[which], 1.0), work.stretch[which] / 8)
        stepped[which] = value < before - noise  # changes lost in rounding do not keep a problem from ending
        work.idle[which] = False
    return stepped


def _newton_step(work: _Work, frame: Frame) -> Mask:
    """A damped Newton step on the living part; says where the decrement is negligible."""
    J, model = work.model.num_clusters, work.model
    biased = np.broadcast_to(model.biased, (J - 1, model.biased.size))
    alive = np.concatenate([frame.alive, biased])
    H = frame.hessian
    for i, lives in enumerate(alive):
        dead = np.flatnonzero(~lives)
        if dead.size:
            H[i, :, dead] = H[:, i, dead] = 0.0
            H[i, i, dead] = 1.0
    gradient = np.where(alive, frame.gradient, 0.0)
    local = _cholesky_solve(H, -gradient)
    fall = -np.sum(gradient * local, axis=0)
    step = frame.unrotated(local)
    d_v, d_beta = step[: J * J].reshape(J, J, -1), step[J * J :]
    scale = np.maximum(np.abs(work.value), GAP_FLOOR)
    done = fall <= _CONVERGED * scale
    zeta = d_v / model.root
    zeta[:-1] += d_beta[:, None]
    longest = np.abs(np.einsum("ijcb,cjb->ijb", model.slope, zeta)).max(axis=(0, 1))
    # where only two classes live and the bias is free, bias and columns can move far without moving a logit
    longest = np.maximum(longest, np.abs(np.einsum("ijcb,cb->ijb", model.slope[:, :, :-1], d_beta)).max(axis=(0, 1)))
    length = np.minimum(1.0, _LONGEST / np.maximum(longest, 1e-300))
    left = np.arange(length.size)
    while left.size:
        some = work.take(left)
        v = work.price.retract(some.v, length[left] * d_v[..., left])
        beta = some.beta + length[left] * d_beta[:, left]
        value, P = _evaluate(some.model, work.price, v, beta)
        good = value <= some.value - 1e-4 * length[left] * fall[left] + _NOISE * scale[left]
        at = left[good]
        work.move(at, v[..., good], beta[:, good], value[good], _cut(P, np.flatnonzero(good)))
        left = left[~good]
        length[left] *= 0.3
        work.idle[left[length[left] <= 1e-8]] = True
        left = left[length[left] > 1e-8]
    return done | (work.idle & (fall <= 1e-12 * scale))


def _cholesky_solve(H: Array, right: Array) -> Array:
    """Solutions of H x = right for symmetric positive definite (n, n, B), with a ridge where H is singular.

    H becomes its Cholesky factor.
    """
    L, n = H, H.shape[0]
    least = 1e-30 * np.trace(H) + np.finfo(np.float64).tiny
    for j in range(n):
        floor = np.maximum(_RIDGE * H[j, j], least)
        if j:
            L[j:, j] -= np.einsum("ikb,kb->ib", L[j:, :j], L[j, :j])
        pivot = np.sqrt(np.maximum(L[j, j], floor))
        L[j:, j] /= pivot
        L[j, j] = pivot
    x = right.copy()
    for j in range(n):
        if j:
            x[j] -= np.sum(L[j, :j] * x[:j], axis=0)
        x[j] /= L[j, j]
    for j in reversed(range(n)):
        if j < n - 1:
            x[j] -= np.sum(L[j + 1 :, j] * x[j + 1 :], axis=0)
        x[j] /= L[j, j]
    return x
