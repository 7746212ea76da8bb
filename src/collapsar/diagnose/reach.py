"""Which classes some features make the answer, and which none can: decided with a certificate either way.

Class k can win if features h exist with w_k·h + b_k > w_j·h + b_j for every other j. Most classes are settled by a few
steps of ascent, which end at features that win. The others go to a linear program over the rivals that matter; its
multipliers prove that no features win: a mean of the rivals' rows, with weights p, that equals the class's own row and
has no smaller bias, is at least as high wherever the class is looked for (Farkas; Demeter, Kimmel & Downey, ACL 2020;
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

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from collapsar.metrics.near_rows import near_labels

__all__ = ["FeatureSpace", "Reach", "losing_margin", "reach", "winning_margin"]

FeatureSpace = Literal["free", "nonnegative"] | float
"""Where features are looked for: anywhere, with no entry below zero, or (a number) up to this length."""

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

# A margin or a mismatch of rows smaller than this, of a usual logit at these features, is rounding in float32.
ROUNDING = 1e-6
# Features are looked for up to this length, in units of one over a usual row: logits of ten thousand nats.
_FARTHEST = 1e4
_STEPS = 40
_BLOCK_NUMBERS = 1 << 22
_ROUNDS, _NEW_RIVALS, _EXCHANGES = 200, 60, 5000


@dataclass(frozen=True, eq=False)
class Reach:
    """The classes that some features can make the answer, and those that none can.

    Attributes:
        space: where features were looked for.
        scale: the usual length of a centred row, their median; rounding is judged by it.
        unreachable: shape (K,), no features win, proven by ``rivals`` and ``multipliers``.
        undecided: shape (K,), neither features that win nor a proof was found.
        features: shape (K, d), features that win; NaN rows for classes without.
        rivals: for each unreachable class the rows whose mean beats it.
        multipliers: for each unreachable class their weights, which sum to one.
        num_programs: how many classes needed a linear program.
    """

    space: FeatureSpace
    scale: float
    unreachable: Mask
    undecided: Mask
    features: Matrix
    rivals: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    multipliers: dict[int, Vector] = field(default_factory=dict)
    num_programs: int = 0


def winning_margin(weight: Matrix, bias: Vector, k: int, features: Vector, scale: float) -> float:
    """By how much class k leads at these features, less what may be rounding: positive if it wins.

    Args:
        weight: shape (K, d).
        bias: shape (K,).
        k: the class.
        features: shape (d,).
        scale: as in ``Reach``.
    """
    logits = weight @ features + bias
    lead = logits[k] - np.delete(logits, k).max()
    return float(lead - ROUNDING * (1 + scale * np.linalg.norm(features)))


def losing_margin(
    weight: Matrix,
    bias: Vector,
    k: int,
    certificate: tuple[NDArray[np.int64], Vector],
    reach_of: tuple[FeatureSpace, float],
) -> float:
    """What is left to class k against the weighted mean of its rivals: not positive if no features win.

    Args:
        weight: shape (K, d).
        bias: shape (K,).
        k: the class.
        certificate: the rivals and their weights.
        reach_of: ``space`` and ``scale`` of a ``Reach``.

    Returns:
        The largest lead beyond rounding that any features can give it, in nats; inf if the rows do not match.
    """
    (rivals, p), (space, scale) = certificate, reach_of
    mismatch = weight[k] - p @ weight[rivals]
    ahead = float(bias[k] - p @ bias[rivals])
    if isinstance(space, float | int):
        return ahead + space * float(np.linalg.norm(mismatch)) - ROUNDING * (1 + scale * space)
    if space == "nonnegative":
        mismatch = np.maximum(mismatch, 0)
    return ahead - ROUNDING if np.linalg.norm(mismatch) <= ROUNDING * scale else np.inf


def reach(weight: NDArray, bias: NDArray | None = None, space: FeatureSpace = "free") -> Reach:
    """Decide for every class whether features can make it the answer.

    Args:
        weight: shape (K, d), finite, K >= 2.
        bias: shape (K,).
        space: where features are looked for. Anywhere is as far as logits of ten thousand nats.
    """
    V = np.asarray(weight, dtype=np.float64)
    V = V - V.mean(axis=0)
    K = len(V)
    b = np.zeros(K) if bias is None else np.asarray(bias, dtype=np.float64)
    scale = float(np.median(np.linalg.norm(V, axis=1))) or float(np.linalg.norm(V, axis=1).max()) or 1.0
    features, rivals = _by_ascent(V, b, space, scale)
    unreachable, undecided = np.zeros(K, dtype=bool), np.zeros(K, dtype=bool)
    found = Reach(space, scale, unreachable, undecided, features)
    _by_twins(V, b, np.flatnonzero(np.isnan(features[:, 0])), found)
    open_classes = np.flatnonzero(np.isnan(features[:, 0]) & ~unreachable)
    for k in open_classes.tolist():
        _by_program(V, b, k, rivals[k], found)
    return replace(found, num_programs=len(open_classes))


def _lengths(space: FeatureSpace, scale: float) -> list[float]:
    """The lengths at which a direction is tried."""
    if isinstance(space, float | int):
        return [float(space)]
    return [_FARTHEST / scale * s for s in (0.1, 1.0, 1e-2, 1e-3, 1e-4)]


def _by_ascent(V: Matrix, b: Vector, space: FeatureSpace, scale: float) -> tuple[Matrix, dict[int, NDArray[np.int64]]]:
    """Features that win, NaN rows where none were found, and for those classes the rivals met on the way."""
    K = len(V)
    features = _along_rows(V, b, space, scale)
    rivals: dict[int, list[NDArray[np.int64]]] = {}
    step = max(1, _BLOCK_NUMBERS // K)
    left = np.flatnonzero(np.isnan(features[:, 0]))
    for start in range(0, len(left), step):
        classes = left[start : start + step]
        directions = _unit(V[classes], space)
        moved = np.zeros_like(directions)
        for turn in range(_STEPS):
            scores = directions @ V.T
            won = _won(scores, b, classes, _lengths(space, scale), scale)
            done = won > 0
            features[classes[done]] = directions[done] * won[done, None]
            classes, directions, scores, moved = classes[~done], directions[~done], scores[~done], moved[~done]
            if not len(classes):
                break
            pull, ahead = _pull(scores, V, classes, 0.5 ** (turn / 8))
            if turn % 5 == 4:
                for k, some in zip(classes.tolist(), ahead, strict=True):
                    rivals.setdefault(k, []).append(some)
            moved = 0.7 * moved + pull / scale
            directions = _unit(directions + 0.5 * moved, space)
    return features, {k: np.unique(np.concatenate(some)) for k, some in rivals.items() if np.isnan(features[k, 0])}


def _along_rows(V: Matrix, b: Vector, space: FeatureSpace, scale: float) -> Matrix:
    """Features along a class's own row at one length, NaN rows where they do not win clearly: one float32 product."""
    K, d = V.shape
    features = np.full((K, d), np.nan)
    length = _lengths(space, scale)[0]
    rows = np.column_stack([length * V, b]).astype(np.float32).T
    step = max(1, _BLOCK_NUMBERS // K)
    for start in range(0, K, step):
        directions = _unit(V[start : start + step], space)
        logits = np.column_stack([directions, np.ones(len(directions))]).astype(np.float32) @ rows
        place = np.arange(len(directions)), np.arange(start, start + len(directions))
        own = logits[place]
        logits[place] = -np.inf
        wins = own - logits.max(axis=1) > 10 * ROUNDING * (1 + scale * length + np.abs(own))
        features[start : start + step][wins] = length * directions[wins]
    return features


def _unit(directions: Matrix, space: FeatureSpace) -> Matrix:
    if space == "nonnegative":
        directions = np.maximum(directions, 0)
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    return directions / np.where(norms > 0, norms, 1)


def _won(scores: Matrix, b: Vector, classes: NDArray[np.int64], lengths: list[float], scale: float) -> Vector:
    """The length at which each direction wins for its class; 0 where it does at none of them."""
    won = np.zeros(len(classes))
    for length in lengths:
        left = np.flatnonzero(won == 0)
        logits = length * scores[left] + b
        place = np.arange(len(left)), classes[left]
        own = logits[place]
        logits[place] = -np.inf
        wins = own - logits.max(axis=1) > ROUNDING * (1 + scale * length)
        won[left[wins]] = length
    return won


def _pull(scores: Matrix, V: Matrix, classes: NDArray[np.int64], width: float) -> tuple[Matrix, NDArray[np.int64]]:
    """Away from a soft maximum of the rivals, and the rivals that lead."""
    place = np.arange(len(classes)), classes
    rest = scores.copy()
    rest[place] = -np.inf
    count = min(8, rest.shape[1] - 1)
    ahead = np.argpartition(-rest, count - 1, axis=1)[:, :count]
    lead = np.take_along_axis(rest, ahead, axis=1)
    spread = np.maximum(np.abs(lead).max(axis=1, keepdims=True), 1e-300) * 0.3 * width
    weights = np.exp((lead - lead.max(axis=1, keepdims=True)) / spread)
    weights /= weights.sum(axis=1, keepdims=True)
    return V[classes] - np.einsum("ij,ijk->ik", weights, V[ahead]), ahead


def _by_twins(V: Matrix, b: Vector, classes: NDArray[np.int64], found: Reach) -> None:
    """Classes with a rival of the same row and no smaller bias lose to it, or tie, everywhere."""
    labels = near_labels(V, ROUNDING * found.scale)
    for k in classes.tolist():
        for j in np.flatnonzero(labels == labels[k]).tolist():
            certificate = np.array([j]), np.ones(1)
            if j != k and losing_margin(V, b, k, certificate, (found.space, found.scale)) <= 0:
                found.unreachable[k] = True
                found.rivals[k], found.multipliers[k] = certificate
                break


def _by_program(V: Matrix, b: Vector, k: int, start: NDArray[np.int64], found: Reach) -> None:
    """Settle class k by a linear program over rivals that are added as they come in the way."""
    active, strict = start[start != k], False
    for _ in range(_ROUNDS):
        x, p = _program(V, b, k, active, found, strict=strict)
        if x is None or p is None:
            break
        certificate = _proof(V, b, k, active, p, found)
        if certificate is not None:
            found.unreachable[k] = True
            found.rivals[k], found.multipliers[k] = certificate
            return None
        within = isinstance(found.space, str) or float(np.linalg.norm(x)) <= found.space
        for candidate in (x, x * 0.1, x * 0.01, x * 10) if isinstance(found.space, str) else [x] * within:
            if winning_margin(V, b, k, candidate, found.scale) > 0:
                found.features[k] = candidate
                return None
        logits = V @ x + b
        logits[k] = -np.inf
        worst = np.setdiff1d(np.argpartition(-logits, min(_NEW_RIVALS, len(b) - 1))[:_NEW_RIVALS], active)
        worst = worst[logits[worst] > V[k] @ x + b[k] - 1]
        if not len(worst):
            if not isinstance(found.space, str):
                return _by_exchange(V, b, k, active, found)
            if strict:
                break
            strict = True
        active = np.union1d(active, worst[worst != k])
    found.undecided[k] = True
    return None


def _program(
    V: Matrix, b: Vector, k: int, active: NDArray[np.int64], found: Reach, *, strict: bool
) -> tuple[Vector | None, Vector | None]:
    """The features in the box that lead the active rivals by most, and the multipliers of the rivals.

    A lead of a nat is enough, but for features of a length: if none longer than that leads by more, this is the most.
    ``strict`` counts the lead beyond the rounding of logits, for features whose lead is hardly more than that.
    """
    from scipy.optimize import linprog

    d = V.shape[1]
    radius = (
        (0.1 if strict else 0.002) * _FARTHEST / found.scale if isinstance(found.space, str) else float(found.space)
    )
    rows = radius * (V[active] - V[k])
    price = np.zeros(d)
    bounds = [(0.0 if found.space == "nonnegative" else -1.0, 1.0)] * d
    if strict:  # lengths in the sum of magnitudes: an entry is the difference of two parts
        price = np.full(d, ROUNDING / np.sqrt(d) * found.scale * radius)
        if found.space == "free":
            rows, price, bounds = np.hstack([rows, -rows]), np.append(price, price), [(0.0, 1.0)] * (2 * d)
    solved = linprog(
        np.append(price, -1.0),
        A_ub=np.column_stack([rows, np.ones(len(active))]),
        b_ub=b[k] - b[active],
        bounds=[*bounds, (None, 1.0 if isinstance(found.space, str) else None)],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9},
    )
    if solved.status != 0:
        return None, None
    x = solved.x[:-1]
    return radius * (x if len(x) == d else x[:d] - x[d:]), -np.asarray(solved.ineqlin.marginals)


