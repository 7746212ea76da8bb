"""Where columns vanish with nonnegative features: the optimum in column form, followed down from Z = 0 event by event.

The path lambda_z -> optimum is continuous, and class e leaves zero where its residual, which only the bias moves, is as
long as lambda_z. Bias, lambda_z and every column of such an event are the root of one system of equations that is
smooth while the same columns are alive. Newton on all of it at once, from the event before, takes three or four steps
of one pass over the columns each. The optimum is convex, so a root with the right signs is the event, however it was
found; where Newton loses the path, each class is looked for by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.theory.clusters import Clusters, Response, balanced_bias, bias_curvature
from collapsar.theory.column_form import columns, gauge_bounds, gauge_within, without_columns
from collapsar.theory.roots import FLOOR, largest_roots

__all__ = ["Vanishing", "column_thresholds"]

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

# The certificate of H >= 0 counts as closed when the bound of the dual norm exceeds lambda_z by no more than this.
CLOSED = 1e-9
NEWTON_STEPS = 12
# Newton squares its error: after a step this short (nats; relative in lambda_z) the next would be at the last digits.
LAST_STEP = 1e-7
# No prediction changes by more than this factor, in nats, in a step.
LONGEST_STEP = 3.0
OUTER_HOME = 1e-12
# Where Newton does not find the next event, lambda_z is first lowered by this factor, then by its root and so on.
FIRST_PACE = 0.7
SHORTEST_PACE = 0.98
# Columns that have just left zero are first brought home by themselves.
YOUNG = 6
COLUMN_STEPS = 8
COLUMN_HOME = 1e-3
# Signs and lengths are right up to rounding, the lengths of columns that are alive to what the certificate asks.
ROUNDING = 1e-11
SAME = CLOSED / 10


@dataclass(frozen=True)
class Vanishing:
    """Transitions of B problems of J clusters in column form.

    Attributes:
        vanish: shape (B, J); NaN where the column is zero at every lambda_z.
        exact: shape (B, J), whether the certificate of H >= 0 closes there.
        complete: shape (B,), of H >= 0 itself.
        complete_bound: shape (B,), its relaxation.
    """

    vanish: Vector
    exact: Mask
    complete: Vector
    complete_bound: Vector


def column_thresholds(c: Clusters) -> Vanishing:
    """Every transition of B problems of J clusters each, in column form.

    Class k's column is zero iff s ||delta o (y_k - p_k)|| <= lambda_z at the optimum that holds it at zero, p_k the
    softmax of the bias there. complete is the dual norm of the residual at Z = 0, of H >= 0 itself.

    Args:
        c: problems side by side, from :meth:`Clusters.stacked`.
    """
    b, rest = balanced_bias(c, partial(without_columns, c))
    at_rest = c.column_norms(rest.P)
    top = at_rest.max(axis=-1)
    complete, bound = gauge_bounds(c, rest.P)
    in_columns = bound <= top * (1 + 1e-12)  # the column regime: the same number, to the last digit
    complete, bound = np.where(in_columns, top, complete), np.where(in_columns, top, bound)
    vanish = at_rest.copy()
    exact = np.repeat((bound <= top * (1 + CLOSED))[:, None], c.num_clusters, axis=1)
    wanted = at_rest < top[:, None]
    if wanted.any():
        found, closed, lost = _events(c, b, rest.P, top, wanted)
        for i, j in np.argwhere(lost):
            found[i, j], closed[i, j] = _alone(c.taken(int(i)), int(j), float(top[i]), float(at_rest[i, j]))
        vanish, exact = np.where(wanted, found, vanish), np.where(wanted, closed, exact)
    return Vanishing(vanish, exact, complete, bound)


# --- one class by itself


def _alone(c: Clusters, j: int, top: float, at_rest: float) -> tuple[float, bool]:
    """Values of vanish and exact of one cluster of one problem: a root in lambda_z, each look an optimum."""
    dead = np.arange(c.num_clusters) == j
    warm: tuple[Vector, Response] | None = None

    def excess(lambda_z: Vector) -> Vector:
        nonlocal warm
        warm = balanced_bias(c, partial(columns, c, float(lambda_z[0]), dead), warm)
        return c.column_norms(warm[1].P)[j] - lambda_z

    value = largest_roots(excess, np.array([top]), np.array([at_rest]))
    edge = np.where(np.isfinite(value), value, FLOOR * at_rest)
    excess(edge)
    assert warm is not None
    return float(value[0]), bool(gauge_within(c, warm[1].P, edge[0] * (1 + CLOSED)))


# --- all of them along lambda_z


@dataclass(frozen=True)
class _Point:
    """An optimum, or a guess of one. The columns are log P = u(b) + mu tau delta^2 o (y - P) - L."""

    b: Vector
    level: Vector  # lambda_z, (B,)
    logs: Matrix
    L: Vector
    mu: Vector

    def kept(self, other: _Point, where: Mask) -> _Point:
        """This point, and the other one in the problems of the mask."""
        if where.all():
            return other
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return _Point(*(np.where(where.reshape(-1, *(1,) * (mine.ndim - 1)), theirs, mine) for mine, theirs in pairs))


@dataclass(frozen=True)
class _Sheet:
    """Columns by themselves: entries have shape (B, J + 1, columns), numbers per column (B, columns)."""

    multiplicity: Matrix
    target: Matrix
    reach: Matrix  # tau delta, how far a unit of bias moves a logit
    square: Matrix  # delta^2
    offset: Matrix  # iota
    tau: Vector
    strength: Vector

    @classmethod
    def of(cls, c: Clusters) -> _Sheet:
        """The columns of all clusters."""
        reach = c.temperatures[..., None, :] * c.scale
        return cls(
            c.multiplicity, c.target, reach, c.scale**2, c.rows(c.offsets, c.offsets), c.temperatures, c.strength
        )

    def columns(self, which: NDArray[np.intp]) -> _Sheet:
        """Some columns of each problem, (B, some)."""
        return _Sheet(*(_columns(getattr(self, f.name), which) for f in fields(self)))

    def look(self, u: Matrix, logs: Matrix, L: Vector, mu: Vector, level: Vector) -> _Look:
        """Errors of the equations of the columns and their derivatives."""
        P = np.exp(logs)
        miss = self.target - P
        tie = self.square * miss
        push = (mu * self.tau)[..., None, :]
        soft = 1 / (1 + push * self.square * P)
        S = self.multiplicity * P * soft
        left = logs - u - push * tie + L[..., None, :]
        mass = S.sum(axis=-2)
        off = 1 - np.sum(self.multiplicity * P, axis=-2)
        mean_tie, mean_left = np.sum(S * tie, axis=-2) / mass, (np.sum(S * left, axis=-2) + off) / mass
        centred = tie - mean_tie[..., None, :]
        across = S * centred
        bend = np.sum(across * centred, axis=-2)
        norm = np.sqrt(np.sum(self.multiplicity * miss * tie, axis=-2))
        unit = norm / self.strength
        short = unit * (level[..., None] - self.strength * norm) - np.sum(across * left, axis=-2) + off * mean_tie
        return _Look(miss, tie, soft, S, left, across, mass, mean_tie, mean_left, bend, unit, short)


def _columns(array: Vector, which: NDArray[np.intp]) -> Vector:
    if which.shape[-1] == array.shape[-1]:  # all of them, in order
        return array
    rows = np.arange(which.shape[0])[:, None]
    return array[rows, which] if array.ndim == 2 else array[rows, :, which].swapaxes(-1, -2)


@dataclass(frozen=True)
class _Look:
    """What a Newton step needs of the columns: with the logits, p moves by S times du + tau dmu tie - dL - left."""

    miss: Matrix  # y - p
    tie: Matrix  # delta^2 (y - p)
    soft: Matrix
    S: Matrix
    left: Matrix  # what is left of each entry's equation
    across: Matrix  # S (tie - its mean)
    mass: Vector
    mean_tie: Vector
    mean_left: Vector  # and what sum p misses of 1
    bend: Vector
    unit: Vector  # ||delta o (y - p)|| / s
    short: Vector  # how far the column is from its length once the other equations are put right

    def moved(self, sheet: _Sheet, du: Matrix | float, pulled: Vector | float, dmu: Vector) -> tuple[Matrix, Vector]:
        """Changes of log p and of L; ``pulled`` is the sum of S du."""
        dL = pulled / self.mass + sheet.tau * self.mean_tie * dmu - self.mean_left
        change = (sheet.tau * dmu)[..., None, :] * self.tie
        change -= self.left
        change -= dL[..., None, :]
        change += du
        change *= self.soft
        return change, dL


def _step(
    c: Clusters, sheet: _Sheet, at: _Point, alive: Mask, event: NDArray[np.intp], aim: Vector, born: Mask
) -> tuple[_Point, Vector, Vector]:
    """A Newton step of the event at which class ``event`` leaves zero, or of the optimum at ``aim``.

    Per column: sum p = 1, and s ||delta o (y - p)|| = lambda where alive; over all columns: the bias balances, and the
    event's own column, with mu = 0, is as long as lambda. A class just ``born`` has predictions that grow like exp mu,
    which Newton on its length overshoots: a step x of its mu is taken as log(1 + x).

    Returns:
        The point, and the lengths of the step: in all, and in b and lambda_z alone.
    """
    look = sheet.look(sheet.reach * c.rows(at.b, at.b) + sheet.offset, at.logs, at.L, at.mu, at.level)
    spread = np.where(alive, c.temperatures * look.bend, np.inf)
    first, second = _folded(look.S * sheet.reach), _folded(look.across * sheet.reach)
    solved = _solved(c, sheet, at, event, aim, look, spread, first, second)
    db, level = solved[:, None, :-1], solved[:, -1]
    dmu = -(look.short + look.unit * level[:, None] + (db @ second)[:, 0]) / spread
    dmu = np.where(born & (dmu > 0), np.log1p(np.maximum(dmu, 0.0)), dmu)
    change, dL = look.moved(sheet, sheet.reach * c.rows(db[:, 0], db[:, 0]), (db @ first)[:, 0], dmu)
    far = np.abs(change).max(axis=(-2, -1))
    part = np.minimum(1.0, LONGEST_STEP / np.maximum(far, LONGEST_STEP))
    part = np.minimum(part, np.where(level < 0, -0.5 * at.level / np.minimum(level, -1e-300), 1.0))
    wide = part[:, None]
    moved = _Point(
        at.b + wide * db[:, 0],
        at.level + part * level,
        at.logs + wide[..., None] * change,
        at.L + wide * dL,
        at.mu + wide * dmu,
    )
    outer = np.maximum(np.abs(db[:, 0]).max(axis=-1), np.abs(level) / at.level)
    return moved, np.where(part < 1, np.inf, np.maximum(far, outer)), outer


def _folded(entries: Matrix) -> Matrix:
    """Entries that count themselves as often as they occur, with the own class among its siblings."""
    own = np.arange(entries.shape[-1])
    total = entries[..., :-1, :].copy()
    total[..., own, own] += entries[..., -1, :]
    return total


def _pooled(entries: Matrix, weight: Matrix) -> Matrix:
    """``_folded(entries) @ weight`` for one column of weights."""
    return entries[..., :-1, :] @ weight + entries[..., -1:, :].swapaxes(-1, -2) * weight


def _solved(
    c: Clusters,
    sheet: _Sheet,
    at: _Point,
    event: NDArray[np.intp],
    aim: Vector,
    look: _Look,
    spread: Vector,
    first: Matrix,
    second: Matrix,
) -> Matrix:
    """The changes of bias and lambda_z, shape (B, J + 1), once every column has followed them."""
    B, J = np.arange(event.size), c.num_clusters
    weight = (c.sizes * c.share)[..., None]
    pull, hold = weight[..., 0] * c.temperatures, weight[..., 0] * c.temperatures / spread
    left = np.concatenate([first * (weight[..., 0] / look.mass)[..., None, :], second * hold[..., None, :]], axis=-1)
    right = np.concatenate([first, second], axis=-1).swapaxes(-1, -2)
    alone = _pooled(look.S * sheet.reach**2, weight)
    balance = c.scales[..., None] * _pooled(c.multiplicity * look.miss, pull[..., None])
    errors = _pooled(look.S * look.left * sheet.reach, weight) - first @ (weight * look.mean_left[..., None])
    price = np.where(c.bias_price < np.inf, c.bias_price, 0.0)
    system, side = np.empty((B.size, J + 1, J + 1)), np.empty((B.size, J + 1))
    system[:, :J, :J] = bias_curvature(c, alone[..., 0]) - left @ right
    system[:, :J, J] = -(second @ (hold * look.unit)[..., None])[..., 0]
    system[:, J, :J] = second[B, :, event]
    system[:, J, J], side[:, J] = look.unit[B, event], -look.short[B, event]
    halt = aim < np.inf  # on the way to an event that is far off
    system[halt, J] = np.arange(J + 1) == J
    side[halt, J] = (aim - at.level)[halt]
    side[:, :J] = (balance + errors + second @ (hold * look.short)[..., None])[..., 0] - c.sizes * price * at.b
    if np.isinf(c.bias_price).any():
        without = np.isinf(c.bias_price[:, 0])
        system[without, :J] = np.eye(J, J + 1)
        side[without, :J] = 0.0
    lost = ~np.isfinite(system).all(axis=(-2, -1))  # a point far off: its length tells
    system[lost], side[lost] = np.eye(J + 1), np.inf
    size = np.abs(system).max(axis=(-2, -1), keepdims=True)
    try:
        step: Any = np.linalg.solve(system, side[..., None])
    except np.linalg.LinAlgError:
        step = np.linalg.solve(system + 1e-14 * size * np.eye(J + 1), side[..., None])
    return step[..., 0]


def _grown(c: Clusters, sheet: _Sheet, at: _Point, young: NDArray[np.intp], alive: Mask, steps: int) -> _Point:
    """The point with its youngest columns, which bend most, at home for its bias and lambda_z."""
    some = sheet if young.shape == alive.shape else sheet.columns(young)
    arrays: tuple[Any, ...] = at.b, at.logs, at.L, at.mu, alive
    own, logs, L, mu, free = (_columns(array, young) for array in arrays)
    u = some.reach * c.rows(at.b, own) + some.offset
    far = np.zeros(young.shape)
    for _ in range(steps):
        look = some.look(u, logs, L, mu, at.level)
        dmu = np.where(free, -look.short / (some.tau * look.bend), 0.0)
        dmu = np.where(dmu > 0, np.log1p(np.maximum(dmu, 0.0)), dmu)
        change, dL = look.moved(some, 0.0, 0.0, dmu)
        logs, L, mu = logs + change, L + dL, mu + dmu
        far = np.abs(change).max(axis=-2)
        if np.max(far) <= COLUMN_HOME:
            break
    fine = far <= COLUMN_HOME  # the others are left as they were
    rows = np.broadcast_to(np.arange(young.shape[0])[:, None], young.shape)[fine]
    then = _Point(at.b, at.level, at.logs.copy(), at.L.copy(), at.mu.copy())
    then.logs[rows, :, young[fine]], then.L[rows, young[fine]] = logs.swapaxes(-1, -2)[fine], L[fine]
    then.mu[rows, young[fine]] = mu[fine]
    return then


def _events(c: Clusters, b: Vector, P: Matrix, top: Vector, wanted: Mask) -> tuple[Vector, Mask, Mask]:
    """Lambda_z of every wanted event, whether the certificate closes there, and which events were lost."""
    sheet = _Sheet.of(c)
    found, closed = np.full(wanted.shape, np.nan), np.zeros_like(wanted)
    lost, todo, alive = np.zeros_like(wanted), wanted.copy(), ~wanted
    age = np.where(alive, 0, np.iinfo(np.int64).max)  # how many events ago it left zero
    u = sheet.reach * c.rows(b, b) + sheet.offset
    L = u[..., -1, :] - np.log(P[..., -1, :])
    at = _Point(b, top, u - L[..., None, :], L, np.zeros_like(b))
    ahead = c.column_norms(P)
    floor = FLOOR * ahead
    aim, pace = np.full_like(top, np.inf), np.full_like(top, FIRST_PACE)
    event = np.argmax(np.where(todo, ahead, -np.inf), axis=-1)
    active: Any
    while (active := todo.any(axis=-1)).any():
        then, home = _settled(c, sheet, at, alive, event, aim, age, active)
        then = at.kept(then, home)
        Q = np.exp(then.logs)
        norms, edge = c.column_norms(Q), then.level[:, None] * (1 + ROUNDING)
        on = (np.arange(c.num_clusters) == event[:, None]) & np.isinf(aim)[:, None]
        exact = np.abs(norms - then.level[:, None]) <= SAME * then.level[:, None]
        right = home & np.all(exact | ~(alive | on), axis=-1)
        right &= np.all(~alive | (then.mu >= -ROUNDING * then.mu.max(axis=-1, keepdims=True)), axis=-1)
        passed = todo & ~on & (norms > edge)
        late = right & np.isinf(aim) & passed.any(axis=-1)  # another class leaves zero before
        right &= np.all(alive | on | (norms <= edge), axis=-1)
        arrived = right & np.isinf(aim)
        at, ahead = at.kept(then, right), np.where(right[:, None], norms, ahead)
        if arrived.any():
            inside = gauge_within(c, Q, then.level * (1 + CLOSED))
            age[alive] += 1
            for array, value in ((found, then.level), (closed, inside), (alive, True), (age, 0), (todo, False)):
                array[on & arrived[:, None]] = np.broadcast_to(value, top.shape)[arrived]
        # where Newton loses its way, half the way first, and half of that
        pace = np.where(right, np.where(np.isinf(aim), FIRST_PACE, pace), np.where(aim < np.inf, np.sqrt(pace), pace))
        halt = active & ~late & ~right
        aim = np.where(halt, at.level * pace, np.inf)
        gone = active & ((pace > SHORTEST_PACE) | (aim < floor.min(axis=-1)))
        lost |= gone[:, None] & todo
        todo &= ~gone[:, None]
        first = np.where(late[:, None], np.where(passed, norms, -np.inf), np.where(todo, ahead, -np.inf))
        event = np.argmax(first, axis=-1)
    return found, closed, lost


def _settled(
    c: Clusters,
    sheet: _Sheet,
    at: _Point,
    alive: Mask,
    event: NDArray[np.intp],
    aim: Vector,
    age: NDArray[np.int64],
    active: Mask,
) -> tuple[_Point, Mask]:
    """Newton's root from a point, and in which problems it is one."""
    home, before = ~active, np.full(active.shape, np.inf)
    every = np.broadcast_to(np.arange(c.num_clusters), age.shape)
    young = np.argsort(age, axis=-1)[:, :YOUNG] if c.num_clusters > YOUNG else every
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for n in range(NEWTON_STEPS):
            then, length, outer = _step(c, sheet, at, alive, event, aim, age == 0)
            if n == 0:
                then = _grown(c, sheet, then, young, alive, COLUMN_STEPS)
            at = at.kept(then, ~home)
            # the error of b and lambda_z is that of the columns squared, times what it was a step ago
            home = home | (length <= LAST_STEP)
            home |= (n > 1) & (length < 0.03 * before) & (before < 1) & (outer * (length / before) ** 2 <= OUTER_HOME)
            before = length
            if home.all():
                break
        return _grown(c, sheet, at, every, alive, 1), home & active
