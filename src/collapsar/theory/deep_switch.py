"""Weight decay on everything: the decay above which the deep model is better off without its smallest classes.

Batch normalisation turns the decay wd of its scale and shift into a feature penalty, lambda_h = wd / N; with the L
layers above it, all decayed, there are F = L + 1 factors. In column form

    min_b  sum_k min_z [ q_k CE(z + b, e_k) + (F/2) wd (n_k/N)^(1/F) ||z||^(2/F) ]  +  (wd/2) ||b||^2,   q_k = n_k/N.

Given b the columns separate: z = mu (e - p), and mu is the larger root of q ||e - p|| rho^(1 - 2/F) = (2/F) price, rho
= ||z||. The switch is where the minimum with the smallest classes apart is as high as the one with them at zero.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.core.counts import CountsLike, class_counts
from collapsar.core.types import Matrix, Vector
from collapsar.theory.clusters import Clusters, Response, balanced_bias, cross_entropy, softmax
from collapsar.theory.column_form import tilted
from collapsar.theory.roots import root_between

# Beyond this number, kinds of classes are joined with neighbours in size: they matter only through the bias, and four
# kinds give the switch to 0.1%.
MOST_KINDS = 4


def decay_switch(counts: CountsLike, layers: int) -> float:
    """The weight decay at which zero becomes the better place for the smallest classes.

    Args:
        counts: samples per class.
        layers: L >= 1 decayed linear layers above the last normalisation, the head with its bias included.

    Returns:
        The decay, in torch's convention (with the half); for L = 1 there is no jump: it is where the classes vanish.

    Raises:
        ValueError: ``layers`` is not a whole number >= 1.
        ArithmeticError: no switch was found; the counts differ by too many orders of magnitude.

    Example:
        >>> [round(decay_switch("100x5,20x5", layers), 4) for layers in (1, 2, 3)]
        [0.1751, 0.0681, 0.0437]
    """
    if not (isinstance(layers, int) and layers >= 1):
        raise ValueError(f"`layers` must be a whole number >= 1, got {layers!r}")
    return _switch(tuple(class_counts(counts).tolist()), layers, MOST_KINDS)


@lru_cache(maxsize=64)  # advice calls it with the same few arguments again and again
def _switch(counts: tuple[int, ...], layers: int, most_kinds: int) -> float:
    deep = _Deep(_kinds(np.array(counts, dtype=np.float64), most_kinds), layers + 1)
    return deep.vanish() if layers == 1 else deep.switch()


def _kinds(n: Vector, most: int) -> Clusters:
    """Classes of equal size, smallest first; all but the smallest are joined if there are more kinds than ``most``."""
    sizes, index = np.unique(n, return_inverse=True)
    if sizes.size > most:
        place = np.log(sizes[1:] / sizes[1]) / np.log(sizes[-1] / sizes[1])
        joined = np.concatenate([[0], 1 + np.minimum((place * (most - 1)).astype(int), most - 2)])
        index = np.unique(joined, return_inverse=True)[1][index.ravel()]
    members = np.bincount(index.ravel()).astype(np.float64)
    mass = np.bincount(index.ravel(), weights=n) / members
    one, J = np.ones_like(mass), mass.size
    labels = np.repeat(np.arange(J), members.astype(int))
    return Clusters(labels, members, mass / n.sum(), mass / n.sum(), one, one, 0 * one, 0.0, 1.0)


class _Deep:
    """The columns' equations for one data set; the smallest kind is number 0."""

    def __init__(self, c: Clusters, factors: int) -> None:
        self.c, self.factors = c, factors
        self.unit = factors / 2 * c.mass ** (1 / factors)  # the price, per decay
        self.last: dict[bool, tuple[Vector, Response]] = {}  # the latest minima, to start the next from

    def vanish(self) -> float:
        """For two factors: where the residual of the smallest column, held at zero, is as long as its price."""

        def excess(log_decay: float) -> float:
            decay = float(np.exp(log_decay))
            P = self.minimum(decay, alive=False)[1].P
            return float(self.c.column_norms(P)[0] * np.sqrt(self.c.mass[0]) - self.unit[0] * decay)

        guess = self._scale()
        low, high = np.log(guess / 10), np.log(guess)
        while excess(high) > 0:
            low, high = high, high + 0.2
        return float(np.exp(root_between(excess, low, high)))

    def switch(self) -> float:
        """Newton's method on the decay: both minima rise with it at the rate of their penalties, weights and bias."""
        decay, low, high = self._scale() / 2, 0.0, np.inf
        for _ in range(60):
            apart = self._value(decay, alive=True)
            if apart is None:  # beyond the spinodal
                high, decay = decay, (low + decay) / 2 if low else decay / 2
                continue
            zero = self._value(decay, alive=False)
            assert zero is not None  # the larger classes vanish later
            gain, slope = zero[0] - apart[0], apart[1] - zero[1]
            low, high = (decay, high) if gain > 0 else (low, decay)
            new = decay + gain / slope
            if abs(new - decay) <= 1e-9 * decay:
                return float(new)
            decay = new if low < new < high else (low + high) / 2 if np.isfinite(high) else 2 * decay
        raise ArithmeticError("no switch was found; the counts differ by too many orders of magnitude")

    def _scale(self) -> float:
        """The decay at which the smallest class would vanish without bias if there were two factors."""
        c = self.c
        return float(c.share[0] * np.sqrt(1 - 1 / c.sizes.sum()) / self.unit[0])

    def _value(self, decay: float, *, alive: bool) -> tuple[float, float] | None:
        """Objective at a minimum and its derivative in the decay; None where a column has no separated minimum."""
        b, at = self.minimum(decay, alive=alive)
        if not np.isfinite(at.value):
            return None
        rho: Any = at.amplitude * _length(self.c, at.P)
        priced = float(self.c.sizes @ (self.unit * rho ** (2 / self.factors) + b**2 / 2))
        return float(at.value) + decay / 2 * float(self.c.sizes @ b**2), priced

    def minimum(self, decay: float, *, alive: bool) -> tuple[Vector, Response]:
        """The bias and the columns of a minimum, the smallest kind apart or at zero."""
        c = replace(self.c, lambda_b=decay)

        def respond(b: Vector, start: Response | None) -> Response:
            return self._columns(c, decay, alive, b, start)

        try:
            self.last[alive] = balanced_bias(c, respond, self.last.get(alive))
        except _NoMinimumError as error:
            return np.zeros_like(c.sizes), error.response
        return self.last[alive]

    def _columns(self, c: Clusters, decay: float, alive: bool, b: Vector, start: Response | None) -> Response:
        u, F = c.logits(b), self.factors
        P = softmax(c, u)[0]
        on = np.ones(c.sizes.size, dtype=bool)
        on[0] = alive
        goal = np.log(2 / F * self.unit * decay / c.share)
        mu = np.zeros_like(goal)
        guess = 5 * np.exp(-goal) * 5 ** (1 - 2 / F) if start is None else start.amplitude
        mu[on], P[:, on] = _outer(c, u, on, goal, F, np.where(guess > 0, guess, 1.0)[on])
        if not np.isfinite(mu).all():
            raise _NoMinimumError(Response(np.nan, P, P, P, mu))
        miss = c.target - P
        norm = _length(c, P)
        logits = u + mu * miss
        value = cross_entropy(c, logits, softmax(c, logits)[1])
        value += decay * float((c.sizes * self.unit * (mu * norm) ** (2 / F))[on].sum())
        # a column moves along e - p: mu grows as the column shortens, at this rate
        stiff = np.where(on, (1 - 2 / F) / (2 - 2 / F) * norm**2 / np.where(on, mu, 1.0), 0.0)
        return Response(value, P, P / (1 + mu * P), np.where(on, miss, 0.0), mu, stiff)


