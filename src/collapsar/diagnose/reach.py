"""Which classes are the answer for some features, and which for none: decided with a certificate either way.

Class k can win if features h exist with w_k·h + b_k > w_j·h + b_j for every other j. Most classes win along their own
row, which one product of matrices shows. The others are settled by least squares over the rivals that matter. For a
class that cannot win, the rivals' weights p are the proof: a mean of their rows that equals the class's own row and has
no smaller bias scores at least as high for all features considered (Farkas; Demeter, Kimmel & Downey, ACL 2020;
Grivas, Bogoychev & Lopez, ACL 2022).

Example:
    >>> square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> found = reach(np.vstack([square, [[0.1, 0.2]]]))  # a row inside the hull of the others
    >>> found.unreachable.tolist()
    [False, False, False, False, True]
    >>> found.rivals[4].size >= 3
    True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Mask, Matrix, Vector
from collapsar.diagnose.reach_search import ROUNDING, Budget, Contest, FeatureSpace, search, unit

Progress = Callable[[str], None]

_BLOCK_NUMBERS = 1 << 22
# Progress on the rows is reported once per this many multiplications, some seconds.
_TOLD = 5e11
# How many rays are tried at once on the way to features of one length, and how often.
_RAYS, _HOPS = 64, 20


@dataclass(frozen=True, eq=False)
class Reach:
    """The classes that are the answer for some features, and those that are not for any.

    Attributes:
        space: the space of features searched.
        scale: the usual length of a centred row, their median; rounding is judged by it.
        unreachable: shape (K,), no features win, proven by ``rivals`` and ``multipliers``.
        undecided: shape (K,), neither features that win nor a proof was found.
        features: shape (K, d), features that win; NaN rows for classes without any.
        rivals: for each unreachable class the rows whose mean beats it.
        multipliers: for each unreachable class their weights, which sum to one.
        num_searched: how many classes do not win along their own row.
        out_of_budget: whether the multiplications that were allowed ran out.
    """

    space: FeatureSpace
    scale: float
    unreachable: Mask
    undecided: Mask
    features: Matrix
    rivals: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    multipliers: dict[int, Vector] = field(default_factory=dict)
    num_searched: int = 0
    out_of_budget: bool = False


def reach(
    weight: NDArray,
    bias: NDArray | None = None,
    space: FeatureSpace = "free",
    *,
    largest: float = np.inf,
    progress: Progress | None = None,
) -> Reach:
    """Decide for every class whether some features make it the answer.

    Args:
        weight: shape (K, d), finite, K >= 2.
        bias: shape (K,).
        space: the space of features to search.
        largest: how many multiplications to spend after the first K²d; the classes left then, those with the longest
            rows, stay undecided.
        progress: called with a sentence now and then.
    """
    V = np.asarray(weight, dtype=np.float64)
    V = V - V.mean(axis=0)
    K = len(V)
    b = np.zeros(K) if bias is None else np.asarray(bias, dtype=np.float64)
    lengths = np.linalg.norm(V, axis=1)
    apart = np.abs(b - np.median(b))
    nats = min(float(np.median(apart)) or float(apart.max()), 1.0)
    contest = Contest(V, b, space, float(np.median(lengths)) or float(lengths.max()) or 1.0, nats)
    say = progress or (lambda text: None)
    features = _along_rows(contest, say)
    left = np.flatnonzero(np.isnan(features[:, 0]))
    left = left[np.argsort(lengths[left], kind="stable")]
    found = Reach(
        space, contest.scale, np.zeros(K, dtype=bool), np.zeros(K, dtype=bool), features, num_searched=len(left)
    )
    found.undecided[left] = True
    budget, settled = Budget(largest), 0
    for part in search(contest, left, budget):
        for k, _, certificate in part:
            if certificate is not None:
                found.unreachable[k] = True
                found.rivals[k], found.multipliers[k] = certificate
                found.undecided[k] = False
        won = {k: h for k, h, _ in part if h is not None}
        if not isinstance(space, str):
            won = _on_sphere(contest, won, budget)
        for k, h in won.items():
            features[k], found.undecided[k] = h, False
        settled += len(part)
        if len(part) < len(left):
            say(f"{settled} of {len(left)} classes that do not win along their own row are settled")
    return replace(found, out_of_budget=budget.left <= 0)


def _along_rows(contest: Contest, say: Progress) -> Matrix:
    """Features along a class's own row at one length, NaN rows if they do not win clearly: one float32 product."""
    V, length = contest.rows, contest.first_length
    K, d = V.shape
    features = np.full((K, d), np.nan)
    rows = np.column_stack([length * V, contest.bias]).astype(np.float32).T
    step = max(1, _BLOCK_NUMBERS // K)
    told = 0.0
    for start in range(0, K, step):
        directions = unit(V[start : start + step], contest.space)
        logits = np.column_stack([directions, np.ones(len(directions))]).astype(np.float32) @ rows
        place = np.arange(len(directions)), np.arange(start, start + len(directions))
        own = logits[place]
        logits[place] = -np.inf
        wins = own - logits.max(axis=1) > 10 * (contest.rounding(length) + ROUNDING * np.abs(own))
        wins &= np.any(directions != 0, axis=1)
        features[start : start + step][wins] = length * directions[wins]
        if start * float(K) * d - told > _TOLD:
            told = start * float(K) * d
            say(f"{start} of {K} classes tried along their own row")
    return features


def _on_sphere(contest: Contest, inside: dict[int, Vector], budget: Budget) -> dict[int, Vector]:
    """Features of exactly the contest's length, if found, for classes with shorter features that win, shape (d,).

    The features at which a class is the answer form a convex set: if it meets the ball and also leaves it, it meets the
    sphere. If the set ends inside the ball, as for a short row with the largest bias, it has no point on the sphere
    although it has some in the ball, and for that there is no short proof.
    """
    length = float(contest.space)
    found = {k: h for k, h in inside.items() if np.isclose(np.linalg.norm(h), length, rtol=1e-12, atol=0)}
    left = [k for k in inside if k not in found]
    if not left:
        return found
    # Along a direction orthogonal to all rows no logit changes; there is one if d >= K.
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
    """Move outwards within the features that win, along the best of many rays, until one leaves the ball."""
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
        losses = rays @ (V - V[k]).T  # per unit of length
        with np.errstate(divide="ignore", invalid="ignore"):
            ways = np.where(losses > 0, leads / losses, np.inf).min(axis=1)
        ends = start + 0.9 * ways[:, None] * rays
        norms = np.linalg.norm(ends, axis=1)
        if not norms.max() > np.linalg.norm(start):
            return None
        start = ends[int(norms.argmax())]
    return None
