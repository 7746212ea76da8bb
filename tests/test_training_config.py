"""The run as a value: schedules at hand-computed epochs, JSON, hash, ranges."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest

from collapsar.core.penalties import Penalties
from collapsar.training.config import TrainConfig
from collapsar.training.models import ModelSpec
from collapsar.training.recipes import DEMO_RECIPES, demo_config

BASE = TrainConfig("digits", (10, 5), Penalties(0.04, 0.0004, 0.02), epochs=12)


def test_papers_schedule() -> None:
    """JMLR Figs 5-8: rate .1 to 1/3, .01 to 2/3, .001 after; λ_W and λ_H a tenth for the first sixth."""
    rates = [BASE.learning_rate_at(epoch) for epoch in range(12)]
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 4)
    warm = pytest.approx((0.004, 0.00004, 0.02))
    full = (0.04, 0.0004, 0.02)
    got = [BASE.penalties_at(epoch) for epoch in range(12)]
    assert [(p.lambda_w, p.lambda_h, p.lambda_b) for p in got] == [warm] * 2 + [full] * 10
    assert [BASE.settled(epoch) for epoch in range(12)] == [False] * 8 + [True] * 4


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 30, 99, 300, 2000])
def test_stages_begin_at_the_first_epoch_past_the_fraction(epochs: int) -> None:
    """In whole numbers: epoch e is past 1/3 iff 3e >= epochs."""
    config = replace(BASE, epochs=epochs)
    for epoch in range(epochs):
        factor = 0.01 if 3 * epoch >= 2 * epochs else 0.1 if 3 * epoch >= epochs else 1.0
        assert config.learning_rate_at(epoch) == pytest.approx(0.1 * factor, rel=1e-12)
        assert (config.penalties_at(epoch) == config.penalties) == (6 * epoch >= epochs)


def test_no_warm_start_and_only_warm_start() -> None:
    assert replace(BASE, warm_fraction=0.0).penalties_at(0) == BASE.penalties
    assert replace(BASE, warm_fraction=1.0).penalties_at(11).lambda_w == pytest.approx(0.004)
    assert not replace(BASE, warm_fraction=1.0).settled(11)


OTHERS: dict[str, Any] = {
    "dataset": "fashion-mnist",
    "class_counts": (10, 6),
    "penalties": Penalties(0.04, 0.0004),
    "epochs": 13,
    "model": ModelSpec("cnn", (4, 16), feature_relu=False, batch_norm=True),
    "batch_size": 64,
    "learning_rate": 0.2,
    "learning_rate_steps": ((0.0, 1.0), (0.5, 0.3)),
    "momentum": 0.0,
    "weight_decay": 5e-4,
    "warm_fraction": 0.25,
    "warm_factor": 0.5,
    "clip_norm": 2.0,
    "stop_at": 0.01,
    "eval_every": 3,
    "seed": 7,
    "device": "cpu",
    "devices": 2,
    "precision": "bf16",
    "compile": True,
    "cuda_graphs": True,
    "optimizer": "adamw",
    "head_decay": 0.5,
}
NEEDS: dict[str, dict[str, Any]] = {"head_decay": {"optimizer": "adamw"}}


def test_json_round_trip_and_a_hash_that_sees_every_field() -> None:
    assert OTHERS.keys() == {known.name for known in fields(TrainConfig)}
    variants = [BASE, *(replace(BASE, **{name: value, **NEEDS.get(name, {})}) for name, value in OTHERS.items())]
    for config in variants:
        text = config.to_json()
        assert TrainConfig.from_json(text) == config
        json.loads(text, parse_constant=pytest.fail)  # standard JSON: no Infinity, no NaN
    assert len({config.digest for config in variants}) == len(variants)
    assert replace(BASE, class_counts=[10, 5]).digest == BASE.digest  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "must be JSON"),
        ("[1]", "must be a JSON object"),
        (BASE.to_json().replace('"seed"', '"sed"'), "unknown fields sed"),
        ('{"dataset": "digits"}', "does not describe a run"),
        (BASE.to_json().replace('"epochs": 12', '"epochs": 0'), "`epochs` must be"),
        (BASE.to_json().replace('"lambda_h"', '"lambda_x"'), "does not describe a run"),
        (BASE.to_json().replace('"name": "mlp"', '"name": "xyz"'), "`name` must be one of"),
    ],
)
def test_json_of_something_else(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TrainConfig.from_json(text)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", (0, -1, 1.5)),
        ("batch_size", (0, 2.0)),
        ("eval_every", (0,)),
        ("seed", (-1, 2**63, 0.5)),
        ("learning_rate", (0.0, -0.1, math.inf, math.nan)),
        ("momentum", (-0.1, 1.0, math.nan)),
        ("weight_decay", (-1e-4, math.inf, math.nan)),
        ("optimizer", ("adam", "")),
        ("head_decay", (-1.0, 0.5, math.nan)),  # SGD's is lambda_w
        ("warm_fraction", (-0.1, 1.1, math.nan)),
        ("warm_factor", (-1.0, math.nan)),
        ("clip_norm", (0.0, -1.0, math.nan)),
        ("stop_at", (-1.0, math.inf, math.nan)),
        ("class_counts", ((), (10, 0), (10, 2.5))),
        (
            "learning_rate_steps",
            ((), ((0.1, 1.0),), ((0, 1), (0, 1)), ((0, 1), (1, 1)), ((0, 0),), ((0, math.nan),)),
        ),
    ],
)
def test_values_out_of_range_are_named(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^`{name}` must be"):
            replace(BASE, **{name: value})


@pytest.mark.parametrize("dataset", sorted(DEMO_RECIPES))
def test_demo_recipes(dataset: str) -> None:
    config = demo_config(dataset, lambda_z=0.005, seed=3)
    assert config.dataset == dataset
    assert config.seed == 3
    assert config.penalties.lambda_w == pytest.approx(0.05)
    assert config.penalties.lambda_h == pytest.approx(0.0005)
    assert config.penalties.lambda_b == 0.02
    assert replace(config, penalties=DEMO_RECIPES[dataset].penalties, seed=0) == DEMO_RECIPES[dataset]
    with pytest.raises(ValueError, match="`dataset` must be one of digits, fashion-mnist"):
        demo_config("imagenet", 0.005)
