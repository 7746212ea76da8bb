"""Newton's method on bias, lambda_z and every column at once, for :mod:`.column_path`.

The columns are eliminated one by one, which leaves J + 1 equations: the balance of the bias, and the length of the
column that leaves zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Mask, Matrix, Vector
from collapsar.theory.clusters import Clusters, bias_curvature

NEWTON_STEPS = 12
# Newton's method squares its error: after a step this short (nats; relative in lambda_z) no digit is left to gain.
LAST_STEP = 1e-7
# The error of a column is the square of its step.
ROUGH = 1e-6
# No prediction changes by more than this factor, in nats, in a step.
LONGEST_STEP = 3.0
OUTER_HOME = 1e-12
# Columns that have just left zero are first brought to convergence by themselves.
YOUNG = 6
COLUMN_STEPS = 8
COLUMN_HOME = 3e-2


class Point(NamedTuple):
    """An optimum, or a guess at one. The columns are log P = u(b) + mu tau delta^2 o (y - P) - L."""

    b: Vector
    level: Vector  # lambda_z, (B,)
    logs: Matrix
    L: Vector
    mu: Vector

    def ordered(self, turn: NDArray[np.intp]) -> Point:
        """The point with the classes in another order, which keeps the classes whose columns are here first."""
        logs, L, mu = self.logs, self.L, self.mu
        if mu.shape == turn.shape:
            L, mu = np.take_along_axis(L, turn, axis=-1), np.take_along_axis(mu, turn, axis=-1)
            logs = np.take_along_axis(logs, turn[..., None], axis=1)
        every = np.concatenate([turn, np.full_like(turn[:, :1], turn.shape[1])], axis=1)
        logs = np.take_along_axis(logs, every[:, None], axis=-1)
        return Point(np.take_along_axis(self.b, turn, axis=-1), self.level, logs, L, mu)

    def taken(self, which: Mask) -> Point:
        """The point of some of the problems."""
        return Point(*(array[which] for array in self))

    def kept(self, other: Point, where: Mask) -> Point:
        """This point, replaced by the other one in the problems of the mask."""
        if where.all():
            return other
        pairs = zip(self, other, strict=True)
        return Point(*(np.where(where.reshape(-1, *(1,) * (mine.ndim - 1)), theirs, mine) for mine, theirs in pairs))


class Sheet(NamedTuple):
    """Columns by themselves, n of each problem: entries have shape (B, n, J + 1), numbers per column (B, n).

    While a class has no feature of its own, only the bias moves its prediction. If all temperatures are equal, that
    prediction is the same for all such classes: one column, with all their loss shares, stands for them.
    """

    multiplicity: Matrix
    target: Matrix
    reach: Matrix  # tau delta, how far a unit of bias moves a logit
    square: Matrix  # delta^2
    offset: Matrix  # iota
    tau: Vector
    strength: Vector
    share: Vector  # of the loss

    @classmethod
    def of(cls, c: Clusters) -> Sheet:
        """The columns of all clusters."""
        reach, offset = c.temperatures[..., None, :] * c.scale, c.rows(c.offsets, c.offsets)
        entries = (c.multiplicity, c.target, reach, c.scale**2, offset)
        weights, target, reach, square, offset = (np.ascontiguousarray(each.swapaxes(-1, -2)) for each in entries)
        return cls(weights, target, reach, square, offset, c.temperatures, c.strength, c.sizes * c.share)

    def part(self, which: slice, share: Vector | None = None) -> Sheet:
        """Some of the columns, with shares of their own."""
        part = Sheet._make(array[:, which] for array in self)
        return part if share is None else part._replace(share=share)

    def logits(self, b: Vector, which: slice) -> Matrix:
        """The logits that the bias gives to the columns, which are number ``which`` among all."""
        return self.reach * _spread(b, which) + self.offset

    def look(self, u: Matrix, at: Point) -> _Look:
        """Errors of the equations of the columns and their derivatives."""
        P = np.exp(at.logs)
        miss = self.target - P
        tie = self.square * miss
        push = (at.mu * self.tau)[..., None]
        held = self.multiplicity * P
        soft = push * self.square
        soft *= P
        soft += 1
        np.reciprocal(soft, out=soft)
        S = held * soft
        left = push * tie
        left += u
        np.subtract(at.logs, left, out=left)
        left += at.L[..., None]
        mass = S.sum(axis=-1)
        off = 1 - held.sum(axis=-1)
        mean_tie, mean_left = np.vecdot(S, tie) / mass, (np.vecdot(S, left) + off) / mass
        centred = tie - mean_tie[..., None]
        across = S * centred
        norm = np.sqrt(np.vecdot(self.multiplicity * miss, tie))
        unit = norm / self.strength
        short = unit * (at.level[:, None] - self.strength * norm) - np.vecdot(across, left) + off * mean_tie
        return _Look(
            miss, tie, soft, S, left, across, mass, mean_tie, mean_left, np.vecdot(across, centred), unit, short
        )


def _spread(logit: Vector, which: slice) -> Matrix:
    """Columns from one number per logit's cluster, (B, n, J + 1)."""
    own = logit[:, which]
    entries = np.empty((*own.shape, logit.shape[1] + 1))
    entries[..., :-1] = logit[:, None]
    entries[..., -1] = own
    return entries


