"""The deep feature model with its bias, two clusters of classes: both branches, the global switch and the spinodal.

L decayed linear layers (head included) above features with penalty lambda_H are L + 1 factors. In column form, each
class with a direction of its own (collapsar_studies.deep), the problem is

    Σ_k q_k CE(z_k + b, e_k)  +  Σ_k price_k ||z_k||^(2/(L+1))  +  (lambda_b/2) ||b||^2

with price_k from ``deep_price``. Batch normalisation makes the decay wd of its scale and shift a feature penalty: what
it emits has Σ_i ||h_i||^2 <= N (||scale||^2 + ||shift||^2), so lambda_H = wd/N and price_k is
(L+1)/2 wd (n_k/N)^(1/(L+1)). Where the decay of the layers below the normalisation is counted too, a column costs
``body_cost`` in place of price_k ||z_k||^(2/(L+1)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.optimize import minimize

from collapsar.core.types import Vector
from collapsar_studies.deep import deep_price
from collapsar_studies.deep_body import Body, body_cost

DEAD = 1e-2  # nats: a column this short has gone to zero, its basin; the separated branches end at norms above 0.5
STEP = 1.02  # of the decay along a branch
STRIDE = 16  # steps at once, until something happens


@dataclass(frozen=True)
class DeepPair:
    """k_a classes of n_a samples and k_b of n_b, L layers above the features.

    Attributes:
        layers: L >= 1 decayed linear layers, the head included.
        decay: wd > 0 of every one of them and of the head's bias.
        lambda_h: Feature penalty; None: wd/N, that of a batch normalisation.
        bodies: What a class of A and one of B sees of the decayed layers below the normalisation; None: those are free.

    Raises:
        ValueError: Both ``lambda_h`` and ``bodies`` are given.
    """

    k_a: int
    k_b: int
    n_a: int
    n_b: int
    layers: int
    decay: float
    lambda_h: float | None = None
    bodies: tuple[Body, Body] | None = None

    def __post_init__(self) -> None:
        if self.lambda_h is not None and self.bodies is not None:
            raise ValueError(
                "`bodies` belong to a batch normalisation, whose feature penalty is known: leave `lambda_h`"
            )

    def cost(self, cluster: int) -> Callable[[float], tuple[float, float]]:
        """What a column of A (0) or B (1) costs as a function of its squared norm, with the derivative."""
        if self.bodies is not None:
            share = (self.n_a, self.n_b)[cluster] / (self.k_a * self.n_a + self.k_b * self.n_b)
            return partial(body_cost, share=share, layers=self.layers, decay=self.decay, body=self.bodies[cluster])
        price, power = self.prices[cluster], 1 / (self.layers + 1)
        return lambda square: (price * square**power, price * power * square ** (power - 1))

    @property
    def prices(self) -> tuple[float, float]:
        """Of a column of A and of B."""
        N = self.k_a * self.n_a + self.k_b * self.n_b
        lambda_h = self.decay / N if self.lambda_h is None else self.lambda_h
        a, b = (deep_price(self.layers + 1, self.decay, lambda_h, n) for n in (self.n_a, self.n_b))
        return a, b


@dataclass(frozen=True)
class DeepPoint:
    """A local minimum.

    Attributes:
        Z: shape (K, K), [logit, class].
        b: shape (K,).
        value: The objective, nats.
        norms: Of a column of A and of B.
    """

    Z: Vector
    b: Vector
    value: float
    norms: tuple[float, float]


def deep_optimum(pair: DeepPair, *, minority_alive: bool, start: DeepPoint | None = None) -> DeepPoint | None:
    """The local minimum with separated classes in A and, if asked, in B; None where descent finds none.

    Args:
        pair: The problem.
        minority_alive: Whether B's columns are separated; else they are held at zero.
        start: Where to begin: the minimum at a decay close by. None: separated columns of norm 8.

    Example:
        >>> point = deep_optimum(DeepPair(5, 5, 100, 20, layers=2, decay=0.02), minority_alive=True)
        >>> point is not None and tuple(round(norm, 2) for norm in point.norms)
        (5.14, 4.08)
    """
    k_a, k_b = pair.k_a, pair.k_b
    objective = _objective(pair, minority_alive)
    if start is None:
        x = np.array([7.2, -0.8, -0.8, 7.2, -0.8, -0.8, 0.0])
    else:
        Z, b = start.Z, start.b
        x = np.array([Z[0, 0], Z[1, 0], Z[-1, 0], Z[-1, -1], Z[-2, -1], Z[0, -1], b[0]])
    found = minimize(objective, x, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10})
    own_a, sib_a, for_a, own_b, sib_b, for_b, bias = found.x
    weight_a, weight_b = np.array([1, k_a - 1, k_b]), np.array([1, k_b - 1, k_a])
    norms = tuple(float(np.sqrt(w @ np.square(v))) for w, v in ((weight_a, found.x[:3]), (weight_b, found.x[3:6])))
    if norms[0] < DEAD or (minority_alive and norms[1] < DEAD):
        return None
    Z = np.empty((k_a + k_b, k_a + k_b))
    Z[:k_a, :k_a], Z[k_a:, :k_a] = sib_a, for_a
    Z[k_a:, k_a:], Z[:k_a, k_a:] = sib_b, for_b
    np.fill_diagonal(Z, [own_a] * k_a + [own_b] * k_b)
    if not minority_alive:
        Z[:, k_a:] = 0
        norms = (norms[0], 0.0)
    b = np.repeat([bias, -k_a / k_b * bias], (k_a, k_b))
    return DeepPoint(Z, b, float(found.fun), (norms[0], norms[1]))


def _objective(pair: DeepPair, minority_alive: bool) -> Callable[[Vector], tuple[float, Vector]]:
    """Objective and gradient in (own, sibling, foreign) of A, of B, and the bias of A; B's is -k_A/k_B of it."""
    k_a, k_b = pair.k_a, pair.k_b
    N = k_a * pair.n_a + k_b * pair.n_b
    parts = [
        (k_a, pair.n_a / N, pair.cost(0), np.array([1.0, k_a - 1.0, k_b]), np.array([1.0, 1.0, -k_a / k_b]), True),
        (k_b, pair.n_b / N, pair.cost(1), np.array([1.0, k_b - 1.0, k_a]), np.array([-k_a / k_b] * 2 + [1.0]), False),
    ]
    weight = pair.decay * (k_a + k_a**2 / k_b)

    def value(x: Vector) -> tuple[float, Vector]:
        gradient = np.zeros(7)
        bias = x[6]
        total = weight / 2 * bias**2
        gradient[6] = weight * bias
        for i, (k, q, cost, many, tilt, large) in enumerate(parts):
            place = slice(3 * i, 3 * i + 3)
            alive = large or minority_alive
            z = x[place] if alive else np.zeros(3)
            u = z + tilt * bias
            top = u.max()
            mass = many * np.exp(u - top)
            p = mass / mass.sum()
            total += k * q * (np.log(mass.sum()) + top - u[0])
            miss = p - np.array([1.0, 0.0, 0.0])
            gradient[6] += k * q * float(miss @ tilt)
            if alive:
                square = float(many @ z**2) + 1e-30
                paid, slope = cost(square)
                total += k * paid
                gradient[place] = k * (q * miss + 2 * slope * many * z)
        return float(total), gradient

    return value


