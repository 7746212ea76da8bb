"""Newton's method on bias, lambda_z and every column at once, for :mod:`.column_path`.

The columns are eliminated one by one, which leaves J + 1 equations: the balance of the bias, and the length of the
column that leaves zero.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Mask, Matrix, Vector
from collapsar.theory.clusters import Clusters, bias_curvature

__all__ = ["OLDEST", "Cast", "Point", "Sheet", "settled"]

NEWTON_STEPS = 12
# Newton squares its error: after a step this short (nats; relative in lambda_z) the next would be at the last digits.
LAST_STEP = 1e-7
# No prediction changes by more than this factor, in nats, in a step.
LONGEST_STEP = 3.0
OUTER_HOME = 1e-12
# Columns that have just left zero are first brought home by themselves.
YOUNG = 6
COLUMN_STEPS = 8
COLUMN_HOME = 1e-3
OLDEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Point:
    """An optimum, or a guess of one. The columns are log P = u(b) + mu tau delta^2 o (y - P) - L."""

    b: Vector
    level: Vector  # lambda_z, (B,)
    logs: Matrix
    L: Vector
    mu: Vector

    def kept(self, other: Point, where: Mask) -> Point:
        """This point, and the other one in the problems of the mask."""
        if where.all():
            return other
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return Point(*(np.where(where.reshape(-1, *(1,) * (mine.ndim - 1)), theirs, mine) for mine, theirs in pairs))


@dataclass(frozen=True)
class Sheet:
    """Columns by themselves, n of each problem: entries have shape (B, n, J + 1), numbers per column (B, n).

    While a class has no feature of its own only the bias moves its prediction, and where all temperatures are equal
    that is one and the same for all such classes: one column, with the loss shares of all of them, stands for them.
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

    def columns(self, which: NDArray[np.intp], share: Vector) -> Sheet:
        """Some columns of each problem, (B, n), with shares of their own."""
        rows = np.arange(which.shape[0])[:, None]
        return Sheet(**{f.name: getattr(self, f.name)[rows, which] for f in fields(self)[:-1]}, share=share)

    def first(self, n: int) -> Sheet:
        """The first n columns."""
        return Sheet(*(getattr(self, f.name)[:, :n] for f in fields(self)))

    def logits(self, b: Vector, which: NDArray[np.intp]) -> Matrix:
        """The logits that the bias gives to the columns ``which``."""
        return self.reach * _spread(b, which) + self.offset

    def look(self, u: Matrix, at: Point) -> _Look:
        """Errors of the equations of the columns and their derivatives."""
        P = np.exp(at.logs)
        miss = self.target - P
        tie = self.square * miss
        push = (at.mu * self.tau)[..., None]
        held = self.multiplicity * P
        soft = 1 / (1 + push * self.square * P)
        S = held * soft
        left = at.logs - u - push * tie + at.L[..., None]
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


def _spread(logit: Vector, which: NDArray[np.intp]) -> Matrix:
    """Columns from one number per logit's cluster, (B, n, J + 1)."""
    B, J = logit.shape
    entries = np.empty((B, which.shape[1], J + 1))
    entries[..., :-1] = logit[:, None]
    entries[..., -1] = logit[np.arange(B)[:, None], which]
    return entries


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

    def moved(self, tau: Vector, du: Matrix | float, pulled: Vector | float, dmu: Vector) -> tuple[Matrix, Vector]:
        """Changes of log p and of L; ``pulled`` is the sum of S du."""
        dL = pulled / self.mass + tau * self.mean_tie * dmu - self.mean_left
        change = (tau * dmu)[..., None] * self.tie
        change -= self.left
        change -= dL[..., None]
        change += du
        change *= self.soft
        return change, dL