def _by_exchange(V: Matrix, b: Vector, k: int, start: NDArray[np.int64], found: Reach) -> None:
    """Settle class k for features up to a length: the least that a mean of the rivals leaves to it, step by step.

    Weight p goes from the rival that is beaten by most to the one that is beaten by least (pairwise Frank-Wolfe steps);
    the features along the remaining mismatch are the best answer to it.
    """
    r = float(found.space)
    active = start[start != k]
    p = np.full(len(active), 1 / len(active))
    for turn in range(_EXCHANGES):
        A, beta = V[k] - V[active], b[k] - b[active]
        mismatch = p @ A
        norm = float(np.linalg.norm(mismatch))
        if turn % 25 == 24 or norm == 0:
            certificate = active[p > 0], p[p > 0]
            if losing_margin(V, b, k, certificate, (r, found.scale)) <= 0:
                found.unreachable[k] = True
                found.rivals[k], found.multipliers[k] = certificate
                return
            h = mismatch * (r / norm) if norm else mismatch
            if norm and winning_margin(V, b, k, h, found.scale) > 0:
                found.features[k] = h
                return
            logits = V @ h + b
            logits[k] = -np.inf
            worst = np.setdiff1d(np.argpartition(-logits, min(4, len(b) - 1))[:4], active)
            worst = worst[worst != k]
            if norm == 0 and not len(worst):
                break
            active, p = np.append(active, worst), np.append(p, np.zeros(len(worst)))
            continue
        leads = r / norm * (A @ mismatch) + beta
        to, away = int(leads.argmin()), int(np.where(p > 0, leads, -np.inf).argmax())
        step = A[to] - A[away]
        moved = _line(mismatch, step, float(beta[to] - beta[away]) / r, float(p[away]))
        p[to] += moved
        p[away] = 0.0 if moved == p[away] else p[away] - moved
    found.undecided[k] = True


