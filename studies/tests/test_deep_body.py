"""The layers below a batch normalisation: their price against a search over the network's own parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

import collapsar as cs
from collapsar_studies.deep import deep_price
from collapsar_studies.deep_body import Body, body_cost
from collapsar_studies.deep_descent import DescentProblem, descend
from collapsar_studies.deep_two_cluster import DeepPair, decay_switches, deep_optimum
from collapsar_studies.image_reach import image_reach


def cheapest(norm: float, share: float, layers: int, body: Body) -> float:
    """Search over gain, scale and shift of a normalised unit that is on for one class and off for the rest.

    Batch normalisation is written out: the unit's input is ``gain`` on a share q of the images and 0 on the others.
    """

    def outputs(x: np.ndarray) -> tuple[float, float]:
        gain, scale, shift = math.exp(x[0]), math.exp(x[1]), float(x[2])
        mean, variance = gain * share, gain**2 * share * (1 - share)
        root = math.sqrt(variance + body.eps)
        return scale * (gain - mean) / root + shift, scale * (0 - mean) / root + shift

    def decay(x: np.ndarray) -> float:
        on, _ = outputs(x)
        above = layers * (norm / max(on, 1e-9)) ** (2 / layers)
        below = body.layers * (math.exp(x[0]) / body.reach) ** (2 / body.layers)
        return (above + below + math.exp(2 * x[1]) + float(x[2]) ** 2) / 2

    off = {"type": "ineq", "fun": lambda x: -outputs(x)[1]}
    starts = [np.array([g, -0.5, 0.1]) for g in (-6.0, -4.0, -2.0)]
    wide = {"constraints": off, "bounds": [(-12, 3), (-8, 4), (0, 20)]}
    options = {"maxiter": 500, "ftol": 1e-14}
    return min(float(minimize(decay, x, method="SLSQP", options=options, **wide).fun) for x in starts)


@pytest.mark.parametrize(
    ("norm", "share", "layers", "body"),
    [(5.0, 1 / 6, 1, Body(4, 2.0)), (3.0, 0.03, 2, Body(3, 4.0)), (7.0, 0.1, 4, Body(1, 0.5, 1e-3))],
)
def test_the_price_is_the_cheapest_there_is(norm: float, share: float, layers: int, body: Body) -> None:
    cost, slope = body_cost(norm**2, share, layers, 1.0, body)
    assert cost == pytest.approx(cheapest(norm, share, layers, body), rel=1e-6)
    ends = [body_cost(norm**2 * (1 + e), share, layers, 1.0, body)[0] for e in (-1e-5, 1e-5)]
    assert slope == pytest.approx((ends[1] - ends[0]) / (2e-5 * norm**2), rel=1e-6)
    assert body_cost(norm**2, share, layers, 0.02, body) == pytest.approx((0.02 * cost, 0.02 * slope))


def test_without_eps_the_layers_below_are_free() -> None:
    body = Body(3, 2.0, eps=1e-40)
    free = deep_price(3, 0.02, 0.02 / 600, 20) * 4.0 ** (2 / 3)
    assert body_cost(16.0, 20 / 600, 2, 0.02, body)[0] == pytest.approx(free, rel=1e-6)
    pairs = [DeepPair(5, 5, 100, 20, 2, 0.03, bodies=b) for b in (None, (body, body))]
    values = [point.value for p in pairs if (point := deep_optimum(p, minority_alive=True)) is not None]
    assert values[1] == pytest.approx(values[0], rel=1e-6)


def test_what_is_paid_for_is_lost_sooner() -> None:
    """Four layers below cost much, one costs little; a shorter reach costs more. And L = 1 jumps like any other."""
    ratios = []
    unpaid = {layers: decay_switches(DeepPair(5, 5, 100, 20, layers, 1.0), 0.025, 1.0).deep for layers in (1, 4)}
    for layers, reach in ((1, 3.0), (1, 1.0), (4, 3.0)):
        bodies = (Body(5 - layers, reach), Body(5 - layers, reach))
        found = decay_switches(DeepPair(5, 5, 100, 20, layers, 1.0, bodies=bodies), 0.025, 1.0)
        ratios.append(found.deep / unpaid[layers])
        assert found.deep < found.spinodal / 1.1
    assert ratios[1] < ratios[0] < 0.6
    assert ratios[2] == pytest.approx(1.0, abs=0.03)


def test_the_reach_of_images_that_are_only_their_class() -> None:
    """Orthogonal class means and noise: a unit vector along a mean gets its length; ten times the images, ten times."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 50)
    images = 6 * np.eye(64)[labels] + 0.2 * rng.standard_normal((200, 64))
    found = image_reach(images, labels)
    assert found == pytest.approx([6 * math.sqrt(4 / 3)] * 4, rel=0.15)
    assert image_reach(10 * images, labels) == pytest.approx(10 * found)
    noise = image_reach(rng.standard_normal((200, 2)), labels)  # no ridge explains it
    assert np.all((noise > 0) & (noise < 1))


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"layers": 1.5}, {"reach": 0.0}, {"eps": math.inf}])
def test_bodies_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Body(**({"layers": 2, "reach": 1.0} | wrong))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`bodies`"):
        DeepPair(5, 5, 100, 20, 2, 0.1, 1e-3, (Body(2, 1.0), Body(2, 1.0)))


def test_descent_on_the_factors_of_one_layer_is_the_certified_optimum() -> None:
    """L = 1 is convex: every start ends at ``solve``'s nonnegative optimum, at lambda_z = wd / sqrt(N)."""
    problem = DescentProblem(5, 5, 100, 20, 1, 0.1)
    s = cs.solve(cs.Problem([100] * 5 + [20] * 5, 0.1 / math.sqrt(600), 0.1, features="nonnegative"))
    rng = np.random.default_rng(0)
    point = descend(problem, rng.standard_normal(sum(a * b for a, b in problem.shapes)))
    assert point.value == pytest.approx(s.certificate.primal, abs=1e-7)
    assert pytest.approx(s.Z, abs=2e-3) == point.Z
    assert point.b == pytest.approx(s.b, abs=2e-3)


def test_three_layers_keep_classes_apart_in_fewer_directions_and_for_less() -> None:
    """Descent from the column form's own factors cannot end above it, and a random start ends far below."""
    problem, wd = DescentProblem(5, 5, 100, 20, 3, 0.0306), 0.0306
    column = deep_optimum(DeepPair(5, 5, 100, 20, 3, wd), minority_alive=True)
    assert column is not None
    rng = np.random.default_rng(1)
    H, *rest = (rng.standard_normal(shape) for shape in problem.shapes)
    start = [np.abs(H) * np.sqrt(600 / problem.counts) / 2, *(0.45 * p if p.shape[1] > 1 else 0 * p for p in rest)]
    point = descend(problem, np.concatenate([p.ravel() for p in start]))
    assert point.value < column.value - 0.04
    values = np.linalg.svd(point.Z, compute_uv=False)
    assert np.sum(values > 0.05 * values[0]) < 9