@dataclass(frozen=True)
class Cast:
    """The columns that take part in an event: those alive, youngest first, and that of the class that leaves zero.

    Attributes:
        which: shape (B, n), their clusters; where a problem has fewer of them, others that count for nothing.
        alive: shape (B, n).
        born: shape (B, n), alive since the event before.
        event: shape (B,), where the class that leaves zero stands.
        sheet: the columns. Where all temperatures are equal the event's column has the loss share of every dead class.
        beside: shape (B, J), what the targets of those classes add to the pull on the bias.
    """

    which: NDArray[np.intp]
    alive: Mask
    born: Mask
    event: NDArray[np.intp]
    sheet: Sheet
    beside: Vector

    @classmethod
    def of(cls, c: Clusters, sheet: Sheet, alive: Mask, age: NDArray[np.int64], event: NDArray[np.intp]) -> Cast:
        """Everything that takes part, of all columns."""
        B, one = np.arange(event.size), _one_temperature(c)
        key = np.where(alive, age, OLDEST)
        key[B, event] = np.where(alive[B, event], age[B, event], OLDEST - 1)
        which = np.argsort(key, axis=-1, kind="stable")
        if one:
            which = which[:, : min(int(alive.sum(axis=-1).max()) + 1, c.num_clusters)]
        at, living = np.argmax(which == event[:, None], axis=-1), np.take_along_axis(alive, which, axis=-1)
        share, beside = np.take_along_axis(sheet.share, which, axis=-1), np.zeros_like(c.sizes)
        if one:
            dead = np.where(alive, 0.0, sheet.share)
            total = dead.sum(axis=-1)
            share = np.where(living, share, 0.0)
            share[B, at] += total
            dead[B, event] -= total
            beside = c.scales * c.temperatures * (1 - c.eps) * dead
        born = living & (np.take_along_axis(age, which, axis=-1) == 0)
        return cls(which, living, born, at, sheet.columns(which, share), beside)

    def enter(self, c: Clusters, at: Point) -> Point:
        """Their part of a point of all columns."""
        rows = np.arange(self.event.size)[:, None]
        logs, L, mu = at.logs[rows, self.which], at.L[rows, self.which], at.mu[rows, self.which]
        if _one_temperature(c):
            rest, normaliser = _at_rest(c, at.b)
            idle = ~self.alive
            logs[idle], L[idle] = _spread(rest, self.which)[idle], np.broadcast_to(normaliser, L.shape)[idle]
        return Point(at.b, at.level, logs, L, mu)

    def leave(self, at: Point, then: Point, where: Mask) -> Point:
        """The point of all columns with theirs put back, in the problems of the mask."""
        rows, which = np.flatnonzero(where)[:, None], self.which[where]
        b, level = np.where(where[:, None], then.b, at.b), np.where(where, then.level, at.level)
        new = Point(b, level, at.logs.copy(), at.L.copy(), at.mu.copy())
        new.logs[rows, which], new.L[rows, which], new.mu[rows, which] = then.logs[where], then.L[where], then.mu[where]
        return new

    def predictions(self, c: Clusters, then: Point) -> Matrix:
        """P of all columns."""
        every = np.broadcast_to(np.arange(c.num_clusters), c.sizes.shape)
        rows = np.arange(self.event.size)[:, None]
        P = np.empty((*c.sizes.shape, c.num_clusters + 1))
        if _one_temperature(c):
            P[...] = np.exp(_spread(_at_rest(c, then.b)[0], every))
        P[rows, self.which] = np.exp(then.logs)
        return np.ascontiguousarray(P.swapaxes(-1, -2))


def _one_temperature(c: Clusters) -> bool:
    return bool(np.all(c.temperatures == c.temperatures[:, :1]))


def _at_rest(c: Clusters, b: Vector) -> tuple[Vector, Vector]:
    """The log-probabilities of a class without a column, where all temperatures are equal, and their normaliser."""
    u = c.temperatures * c.scales * b + c.offsets
    top = u.max(axis=-1, keepdims=True)
    L = top + np.log(np.sum(c.sizes * np.exp(u - top), axis=-1, keepdims=True))
    return u - L, L


def _step(c: Clusters, cast: Cast, at: Point, aim: Vector) -> tuple[Point, Vector, Vector]:
    """A Newton step of the event at which a class leaves zero, or of the optimum at ``aim``.

    Per column: sum p = 1, and s ||delta o (y - p)|| = lambda where alive; over all columns: the bias balances, and the
    event's own column, with mu = 0, is as long as lambda. A class just born has predictions that grow like exp mu,
    which Newton on its length overshoots: a step x of its mu is taken as log(1 + x).

    Returns:
        The point, and the lengths of the step: in all, and in b and lambda_z alone.
    """
    sheet, n = cast.sheet, cast.which.shape[1]
    look = sheet.look(sheet.logits(at.b, cast.which), at)
    spread = np.where(cast.alive, sheet.tau * look.bend, np.inf)
    rows = np.empty((at.level.size, 2 * n, c.num_clusters))
    _fold(look.S * sheet.reach, cast.which, rows[:, :n])
    _fold(look.across * sheet.reach, cast.which, rows[:, n:])
    solved = _solved(c, cast, at, aim, look, spread, rows)
    db, level = solved[:, :-1], solved[:, -1]
    pulled = (rows @ db[..., None])[..., 0]
    dmu = -(look.short + look.unit * level[:, None] + pulled[:, n:]) / spread
    dmu = np.where(cast.born & (dmu > 0), np.log1p(np.maximum(dmu, 0.0)), dmu)
    change, dL = look.moved(sheet.tau, sheet.reach * _spread(db, cast.which), pulled[:, :n], dmu)
    far = np.abs(change).max(axis=(-2, -1))
    part = np.minimum(1.0, LONGEST_STEP / np.maximum(far, LONGEST_STEP))
    part = np.minimum(part, np.where(level < 0, -0.5 * at.level / np.minimum(level, -1e-300), 1.0))
    wide = part[:, None]
    change *= wide[..., None]
    change += at.logs
    moved = Point(at.b + wide * db, at.level + part * level, change, at.L + wide * dL, at.mu + wide * dmu)
    outer = np.maximum(np.abs(db).max(axis=-1), np.abs(level) / at.level)
    return moved, np.where(part < 1, np.inf, np.maximum(far, outer)), outer