class _Look(NamedTuple):
    """What a Newton step needs from the columns: p changes by S times du + tau dmu tie - dL - left."""

    miss: Matrix  # y - p
    tie: Matrix  # delta^2 (y - p)
    soft: Matrix
    S: Matrix
    left: Matrix  # the error of each entry's equation
    across: Matrix  # S (tie - its mean)
    mass: Vector
    mean_tie: Vector
    mean_left: Vector  # its mean, and how far sum p is from 1
    bend: Vector
    unit: Vector  # ||delta o (y - p)|| / s
    short: Vector  # how far the column is from its length once the other equations are put right

    def moved(self, tau: Vector, du: Matrix | float, pulled: Vector | float, dmu: Vector) -> tuple[Matrix, Vector]:
        """Changes of log p and of L; ``pulled`` is the sum of S du."""
        dL = pulled / self.mass + tau * self.mean_tie * dmu - self.mean_left
        change = (tau * dmu)[..., None] * self.tie
        change -= self.left
        change -= dL[..., None]
        change += du
        change *= self.soft
        return change, dL


class Cast(NamedTuple):
    """The columns that take part in an event: the nonzero ones, oldest first, and that of the class that leaves zero.

    Attributes:
        alive: shape (B, n).
        born: shape (B, n), alive since the event before.
        event: shape (B,), the number of the class that leaves zero.
        sheet: the columns. If all temperatures are equal, the event's column has the loss share of every dead class.
        beside: shape (B, J), what the targets of those classes add to the pull on the bias.
        young: number of the first column that has just left zero.
    """

    alive: Mask
    born: Mask
    event: NDArray[np.intp]
    sheet: Sheet
    beside: Vector
    young: int

    @classmethod
    def of(cls, c: Clusters, sheet: Sheet, alive: Mask, born: Mask, active: Mask) -> Cast:
        """All columns that take part; the first classes are alive, the next one leaves zero."""
        event = np.minimum(alive.sum(axis=-1), c.num_clusters - 1)
        most, least = int(event[active].max()) + 1, int(event[active].min())
        if not c.one_temperature:
            return cls(alive, born, event, sheet, np.zeros_like(c.sizes), max(least - YOUNG, 0))
        rows, share = np.arange(event.size), np.where(alive, sheet.share, 0.0)
        dead = sheet.share - share
        total = dead.sum(axis=-1)
        share[rows, event] += total
        dead[rows, event] -= total
        beside = c.scales * c.temperatures * (1 - c.eps) * dead
        part, young = slice(most), max(least - YOUNG, 0)
        event = np.minimum(event, most - 1)
        return cls(alive[:, part], born[:, part], event, sheet.part(part, share[:, part]), beside, young)

    def taken(self, which: Mask) -> Cast:
        """The columns of some of the problems."""
        alive, born, event, sheet, beside, young = self
        some = Sheet(*(array[which] for array in sheet))
        return Cast(alive[which], born[which], event[which], some, beside[which], young)

    def enter(self, c: Clusters, at: Point) -> Point:
        """Their part of a point; those without a column are where the bias puts them."""
        n, known = self.alive.shape[1], min(at.mu.shape[1], self.alive.shape[1])
        if not c.one_temperature:
            return at
        logs = np.zeros((at.level.size, n, c.num_clusters + 1))
        L, mu = np.zeros(self.alive.shape), np.zeros(self.alive.shape)
        logs[:, :known], L[:, :known], mu[:, :known] = at.logs[:, :known], at.L[:, :known], at.mu[:, :known]
        first = int(self.alive.sum(axis=-1).min())
        rest, normaliser = _at_rest(c, at.b)
        idle = ~self.alive[:, first:]
        np.copyto(logs[:, first:], _spread(rest, slice(first, n)), where=idle[..., None])
        np.copyto(L[:, first:], normaliser, where=idle)
        return Point(at.b, at.level, logs, L, mu)

    def predictions(self, c: Clusters, then: Point) -> Matrix:
        """P of all columns."""
        n = then.mu.shape[1]
        P = np.empty((*c.sizes.shape, c.num_clusters + 1))
        np.exp(then.logs, out=P[:, :n])
        if n < c.num_clusters:
            P[:, n:] = _spread(np.exp(_at_rest(c, then.b)[0]), slice(n, None))
        return P.swapaxes(-1, -2)


