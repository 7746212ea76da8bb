"""The shape of the map lambda*(lambda_b) at which the minority vanishes, over a wide random sample of problems."""

from __future__ import annotations

from typing import get_args

import numpy as np

from collapsar.core.problem import FeatureModel
from collapsar.core.types import Record
from collapsar.theory.vanish_boundary import BoundaryCurve


def monotonicity(num_problems: int = 1000, seed: int = 0, features: FeatureModel = "signed") -> Record:
    """Evidence on the shape of the map over random problems, not a proof.

    Log-uniform class numbers (2 to 200 and 1 to 200) and ratios n_A/n_B (1.01 to 10^4); the map does not depend on the
    scale of the counts beyond the unit of lambda_z. Each map is followed over 200 biases from the free one to none.

    Args:
        num_problems: how many.
        seed: of the sample.
        features: the model.

    Returns:
        A JSON-able record: how many maps have how many turning points, where they begin and end, the ranges.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> monotonicity(20)["turning_points"]
        {'1': 20}
    """
    if not num_problems >= 1:
        raise ValueError(f"`num_problems` must be >= 1, got {num_problems!r}")
    if features not in get_args(FeatureModel):
        raise ValueError(f'`features` must be "signed" or "nonnegative", got {features!r}')
    generator = np.random.default_rng(seed)
    low = 2 if features == "signed" else 1
    sizes = np.floor(np.exp(generator.uniform(np.log([[low], [1]]), np.log(201), (2, num_problems))))
    curve = BoundaryCurve(sizes[0], sizes[1], 10 ** generator.uniform(np.log10(1.01), 4, num_problems))
    x_free = -np.log(curve.free(features))
    x = x_free * np.linspace(1, 0, 201)[:, None]
    level, pull = curve.point(np.exp(-x), features)
    K, N = curve.k_a + curve.k_b, curve.k_a * curve.r + curve.k_b
    price = K / N * pull[1:-1] / x[1:-1]
    # over the first step from the free bias both change by little more than rounding when r is close to 1
    rises = np.diff(level, axis=0) > 0
    turns = np.count_nonzero(rises[1:] != rises[:-1], axis=0)
    lowest = np.argmin(level, axis=0)
    dip = level.min(axis=0) / np.minimum(level[0], level[-1])
    problem = np.arange(num_problems)
    inside = (lowest > 0) & (lowest < 200)
    return {
        "features": features,
        "num_problems": num_problems,
        "seed": seed,
        "k_a": curve.k_a.astype(int).tolist(),
        "k_b": curve.k_b.astype(int).tolist(),
        "r": curve.r.tolist(),
        "ends_ratio": (level[-1] / level[0]).tolist(),
        "lowest_lambda_b": np.where(inside, price[np.clip(lowest - 1, 0, 198), problem], np.nan).tolist(),
        "dip": dip.tolist(),
        "over_merge": (level.min(axis=0) * np.sqrt(curve.r)).tolist(),  # lambda* over sqrt(n_B)/N
        "turning_points": {str(t): int(np.sum(turns == t)) for t in np.unique(turns)},
        "price_grows_along_the_curve": int(np.sum(np.all(np.diff(price, axis=0) > 0, axis=0))),
        "falls_first": int(np.sum(~rises[0])),
        "rises_last": int(np.sum(rises[-1])),
        "ends_higher_than_it_begins": int(np.sum(level[-1] > level[0])),
    }
