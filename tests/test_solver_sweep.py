"""Random problems over all that a problem may be: counts over six decades, any loss, penalties at every transition.

Every answer is checked by K x K code that knows no cluster: the objective from its definition, and a lower bound from
the dual. The thousand problems are slow; a sample of them runs always. ``python tests/test_solver_sweep.py 1000``
prints what failed.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest

import collapsar as cs
from collapsar.solver.shared import factors
from problems import naive_loss, naive_objective

INF = math.inf


def draw(seed: int) -> cs.Problem:
    """Problem number ``seed``: signed features if it is even, nonnegative ones if odd."""
    rng = np.random.default_rng([2026, seed])
    features = "signed" if seed % 2 == 0 else "nonnegative"
    many = rng.integers(9, 61)
    J = int(rng.choice(np.array([1, 2, 3, rng.integers(4, 9), many])))
    sizes = np.where(rng.random(J) < 0.3, 1, rng.integers(1, 8, size=J))
    if sizes.sum() < 2:
        sizes[0] = 2
    counts = np.maximum(np.rint(10 ** rng.uniform(0, rng.uniform(0, 6), size=J)), 1)
    if J > 1 and rng.random() < 0.3:
        counts[1] = counts[0] + rng.integers(0, 2)  # duplicates and near-duplicates
    if rng.random() < 0.1:
        counts *= 10 ** rng.integers(3, 7)  # very large N

    def spread(values):
        return np.repeat(values, sizes)

    def seldom(values):
        return spread(values) if rng.random() < 0.25 else None

    loss = cs.Loss(
        class_weights=seldom(10 ** rng.uniform(-1, 1, size=J)),
        offsets=seldom(rng.normal(size=J)),
        scales=seldom(10 ** rng.uniform(-0.5, 0.5, size=J)),
        temperatures=seldom(10 ** rng.uniform(-0.5, 0.5, size=J)),
        smoothing=float(rng.uniform(0, 0.3)) if rng.random() < 0.2 else 0.0,
    )
    lambda_b = float(rng.choice([0.0, INF, 10 ** rng.uniform(-6, 1)]))
    of_class = dict(enumerate(map(int, spread(counts))))  # as a list, 200 small counts read like labels
    p = cs.Problem(of_class, 1.0, lambda_b, loss, features=features)
    edges = cs.thresholds(p)
    value = edges.complete * 10 ** rng.uniform(-6, 0.2)
    if rng.random() < 0.4:  # at a transition, or next to it
        all_edges = np.concatenate([edges.merge, edges.vanish, [edges.complete]])
        value = rng.choice(all_edges[np.isfinite(all_edges)]) * (
            1 + rng.choice([0, 1e-12, 1e-6, 1e-3]) * rng.uniform(-1, 1)
        )
    return p.replace(lambda_z=float(value))


def lower_bound(s: cs.Solution) -> float:
    """A bound from the dual, K x K and from the definitions.

    Signed features: the residual's singular values at the softmax of (Z, b), clipped to the constraint or scaled into
    it. Nonnegative ones: the solution's witness where it has one, the constraint being R'R + N <= lambda_Z^2 for some
    N >= 0 with zero diagonal; else the residual scaled into the constraint with N = [-R'R]_+. With a free bias the
    dual's equality holds to rounding only: what is left is priced with the bias.
    """
    p, Z, b = s.problem, s.Z, s.b
    K = p.num_classes
    U = p.temperatures * (p.scales[:, None] * (Z + b[:, None])) + p.offsets[:, None]
    P = np.exp(U - np.logaddexp.reduce(U, axis=0))
    Y = (1 - p.loss.smoothing) * np.eye(K) + p.loss.smoothing / K
    right = p.temperatures * p.loss_share / np.sqrt(p.mass)
    R = p.scales[:, None] * (Y - P) * right
    trials = []
    if s.proof is not None:
        P, norm = witnessed(s, right)
    elif p.features == "signed":
        A, sigma, Bt = np.linalg.svd(R)
        norm = float(sigma[0])
        shares = (np.where(sigma > 0.999 * p.lambda_z, p.lambda_z, sigma), np.minimum(sigma, p.lambda_z))
        trials += [Y - ((A * share) @ Bt) / p.scales[:, None] / right for share in shares]
    else:
        norm = math.sqrt(np.linalg.eigvalsh(np.maximum(R.T @ R, 0.0))[-1])
    length = p.lambda_z / max(norm, 1e-300)
    trials += [Y + (P - Y) * t for t in (min(1.0, length), length)]
    return max(dual_value(p, b, S, Y) for S in trials)


def witnessed(s: cs.Solution, right: np.ndarray) -> tuple[np.ndarray, float]:
    """The witness as K x K probabilities, and sqrt(lambda_max(R'R + A'N A)), the largest of all parts of a cut cone."""
    assert s.proof is not None
    p, q, w = s.problem, s.quotient, s.proof.witness
    labels, K = q.labels, p.num_classes
    S = w.S.other[np.ix_(labels, labels)]
    S[np.arange(K), np.arange(K)] = 1 - w.S.miss[labels]
    Y = (1 - p.loss.smoothing) * np.eye(K) + p.loss.smoothing / K
    R = p.scales[:, None] * (Y - S) * right
    assert min(w.between.min(), w.within.min()) >= 0
    assert all(c > 0 for _, _, c in w.cuts)
    pairs = (labels[:, None] == labels) & ~np.eye(K, dtype=bool)
    largest = 0.0
    for part in product((0, 1), repeat=len(w.cuts)):  # of the cone: A h >= 0, in sums over clusters over sqrt(k)
        A = np.equal.outer(np.arange(q.num_clusters), labels) / np.sqrt(q.sizes[labels])
        for half, (i, j, c) in zip(part, w.cuts, strict=True):
            if half == 0:
                A[i] -= c * A[j]
            else:
                A[j] -= A[i] / c
        N = A.T @ w.between[part] @ A + np.where(pairs, w.within[part][labels], 0.0)
        largest = max(largest, float(np.linalg.eigvalsh(R.T @ R + N)[-1]))
    return S, math.sqrt(largest)


def dual_value(p: cs.Problem, b: np.ndarray, S: np.ndarray, Y: np.ndarray) -> float:
    """D(S); minus infinity outside the simplex."""
    if S.min() < -1e-12 or np.abs(S.sum(axis=0) - 1).max() > 1e-9:
        return -INF
    S = np.maximum(S, 0.0)
    logs = np.log(np.where(S > 0, S, 1.0))
    entropy = p.loss_share @ (np.sum((S - Y) * p.offsets[:, None], axis=0) - np.sum(S * logs, axis=0))
    e = p.scales * ((S - Y) @ (p.temperatures * p.loss_share))
    price = np.abs(e) @ np.abs(b) if p.lambda_b == 0 else 0.0 if p.lambda_b == INF else e @ e / (2 * p.lambda_b)
    return float(entropy - price)


def verdict(seed: int) -> tuple[str, float]:
    """How problem ``seed`` ended, and how far the independent bound leaves its answer open, relative."""
    p = draw(seed)
    s = cs.solve(p, throw=False)
    c, size = s.certificate, max(abs(s.certificate.primal), 2e-3)
    if s.proof is None:
        naive = naive_objective(p, s.Z, s.b)
    else:  # classes share directions: the price is that of the factors
        try:
            W, H = factors(s.quotient, s.proof.atoms)
            assert H.min() >= 0
            Z, price = W.T @ H, 0.5 * float(np.sum(W**2) + np.sum(p.mass * H**2))
        except ValueError:  # too many to write down: one row for every choice of one class in each cluster
            Z, price = s.Z, s.proof.atoms.price(s.quotient)
        naive = naive_loss(p, Z, s.b) + p.lambda_z * price
    wrong = abs(naive - c.primal) > 1e-10 * max(size, naive) or (s.status is cs.Status.OPTIMAL) != (
        c.relative_gap <= 1e-9
    )
    open_ = (naive - lower_bound(s)) / size
    return ("WRONG" if wrong or open_ < -1e-10 else s.status.name), open_


def test_an_overlap_that_ends_a_rounding_below_zero_is_no_negative_feature():
    end, open_ = verdict(1571)  # asserts H >= 0
    assert end == "OPTIMAL"
    assert open_ <= 1e-9


def test_thresholds_are_found_where_a_column_on_the_way_does_not_converge():
    t = cs.thresholds(draw(1823))  # its penalty is drawn from thresholds as well
    assert np.isfinite(t.vanish).all()
    assert (t.vanish <= t.vanish_bound).all()


def test_a_sample_of_random_problems_is_solved_or_says_so():
    ends = Counter(verdict(seed)[0] for seed in range(24))
    assert ends["WRONG"] == 0
    assert ends["OPTIMAL"] >= 23


@pytest.mark.slow
def test_a_thousand_random_problems_are_solved_and_at_most_ten_say_they_are_not():
    ends = Counter()
    for seed in range(1000):
        end, open_ = verdict(seed)
        ends[end] += 1
        assert end != "OPTIMAL" or open_ <= 1e-6, seed
    assert ends["WRONG"] == 0
    assert ends["OPTIMAL"] >= 990


@pytest.mark.slow
def test_a_minimum_of_the_factors_that_is_not_global_is_left_along_the_directions_it_lacks():
    end, open_ = verdict(1261)
    assert end == "OPTIMAL"
    assert open_ <= 1e-8


@pytest.mark.slow
def test_overlaps_that_descent_did_not_meet_are_found_from_the_relaxations():
    end, open_ = verdict(943)  # with as many directions as classes it ends at 3e-9
    assert end == "OPTIMAL"
    assert open_ <= 1e-8


if __name__ == "__main__":
    tally, opens = Counter(), []
    first, last = (0, int(sys.argv[1])) if len(sys.argv) == 2 else (int(sys.argv[1]), int(sys.argv[2]))
    for seed in range(first, last):
        end, open_ = verdict(seed)
        tally[end] += 1
        opens.append(open_)
        if end != "OPTIMAL" or open_ > 1e-7:
            print(seed, end, f"{open_:.1e}", flush=True)
    print(dict(tally), "bound open by at most", max(opens))