@dataclass(frozen=True)
class Switches:
    """Decays at which the minority's columns go to zero, everything else following.

    Attributes:
        deep: From here on the branch without minority is the lower of the two: the global switch.
        spinodal: From here on there is no separated minority even locally.
    """

    deep: float
    spinodal: float


def decay_switches(pair: DeepPair, low: float, high: float) -> Switches:
    """Follow the separated branch from ``low`` upwards.

    Args:
        pair: The problem; its decay is not used.
        low: A decay where the minority is separated and that is the better branch.
        high: Where to give up.

    Returns:
        Each to 2%; infinity beyond ``high``.

    Raises:
        ValueError: The minority is not separated at ``low``.

    Example:
        >>> found = decay_switches(DeepPair(5, 5, 1000, 20, layers=2, decay=1.0), 0.005, 0.1)
        >>> round(found.deep, 3), round(found.spinodal, 3)
        (0.017, 0.021)
    """
    decays = list(_decays(low, high))
    deep, n, stride = np.inf, 0, 1
    point: DeepPoint | None = None
    other: DeepPoint | None = None
    while n < len(decays):
        here = replace(pair, decay=decays[n])
        alive = deep_optimum(here, minority_alive=True, start=point)
        dead = deep_optimum(here, minority_alive=False, start=other) if np.isinf(deep) else None
        switched = alive is None or (dead is not None and dead.value <= alive.value)
        if switched and stride > 1:  # somewhere on the way: again, step by step
            n, stride = n - stride + 1, 1
            continue
        if alive is None:
            if n == 0:
                raise ValueError(f"`low` must leave the minority separated, got {low!r}, where it is not; lower it")
            return Switches(min(deep, decays[n]), decays[n])
        if switched:
            deep = decays[n]
        if switched or n == 0:
            stride = STRIDE
        point, other = alive, dead
        stride = max(1, min(stride, len(decays) - 1 - n))
        n += stride
    return Switches(float(deep), np.inf)


def _decays(low: float, high: float) -> Iterator[float]:
    wd = low
    while wd <= high:
        yield wd
        wd *= STEP