def _fold(entries: Matrix, which: NDArray[np.intp], out: Matrix) -> None:
    """Entries that count themselves as often as they occur, (B, n, J), with the own class among its siblings."""
    out[...] = entries[..., :-1]
    out[np.arange(which.shape[0])[:, None], np.arange(which.shape[1]), which] += entries[..., -1]


def _solved(c: Clusters, cast: Cast, at: Point, aim: Vector, look: _Look, spread: Vector, rows: Matrix) -> Matrix:
    """The changes of bias and lambda_z, shape (B, J + 1), once every column has followed them.

    ``rows``: what a unit of every bias adds to sum p of the columns, then what it adds to half their squared lengths.
    """
    sheet, J, n = cast.sheet, c.num_clusters, cast.which.shape[1]
    B = np.arange(aim.size)
    pull, hold = sheet.share * sheet.tau, sheet.share * sheet.tau / spread
    weight = np.sqrt(np.concatenate([sheet.share / look.mass, hold], axis=1))
    scaled = weight[..., None] * rows
    price = np.where(c.bias_price < np.inf, c.bias_price, 0.0)
    system, side = np.empty((B.size, J + 1, J + 1)), np.empty((B.size, J + 1))
    curvature = bias_curvature(c, c.scales * (pull[:, None] @ rows[:, :n])[:, 0])
    np.subtract(curvature, scaled.swapaxes(-1, -2) @ scaled, out=system[:, :J, :J])
    system[:, :J, J] = -((hold * look.unit)[:, None] @ rows[:, n:])[:, 0]
    system[:, J, :J] = rows[B, n + cast.event]
    system[:, J, J], side[:, J] = look.unit[B, cast.event], -look.short[B, cast.event]
    halt = aim < np.inf  # on the way to an event that is far off
    if halt.any():
        system[halt, J] = np.arange(J + 1) == J
        side[halt, J] = (aim - at.level)[halt]
    left = sheet.multiplicity * look.miss
    left += look.S * look.left
    balance = (pull[:, None] @ left[..., :-1])[:, 0]
    balance[B[:, None], cast.which] += pull * left[..., -1]
    follow = np.concatenate([-sheet.share * look.mean_left, hold * look.short], axis=1)
    side[:, :J] = c.scales * balance + (follow[:, None] @ rows)[:, 0] + cast.beside - c.sizes * price * at.b
    without = np.isinf(c.bias_price[:, 0])
    if without.any():
        system[without, :J] = np.eye(J, J + 1)
        side[without, :J] = 0.0
    lost = ~np.isfinite(system.sum(axis=(-2, -1)))  # a point far off: its length tells
    if lost.any():
        system[lost], side[lost] = np.eye(J + 1), np.inf
    try:
        step: Any = np.linalg.solve(system, side[..., None])
    except np.linalg.LinAlgError:
        size = np.abs(system).max(axis=(-2, -1), keepdims=True)
        step = np.linalg.solve(system + 1e-14 * size * np.eye(J + 1), side[..., None])
    return step[..., 0]


def _grown(cast: Cast, at: Point, n: int, steps: int) -> Point:
    """The point with its n youngest columns, which bend most, at home for its bias and lambda_z."""
    sheet, which, alive = cast.sheet.first(n), cast.which[:, :n], cast.alive[:, :n]
    own = Point(at.b, at.level, at.logs[:, :n], at.L[:, :n], at.mu[:, :n])
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
    then.logs[:, :n][fine], then.L[:, :n][fine], then.mu[:, :n][fine] = own.logs[fine], own.L[fine], own.mu[fine]
    return then


def settled(c: Clusters, cast: Cast, at: Point, aim: Vector, active: Mask) -> tuple[Point, Mask]:
    """Newton's root from a point, and in which problems it is one."""
    home, before = ~active, np.full(active.shape, np.inf)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for n in range(NEWTON_STEPS):
            then, length, outer = _step(c, cast, at, aim)
            if n == 0:
                then = _grown(cast, then, YOUNG, COLUMN_STEPS)
            at = at.kept(then, ~home)
            # the error of b and lambda_z is that of the columns squared, times what it was a step ago
            home = home | (length <= LAST_STEP)
            home |= (n > 1) & (length < 0.03 * before) & (before < 1) & (outer * (length / before) ** 2 <= OUTER_HOME)
            before = length
            if home.all():
                break
        return _grown(cast, at, cast.which.shape[1], 1), home & active
