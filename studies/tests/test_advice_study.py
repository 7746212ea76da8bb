"""The efficacy study: its recipes are what they say, its numbers are those of naive loops, its records are reused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from collapsar import Loss, Penalties, Problem
from collapsar.solver import solve
from collapsar.training import ModelSpec, build_model, load_data, penalties_for
from collapsar.training.penalties import penalised_loss
from collapsar_studies import advice_adjusting, advice_plans, advice_runs, advice_study
from collapsar_studies.advice_pictures import study_rows
from collapsar_studies.advice_plans import Setting, StudyPreset, base_recipe, carried_out, given_advice
from collapsar_studies.advice_runs import Images, Recipe, Schedule, subset, train_and_measure
from collapsar_studies.advice_sharpness import SHARPNESS, sharpness

MERGING = Setting("digits", "step", 10, 60, "merging")
recipes = cache(advice_plans.recipes)  # plans of one setting are the same for every test


def test_a_subset_takes_whole_classes_without_repeats() -> None:
    """Every new class is one class of the data, in training and in test images alike, found by its pixels."""
    data = load_data("digits")
    counts = (30,) * 5 + (4,) * 5
    images = subset("digits", counts, 1, seed=3)
    assert tuple(torch.bincount(images.train_labels).tolist()) == counts
    found: list[set[tuple[int, int]]] = []
    for split, ours, labels in (
        ("train", images.train, images.train_labels),
        ("test", images.test, images.test_labels),
    ):
        keys = {
            image.numpy().tobytes(): int(k)
            for image, k in zip(data.normalised(data.images(split)), data.labels(split), strict=True)
        }
        origin = np.array([keys[image.numpy().tobytes()] for image in ours])
        found.append(set(zip(labels.tolist(), origin.tolist(), strict=True)))
        assert len(found[-1]) == 10
    assert found[0] == found[1]
    assert len({image.numpy().tobytes() for image in images.train}) == sum(counts)
    assert not torch.equal(subset("digits", counts, 1, seed=4).train, images.train)


def test_the_penalty_is_that_of_the_training_loop() -> None:
    model = build_model("mlp", (1, 8, 8), 10)
    x, y = torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))
    penalties = Penalties(0.03, 0.004, 0.02)
    logits, features = model(x)
    ours = functional.cross_entropy(logits, y) + advice_runs._penalty(model.head, features, penalties, 500)
    torch.testing.assert_close(ours, penalised_loss(logits, features, y, model.head, penalties, 500))


def test_recipes_are_their_problems() -> None:
    base = base_recipe(MERGING)
    assert base.penalties is not None
    assert base.problem.lambda_z == pytest.approx(base.penalties.lambda_z)
    for suggestion in given_advice(MERGING).suggestions:
        recipe = carried_out(base, suggestion.treatment)
        assert recipe.problem == suggestion.treatment.problem
        assert recipe.penalties is not None
        assert sqrt(recipe.penalties.lambda_w * recipe.penalties.lambda_h) == pytest.approx(recipe.problem.lambda_z)
        # the loss share is realised by the sampler or by the criterion, never by both or none
        n = np.array(MERGING.class_counts)
        shown = n if recipe.multipliers is None else n * np.array(recipe.multipliers)
        weights = recipe.problem.loss.class_weights
        if recipe.multipliers is not None:
            np.testing.assert_allclose(shown / shown.sum(), recipe.problem.loss_share)
            # the batch's mean squared feature, times the samples that pay, is the problem's mass
            np.testing.assert_allclose(recipe.penalised_samples * shown / shown.sum(), recipe.problem.mass)
        elif weights is not None:
            np.testing.assert_allclose(n * weights / (n @ weights), recipe.problem.loss_share)


def test_every_regime_has_its_methods() -> None:
    names = set(recipes(MERGING))
    assert {"nothing", "advice", "balanced-sampling", "logit-adjustment", "decoupled", "effective-number"} <= names
    safe = recipes(Setting("digits", "step", 10, 60, "safe"))
    assert safe["advice"] == safe["nothing"]
    ordinary = recipes(Setting("digits", "step", 10, 60, "ordinary"))
    assert ordinary["advice"] == ordinary["nothing"]
    assert ordinary["nothing"].penalties is None


def test_a_remedy_that_needs_data_cannot_be_carried_out() -> None:
    advice = given_advice(MERGING, families=("more-samples",))
    with pytest.raises(ValueError, match="`treatment`"):
        carried_out(base_recipe(MERGING), advice.suggestions[0].treatment)


def test_accuracies_and_calibration_by_naive_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 4, generator=generator)
    labels = torch.arange(200) % 4
    images = Images(torch.zeros(1, 1, 2, 2), torch.zeros(1), torch.zeros(1), labels, (9, 9, 2, 2))
    found = advice_runs._accuracies(logits, images)
    P = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    right = [P[i].argmax() == labels[i] for i in range(200)]
    per_class = [np.mean([right[i] for i in range(200) if labels[i] == k]) for k in range(4)]
    assert found["balanced"] == pytest.approx(np.mean(per_class), abs=1e-6)
    assert found["minority"] == pytest.approx(np.mean(per_class[2:]), abs=1e-6)
    error = 0.0
    for low in np.arange(15) / 15:
        rows = [i for i in range(200) if low <= P[i].max() < low + 1 / 15]
        if rows:
            error += len(rows) / 200 * abs(np.mean([P[i].max() for i in rows]) - np.mean([right[i] for i in rows]))
    assert found["calibration_error"] == pytest.approx(error, abs=1e-5)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[StudyPreset]:
    settings = (MERGING, Setting("digits", "step", 10, 60, "ordinary"))
    size = StudyPreset("small", settings, Schedule(2, (16, 16), 1), (0, 1))
    monkeypatch.setitem(advice_plans.PRESETS, "small", lambda: size)
    experiment = SHARPNESS["tiny"]
    monkeypatch.setitem(SHARPNESS, "small", experiment)
    fixed = {"kind": "advice-sharpness", "runs": [], **advice_study._plain(asdict(experiment))}
    monkeypatch.setattr(advice_study, "sharpness", lambda preset, out: fixed)
    few = {"nothing", "advice", "advice-double", "balanced-sampling", "sweep:0.25", "sweep:0.0001"}
    chosen = {s: {k: v for k, v in recipes(s).items() if k in few} for s in settings}
    monkeypatch.setattr(advice_study, "_recipes", chosen.__getitem__)
    advice_study._told_all.cache_clear()
    yield size
    advice_study._told_all.cache_clear()


def test_a_study_is_resumed_and_damage_is_mended(
    small: StudyPreset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    record = advice_study.run("small", out=tmp_path, progress=lambda done, total, left: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert json.loads((tmp_path / "advice.json").read_text())["kind"] == "advice-study"
    assert (tmp_path / "advice.png").stat().st_size > 1000
    monkeypatch.setattr(advice_study, "_write", lambda record, out: None)  # drawn once
    broken = tmp_path / "cells" / "merging-step-10-seed1.json"
    whole = json.loads(broken.read_text())
    broken.write_text(broken.read_text()[:300])
    seen.clear()
    again = advice_study.run("small", out=tmp_path, progress=lambda done, total, left: seen.append((done, total)))
    assert seen == [(4, 4)]
    mended = json.loads(broken.read_text())
    for name, method in whole["methods"].items():  # the same bits, but for the clock
        assert {k: v for k, v in method.items() if k != "cpu_seconds"} == {
            k: v for k, v in mended["methods"][name].items() if k != "cpu_seconds"
        }
    other = json.loads(broken.read_text())
    other["methods"]["advice"]["recipe"]["problem"]["lambda_z"] *= 1.00001  # made by another plan
    other["methods"]["nothing"]["train_accuracy"] = 7.0
    broken.write_text(json.dumps(other))
    seen.clear()
    advice_study.run("small", out=tmp_path, progress=lambda done, total, left: seen.append((done, total)))
    assert seen == [(4, 4)]
    found = json.loads(broken.read_text())["methods"]
    assert found["nothing"]["train_accuracy"] == 7.0  # the same recipe is not trained again
    assert found["advice"]["recipe"] == whole["methods"]["advice"]["recipe"]
    assert found["advice"]["train_accuracy"] == whole["methods"]["advice"]["train_accuracy"]
    assert again["regimes"][0]["methods"]["nothing"]["balanced_raw"] == record["regimes"][0]["methods"]["nothing"][
        "balanced_raw"
    ]  # fmt: skip


def test_the_summary_by_hand() -> None:
    """Two seeds of one setting: means, spreads, the paired difference and its t interval."""

    def method(raw: float, corrected: float) -> dict:
        reading = {"majority": 0.5, "minority": 0.1, "calibration_error": 0.2}
        return {
            "raw": {"balanced": raw, **reading},
            "corrected": {"balanced": corrected, **reading},
            "merged_classes": 1,
            "samples_seen": 10,
            "cpu_seconds": 1.0,
        }

    size = StudyPreset("x", (MERGING,), Schedule(1, (16,), 1), (0, 1))
    cells = [
        (MERGING, seed, {"methods": {"nothing": method(a, a), "advice": method(b, c), "sweep:2": method(d, d)}})
        for seed, (a, b, c, d) in enumerate([(0.4, 0.5, 0.6, 0.45), (0.5, 0.5, 0.66, 0.3)])
    ]
    record = advice_study.summary(size, cells)
    methods = record["settings"][0]["methods"]
    assert methods["nothing"]["raw"]["balanced"]["mean"] == pytest.approx(0.45)
    assert methods["nothing"]["raw"]["balanced"]["sd"] == pytest.approx(np.std([0.4, 0.5], ddof=1), rel=1e-5)
    assert methods["sweep"]["raw"]["balanced"]["mean"] == pytest.approx((0.45 + 0.5) / 2)
    assert methods["sweep"]["samples_seen"] == 20
    (row,) = (row for row in study_rows(record["regimes"][0]) if row[0] == "nothing")
    assert row[1:3] == ("45.0±7.1 / 45.0±7.1", "10.0±0.0 / 10.0±0.0")
    found = record["regimes"][0]["methods"]["nothing"]["advice_minus_balanced_raw"]
    differences = np.array([0.2, 0.16])
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert found["mean"] == pytest.approx(0.18)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), rel=1e-4)


def test_bad_arguments_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="`preset`"):
        advice_study.run("huge", out=tmp_path)
    with pytest.raises(ValueError, match="`jobs`"):
        advice_study.run("tiny", out=tmp_path, jobs=0)
    with pytest.raises(ValueError, match="training images"):
        subset("digits", (100000,) * 10, 1, 0)
    with pytest.raises(ValueError, match="`preset`"):
        sharpness("huge")


def test_a_fresh_head_leaves_the_body_alone() -> None:
    images = subset("digits", (20,) * 5 + (4,) * 5, 1, 0)
    problem = Problem(images.class_counts, 0.01, features="nonnegative")
    recipe = Recipe(problem, weight_decay=1e-4)
    plain = train_and_measure(images, recipe, Schedule(2, (16, 16), 1), 0)
    again = train_and_measure(images, replace(recipe, retrain_head=2), Schedule(2, (16, 16), 1), 0)
    assert again["samples_seen"] == 2 * 120 + 2 * 120
    assert again["raw"]["balanced"] != plain["raw"]["balanced"]
    assert again["raw"] == again["corrected"]


def test_standard_training_is_adamw_with_a_layer_norm() -> None:
    """The advice is to leave the decay alone; where it is strong it acts."""
    setting = Setting("digits", "exp", 10, 60, "standard")
    methods = recipes(setting)
    assert methods["advice"] == methods["nothing"]
    assert advice_plans.standard_advice(setting).verdict == "not acted"
    assert {"inverse-weights", "logit-adjustment", "balanced-sampling", "decoupled", "sweep:0"} <= methods.keys()
    images, schedule = subset("digits", setting.class_counts, 1, 0), Schedule(3, (16, 12), 1)
    heads = []
    for decay in (0.05, 100.0):
        generator = torch.Generator().manual_seed(0)
        spec = ModelSpec("mlp", (16, 12), feature_relu=False, feature_norm="layernorm")
        model = build_model(spec, images.shape, 10, generator=generator)
        before = float(model.head.weight.detach().norm())
        advice_runs._fit(model, images, replace(methods["nothing"], weight_decay=decay), schedule, 0, None)
        heads.append(float(model.head.weight.detach().norm()) / before)
    assert heads[1] < 0.7 < 0.9 < heads[0]
    measured = train_and_measure(images, replace(methods["decoupled"], retrain_head=1), schedule, 0)
    assert 0 <= measured["raw"]["balanced"] <= 1


def test_the_sharp_experiment_sits_on_its_threshold() -> None:
    """At 0.999 of the least factor the optimum has no minority, at 1.001 it has."""
    import collapsar as cs

    experiment = SHARPNESS["cpu"]
    below, above = (cs.solve(experiment.at(f * experiment.least_factor)) for f in (0.99, 1.01))
    assert below.class_states[-1] == "vanished"
    assert above.class_states[-1] == "separated"


@pytest.mark.slow
def test_the_least_oversampling_factor_is_sharp() -> None:
    """Trained networks: at 0.9 of it the minority stays merged, at 1.1 it separates."""
    record = sharpness("cpu", seeds=(0,))
    assert [run["alive"] for run in record["runs"]] == [False, True]


def test_the_adjusting_trainer_lowers_the_head_penalty_to_the_level() -> None:
    """Read at twice the level: the penalty that acts is the product of two, so the head's becomes a quarter."""
    from collapsar.metrics.balance import balance_penalties

    images = subset("digits", (20,) * 5 + (4,) * 5, 1, 0)
    model = build_model("mlp", images.shape, 10)
    penalties = Penalties(0.03, 0.004, 0.02)
    means = advice_adjusting._class_means(model, images).numpy()
    weight = model.head.weight.detach().numpy()
    _, found = balance_penalties(weight, means, np.array(images.class_counts), penalties.lambda_w)
    trainer = advice_adjusting._Trainer(images, found / 2)
    assert trainer(advice_adjusting.EVERY + 1, model, penalties) == penalties  # between two readings
    lowered = trainer(advice_adjusting.EVERY, model, penalties)
    assert (lowered.lambda_w, lowered.lambda_h) == pytest.approx((0.03 / 4, 0.004))
    calm = advice_adjusting._Trainer(images, 2 * found)
    assert calm(advice_adjusting.EVERY, model, penalties) == penalties
    assert model.training


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights", "offsets", "scales", "vs", "temperatures", "smoothing"])
def test_a_network_ends_at_the_optimum_of_its_criterion(name: str) -> None:
    """Digits, 60 and 12 images: within a tenth of its own optimum, and nearer than that is to plain training's."""
    counts = (60,) * 5 + (12,) * 5
    small, prior = np.array(counts) < 60, np.array(counts) / sum(counts)
    loss = {
        "weights": Loss(class_weights=np.where(small, 1.5, 1.0)),
        "offsets": Loss(offsets=np.log(prior)),
        "scales": Loss(scales=np.where(small, 0.8, 1.0)),
        "vs": Loss(scales=np.where(small, 1.25, 1.0), offsets=np.log(prior)),
        "temperatures": Loss(temperatures=np.where(small, 1.5, 1.0)),
        "smoothing": Loss(smoothing=0.1),
    }[name]
    plain = Problem(counts, 0.004, 0.02, features="nonnegative")
    problem = plain.replace(loss=loss)
    recipe = Recipe(problem, penalties_for(0.004, 0.02), penalised_samples=float(sum(counts)))
    found = train_and_measure(subset("digits", counts, 1, 0), recipe, Schedule(400, (64, 64), 1), 0)
    own, other = solve(problem), solve(plain)
    moved = np.linalg.norm(own.Z - other.Z) / np.linalg.norm(own.Z)
    assert found["distance_Z"] < min(0.1, moved)
    assert found["states"] == found["predicted_states"]