def _line(x: Vector, step: Vector, slope: float, most: float) -> float:
    """The least of |x + t step| + slope t over t from 0 to ``most``."""
    c0, c1, c2 = float(x @ x), float(x @ step), float(step @ step)
    if c2 == 0:
        return most if slope < 0 else 0.0
    rest = max(c0 * c2 - c1 * c1, 0.0)
    if abs(slope) >= np.sqrt(c2):
        return most if slope < 0 else 0.0
    t = (-c1 - slope * np.sqrt(rest / (c2 - slope * slope))) / c2
    return float(min(max(t, 0.0), most))


def _proof(
    V: Matrix, b: Vector, k: int, active: NDArray[np.int64], p: Vector, found: Reach
) -> tuple[NDArray[np.int64], Vector] | None:
    """Multipliers brought to full precision, if they prove that the class cannot win."""
    from scipy.optimize import nnls

    if p.sum() <= 0.5:  # the lead of a nat was reached
        return None
    support = np.flatnonzero(p > 1e-9 * p.max())
    choices = [(support, p[support] / p[support].sum())]
    system = np.vstack([(V[active[support]] - V[k]).T / found.scale, np.ones(len(support))])
    target = np.append(np.zeros(V.shape[1]), 1.0)
    exact = np.linalg.lstsq(system, target, rcond=None)[0]
    if exact.min(initial=0.0) >= 0 and exact.sum() > 0.5:
        choices.append((support, exact / exact.sum()))
    else:
        exact = nnls(system, target, maxiter=20 * system.shape[1])[0]
        if exact.sum() > 0.5:
            choices.append((support, exact / exact.sum()))
    for places, weights in choices:
        certificate = (active[places], weights)
        if losing_margin(V, b, k, certificate, (found.space, found.scale)) <= 0:
            return certificate
    return None
