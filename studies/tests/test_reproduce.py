"""The paper's figures and both studies: their settings, their records and their pictures."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import collapsar as cs
from collapsar.cli import main
from collapsar.theory import normalized_merge, normalized_two_cluster
from collapsar.training import ModelSpec, build_model, imbalanced, load_data
from collapsar.training.penalties import with_weight_decay
from collapsar_studies import advice_plans, advice_study, names, presets, reproduce, which_model
from collapsar_studies import against_theory as at
from collapsar_studies import effective as ef
from collapsar_studies import paper_figures as pf
from collapsar_studies.deep import deep_column
from collapsar_studies.deep_two_cluster import DeepPair, decay_switches, deep_optimum
from collapsar_studies.effective_scores import predictors_of, statement_of
from collapsar_studies.paper_plots import paper_figure
from collapsar_studies.run_record import layer_norms
from collapsar_studies.study_plots import study_figure


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["collapsar", "reproduce", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(str(end.value.code))


# --- settings


def effective(config: Any) -> Any:
    return with_weight_decay(config.penalties, config.weight_decay)


def test_the_papers_settings_of_figures_1_to_4() -> None:
    jobs = presets.figure_plan(1, "paper").jobs
    assert [(j.labels["network"], j.labels["counts"]) for j in jobs] == [
        (network, counts) for network in ("resnet18", "vgg11", "vgg13") for counts in ("Dataset1", "Dataset2")
    ]
    for job in jobs:
        c = job.cell.config
        n = {"Dataset1": [5000] * 4 + [4000] * 3 + [3000] * 3, "Dataset2": [5000] * 4 + [3000] * 2 + [1000] * 4}
        assert list(c.class_counts) == n[job.labels["counts"]]
        assert (c.epochs, c.batch_size, c.momentum) == (1000, 128, 0.9)
        assert c.clip_norm == (math.inf if c.model.name == "resnet18" else 1.0)
        # 2 * 1e-3 and the optimiser's 5e-4; 2 * 1e-2 and the same
        assert effective(c).lambda_w == pytest.approx(2.5e-3)
        assert effective(c).lambda_h == pytest.approx(2e-6)
        assert effective(c).lambda_b == pytest.approx(0.0205)
        rates = [c.learning_rate_at(epoch) for epoch in (0, 166, 167, 333, 334, 999)]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
        assert c.penalties_at(0) == c.penalties
    places = [(j.labels["network"], j.labels["counts"]) for j in presets.figure_plan(3, "paper").jobs]
    assert places == [("vgg13", "Dataset1"), ("vgg11", "Dataset2")]


@pytest.mark.parametrize(
    ("figure", "counts", "lambdas"),
    [
        (5, (500,) * 5 + (100,) * 5, (0.0027, 0.0030, 0.0033, 0.0039, 0.0045, 0.0051, 0.0057, 0.0063, 0.0069, 0.0075)),
        (6, (500,) * 3 + (100,) * 7, (0.0037, 0.0041, 0.0045, 0.0053, 0.0062, 0.0070, 0.0078, 0.0086, 0.0094, 0.0102)),
    ],
)
def test_the_papers_settings_of_figures_5_and_6(figure: int, counts: Any, lambdas: Any) -> None:
    jobs = presets.figure_plan(figure, "paper").jobs
    assert tuple(job.labels["value"] for job in jobs) == lambdas
    for job, lambda_z in zip(jobs, lambdas, strict=True):
        c = job.cell.config
        assert (c.class_counts, c.epochs, c.weight_decay, c.model.name) == (counts, 2000, 0.0, "resnet18")
        p = c.penalties
        assert (p.lambda_w, p.lambda_h, p.lambda_b) == pytest.approx((10 * lambda_z, lambda_z / 10, 0.02))
        assert c.penalties_at(333).lambda_w == pytest.approx(lambda_z)
        assert c.penalties_at(334) == p
        assert [c.learning_rate_at(e) for e in (666, 667, 1334)] == pytest.approx([0.1, 0.01, 0.001])


def test_the_papers_settings_of_figures_7_to_9() -> None:
    for figure, k_a, axis in ((7, 5, (100, 200, 1100, 1400)), (8, 3, (100, 400, 2200, 2800))):
        jobs = {job.labels["value"]: job.cell.config for job in presets.figure_plan(figure, "paper").jobs}
        assert len(jobs) == 10
        for n_a in axis:
            assert jobs[n_a].class_counts == (n_a,) * k_a + (100,) * (10 - k_a)
            assert jobs[n_a].penalties.lambda_z == pytest.approx(0.005)
    jobs = presets.figure_plan(9, "paper").jobs
    assert [job.labels["value"] for job in jobs] == list(range(500, 5501, 500))
    for job in jobs:
        c = job.cell.config
        assert c.class_counts == (job.labels["value"],) * 5 + (job.labels["value"] // 2,) * 5
        assert sum(c.class_counts) * c.penalties.lambda_z == pytest.approx(0.1)
        assert (c.weight_decay, c.epochs) == (5e-4, 2000)


@pytest.mark.parametrize("figure", range(1, 10))
@pytest.mark.parametrize("size", ["cpu", "tiny"])
def test_smaller_sizes_are_the_same_problems(figure: int, size: str) -> None:
    """N lambda_z / sqrt(n_k), shares and lambda_b at the penalties the head feels are the paper's."""

    def scales(job: presets.Job) -> tuple[np.ndarray, float]:
        n = np.array(job.cell.config.class_counts)
        p = effective(job.cell.config)
        return np.concatenate([n.sum() * p.lambda_z / np.sqrt(n), n / n.sum()]), p.lambda_b

    def key(job: presets.Job) -> Any:
        return job.labels.get("counts", job.labels.get("value"))

    paper = {key(job): scales(job) for job in presets.figure_plan(figure, "paper").jobs}
    for job in presets.figure_plan(figure, size).jobs:
        levels, lambda_b = scales(job)
        assert levels == pytest.approx(paper[key(job)][0], rel=1e-9)
        assert lambda_b == pytest.approx(paper[key(job)][1])