class _NoMinimumError(ArithmeticError):
    """Some column has no separated minimum at this bias."""

    def __init__(self, response: Response) -> None:
        super().__init__("no separated minimum")
        self.response = response


def _length(c: Clusters, P: Matrix) -> Vector:
    """||e - p|| of every column."""
    return np.sqrt(np.sum(c.multiplicity * (c.target - P) ** 2, axis=0))


def _outer(
    c: Clusters, u: Matrix, on: NDArray[np.bool_], goal: Vector, factors: int, guess: Vector
) -> tuple[Vector, Matrix]:
    """The larger root mu of (2 - 2/F) log ||e - p|| + (1 - 2/F) log mu = goal, NaN without one, and the columns."""
    count, target, base, goal = c.multiplicity[:, on], c.target[:, on], u[:, on], goal[on]
    a, power = 2 - 2 / factors, 1 - 2 / factors
    P = softmax(c, u)[0][:, on]

    def look(s: Vector, P: Matrix) -> tuple[Matrix, Vector, Vector]:
        """The columns at mu = e^s, the equation's excess, and how fast it falls in s."""
        mu = np.exp(s)
        P = tilted(base, np.broadcast_to(mu, base.shape), target, count, P)
        miss = target - P
        square = np.sum(count * miss**2, axis=0)
        slope = count * P / (1 + mu * P)
        centred = miss - np.sum(slope * miss, axis=0) / slope.sum(axis=0)
        falls = a * mu * np.sum(slope * centred**2, axis=0) / square - power
        return P, a / 2 * np.log(square) + power * s - goal, falls

    s, low, high = np.log(guess), np.full(goal.size, -40.0), np.full(goal.size, 60.0)
    P, excess, falls = look(s, P)
    for _ in range(200):
        inner = (excess > 0) | (falls <= 0)
        low, high = np.where(inner, s, low), np.where(inner, high, s)
        with np.errstate(divide="ignore"):
            newton = s + np.where(falls > 0, excess / falls, np.inf)
        new = np.where((newton > low) & (newton < high), newton, (low + high) / 2)
        settled = np.all(np.abs(new - s) <= 1e-11 * np.maximum(np.abs(s), 1.0))
        s = new
        P, excess, falls = look(s, P)
        if settled:
            break
    return np.where(np.abs(excess) <= 1e-9, np.exp(s), np.nan), P
