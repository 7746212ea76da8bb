"""What a column costs when the layers below a batch normalisation are decayed too.

The scale of those layers is free only above the normalisation's eps: decay shrinks them until eps is felt, and from
there on they are paid for. In column form class k has one normalised unit; M decayed layers of squared norm s each
bring it its contrast with gain reach * s^(M/2), the variance is v = reach^2 s^M q (1 - q), a unit of scale gamma then
emits h with q h^2 (1 + (1 - q) eps / v) for its decay, and L layers of squared norm t carry h to ||z|| = t^(L/2) h. The
cheapest split of a given ||z|| has

    s = (eps h^2 / reach^2)^(1/(M+1)),   t = q h^2 + s,   cost (wd/2) ((L+1) t + M s).

With eps = 0 that is (L+1)/2 wd (q ||z||^2)^(1/(L+1)), the price of L + 1 factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log

EPS = 1e-5  # of a batch normalisation in torch


@dataclass(frozen=True)
class Body:
    """The decayed layers below a batch normalisation, as one class sees them.

    Attributes:
        layers: M >= 1, the normalised layer included.
        reach: > 0, what a map of unit norm makes of the class's contrast in the images: its output on the class minus
            that on the rest.
        eps: > 0, of the normalisation.

    Raises:
        ValueError: A value is out of range.
    """

    layers: int
    reach: float
    eps: float = EPS

    def __post_init__(self) -> None:
        if not (isinstance(self.layers, int) and self.layers >= 1):
            raise ValueError(f"`layers` must be a whole number >= 1, got {self.layers!r}")
        for name in ("reach", "eps"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"`{name}` must be finite and > 0, got {getattr(self, name)!r}")


def body_cost(square: float, share: float, layers: int, decay: float, body: Body) -> tuple[float, float]:
    """The least decay of everything that makes a column, and its derivative.

    Args:
        square: ||z_k||^2 > 0.
        share: q = n_k / N.
        layers: L >= 1 decayed layers above the normalisation, the head included.
        decay: wd > 0 of every parameter.
        body: The layers below.

    Returns:
        Cost in nats, and its derivative by ``square``.

    Example:
        >>> cost, _ = body_cost(25.0, 0.1, 1, 0.05, Body(4, 3.0))
        >>> free, _ = body_cost(25.0, 0.1, 1, 0.05, Body(4, 3.0, eps=1e-30))
        >>> round(cost, 3), round(free, 3)
        (0.093, 0.079)
    """
    root, reach = 1 / (body.layers + 1), body.reach**2

    def parts(x: float) -> tuple[float, float]:
        return share * exp(2 * x), (body.eps * exp(2 * x) / reach) ** root

    x = log((square * share) ** (1 / (layers + 1)) / share) / 2  # log h where eps is not felt
    for _ in range(100):  # Newton: the left side is convex and rising in log h
        a, s = parts(x)
        miss = layers * log(a + s) + 2 * x - log(square)
        if abs(miss) < 1e-13:
            break
        x -= miss / (2 + layers * (2 * a + 2 * root * s) / (a + s))
    a, s = parts(x)
    t = a + s
    return decay / 2 * ((layers + 1) * t + body.layers * s), decay * t / (2 * square)
