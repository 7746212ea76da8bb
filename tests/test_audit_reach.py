"""Classes that no features can make the answer: every certificate is checked here with code of its own."""

from __future__ import annotations

import numpy as np
import pytest

from audit_heads import healthy
from collapsar.diagnose.reach import Reach, reach

SPACES = ["free", "nonnegative", 3.0]


def check(W: np.ndarray, b: np.ndarray, found: Reach) -> None:
    """Features that win do win; weights of rivals prove that nothing can: plain arithmetic, class by class."""
    K = len(W)
    scale = np.median(np.linalg.norm(W - W.mean(axis=0), axis=1))
    for k in range(K):
        if found.undecided[k]:
            assert np.isnan(found.features[k]).all()
        elif found.unreachable[k]:
            p = np.zeros(K)
            p[found.rivals[k]] = found.multipliers[k]
            assert p.min() >= 0
            assert p[k] == 0
            assert p.sum() == pytest.approx(1, abs=1e-12)
            mismatch, ahead = W[k] - p @ W, b[k] - p @ b
            if found.space == "free":
                assert np.linalg.norm(mismatch) <= 1.001e-6 * scale
            elif found.space == "nonnegative":
                assert np.linalg.norm(mismatch.clip(0)) <= 1.001e-6 * scale
            else:
                ahead += float(found.space) * np.linalg.norm(mismatch) - 1e-6 * float(found.space) * scale
            assert ahead <= 1.001e-6
        else:
            h = found.features[k]
            logits = np.einsum("kd,d->k", W, h) + b
            assert logits.argmax() == k
            assert np.sort(logits)[-2] < logits[k]
            if found.space == "nonnegative":
                assert h.min() >= 0
            elif found.space != "free":
                assert np.linalg.norm(h) <= float(found.space) * (1 + 1e-9)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("K", "d"), [(12, 2), (60, 3), (80, 6), (200, 8)])
def test_certificates_hold(K: int, d: int, seed: int, space) -> None:
    rng = np.random.default_rng(seed)
    W, b = rng.standard_normal((K, d)), 0.3 * rng.standard_normal(K)
    found = reach(W, b, space)
    check(W, b, found)
    assert not found.undecided.any()
    assert found.unreachable.any()  # so many rows in so few dimensions
    assert not found.unreachable.all()


def test_in_the_plane_the_winners_are_the_corners_of_the_hull() -> None:
    from scipy.spatial import ConvexHull

    W = np.random.default_rng(0).standard_normal((200, 2))
    found = reach(W)
    assert np.flatnonzero(~found.unreachable).tolist() == sorted(ConvexHull(W).vertices.tolist())
    assert not found.undecided.any()


@pytest.mark.parametrize("seed", range(3))
def test_with_a_bias_the_winners_are_the_faces_of_the_lifted_hull(seed: int) -> None:
    """A class wins somewhere if (w, b) is a corner of the upper hull."""
    from scipy.spatial import ConvexHull

    rng = np.random.default_rng(seed)
    W, b = rng.standard_normal((150, 2)), rng.standard_normal(150)
    hull = ConvexHull(np.column_stack([W, b]))
    upper = np.unique(hull.simplices[hull.equations[:, 2] > 1e-12])
    found = reach(W, b)
    assert np.flatnonzero(~found.unreachable).tolist() == upper.tolist()


def test_a_bias_decides_between_equal_rows() -> None:
    W = np.array([[1.0, 0], [0, 1], [-1, -1], [1, 0]])
    assert reach(W, np.array([0, 0, 0, 0.1])).unreachable.tolist() == [True, False, False, False]
    assert reach(W).unreachable.tolist() == [True, False, False, True]  # always a tie


def test_features_behind_a_relu_lose_classes_that_free_ones_reach() -> None:
    W = np.array([[1.0, 0], [0, 1], [-1, -1]])
    assert not reach(W).unreachable.any()
    assert reach(W, space="nonnegative").unreachable.tolist() == [False, False, True]


def test_the_length_of_the_features_decides_what_a_bias_may_hide() -> None:
    W, b = np.array([[1.0, 0], [-1, 0], [0, 0.5]]), np.array([0, 0, -2.0])
    assert reach(W, b, 1.0).unreachable.tolist() == [False, False, True]
    assert reach(W, b, 10.0).unreachable.tolist() == [False, False, False]


def test_healthy_heads_need_no_program() -> None:
    W, b = healthy(np.random.default_rng(0), 3000, 64)
    found = reach(W, b)
    assert found.num_programs < 30
    check(W, b, found)


@pytest.mark.reference
@pytest.mark.parametrize("space", SPACES)
def test_a_cone_solver_says_the_same(space) -> None:
    import cvxpy as cp

    rng = np.random.default_rng(5)
    W, b = rng.standard_normal((40, 4)), rng.standard_normal(40)
    found = reach(W, b, space)
    for k in range(40):
        h, lead = cp.Variable(4), cp.Variable()
        within = [cp.norm(h) <= space] if isinstance(space, float) else [h >= 0] if space == "nonnegative" else []
        others = np.delete(np.arange(40), k)
        problem = cp.Problem(cp.Maximize(lead), [(W[k] - W[others]) @ h + b[k] - b[others] >= lead, lead <= 1, *within])
        problem.solve(solver="CLARABEL")
        assert found.unreachable[k] == (float(lead.value or 0.0) < 1e-5)
