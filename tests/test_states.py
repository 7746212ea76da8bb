"""The state of a class at, just below and just above its threshold."""

from __future__ import annotations

import numpy as np
import pytest

import collapsar as cs
from collapsar.solver.batched import ProblemBatch, solve_batch
from collapsar.theory.thresholds import thresholds_of_many

STEPS = (1e-12, 1e-9, 1e-6)


def random_problems(number: int) -> list[tuple[cs.Problem, int]]:
    """Problems of two to four clusters, plain or treated, each with a class of a cluster that can merge."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(number):
        J = int(rng.integers(2, 5))
        sizes = rng.integers(1, 6, J)
        sizes[0] = max(sizes[0], 2)
        n = np.unique(rng.integers(3, 400, 4 * J))
        n = rng.permutation(n)[:J]
        per_class = np.repeat(np.arange(J), sizes)
        drawn = {
            "class_weights": rng.uniform(0.5, 3, J)[per_class],
            "scales": rng.uniform(0.5, 1.5, J)[per_class],
            "temperatures": rng.uniform(0.5, 2, J)[per_class],
            "offsets": rng.normal(size=J)[per_class],
        }
        chosen = [name for name in drawn if rng.random() < 0.25]
        loss = cs.Loss(**{name: drawn[name] for name in chosen}, smoothing=float(rng.choice([0.0, 0.0, 0.1])))
        lambda_b = float(rng.choice([0.0, 0.02, 1.0, np.inf]))
        found.append((cs.Problem(n[per_class], 1.0, lambda_b, loss), 0))
    return found


def test_states_beside_the_merge_threshold() -> None:
    """At the threshold and above it merged or vanished, below it separated, however close."""
    wrong = []
    problems = random_problems(80)
    found = thresholds_of_many([problem for problem, _ in problems])
    for i, ((problem, k), t) in enumerate(zip(problems, found, strict=True)):
        at = t.merge[k]
        step = STEPS[i % 3]
        for factor in (1 - step, 1.0, 1 + step) if i % 8 == 0 else (1 - step, 1 + step):
            s = cs.solve(problem.replace(lambda_z=at * factor), 1e-7, throw=False)
            if (s.class_states[k] == "separated") != (factor < 1):
                wrong.append((problem.class_counts.tolist(), factor, s.class_states[k]))
    assert wrong == []


@pytest.mark.parametrize("step", [1e-4, 1e-2])
def test_states_beside_the_vanish_threshold(step: float) -> None:
    """The second road: the theory's root against the solver's dual."""
    for problem, k in random_problems(12):
        t = cs.thresholds(problem)
        below, above = (cs.solve(problem.replace(lambda_z=t.vanish[k] * f)) for f in (1 - step, 1 + step))
        assert (below.class_states[k], above.class_states[k]) == (
            "merged" if t.merge[k] < t.vanish[k] * (1 - step) else "separated",
            "vanished",
        )


def test_states_at_complete_collapse() -> None:
    """Z = 0 to rounding is no class apart."""
    s = cs.solve(cs.Problem("1000x2,100x3,10x5", np.sqrt(1000) / 2350, 0.02))
    assert set(s.class_states) == {"vanished"}
    assert s.rank == 0
    s = cs.solve(cs.Problem([4, 4, 8, 8, 170, 170, 3, 3], 0.005405405405405410812, 0.02))
    assert s.class_states[0] != "separated"


def test_the_batch_has_the_states_of_single_solves() -> None:
    at = np.sqrt(100) / 3000
    lambdas = at * np.array([1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1.0, 1 + 1e-12, 1 + 1e-9, 1 + 1e-6])
    batch = solve_batch(ProblemBatch.plain([5, 5], [500, 100], lambdas, 0.02))
    single = [cs.solve(cs.Problem("500x5,100x5", float(v), 0.02)).class_states[9] for v in lambdas]
    assert batch.states[:, 1].tolist() == single == ["separated"] * 3 + ["merged"] * 4