def test_the_first_seed_comes_first_and_options_replace_the_presets() -> None:
    plan = presets.figure_plan(5, "cpu")
    assert [job.labels["seed"] for job in plan.jobs] == [0] * 10 + [1] * 10 + [2] * 10
    other = presets.figure_plan(2, "cpu", "digits", "cnn", [7])
    assert {(j.cell.config.dataset, j.cell.config.model.name, j.cell.config.seed) for j in other.jobs} == {
        ("digits", "cnn", 7)
    }
    with pytest.raises(ValueError, match="`figure`"):
        presets.figure_plan(10, "cpu")
    with pytest.raises(ValueError, match="`preset`"):
        presets.figure_plan(1, "huge")


def test_figure_9_at_the_nominal_penalties() -> None:
    """Cosines of the signed optimum's columns at n_A = 500: -.138 in A and -.078 in B."""
    s = cs.solve(cs.Problem([500] * 5 + [250] * 5, 0.1 / 3750, 0.02))
    found = at.cosines(s.Z, 5)
    assert (found["A"], found["B"]) == pytest.approx((-0.138, -0.078), abs=5e-4)


# --- against theory


def cell_record(Z: np.ndarray, b: np.ndarray, config: Any) -> dict[str, Any]:
    """A record as if a network had ended in (Z, b), with a head of norm 2 and features of mass 50."""
    zeros = [0.0] * len(b)
    result = {"Z": Z.tolist(), "b": b.tolist(), "states": ["separated"] * len(b), "stationarity": 0.01}
    result |= {"nc1_uniform": 1e-4, "head_norm": 2.0, "feature_mass": 50.0, "test_class_accuracies": zeros}
    return {"config": json.loads(config.to_json()), "result": result, "environment": {}, "error": "", "cpu_seconds": 1}


def test_distances_are_to_the_optimum_at_the_penalties_the_head_feels() -> None:
    config = presets.figure_plan(9, "paper").jobs[0].cell.config  # with weight decay on top
    n, p = config.class_counts, effective(config)
    s = {m: cs.solve(cs.Problem(n, p.lambda_z, p.lambda_b, features=m)) for m in at.MODELS}
    seen = at.summary(cell_record(1.01 * s["signed"].Z, s["signed"].b, config), 5, matrices=True)
    assert seen["distance"]["signed"]["Z"] == pytest.approx(0.01, rel=1e-6)
    expected = np.linalg.norm(1.01 * s["signed"].Z - s["nonnegative"].Z) / np.linalg.norm(s["nonnegative"].Z)
    assert seen["distance"]["nonnegative"]["Z"] == pytest.approx(expected)
    assert seen["lambda_z_balance"] == pytest.approx(p.lambda_w * math.sqrt(2 / 50))


