"""Remedies against the table of thresholds, the data sets they imitate, and the solver on both sides."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

import collapsar as cs
from collapsar.advise import mitigations as rm
from collapsar.core.problem import FeatureModel

N_A, N_B, K_A, K_B = 500, 100, 5, 5
COUNTS = np.array([N_A] * K_A + [N_B] * K_B)
N = COUNTS.sum()
BASE = cs.Problem(COUNTS, 0.0036, 0.02)

# name, remedy, merge thresholds of A and B in units of the lambda_z before the remedy (signed; any lambda_b)
ROOT = np.sqrt([N_A, N_B])
TABLE = [
    ("none", rm.plain_training(), ROOT / N),
    ("weights 1/n", rm.inverse_weights(COUNTS), 1 / ROOT / 10),
    ("weights 1/root", rm.inverse_weights(COUNTS, 0.5), np.full(2, 1 / (5 * ROOT.sum()))),
    ("weights n^-2", rm.inverse_weights(COUNTS, 2.0), ROOT**-3.0 / (5 * np.sum(ROOT**-2.0))),
    ("oversampling", rm.oversampling(COUNTS), np.full(2, sqrt(500) / 5000)),
    (
        "oversampling three times",
        rm.oversampling(COUNTS, [1] * 5 + [3] * 5),
        np.sqrt([500, 300]) / (5 * 500 + 3 * 5 * 100),
    ),
    ("oversampling, held", rm.oversampling(COUNTS, penalty="held"), np.full(2, sqrt(0.1 / N))),
    ("logit adjustment", rm.logit_adjustment(COUNTS, 1.7), ROOT / N),
    ("balanced softmax", rm.balanced_softmax(COUNTS), ROOT / N),
    ("CDT", rm.cdt(COUNTS, 0.3), ROOT / N * [1, 0.2**0.3]),
    ("VS", rm.vs_loss(COUNTS, 0.3, 1.2), ROOT / N * [1, 0.2**0.3]),
    ("LDT", rm.ldt(COUNTS, 0.5), np.full(2, ROOT[0] / N)),
    ("LDT for margins", rm.ldt(COUNTS, -0.2), ROOT / N * [1, 0.2**0.2]),
    ("smoothing", rm.label_smoothing(0.15), ROOT / N * 0.85),
    ("head decay", rm.head_decay(4.0), ROOT / N / 2),
    (
        "several",
        rm.combined(rm.inverse_weights(COUNTS, 0.5), rm.cdt(COUNTS, 0.2), rm.label_smoothing(), rm.head_decay(0.25)),
        2 * 0.9 * np.array([1, 0.2**0.2]) / (5 * ROOT.sum()),
    ),
]


@pytest.mark.parametrize(("name", "remedy", "merge"), TABLE, ids=[row[0] for row in TABLE])
def test_merge_thresholds_are_those_of_the_table(name: str, remedy: rm.Remedy, merge: NDArray) -> None:
    """The table in closed form, the thresholds, and the optimum half a percent to either side, agree."""
    nominal = BASE.lambda_z / remedy(BASE).lambda_z
    np.testing.assert_allclose(nominal * cs.thresholds(remedy(BASE)).merge[[0, -1]], merge, rtol=1e-12)
    for group, k in ((0, 0), (1, -1)):
        below, above = (cs.solve(remedy(BASE.replace(lambda_z=f * merge[group]))) for f in (0.995, 1.005))
        assert below.class_states[k] == "separated"
        assert above.class_states[k] != "separated"


@pytest.mark.parametrize(("name", "remedy", "merge"), TABLE, ids=[row[0] for row in TABLE])
def test_nonnegative_vanish_thresholds_meet_the_solver(name: str, remedy: rm.Remedy, merge: NDArray) -> None:
    problem = BASE.replace(features="nonnegative")
    t = cs.thresholds(remedy(problem))
    vanish = t.vanish * problem.lambda_z / remedy(problem).lambda_z
    for k in (0, -1):
        if not t.exact[k]:  # the column form is then a bound only: classes share directions at its transition
            assert cs.solve(remedy(problem.replace(lambda_z=vanish[k])), throw=False).proof is not None
            continue
        below, above = (cs.solve(remedy(problem.replace(lambda_z=f * vanish[k])), throw=False) for f in (0.995, 1.005))
        assert below.class_states[k] == "separated"
        assert above.class_states[k] == "vanished"


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_oversampling_is_the_repeated_data_set(features: FeatureModel) -> None:
    """Three copies of every sample of B, penalty repeated too: the optimum of 500 and 300 samples."""
    treated = rm.oversampling(COUNTS, [1] * 5 + [3] * 5)(BASE.replace(features=features))
    repeated = cs.Problem([500] * 5 + [300] * 5, BASE.lambda_z, BASE.lambda_b, features=features)
    np.testing.assert_allclose(cs.solve(treated).Z, cs.solve(repeated).Z, atol=1e-4)
    assert cs.thresholds(treated).vanish[-1] == pytest.approx(cs.thresholds(repeated).vanish[-1], rel=1e-10)


def test_effective_number_goes_from_no_weights_to_inverse_ones() -> None:
    """Cui et al.: beta to 0 is no weighting, beta to 1 is 1/n; the definition in between."""
    weights = [rm.effective_number_weights(COUNTS, beta).loss.class_weights for beta in (1e-9, 0.99, 1 - 1e-9)]
    ratios = [float(w[-1] / w[0]) for w in weights if w is not None]
    assert ratios[0] == pytest.approx(1, abs=1e-6)
    assert ratios[1] == pytest.approx((1 - 0.99**500) / (1 - 0.99**100), rel=1e-12)
    assert ratios[2] == pytest.approx(5, rel=1e-5)


def test_the_best_oversampling_factor_and_worse_beyond() -> None:
    """s = k_A n_A / (k_B n_B), checked by scanning the record's own thresholds."""
    counts = [500] * 3 + [100] * 7
    base = cs.Problem(counts, 0.0036, 0.02)
    factors = np.geomspace(1, 10, 41)
    chosen = []
    for i, s in enumerate(factors):
        r = rm.oversampling(counts, [1] * 3 + [float(s)] * 7)
        chosen.append(rm.Remedy(str(i), r.words, r.loss, r.mass_factor))
    merge = [cs.thresholds(r(base)).merge[-1] for r in chosen]
    best = factors[int(np.argmax(merge))]
    assert best == pytest.approx(3 * 500 / (7 * 100), rel=0.03)
    assert merge[-1] < merge[int(np.argmax(merge))]


