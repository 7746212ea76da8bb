"""Classes that no features can make the answer: every certificate is checked here with code of its own."""

from __future__ import annotations

import numpy as np
import pytest

from audit_heads import check_proof, healthy
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
            check_proof(W, b, found, k, scale)
        else:
            h = found.features[k]
            logits = np.einsum("kd,d->k", W, h) + b
            assert logits.argmax() == k
            assert np.sort(logits)[-2] < logits[k]
            if found.space == "nonnegative":
                assert h.min() >= 0
            elif found.space != "free":
                assert np.linalg.norm(h) == pytest.approx(float(found.space), rel=1e-9)


def winners_on_sphere(W: np.ndarray, b: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """Classes that win at one of very many features of this length."""
    h = rng.standard_normal((100_000, W.shape[1]))
    h *= length / np.linalg.norm(h, axis=1, keepdims=True)
    return np.isin(np.arange(len(W)), (h @ W.T + b).argmax(axis=1))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("K", "d"), [(12, 2), (60, 3), (80, 6), (200, 8)])
def test_certificates_hold(K: int, d: int, seed: int, space) -> None:
    rng = np.random.default_rng(seed)
    W, b = rng.standard_normal((K, d)), 0.3 * rng.standard_normal(K)
    found = reach(W, b, space)
    check(W, b, found)
    if isinstance(space, float):  # a class may win nowhere but inside the sphere
        assert not found.undecided.any() or not (found.undecided & winners_on_sphere(W, b, space, rng)).any()
    else:
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


@pytest.mark.parametrize("size", [1e-8, 1e-6, 1.0, 1e6])
def test_the_size_of_a_head_changes_no_verdict(size: float) -> None:
    W = np.random.default_rng(0).normal(size=(12, 6))
    W[0], b = W[1], np.zeros(12)
    b[:2] = -0.4, 0.6
    assert np.flatnonzero(reach(size * W, size * b).unreachable).tolist() == [0]


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


def test_a_class_that_wins_only_at_shorter_features_is_not_decided() -> None:
    """A row of zeros with the largest bias wins about the origin and nowhere at length one."""
    W, b = np.vstack([np.zeros(2), np.eye(2), -np.eye(2)]), np.array([0.5, 0, 0, 0, 0])
    found = reach(W, b, 1.0)
    check(W, b, found)
    assert found.undecided.tolist() == [True, False, False, False, False]
    assert not found.unreachable.any()
    assert not reach(W, b, 0.3).undecided.any()
    assert reach(W, b - np.array([0.6, 0, 0, 0, 0]), 1.0).unreachable.tolist() == [True, False, False, False, False]


def test_a_direction_that_no_row_uses_brings_shorter_features_to_their_length() -> None:
    W, b = np.vstack([np.zeros(2), np.eye(2), -np.eye(2)]), np.array([0.5, 0, 0, 0, 0])
    wider = np.column_stack([W, np.full(5, 7.0)]) @ np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    found = reach(wider, b, 1.0)
    check(wider, b, found)
    assert not found.undecided.any()
    assert not found.unreachable.any()


def test_features_of_a_length_are_found_where_a_class_wins_in_a_narrow_cone() -> None:
    """The first class wins about the origin, and far out along the last axis only."""
    rng = np.random.default_rng(0)
    W = np.column_stack([rng.uniform(2, 9, (40, 1)) * rng.standard_normal((40, 6)), np.full(40, -0.3)])
    W[0], b = 0, np.append(0.5, np.zeros(39))
    found = reach(W, b, 100.0)
    check(W, b, found)
    assert np.abs(found.features[0][:6]).max() < 30
    assert not found.undecided.any()


def test_what_the_budget_leaves_is_not_decided() -> None:
    rng = np.random.default_rng(0)
    W = rng.standard_normal((300, 4))
    whole, part = reach(W), reach(W, largest=0.0)
    assert part.undecided.sum() == whole.num_searched
    assert not part.unreachable.any()
    assert not whole.undecided.any()


def test_most_classes_of_healthy_heads_win_along_their_own_row() -> None:
    W, b = healthy(np.random.default_rng(0), 3000, 64)
    found = reach(W, b)
    assert found.num_searched < 60
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
        reached_inside = ~found.unreachable  # a number is the length of the ball for both
        assert reached_inside[k] == (float(lead.value or 0.0) >= 1e-5)
