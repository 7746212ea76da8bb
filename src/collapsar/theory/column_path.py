"""Where columns vanish with nonnegative features: the optimum in column form, followed down from Z = 0 event by event.

The path lambda_z -> optimum is continuous, and class e leaves zero where its residual, which only the bias moves, is as
long as lambda_z. Bias, lambda_z and every column of such an event are the root of one system of equations that is
smooth while the same columns are alive. Newton on all of it at once, from the event before, takes three or four steps
of one pass over the columns each. The optimum is convex, so a root with the right signs is the event, however it was
found; where Newton loses the path, each class is looked for by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from collapsar.core.types import Mask, Matrix, Vector
from collapsar.theory.clusters import Clusters, Response, balanced_bias
from collapsar.theory.column_form import columns, gauge_bounds, gauge_within, without_columns
from collapsar.theory.column_newton import OLDEST, Cast, Point, Sheet, settled
from collapsar.theory.roots import FLOOR, largest_roots

__all__ = ["Vanishing", "column_thresholds"]


# The certificate of H >= 0 counts as closed when the bound of the dual norm exceeds lambda_z by no more than this.
CLOSED = 1e-9
# Where Newton does not find the next event, lambda_z is first lowered by this factor, then by its root and so on.
FIRST_PACE = 0.7
SHORTEST_PACE = 0.98
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
    # without a bias the columns do not know of each other; where all logits are alike they stand at obtuse angles
    alike = np.all((c.scales == c.scales[:, :1]) & (c.offsets == c.offsets[:, :1]), axis=-1)
    decided = alike & ~(c.bias_price < np.inf)[:, 0]
    exact[decided] = True
    wanted = (at_rest < top[:, None]) & ~decided[:, None]
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


def _events(c: Clusters, b: Vector, P: Matrix, top: Vector, wanted: Mask) -> tuple[Vector, Mask, Mask]:
    """Lambda_z of every wanted event, whether the certificate closes there, and which events were lost."""
    sheet = Sheet.of(c)
    found, closed = np.full(wanted.shape, np.nan), np.zeros_like(wanted)
    lost, todo, alive = np.zeros_like(wanted), wanted.copy(), ~wanted
    age = np.where(alive, 0, OLDEST)  # how many events ago it left zero
    u = sheet.logits(b, np.broadcast_to(np.arange(c.num_clusters), wanted.shape))
    L = u[..., -1] - np.log(P[..., -1, :])
    at = Point(b, top, u - L[..., None], L, np.zeros_like(b))
    ahead = c.column_norms(P)
    floor = FLOOR * ahead
    aim, pace = np.full_like(top, np.inf), np.full_like(top, FIRST_PACE)
    event = np.argmax(np.where(todo, ahead, -np.inf), axis=-1)
    active: Any
    while (active := todo.any(axis=-1)).any():
        cast = Cast.of(c, sheet, alive, age, event)
        start = cast.enter(c, at)
        then, home = settled(c, cast, start, aim, active)
        then = start.kept(then, home)
        Q = cast.predictions(c, then)
        norms, edge = c.column_norms(Q), then.level[:, None] * (1 + ROUNDING)
        on = (np.arange(c.num_clusters) == event[:, None]) & np.isinf(aim)[:, None]
        exact = np.abs(norms - then.level[:, None]) <= SAME * then.level[:, None]
        right = home & np.all(exact | ~(alive | on), axis=-1)
        right &= np.all(~cast.alive | (then.mu >= -ROUNDING * then.mu.max(axis=-1, keepdims=True)), axis=-1)
        passed = todo & ~on & (norms > edge)
        late = right & np.isinf(aim) & passed.any(axis=-1)  # another class leaves zero before
        right &= np.all(alive | on | (norms <= edge), axis=-1)
        arrived = right & np.isinf(aim)
        at, ahead = cast.leave(at, then, right), np.where(right[:, None], norms, ahead)
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
