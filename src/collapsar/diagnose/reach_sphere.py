"""From features that win to features of exactly one length that win.

The features at which a class is the answer are a convex set: where it meets the ball and leaves it, it meets the
sphere. A class that no features of the ball make the answer has none on the sphere either; one whose set ends inside
the ball, such as a short row with the largest bias, has none on the sphere although it has some in the ball, and of
that there is no short proof.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.diagnose.reach_search import Budget, Contest, search

__all__ = ["on_sphere"]


_RAYS, _HOPS = 64, 20


def on_sphere(contest: Contest, inside: dict[int, Vector], budget: Budget) -> dict[int, Vector]:
    """Features of the contest's length that make each class the answer, where they are found.

    Args:
        contest: the head; its space is a length.
        inside: for some classes features up to that length that win, shape (d,) each.
        budget: what may be spent.
    """
    length = float(contest.space)
    found = {k: h for k, h in inside.items() if np.isclose(np.linalg.norm(h), length, rtol=1e-12, atol=0)}
    left = [k for k in inside if k not in found]
    if not left:
        return found
    # Along a direction orthogonal to all rows no logit changes; there is one wherever d >= K.
    flat = np.linalg.eigh(contest.rows.T @ contest.rows)[1][:, :1].T
    # A direction in which the class gains on all others, whatever the biases, leaves the ball.
    away: dict[int, Vector] = {}
    for k in left:
        directions = np.vstack([flat, -flat, inside[k][None], contest.rows[k][None]])
        h = _crossing(contest, k, inside[k], directions)
        if h is not None:
            found[k] = h
    left = np.array([k for k in left if k not in found], dtype=np.int64)
    for part in search(replace(contest, bias=np.zeros_like(contest.bias), space="free"), left, budget):
        away |= {k: h for k, h, _ in part if h is not None}
    rng = np.random.default_rng(0)
    for k in left.tolist():
        h = _crossing(contest, k, inside[k], away[k][None]) if k in away else None
        if h is None:
            h = _by_rays(contest, k, inside[k], rng, budget)
        if h is not None:
            found[k] = h
    return found


def _crossing(contest: Contest, k: int, start: Vector, directions: Matrix) -> Vector | None:
    """Where a ray from the start meets the sphere, if class k wins there on one of the rays."""
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    directions = directions[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    length = float(contest.space)
    along = directions @ start
    ends = start + (np.sqrt(along**2 + length**2 - start @ start) - along)[:, None] * directions
    ends *= length / np.linalg.norm(ends, axis=1, keepdims=True)
    logits = ends @ contest.rows.T + contest.bias
    own = logits[:, k].copy()
    logits[:, k] = -np.inf
    leads = own - logits.max(axis=1)
    best = int(leads.argmax())
    return ends[best] if leads[best] > contest.rounding(length) else None


def _by_rays(contest: Contest, k: int, start: Vector, rng: np.random.Generator, budget: Budget) -> Vector | None:
    """Hop outwards within the features that win, along the ray of many that leads farthest out, until one leaves."""
    V, b = contest.rows, contest.bias
    for _ in range(_HOPS):
        if not budget.spend(_RAYS * V.size):
            return None
        rays = rng.standard_normal((_RAYS, len(start)))
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        h = _crossing(contest, k, start, rays)
        if h is not None:
            return h
        leads = (V[k] - V) @ start + b[k] - b
        losses = rays @ (V - V[k]).T  # per unit of the way
        with np.errstate(divide="ignore", invalid="ignore"):
            ways = np.where(losses > 0, leads / losses, np.inf).min(axis=1)
        ends = start + 0.9 * ways[:, None] * rays
        norms = np.linalg.norm(ends, axis=1)
        if not norms.max() > np.linalg.norm(start):
            return None
        start = ends[int(norms.argmax())]
    return None
