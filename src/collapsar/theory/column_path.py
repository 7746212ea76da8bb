"""Where columns vanish with nonnegative features: the optimum in column form, followed down from Z = 0 event by event.

The path lambda_z -> optimum is continuous, and class e leaves zero where its residual, which only the bias moves, is as
long as lambda_z. Bias, lambda_z and every column of such an event are the root of one system of equations that is
smooth while the same columns are alive. Newton's method on all of it, from the event before, takes three or four steps
of one pass over the columns each. The problem is convex, so a root with the right signs is the event, however it was
found; where Newton's method loses the path, each class is solved for by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Mask, Matrix, Vector
from collapsar.theory.clusters import Clusters, Response, balanced_bias
from collapsar.theory.column_form import columns, gauge_bounds, gauge_within, resting
from collapsar.theory.column_newton import Cast, Point, Sheet, settled
from collapsar.theory.roots import FLOOR, largest_roots, roots_between

# The certificate of H >= 0 counts as closed when the bound of the dual norm exceeds lambda_z by no more than this.
CLOSED = 1e-9
# If Newton's method misses the next event, lambda_z is first lowered by this factor, then by its root and so on.
FIRST_PACE = 0.7
SHORTEST_PACE = 0.98
# Events are guessed where the last interval in lambda_z was about as long as the next.
NEAREST, FARTHEST = 0.2, 3.0
# Signs and lengths are right up to rounding, the lengths of columns that are alive up to the certificate's tolerance.
ROUNDING = 1e-11
SAME = CLOSED / 10


@dataclass(frozen=True)
class Vanishing:
    """Transitions of B problems of J clusters in column form.

    Attributes:
        vanish: shape (B, J); NaN where the column is zero at every lambda_z.
        exact: shape (B, J), whether the certificate of H >= 0 closes there and everywhere above that was examined.
        vanish_bound: shape (B, J), above it the optimum's column is zero; ``vanish`` where that is exact.
        complete: shape (B,), for H >= 0 itself.
        complete_bound: shape (B,), its relaxation.
    """

    vanish: Vector
    exact: Mask
    vanish_bound: Vector
    complete: Vector
    complete_bound: Vector


def column_thresholds(c: Clusters) -> Vanishing:
    """Every transition of B problems of J clusters each, in column form.

    Class k's column is zero iff s ||delta o (y_k - p_k)|| <= lambda_z at the optimum that holds it at zero, p_k the
    softmax of the bias there. complete is the dual norm of the residual at Z = 0, of H >= 0 itself.

    Args:
        c: problems side by side, from :meth:`Clusters.stacked`.
    """
    b, rest = resting(c)
    at_rest = c.column_norms(rest)
    top = at_rest.max(axis=-1)
    complete, bound = gauge_bounds(c, rest)
    in_columns = bound <= top * (1 + 1e-12)  # the column form is exact: the same number, to the last digit
    complete, bound = np.where(in_columns, top, complete), np.where(in_columns, top, bound)
    vanish = at_rest.copy()
    exact = np.repeat((bound <= top * (1 + CLOSED))[:, None], c.num_clusters, axis=1)
    # without a bias the columns are independent; if all logits are alike, they are at obtuse angles
    alike = np.all((c.scales == c.scales[:, :1]) & (c.offsets == c.offsets[:, :1]), axis=-1)
    decided = alike & ~(c.bias_price < np.inf)[:, 0]
    exact[decided] = True
    wanted = (at_rest < top[:, None]) & ~decided[:, None]
    opening = np.where(exact[:, 0], 0.0, bound)
    if wanted.any():
        found, closed, lost, ends = _events(c, b, rest, top, wanted)
        for i, j in np.argwhere(lost):
            found[i, j], closed[i, j] = _alone(c.taken(int(i)), int(j), float(top[i]), float(at_rest[i, j]))
        vanish, exact = np.where(wanted, found, vanish), np.where(wanted, closed, exact)
        opening = np.maximum(opening, ends)
    exact &= ~(np.nan_to_num(vanish) < opening[:, None])
    return Vanishing(vanish, exact, np.where(exact, vanish, opening[:, None]), complete, bound)


# --- one class by itself


def _alone(c: Clusters, j: int, top: float, at_rest: float) -> tuple[float, bool]:
    """Values of vanish and exact of one cluster of one problem: a root in lambda_z, each evaluation an optimum."""
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
    return float(value[0]), bool(gauge_within(c, *c.residual_gram(warm[1].P), edge[0] * (1 + CLOSED)))


# --- all of them along lambda_z


def _events(c: Clusters, b: Vector, P: Matrix, top: Vector, wanted: Mask) -> tuple[Vector, Mask, Mask, Vector]:
    """Lambda_z of every wanted event, whether the certificate closes there, and which events were lost.

    Also, per problem, the value down to which it closes throughout: 0 if everywhere.
    """
    walk = _Walk.begin(c, b, c.column_norms(P), top, wanted)
    active: Any
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a guess far off is seen by its lengths
        while (active := walk.todo.any(axis=-1)).any():
            walk.look(active)
    back = np.argsort(walk.order, axis=-1)
    found, closed = np.take_along_axis(walk.found, back, axis=-1), np.take_along_axis(walk.closed, back, axis=-1)
    lost = np.take_along_axis(walk.lost, back, axis=-1)
    return found, closed, lost, np.where((walk.opening == 0) & lost.any(axis=-1), walk.at.level, walk.opening)


@dataclass
class _Walk:
    """The progress of every problem, with its classes in the order in which they leave zero, as far as it is known.

    The first classes are alive, and the next event is sought: directly, or, where Newton's method misses it, by an
    optimum on the way, ``aim``, which is ``pace`` times the last lambda_z.
    """

    c: Clusters
    sheet: Sheet
    order: NDArray[np.intp]
    alive: Mask
    born: Mask  # in the last event
    todo: Mask
    at: Point  # the last optimum, the one before, and the lengths of all residual columns at both
    before: Point
    ahead: Vector
    ahead_before: Vector
    within: Mask  # whether the certificate closes at the last one
    opening: Vector  # where it first opened, 0 while it has not
    found: Vector
    closed: Mask
    lost: Mask
    aim: Vector
    pace: Vector
    floor: Vector
    stood: Mask  # the last attempt found its event
    steady: Mask  # so did the one before
    moves: NDArray[np.intp]  # optima on the way since the last event

    @classmethod
    def begin(cls, c: Clusters, b: Vector, norms: Vector, top: Vector, wanted: Mask) -> _Walk:
        """Every problem at its largest transition, where only the bias is left."""
        order = np.argsort(np.where(wanted, -norms, -np.inf), axis=-1, kind="stable")
        b, norms = np.take_along_axis(b, order, axis=-1), np.take_along_axis(norms, order, axis=-1)
        todo, c = np.take_along_axis(wanted, order, axis=-1), c.ordered(order)
        sheet, no, none = Sheet.of(c), np.zeros(top.shape, dtype=bool), np.zeros_like(todo)
        u = sheet.logits(b, slice(None))
        highest = u.max(axis=-1, keepdims=True)
        L = highest[..., 0] + np.log(np.sum(sheet.multiplicity * np.exp(u - highest), axis=-1))
        at, found = Point(b, top, u - L[..., None], L, np.zeros_like(b)), np.full(todo.shape, np.nan)
        ways = np.full_like(top, np.inf), np.full_like(top, FIRST_PACE), FLOOR * norms.min(axis=-1)
        records = no, np.zeros_like(top), found, none, none.copy()
        return cls(c, sheet, order, ~todo, ~todo, todo, at, at, norms, norms, *records, *ways, no, no, no.astype(int))

    def look(self, active: Mask) -> None:
        """One attempt at the next event, or at an optimum on the way to it."""
        c, place = self.c, np.arange(self.c.num_clusters)
        event = np.minimum(self.alive.sum(axis=-1), place[-1])
        cast = Cast.of(c, self.sheet, self.alive, self.born, active)
        start, near = self._guess(event, active)
        start = cast.enter(c, start)
        then, home = settled(c, cast, start, self.aim, active, near)
        then = start.kept(then, home)
        cross, square = c.residual_gram(cast.predictions(c, then))
        norms, level, direct = np.sqrt(square), then.level[:, None], np.isinf(self.aim)
        on = (place == event[:, None]) & direct[:, None]
        right = home & np.all((np.abs(norms - level) <= SAME * level) | ~(self.alive | on), axis=-1)
        right &= np.all(~cast.alive | (then.mu >= -ROUNDING * then.mu.max(axis=-1, keepdims=True)), axis=-1)
        passed = self.todo & ~on & (norms > level * (1 + ROUNDING))
        beaten = passed.any(axis=-1)  # another class leaves zero first
        late, right = right & direct & beaten, right & ~beaten
        arrived = right & direct
        if right.any():
            last = self.at
            if not right.all():
                cross, square = np.where(right[:, None, None], cross, 0.0), np.where(right[:, None], square, 0.0)
                last, before = cast.enter(c, last), cast.enter(c, self.before)
                then, self.before = last.kept(then, right), before.kept(last, right)
            else:
                self.before = last
            self.at = then
            self.ahead_before = np.where(right[:, None], self.ahead, self.ahead_before)
            self.ahead = np.where(right[:, None], norms, self.ahead)
            self.within = np.where(right, gauge_within(c, cross, square, level[:, 0] * (1 + CLOSED)), self.within)
            opened = right & ~self.within & (self.opening == 0)
            if opened.any():
                ends = (cast.enter(c, p).taken(opened) for p in (self.before, then))
                self.opening[opened] = _opening(c.taken(opened), cast.taken(opened), *ends)
        self.steady, self.stood = self.stood & arrived, arrived
        if arrived.any():
            new = on & arrived[:, None]
            self.found[new], self.alive[new], self.todo[new] = then.level[arrived], True, False
            self.closed[new] = self.within[arrived]
            self.born = np.where(arrived[:, None], new, self.born)
        if np.all(arrived | ~active):
            self._turn(np.argmax(np.where(self.todo, self.ahead, -np.inf), axis=-1))
            self.pace, self.moves = np.where(arrived, FIRST_PACE, self.pace), np.where(arrived, 0, self.moves)
        else:
            ahead = np.where(late[:, None], np.where(passed, norms, -np.inf), self.ahead)
            self._turn(np.argmax(np.where(self.todo, ahead, -np.inf), axis=-1))
            self._plan(active, arrived, right & ~direct, active & ~late & ~right)

    def _turn(self, event: NDArray[np.intp]) -> None:
        """Put the class of the next event behind those that are alive."""
        J = self.c.num_clusters
        place = np.minimum(self.alive.sum(axis=-1), J - 1)
        rows = np.flatnonzero((event != place) & self.todo.any(axis=-1))
        if not rows.size:
            return
        key = np.broadcast_to(np.arange(float(J)), self.alive.shape).copy()
        key[rows, event[rows]] = place[rows] - 0.5
        turn = np.argsort(key, axis=-1, kind="stable")
        self.c = self.c.ordered(turn)
        self.sheet = Sheet.of(self.c)
        self.at, self.before = self.at.ordered(turn), self.before.ordered(turn)
        for name in ("order", "alive", "born", "todo", "ahead", "ahead_before", "found", "closed", "lost"):
            setattr(self, name, np.take_along_axis(getattr(self, name), turn, axis=-1))

    def _plan(self, active: Mask, arrived: Mask, moved: Mask, halted: Mask) -> None:
        """What to try next where not every event was found.

        Where Newton's method misses an event, go half the way first, then half of that. Two optima with the same
        columns tell whether the event is near; if not, go on in strides no longer than the first.
        """
        self.moves = np.where(arrived, 0, self.moves + moved)
        pace = np.where(halted & np.isfinite(self.aim), np.sqrt(self.pace), self.pace)
        far = active & (self.moves >= 2) & ~halted & (self._near_event() < self.at.level * pace)
        pace = np.where(far & moved, np.maximum(pace**1.5, FIRST_PACE), pace)
        self.pace = np.where(arrived, FIRST_PACE, pace)
        self.aim = np.where(halted | far, self.at.level * self.pace, np.inf)
        bottom = active & (self.aim < self.floor)
        self.closed |= bottom[:, None] & self.todo & self.within[:, None]
        gone = active & (self.pace > SHORTEST_PACE)
        self.lost |= (gone & ~bottom)[:, None] & self.todo
        self.todo &= ~(gone | bottom)[:, None]

    def _near_event(self) -> Vector:
        """Lambda_z of the next event by the last two optima, on logarithmic scales; 0 where it only recedes."""
        B, event = np.arange(self.pace.size), np.minimum(self.alive.sum(axis=-1), self.c.num_clusters - 1)
        short = np.log(self.ahead[B, event] / self.at.level)
        rise = short - np.log(self.ahead_before[B, event] / self.before.level)
        return self.at.level * (self.at.level / self.before.level) ** np.where(rise > 0, -short / rise, np.inf)

    def _guess(self, event: NDArray[np.intp], active: Mask) -> tuple[Point, Mask]:
        """The last optimum, or the extrapolation of two; and whether it is extrapolated."""
        start, near = self.at, self.steady & active & np.isinf(self.aim)
        if near.any():
            guess, near = self._wave(event, near)
            start = start.kept(guess, near)
        way = active & (self.moves >= 2)
        if way.any():
            start, near = start.kept(self._drift(way), way), near | way
        return start, near

    def _drift(self, way: Mask) -> Point:
        """The aim, or the event, if everything continues in proportion to log lambda_z."""
        at, before = self.at, self.before
        level = np.where(np.isinf(self.aim), np.maximum(self._near_event(), 1e-3 * at.level), self.aim)
        n = min(at.mu.shape[1], before.mu.shape[1])
        x = np.where(way, np.log(level / at.level) / np.log(at.level / before.level), 0.0)[:, None]
        growth = np.where(before.mu[:, :n] > 0, at.mu[:, :n] / before.mu[:, :n], 1.0)
        L, mu, logs = at.L.copy(), at.mu.copy(), at.logs.copy()
        L[:, :n] += x * (at.L[:, :n] - before.L[:, :n])
        mu[:, :n] *= np.maximum(growth, 0.0) ** x
        logs[:, :n] += x[..., None] * (at.logs[:, :n] - before.logs[:, :n])
        return Point(at.b + x * (at.b - before.b), level, logs, L, mu)

    def _wave(self, event: NDArray[np.intp], near: Mask) -> tuple[Point, Mask]:
        """The next event, if each class now repeats what the class before it did one event ago."""
        at, before, c, B = self.at, self.before, self.c, np.arange(event.size)
        here, then = (ahead[B, event] - p.level for ahead, p in ((self.ahead, at), (self.ahead_before, before)))
        near = near & (here < 0) & (then < here)
        x = np.where(near, here / np.where(near, then - here, 1.0), 0.0)
        near &= (x > NEAREST) & (x < FARTHEST)
        x = np.where(near, x, 0.0)[:, None]
        n = min(before.mu.shape[1], at.mu.shape[1] - 1)
        b = at.b + _behind(x * (at.b - before.b))[:, :-1]
        L, mu, logs = at.L.copy(), at.mu.copy(), at.logs.copy()
        L[:, : n + 1] += _behind(x * (at.L[:, :n] - before.L[:, :n]))
        mu[:, : n + 1] += _behind(x * (at.mu[:, :n] - before.mu[:, :n]))
        change = x[..., None] * (at.logs[:, :n] - before.logs[:, :n])
        change = np.concatenate([_behind(change[..., :-2]), change[..., -1:]], axis=-1)
        logs[:, 0] += change[:, 0]
        logs[:, 1 : n + 1] += change
        reach = c.sizes / c.scales  # along it the loss does not change: moved to the least cost
        shift = np.sum(reach * b, axis=-1, keepdims=True) / np.sum(reach / c.scales, axis=-1, keepdims=True)
        level = at.level + x[:, 0] * (at.level - before.level)
        return Point(b - shift / c.scales, level, logs, L - c.temperatures[:, : L.shape[1]] * shift, mu), near


def _opening(c: Clusters, cast: Cast, high: Point, low: Point) -> Vector:
    """Where the certificate opens between two optima with the same columns alive; it is closed at the upper one.

    A class that is alive, with a residual as long as lambda_z, takes another one along once their residuals make an
    acute angle; until then only dead classes matter, which share a direction once their dual norm is lambda_z.
    """
    every, J = np.ones(low.level.shape, dtype=bool), c.num_clusters
    alive = np.zeros(c.sizes.shape, dtype=bool)
    alive[:, : cast.alive.shape[1]] = cast.alive
    beside = alive[:, :, None] & ((c.sizes > 1)[:, :, None] | ~np.eye(J, dtype=bool))
    dead = ~(alive[:, :, None] | alive[:, None, :])

    def excess(level: Vector) -> Vector:
        share = (level - low.level) / (high.level - low.level)
        lines = zip(low, high, strict=True)
        start = Point(*(x + share.reshape(-1, *(1,) * (x.ndim - 1)) * (y - x) for x, y in lines))
        at, home = settled(c, cast, start, level, every, ~every)
        cross, square = c.residual_gram(cast.predictions(c, at))
        acute = np.where(beside, cross, -np.inf).reshape(-1, J * J).max(axis=-1)
        form = c.paired(np.where(dead, np.maximum(cross, 0.0), 0.0), np.where(alive, 0.0, square))
        home &= np.isfinite(form).all(axis=(-2, -1))
        form[~home] = 0.0
        return np.where(home, np.maximum(acute, np.linalg.eigvalsh(form)[:, -1] - level**2) / level**2, np.inf)

    return roots_between(excess, low.level, high.level)


def _behind(change: Matrix) -> Matrix:
    """What changed for the class before each; for the first, its own change."""
    return np.concatenate([change[..., :1], change], axis=-1)