def _at_rest(c: Clusters, b: Vector) -> tuple[Vector, Vector]:
    """The log-probabilities of a class without a column, where all temperatures are equal, and their normaliser."""
    u = c.temperatures * c.scales * b + c.offsets
    top = u.max(axis=-1, keepdims=True)
    L = top + np.log(np.sum(c.sizes * np.exp(u - top), axis=-1, keepdims=True))
    return u - L, L


def _step(c: Clusters, cast: Cast, at: Point, aim: Vector) -> tuple[Point, Vector, Vector, Vector]:
    """A Newton step of the event at which a class leaves zero, or of the optimum at ``aim``.

    Per column: sum p = 1, and s ||delta o (y - p)|| = lambda where alive. Over all columns: the bias is balanced, and
    the event's own column, with mu = 0, is as long as lambda. The predictions of a class just born grow like exp mu,
    so Newton's method on its length overshoots: a step x of its mu is taken as log(1 + x).

    Returns:
        The point and the lengths of the step: in all, in b and lambda_z alone, and column by column.
    """
    sheet, n = cast.sheet, cast.alive.shape[1]
    look = sheet.look(sheet.logits(at.b, slice(n)), at)
    spread = np.where(cast.alive, sheet.tau * look.bend, np.inf)
    rows = np.empty((at.level.size, 2 * n, c.num_clusters))
    _fold(look.S * sheet.reach, rows[:, :n])
    _fold(look.across * sheet.reach, rows[:, n:])
    solved = _solved(c, cast, at, aim, look, spread, rows)
    db, level = solved[:, :-1], solved[:, -1]
    pulled = (rows @ db[..., None])[..., 0]
    dmu = -(look.short + look.unit * level[:, None] + pulled[:, n:]) / spread
    dmu = np.where(cast.born & (dmu > 0), np.log1p(np.maximum(dmu, 0.0)), dmu)
    change, dL = look.moved(sheet.tau, sheet.reach * _spread(db, slice(n)), pulled[:, :n], dmu)
    each = np.abs(change).max(axis=-1)
    far = each.max(axis=-1)
    outer = np.maximum(np.abs(db).max(axis=-1), np.abs(level) / at.level)
    length = np.maximum(far, outer)
    part = np.minimum(LONGEST_STEP / np.maximum(far, LONGEST_STEP), 0.5 * at.level / np.maximum(-level, 0.5 * at.level))
    if np.any(part < 1):
        wide = part[:, None]
        db, level, change, dL, dmu = wide * db, part * level, wide[..., None] * change, wide * dL, wide * dmu
        length = np.where(part < 1, np.inf, length)
    change += at.logs
    moved = Point(at.b + db, at.level + level, change, at.L + dL, at.mu + dmu)
    return moved, length, outer, each


def _fold(entries: Matrix, out: Matrix) -> None:
    """Add up entries, each as often as it occurs, to (B, n, J), with the own class among its siblings."""
    out[...] = entries[..., :-1]
    own = np.einsum("bii->bi", out[..., : out.shape[1]])
    own += entries[..., -1]