def test_a_class_is_lost_when_its_own_logit_stands_out_no_more() -> None:
    Z = np.zeros((6, 6))
    Z[:3, :3] = 3 * np.eye(3) - 1
    Z[3:, 3:] = np.diag([1.0, 0.25, 0.0])
    Z[0, 5] = 2.0  # looks like a class of A; still, nothing tells it from its siblings
    assert at.lost(Z, 3).tolist() == [False, True, True]
    assert at.lost(0.01 * Z, 3).all()


def test_brackets_and_verdicts() -> None:
    axis = [1.0, 2.0, 3.0, 4.0]
    assert at.brackets(axis, [False, False, True, False]) == [2.0, 3.0]
    assert at.brackets(axis, [True] * 4) == [None, 1.0]
    assert at.brackets(axis, [False] * 4) == [4.0, None]
    told = {p: at.verdict(p, [2.0, 3.0], axis) for p in (0.5, 1.5, 2.0, 2.5, 3.0, 3.5, 4.5)}
    assert told == {0.5: "outside", 1.5: "next", 2.0: "next", 2.5: "inside", 3.0: "inside", 3.5: "next", 4.5: "outside"}
    assert at.verdict(9.0, [4.0, None], axis) == "inside"


def test_transitions_of_networks_that_obey_a_model() -> None:
    """Cells that end in the optimum of the signed model give brackets around its thresholds, for that model alone."""
    plan = presets.figure_plan(5, "cpu", seeds=[0])
    cells = {}
    for job in plan.jobs:
        c = job.cell.config
        s = cs.solve(cs.Problem(c.class_counts, c.penalties.lambda_z, c.penalties.lambda_b))
        record = cell_record(s.Z, s.b, c)
        record["result"]["states"] = list(s.class_states)
        cells[job.cell.key] = record
    record = pf.figure_record(plan, cells)
    (seen,) = record["observed"]
    assert seen["minority"] == [0.003, 0.0033]  # less than a tenth of A's contrast is left at .0033, just below 1/300
    assert seen["complete"] == [0.0069, 0.0075]
    assert seen["verdict"]["signed"] == {"minority": "next", "complete": "inside"}
    assert seen["verdict"]["nonnegative"] == {"minority": "inside", "complete": "next"}
    i = int(np.argmin(np.abs(np.array(record["theory"]["value"]) - 0.0045)))
    here = cs.solve(cs.Problem([500] * 5 + [100] * 5, float(record["theory"]["value"][i]), 0.02))
    assert record["theory"]["signed"]["A"][i] == pytest.approx(at.contrasts(here.Z, 5)[0], abs=1e-5)


# --- the deep model


def test_two_factors_are_the_shallow_model() -> None:
    """L = 1 against the certified nonnegative optimum at lambda_z = wd / sqrt(N), and against its threshold."""
    point = deep_optimum(DeepPair(5, 5, 100, 20, 1, 0.05), minority_alive=True)
    s = cs.solve(cs.Problem([100] * 5 + [20] * 5, 0.05 / math.sqrt(600), 0.05, features="nonnegative"))
    assert point is not None
    assert pytest.approx(s.Z, abs=1e-6) == point.Z
    assert point.b == pytest.approx(s.b, abs=1e-6)
    assert point.value == pytest.approx(s.certificate.primal, abs=1e-12)

    def excess(wd: float) -> float:
        t = cs.thresholds(cs.Problem([100] * 5 + [20] * 5, 1.0, wd, features="nonnegative"))
        return wd / math.sqrt(600) - t.vanish[-1]

    found = decay_switches(DeepPair(5, 5, 100, 20, 1, 1.0), 0.02, 1.0)
    exact: Any = brentq(excess, 0.01, 1.0)
    assert exact / 1.02 < found.spinodal < exact * 1.03  # it advances by 2%, and a column of .01 nats counts as zero