def test_remedies_add_up() -> None:
    both = rm.combined(rm.inverse_weights(COUNTS), rm.oversampling(COUNTS, penalty="held"), rm.logit_adjustment(COUNTS))
    twice = rm.logit_adjustment(COUNTS)(both(BASE))
    assert twice.loss.class_weights is not None
    assert twice.loss.class_weights[-1] / twice.loss.class_weights[0] == pytest.approx(25)
    assert twice.loss.offsets == pytest.approx(2 * np.log(COUNTS / N))
    assert both(BASE).mass.sum() == pytest.approx(N)
    assert rm.combined(rm.head_decay(4.0), rm.head_decay(0.25))(BASE).lambda_z == pytest.approx(BASE.lambda_z)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: rm.effective_number_weights(COUNTS, 1.0), "beta"),
        (lambda: rm.oversampling(COUNTS, [1, 2]), "factors"),
        (lambda: rm.oversampling(COUNTS, [0] * 10), "factors"),
        (lambda: rm.oversampling(COUNTS, penalty="free"), "penalty"),  # pyright: ignore[reportArgumentType]
        (lambda: rm.head_decay(inf), "factor"),
        (lambda: rm.head_decay(float("nan")), "factor"),
        (lambda: rm.label_smoothing(1.0), "smoothing"),
        (rm.combined, "remedies"),
        (lambda: rm.combined(rm.label_smoothing(), rm.label_smoothing(0.2)), "smoothing"),
        (lambda: rm.ldt([500, 100])(BASE), "temperatures"),
    ],
)
def test_bad_arguments(call, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()