def _solved(c: Clusters, cast: Cast, at: Point, aim: Vector, look: _Look, spread: Vector, rows: Matrix) -> Matrix:
    """The changes of bias and lambda_z, shape (B, J + 1), once every column has followed them.

    ``rows``: what a unit of every bias adds to sum p of the columns, then what it adds to half their squared lengths.
    """
    sheet, J, n = cast.sheet, c.num_clusters, cast.alive.shape[1]
    B = np.arange(aim.size)
    pull = sheet.share * sheet.tau
    hold = pull / spread
    weight = np.concatenate([sheet.share / look.mass, hold], axis=1)
    # how sum p, the lengths' errors and a unit of lambda_z enter the balance of the bias
    sums = np.zeros((B.size, 3, 2 * n))
    sums[:, 0, :n], sums[:, 2, n:] = pull, hold * look.unit
    sums[:, 1, :n], sums[:, 1, n:] = -sheet.share * look.mean_left, hold * look.short
    pulls = sums @ rows
    system, side = np.empty((B.size, J + 1, J + 1)), np.empty((B.size, J + 1))
    scaled = np.sqrt(weight)[..., None] * rows
    np.subtract(bias_curvature(c, c.scales * pulls[:, 0]), scaled.swapaxes(-1, -2) @ scaled, out=system[:, :J, :J])
    np.negative(pulls[:, 2], out=system[:, :J, J])
    system[:, J, :J] = rows[B, n + cast.event]
    system[:, J, J], side[:, J] = look.unit[B, cast.event], -look.short[B, cast.event]
    halt = aim < np.inf  # on the way to an event that is far off
    if halt.any():
        system[halt, J] = np.arange(J + 1) == J
        side[halt, J] = (aim - at.level)[halt]
    left = sheet.multiplicity * look.miss
    left += look.S * look.left
    balance = (pull[:, None] @ left[..., :-1])[:, 0]
    balance[:, :n] += pull * left[..., -1]
    side[:, :J] = c.scales * balance + pulls[:, 1] + cast.beside - c.sizes * c.price * at.b
    without = np.isinf(c.bias_price[:, 0])
    if without.any():
        system[without, :J] = np.eye(J, J + 1)
        side[without, :J] = 0.0
    lost = ~np.isfinite(np.einsum("bii->b", system))  # a point far off, which its length shows
    if lost.any():
        system[lost], side[lost] = np.eye(J + 1), np.inf
    try:
        step: Any = np.linalg.solve(system, side[..., None])
    except np.linalg.LinAlgError:
        size = np.abs(system).max(axis=(-2, -1), keepdims=True)
        step = np.linalg.solve(system + 1e-14 * size * np.eye(J + 1), side[..., None])
    return step[..., 0]


def _grown(cast: Cast, at: Point, first: int, steps: int) -> Point:
    """The point with its columns from ``first`` on, the most strongly curved, solved for its bias and lambda_z."""
    which = slice(first, cast.alive.shape[1])
    sheet, alive = cast.sheet.part(which), cast.alive[:, which]
    own = Point(at.b, at.level, at.logs[:, which], at.L[:, which], at.mu[:, which])
    u, far = sheet.logits(at.b, which), np.zeros(alive.shape)
    for _ in range(steps):
        look = sheet.look(u, own)
        dmu = np.where(alive, -look.short / (sheet.tau * look.bend), 0.0)
        dmu = np.where(dmu > 0, np.log1p(np.maximum(dmu, 0.0)), dmu)
        change, dL = look.moved(sheet.tau, 0.0, 0.0, dmu)
        own = Point(at.b, at.level, own.logs + change, own.L + dL, own.mu + dmu)
        far = np.abs(change).max(axis=-1)
        if np.max(far) <= COLUMN_HOME:
            break
    fine = far <= COLUMN_HOME  # the others are left as they were
    then = Point(at.b, at.level, at.logs.copy(), at.L.copy(), at.mu.copy())
    for mine, theirs in ((then.logs, own.logs), (then.L, own.L), (then.mu, own.mu)):
        np.copyto(mine[:, which], theirs, where=fine[..., None] if mine.ndim > fine.ndim else fine)
    return then


def settled(c: Clusters, cast: Cast, at: Point, aim: Vector, active: Mask, near: Mask) -> tuple[Point, Mask]:
    """Newton's root from a point, and in which problems it is one. ``near``: the point is a guess at it."""
    home, before, each = ~active, np.full(active.shape, np.inf), np.zeros_like(at.mu)
    if near.any():
        at = at.kept(_grown(cast, at, cast.young, COLUMN_STEPS), near)
    for n in range(NEWTON_STEPS):
        then, length, outer, each = _step(c, cast, at, aim)
        if n == 0 and not near.all():
            then = _grown(cast, then, cast.young, COLUMN_STEPS).kept(then, near)
        at = at.kept(then, ~home)
        # the error of b and lambda_z is that of the columns squared, times what it was a step ago
        home = home | (length <= LAST_STEP)
        home |= (
            (near | (n > 1)) & (length < 0.03 * before) & (before < 1) & (outer * (length / before) ** 2 <= OUTER_HOME)
        )
        before = length
        if home.all():
            break
    rough = np.flatnonzero((each > ROUGH).any(axis=0))
    return (_grown(cast, at, int(rough[0]), 1) if rough.size else at), home & active
