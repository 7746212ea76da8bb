"""Newton's method on spheres: its second derivative against differences, and how many steps a problem takes."""

from __future__ import annotations

import numpy as np
import pytest

import collapsar as cs
from collapsar.solver.normalized_certificate import normalized_quotient
from collapsar.solver.normalized_solution import NormalizedSolution
from collapsar.solver.normalized_transitions import _root_below
from collapsar.solver.sphere_newton import _dense_step, _system, newton_step
from collapsar.solver.spheres import Spheres, sphere_point
from collapsar.solver.symmetry import quotient

LOSS = cs.Loss(offsets=[0.5] * 3 + [-0.2] * 4 + [0.0] * 3, scales=[1.0] * 3 + [0.7] * 4 + [1.2] * 3, smoothing=0.1)


def problem(kind: str, lambda_b: float) -> cs.Problem:
    counts = [50] * 3 + [20] * 4 + [9, 5, 5]
    if kind == "gain":
        return cs.Problem.from_gain_decay(counts, lambda_w=0.02, lambda_gain=0.02, over="sample", lambda_b=lambda_b)
    return cs.Problem.from_normalized(
        counts, lambda_w=0.05, norm=1.0, lambda_b=lambda_b, loss=LOSS if kind == "loss" else cs.Loss()
    )


def anywhere(p: cs.Problem, seed: int) -> tuple:
    """The program and factors that are no optimum of it."""
    n, noise = normalized_quotient(p, quotient(p)), np.random.default_rng(seed)
    J = n.q.num_clusters
    F, u = noise.normal(size=(J, J)), noise.normal(size=J) * (n.q.sizes > 1)
    unit = np.sqrt(n.q.sizes / (np.sum(F**2, axis=0) + u**2))
    b = np.zeros(J) if p.lambda_b == np.inf else n.q.without_shift(noise.normal(size=J))
    return n, Spheres(noise.normal(size=(J, J)), F * unit, noise.normal(size=J) * (n.q.sizes > 1), u * unit, b)


@pytest.mark.parametrize("lambda_b", [0.0, 0.02, np.inf])
@pytest.mark.parametrize("kind", ["plain", "loss", "gain"])
def test_the_dense_step_is_the_one_that_products_with_the_second_derivative_ask_for(kind, lambda_b):
    """Two roads: `apply` is code of its own, and the slope is that of the objective, by differences."""
    n, x = anywhere(problem(kind, lambda_b), 1)
    p = sphere_point(n, x)
    for _ in range(4 if kind == "gain" else 0):  # far away its price, which bends downwards, is left out
        p, _, _ = newton_step(p, 10.0)
    s, x = _system(p), p.x
    step = _dense_step(s)
    E, F, v, u, b = s.split(s.gradient)
    tangent = np.concatenate([part.ravel() for part in (E, *s._tangent(F, v, u), b)])
    assert np.abs(s.apply(step.v) + tangent).max() <= 1e-6 * np.abs(tangent).max()
    h = 1e-6
    parts = s.split(step.v / np.linalg.norm(step.v))
    up, down = (sphere_point(n, x.moved(n.q, parts, side)).value for side in (h, -h))
    slope = step.slope / np.linalg.norm(step.v)
    assert (up - down) / (2 * h) == pytest.approx(slope, rel=1e-5)
    assert slope < 0


@pytest.mark.parametrize("seed", range(5))
def test_every_step_goes_downhill_from_anywhere(seed):
    """At factors that are no optimum R bends the objective downwards: the step is taken where it is made convex."""
    n, x = anywhere(problem("plain", np.inf), seed)
    p = sphere_point(n, x)
    assert p.spectrum[1].max() > 1.5
    new, _, _ = newton_step(p, 10.0)
    assert new.value < p.value


