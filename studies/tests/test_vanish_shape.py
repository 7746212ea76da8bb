"""What is said of the shape of the vanish boundary, found again in another sample."""

from __future__ import annotations

import pytest

from collapsar.core.problem import FeatureModel
from collapsar_studies.vanish_shape import monotonicity


@pytest.mark.parametrize(("features", "turns", "rises_last"), [("signed", "1", 600), ("nonnegative", "0", 0)])
def test_shape_of_the_map_over_a_wide_sample(features: FeatureModel, turns: str, rises_last: int) -> None:
    """Evidence: every signed map turns once; every nonnegative one (column form) only falls."""
    record = monotonicity(600, seed=1, features=features)
    assert record["turning_points"] == {turns: 600}
    assert record["price_grows_along_the_curve"] == 600
    assert record["falls_first"] == 600
    assert record["rises_last"] == rises_last
    if features == "signed":
        # neither end is always the higher one, and the lowest point lies at a small price of the bias
        assert 100 < record["ends_higher_than_it_begins"] < 500
        assert 0 < min(record["lowest_lambda_b"]) < max(record["lowest_lambda_b"]) < 0.033
        assert min(record["over_merge"]) > 1


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`num_problems`"):
        monotonicity(0)
    with pytest.raises(ValueError, match="`features`"):
        monotonicity(5, features="relu")  # pyright: ignore[reportArgumentType]