@pytest.mark.parametrize("layers", [2, 4])
def test_more_factors_against_the_scalar_problem(layers: int) -> None:
    """Norms of both columns given the bias, against the theory's one-dimensional search; and both decays' order."""
    pair = DeepPair(5, 5, 100, 20, layers, 0.01)
    point = deep_optimum(pair, minority_alive=True)
    assert point is not None
    for k, n, price, norm in zip((0, 9), (100, 20), pair.prices, point.norms, strict=True):
        assert norm == pytest.approx(deep_column(n / 600, price, layers + 1, point.b, k).rho, rel=1e-5)
    found = decay_switches(pair, 0.005, 1.0)
    assert 0.01 < found.deep < found.spinodal < 0.1


def test_the_deep_switch_is_where_both_branches_are_worth_the_same() -> None:
    found = decay_switches(DeepPair(5, 5, 1000, 20, 2, 1.0), 0.002, 1.0)
    assert 0.015 < found.deep < 0.02  # the setting of an earlier experiment, and what was predicted for it
    values = []
    for wd in (found.deep / 1.03, found.deep * 1.01):
        alive, dead = (deep_optimum(DeepPair(5, 5, 1000, 20, 2, wd), minority_alive=a) for a in (True, False))
        assert alive is not None
        assert dead is not None
        values.append(alive.value - dead.value)
    assert values[0] < 0 < values[1]
    with pytest.raises(ValueError, match="`low`"):
        decay_switches(DeepPair(5, 5, 1000, 20, 2, 1.0), 0.1, 1.0)


def test_layer_norms_by_hand() -> None:
    data = imbalanced(load_data("digits"), [3] * 10)
    spec = ModelSpec("mlp", widths=(16, 12), layers_above_norm=1)
    model = build_model(spec, data.image_shape, data.num_classes)
    first, second, head = layer_norms(model, data)
    images = data.normalised(data.train_images).flatten(1).double()
    assert first["inputs"] == pytest.approx(float((images**2).sum()), rel=1e-5)
    assert (first["normalised"], second["normalised"], head["normalised"]) == (False, True, False)
    assert (second["scale"], second["shift"]) == (12.0, 0.0)
    _, features = model.eval()(data.normalised(data.train_images))
    assert head["inputs"] == pytest.approx(float((features.detach().double() ** 2).sum()), rel=1e-5)
    assert head["weight"] == pytest.approx(float((model.head.weight.detach().double() ** 2).sum()), rel=1e-6)


# --- everything, at the size of a test


