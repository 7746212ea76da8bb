from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

import collapsar as cs
from collapsar.solver.certificate import certify_blocks
from collapsar.solver.coarse import coarsened, interpolated
from collapsar.solver.signed import minimise_signed
from collapsar.solver.symmetry import Quotient, quotient
from problems import naive_objective


def geometric(K: int, multiple: float, lambda_b: float = 0.01) -> cs.Problem:
    n = np.rint(np.geomspace(5000, 50, K) * 1000).astype(int)
    return cs.Problem(n, multiple * math.sqrt(n.min()) / n.sum(), lambda_b)


def groups(q: Quotient, num_groups: int) -> Quotient:
    coarse = coarsened(q, num_groups)
    assert coarse is not None
    return coarse


def test_groups_keep_classes_and_samples():
    q = quotient(geometric(200, 1.5))
    c = groups(q, 40)
    assert 20 <= c.num_clusters <= 40
    assert c.num_classes == q.num_classes
    assert c.sizes.sum() == 200
    for name in ("share", "mass", "offsets"):
        assert c.sizes @ getattr(c, name) == pytest.approx(q.sizes @ getattr(q, name), rel=1e-14)
    # neighbours stay together: no group reaches over another
    spans = sorted((q.mass[c.labels == j].min(), q.mass[c.labels == j].max()) for j in range(c.num_clusters))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    # and groups are smallest at the threshold lambda_Z = sqrt(n) / N
    at = np.abs(np.log(np.sqrt(q.mass) / q.mass.sum() / q.lambda_z))
    sizes = Counter(c.labels.tolist())
    assert sizes[int(c.labels[at.argmin()])] < min(sizes[int(c.labels[0])], sizes[int(c.labels[-1])])


@pytest.mark.parametrize(("multiple", "lost"), [(0.1, 1e-6), (1.0, 3e-5), (3.0, 3e-5)])
@pytest.mark.parametrize("lambda_b", [0.0, 0.01, math.inf])
def test_the_interpolated_point_is_nearly_optimal(multiple, lost, lambda_b):
    p = geometric(150, multiple, lambda_b)
    q = quotient(p)
    c = groups(q, 40)
    guess = interpolated(q, c, minimise_signed(c, tol=1e-8).blocks)
    best = cs.solve(p).certificate
    assert certify_blocks(q, guess).primal <= best.primal * (1 + lost)
    assert certify_blocks(q, guess).primal >= best.dual


def test_a_class_that_stays_alone_keeps_its_logits():
    n = np.concatenate([[10**7, 10**6], np.rint(np.geomspace(10**5, 10**4, 60))]).astype(int)
    q = quotient(cs.Problem(n, 0.5 * math.sqrt(n.min()) / n.sum(), 0.01))
    c = groups(q, 20)
    assert list(np.sort(c.sizes)[:2]) == [1, 1]
    blocks = minimise_signed(c, tol=1e-8).blocks
    there = interpolated(q, c, blocks)
    alone = [int(c.labels[k]) for k in (0, 1)]
    # up to the shift that makes columns sum to zero
    mine, theirs = there.C[:2, :2], blocks.C[np.ix_(alone, alone)]
    assert np.allclose(mine[0] - mine[1], theirs[0] - theirs[1], atol=1e-9)


def test_what_is_no_smooth_family_is_left_alone():
    rng = np.random.default_rng(0)
    n = np.arange(1000, 1200)
    # the threshold tau delta q / sqrt(m) is smooth, but logit offsets are noise
    assert coarsened(quotient(cs.Problem(n, 1e-5, 0.01, cs.Loss(offsets=rng.normal(size=n.size)))), 40) is None
    assert coarsened(quotient(cs.Problem(n, 1e-5, 0.01, cs.Loss(offsets=np.log(n / n.sum())))), 40) is not None
    # each count far from the next: no neighbours
    assert coarsened(quotient(cs.Problem(2 ** np.arange(1, 31), 1e-5)), 200) is None
    assert coarsened(quotient(cs.Problem([100] * 5, 1e-3)), 40) is None


@pytest.mark.parametrize("multiple", [0.1, 1.0, 3.0])
def test_many_distinct_counts_take_few_steps(multiple):
    p = geometric(120, multiple)
    result = minimise_signed(quotient(p))
    assert result.status is cs.Status.OPTIMAL
    assert result.num_steps <= 5
    s = cs.solve(p)
    assert s.certificate.primal == pytest.approx(naive_objective(p, s.Z, s.b), rel=1e-11)


def test_a_valley_of_bias_and_mean_prediction_is_followed_to_its_end():
    # free bias and next to no penalty: a shift of all columns of Z against b costs 1e-9 of the objective
    s = minimise_signed(quotient(cs.Problem([4] * 5 + [4713], 1.72924454219487e-09, 0.0, cs.Loss(smoothing=0.15))))
    assert s.status is cs.Status.OPTIMAL
    assert s.num_steps <= 20