@pytest.mark.parametrize(
    ("counts", "most"), [("38x2,28,7x3,3,2x2", 20), ("900x2,500,120x3,40,9x2,5,3", 25), ("exp:3000:3:12", 25)]
)
def test_a_priced_length_is_found_in_as_many_steps_as_a_given_one(counts, most):
    """By a root in the price around whole solutions it took 120 to 380."""
    p = cs.Problem.from_gain_decay(counts, lambda_w=0.003, lambda_gain=0.004, over="sample", lambda_b=0.0)
    s = cs.solve(p)
    assert isinstance(s, NormalizedSolution)
    assert s.num_steps <= most
    # the optimum of the length at which the gain comes to rest, which knows nothing of the gain
    fixed = cs.solve(cs.Problem.from_normalized(counts, lambda_w=0.003, norm=s.norm, lambda_b=0.0))
    np.testing.assert_allclose(s.Z, fixed.Z, atol=1e-6)
    assert s.certificate.primal == pytest.approx(fixed.certificate.primal + 0.5 * 0.004 * s.norm**2, rel=1e-10)


def test_just_before_everything_collapses_the_priced_length_is_found():
    p = cs.Problem.from_gain_decay("40x3,33,9x4,5,3x2", lambda_w=1.0, lambda_gain=1.0, over="sample", lambda_b=0.0)
    top = cs.thresholds(p).complete
    for near in (1e-2, 1e-4, 1e-6):
        s = cs.solve(p.replace(lambda_w=top * (1 - near)))
        assert s.num_steps <= 60
        assert np.abs(s.Z).max() > 0


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("nearest", [1.0, 2e-5, -6e-6])
def test_the_root_is_found_where_values_are_known_less_well_than_was_asked(nearest, side):
    """A small class's multiplier is known hundreds of times less well than the sum: signs by the root are noise."""

    def excess(x: float, accuracy: float) -> float:
        return x + 0.3 * x * x + side * 300 * accuracy

    points = [(2.0, excess(2.0, 1e-7)), (1.0, excess(1.0, 1e-7)), (nearest, max(excess(nearest, 1e-7), 1e-7))]
    assert abs(_root_below(excess, points, -1.0, 1e-8)) <= 4e-7


def test_a_threshold_next_to_a_price_that_was_looked_at_holds_on_both_sides():
    """Of twelve sizes the ninth merges 2e-5 beyond a price of the sweep, whose sign there was noise."""
    counts = ",".join(f"{int(n)}x3" for n in np.geomspace(3000, 5, 12))
    p = cs.Problem.from_normalized(counts, lambda_w=1.0, norm=1.0, lambda_b=0.0)
    merge = cs.thresholds(p).merge[3 * 8]
    for factor, state in ((1 - 1e-5, "separated"), (1 + 1e-5, "merged")):
        assert cs.solve(p.replace(lambda_w=factor * merge), tol=1e-12).class_states[3 * 8] == state
    assert merge == pytest.approx(1.37685042e-3, rel=1e-7)


@pytest.mark.parametrize(
    ("counts", "loss"),
    [
        ("500x3,20x3", cs.Loss(class_weights=np.logspace(-20, 0, 6))),
        ("500x3,20x3", cs.Loss(scales=[13.5, 6.6, 0.245, 0.08, 0.29, 1.1])),
        ("500x3,20x3", cs.Loss(scales=[0.9, 36.1, 54.5, 0.27, 1.9, 0.19])),
        ("500x3,20x3", cs.Loss(scales=[0.0314, 162.4, 0.212, 0.0107, 4.42, 136.7])),
    ],
)
def test_losses_that_differ_by_orders_of_magnitude_between_classes_have_an_optimum_that_is_found(counts, loss):
    """Where steps went uphill the first two were left open by 3e-4 and 0.9 of the objective."""
    p = cs.Problem.from_normalized(counts, lambda_w=1e-4, norm=128**0.5, lambda_b=0.0, loss=loss)
    assert cs.solve(p).certificate.relative_gap <= 1e-9
