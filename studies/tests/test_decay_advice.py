"""Advice on weight decay against the study it rests on: its data file, and the model's switch in two ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from collapsar.advise.weight_decay import evidence
from collapsar.theory.deep_switch import decay_switch
from collapsar_studies.advice_evidence import evidence_of
from collapsar_studies.deep import deep_column, deep_price
from collapsar_studies.deep_two_cluster import DeepPair, decay_switches


def test_what_advice_reads_is_what_the_record_says() -> None:
    """The package's data file is derived from the committed record by one function, and is in step with it."""
    path = Path(__file__).parents[2] / "results" / "effective" / "effective.json"
    if not path.exists():
        pytest.skip("runs in the repository, beside results/effective")
    assert evidence_of(json.loads(path.read_text())) == evidence(), "run python -m collapsar_studies.advice_evidence"


def test_evidence_of_by_hand() -> None:
    """Two networks: ratios are the outer ends of the brackets; an open end or a far switch is no prediction."""

    def row(layers: int, brackets: list, predicted: float) -> dict:
        predictions = {"shallow": None, "deep": predicted, "spinodal": 3 * predicted}
        return {"rate": 0.1, "n_b": 20, "layers": layers, "measured": {"cold": brackets}, "predicted": predictions}

    table = [row(0, [[1.0, 2.0]], 9.0), row(2, [[0.8, 0.9], [1.0, 1.2]], 1.0), row(3, [[None, 0.5]], 1.0)]
    found = evidence_of({"table": table, "n_a": 100, "data": "digits"})
    assert found["model"] == "deep"
    two, three = found["depths"]
    assert (two["predicts"], two["ratio"], two["switches"]) == (True, [0.8, 1.2], 2)
    assert (three["predicts"], three["ratio"], three["middles"]) == (False, [None, 0.5], [None, None])
    table[1]["measured"]["cold"][0] = [0.2, 0.3]
    assert not evidence_of({"table": table, "n_a": 100, "data": "digits"})["depths"][0]["predicts"]


@pytest.mark.parametrize(("n_b", "layers"), [(20, 2), (5, 4)])
def test_the_switch_of_advice_is_that_of_the_experiment(n_b: int, layers: int) -> None:
    """Newton on bias and decay against descent on whole columns along a grid of 2%."""
    found = decay_switch(f"100x5,{n_b}x5", layers)
    followed = decay_switches(DeepPair(5, 5, 100, n_b, layers, 1.0), 0.6 * found, 1.1 * found)
    assert 0.98 <= found / followed.deep <= 1 + 1e-9


def test_the_switch_without_imbalance_is_that_of_the_scalar_problem_without_bias() -> None:
    unit = deep_price(5, 1.0, 1 / 1000, 100)
    assert decay_switch("100x10", 4) == pytest.approx(
        deep_column(0.1, unit, 5, np.zeros(10), 0).switch / unit, rel=1e-6
    )