class Everything(dict[str, Any]):
    """Records by name, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Any:
        place = reproduce.Place(self.folder / "results", self.folder / "scratch")
        self[name] = reproduce.reproduce(reproduce.Request(name, "tiny"), place)
        return self[name]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Everything]:
    folder = tmp_path_factory.mktemp("reproduce")
    return folder, Everything(folder)


def test_the_names_are_those_of_what_there_is() -> None:
    assert names.NAMES[: len(pf.TITLES)] == tuple(f"fig{number}" for number in pf.TITLES)
    assert (set(names.PRESETS), set(names.ADVICE_PRESETS)) == (set(presets.PRESETS), set(advice_plans.PRESETS))


@pytest.mark.parametrize("name", names.NAMES)
def test_every_figure_at_the_tiny_size(everything: tuple[Path, Everything], name: str) -> None:
    folder, records = everything
    made, home = records[name], folder / "results" / name
    record = json.loads((home / f"{name}.json").read_text())
    assert record == made
    assert record["preset"] == "tiny"
    assert record["environment"]["failed"] == []
    assert record["environment"]["threads"] == [1]
    svg = (home / f"{name}.svg").read_text()
    assert record["title"] in svg
    assert (home / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for path in home.glob(f"{name}.*"):
        assert path.stat().st_size < 300_000
        assert str(folder).encode() not in path.read_bytes()


def test_figures_1_to_4_share_their_runs(everything: tuple[Path, Everything]) -> None:
    folder, records = everything
    last = {(r["network"], r["counts"]): r for r in records["fig2"]["runs"]}
    assert not any((folder / "results" / f"fig{n}" / "cells").exists() for n in (2, 3, 4))
    for run in records["fig3"]["runs"]:
        at_the_end = last[run["network"], run["counts"]]["distance"]
        for model in at.MODELS:
            # the curve is of six digits
            assert run["curves"][model]["Z"][-1] == pytest.approx(at_the_end[model]["Z"], rel=1e-4)


def test_the_maps_of_figure_5_are_the_records(everything: tuple[Path, Everything]) -> None:
    record = everything[1]["fig5"]
    figure = paper_figure(record)
    images = [image for ax in figure.axes for image in ax.images]
    values = record["values"]
    assert len(images) == 3 * len(values)
    for i, run_ in enumerate(record["runs"]):
        assert np.array_equal(np.asarray(images[i].get_array()), run_["Z"])
        assert np.array_equal(np.asarray(images[len(values) + i].get_array()), run_["optimum"]["nonnegative"]["Z"])
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles[: len(values)] == [f"{v:g}" for v in values]


def test_which_model_and_effective_count_right(everything: tuple[Path, Everything]) -> None:
    record = everything[1]["which-model"]
    assert len(record["runs"]) == 2 * len(which_model.lambdas(which_model.WHICH_MODEL["tiny"], 8))
    t = cs.thresholds(cs.Problem([40] * 5 + [8] * 5, 1.0, 0.02))
    assert record["predicted"]["8"]["signed"]["minority"] == pytest.approx(t.merge[-1], rel=1e-5)
    for row in record["table"]:
        mine = [r["distance"]["signed"]["Z"] for r in record["runs"] if r["relu"] == row["relu"]]
        assert row["signed_Z"][0] == pytest.approx(np.nanmedian(np.array(mine, dtype=float)), rel=1e-5)
    record = everything[1]["effective"]
    branches = [(r["layers"], r["branch"]) for r in record["runs"]]
    assert sorted(set(branches)) == [(layers, b) for layers in (0, 2) for b in ("cold", "down", "up")]
    assert branches.count((2, "cold")) == 2
    assert branches.count((2, "up")) == 1


def test_the_standard_study_counts_right(everything: tuple[Path, Everything]) -> None:
    record = everything[1]["standard"]
    assert record["merge"]["sample"] == pytest.approx(normalized_merge((5, 5), (40, 8), 1.0), rel=1e-5)
    runs = {(r["norm"], r["factor"]): r for r in record["runs"]}
    assert runs.keys() == {(n, f) for n in ("layernorm", "none") for f in (0.5, 1.4)}
    for run_ in record["runs"]:
        if run_["norm"] == "layernorm":
            assert run_["length"] == 4.0
            assert run_["lambda_w"] == pytest.approx(run_["factor"] * 16 * record["merge"]["sample"], rel=1e-3)
            model = normalized_two_cluster((5, 5), (40, 8), run_["lambda_w"], 4.0)
            Z = model.Z()
            assert run_["predicted_contrasts"][1] == pytest.approx(Z[5, 5] - Z[6, 5], abs=1e-4)
    for row in record["table"]:
        assert row["sample"] == runs[row["norm"], row["factor"]]["distance"]["sample"]["Z"]
    (adamw,) = record["adamw"]
    assert adamw["clock"] == pytest.approx(10.0 * 4 * 1e-3 * (3 + 0.1) * 1, rel=1e-6)  # 4 steps: 240 images by 64
    assert [t["number"] for t in record["tuned"]] == [0, 1]
    assert all(t["verdict"] == "not acted" and t["right"] for t in record["tuned"])
    assert record["tuned"][0]["clock"] == pytest.approx(5 * 8 * 2e-5 * 0.01, rel=1e-6)  # 8 steps: 240 images by 32


def test_the_share_of_the_layers_below_the_features() -> None:
    layers = [{"weight": 3.0, "bias": 1.0, "scale": 5.0, "shift": 1.0}, {"weight": 10.0, "bias": 0.0}]
    assert ef._body_share(layers, 1) == pytest.approx(4 / 20)  # pyright: ignore[reportPrivateUsage]


def test_measured_over_predicted_switches() -> None:
    """Brackets of two seeds over each prediction; the open one counts apart, and the nearest model is named."""
    row = {
        "rate": 0.1,
        "layers": 1,
        "measured": {"cold": [[1.5, 2.0], [0.5, 0.75], [9.0, None]], "up": [], "down": []},
        "predicted": {"shallow": 1.0, "deep": 4.0, "body": 2.0, "spinodal": None, "descent": None},
    }
    found = predictors_of([row])
    assert {p["regime"] for p in found} == {"batch normalisation", "batch normalisation, L = 1"}
    cold = {p["model"]: p for p in found if (p["layers"], p["branch"]) == (1, "cold")}
    assert [cold["shallow"][name] for name in ("ratio_low", "ratio_high", "switches", "open")] == [0.5, 2.0, 2, 1]
    assert cold["deep"]["ratio_low"] == pytest.approx(0.125)
    assert cold["body"]["ratio"] == pytest.approx((1.5 * 2.0 * 0.5 * 0.75) ** 0.25 / 2)
    assert [p["best"] for p in cold.values()] == [True, False, False, False, False]
    assert (cold["spinodal"]["ratio"], cold["spinodal"]["unpredicted"]) == (None, 2)
    assert statement_of(found)[0].endswith("at 0.50 to 2.00 of its decay (2 switches)")


# --- the command


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "fig9", "--preset", "tiny") == 0
    assert "processor time" in capsys.readouterr().out
    assert (tmp_path / "runs" / "reproduce-tiny" / "fig9" / "fig9.png").exists()
    assert run(monkeypatch, "fig9", "--preset", "tiny", "--out", "runs/reproduce-tiny", "--json") == 0
    assert json.loads(capsys.readouterr().out)["figure"] == "fig9"


def test_the_study_of_the_advice_is_one_of_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_advice(preset: str, **how: Any) -> dict[str, Any]:
        how["progress"](1, 2, 3.0)
        return {"title": "advice", "preset": preset, "out": str(how["out"]), "seeds": how["seeds"]}

    monkeypatch.setattr(advice_study, "run", run_advice)
    assert run(monkeypatch, "advice", "--preset", "tiny", "--seed", "3", "--out", str(tmp_path), "--json") == 0
    out = json.loads(capsys.readouterr().out)
    assert out == {"title": "advice", "preset": "tiny", "out": str(tmp_path / "advice"), "seeds": [3]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fig0",), "`name`"),
        (("fig5", "--preset", "tiny", "--seed", "1", "--seed", "1"), "`seeds` must differ"),
        (("which-model", "--preset", "tiny", "--network", "cnn"), "`network`"),
        (("effective", "--preset", "tiny", "--seed", "4"), "`seeds`"),
        (("fig5", "--preset", "tiny", "--network", "transformer"), "`network` must be one of"),
        (("fig5", "--preset", "tiny", "--jobs", "0"), "`jobs`"),
        (("fig5", "--preset", "huge"), "`preset`"),
        (("advice", "--preset", "tiny", "--network", "cnn"), "`--network`"),
        (("advice", "--preset", "paper"), "`preset`"),
    ],
)
def test_wrong_requests_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "run_sweep", pressed)
    assert run(monkeypatch, "fig5", "--preset", "tiny", "--out", str(tmp_path)) == 130
    assert capsys.readouterr().err == ("collapsar: fig5 was interrupted; run the same command again to resume\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_the_papers_size_asks_for_a_gpu() -> None:
    """Figure 5: ten runs of 2000 epochs of 3000 images."""
    said = reproduce.needs_a_gpu(reproduce.Request("fig5", "paper"))
    assert "6.0e+07 images to resnet18" in said
    assert reproduce.needs_a_gpu(reproduce.Request("fig5", "cpu")) == ""


def test_records_of_other_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="number"):
        paper_figure({"number": 12})
    with pytest.raises(ValueError, match="which-model, effective, standard"):
        study_figure({"figure": "fig1"})
    job = replace(presets.figure_plan(5, "tiny").jobs[0])
    plan = replace(presets.figure_plan(5, "tiny"), jobs=(job,))
    with pytest.raises(ValueError, match="no run with a result: diverged"):
        pf.figure_record(plan, {job.cell.key: {"result": None, "error": "diverged"}})
