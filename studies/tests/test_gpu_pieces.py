"""The scripts for a lent GPU, run at tiny size: cut off, packed, opened elsewhere and gone on with."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from collapsar import Penalties
from collapsar.training import ModelSpec, TrainConfig, TrainingInterrupted
from collapsar_studies import picture_files, presets, which_model
from collapsar_studies.reproduce import Place, Request, reproduce
from collapsar_studies.sweep import Cell, SweepSettings, run_sweep

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"
CONFIG = TrainConfig(
    dataset="digits",
    class_counts=(20,) * 5 + (5,) * 5,
    penalties=Penalties(0.05, 0.0005, 0.02),
    epochs=8,
    model=ModelSpec("mlp", widths=(16,)),
    clip_norm=1.0,
    eval_every=4,
    device="cpu",
    cuda_graphs=True,
)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    names = ("parcels", "piece", "precision", "throughput")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(SCRIPTS.parent))
    yield {name: importlib.import_module(name) for name in names}
    for name in (*names, "bench_metrics"):
        sys.modules.pop(name, None)


def essence(records: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how the runs were made."""
    return {key: {name: v for name, v in r.items() if name != "cpu_seconds"} for key, r in records.items()}


class After:
    """Says stop from the so-manieth time on that it is asked."""

    def __init__(self, times: float) -> None:
        self.left = times

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def cells() -> list[tuple[Cell, ...]]:
    configs = [TrainConfig(**{**vars(CONFIG), "seed": seed}) for seed in range(4)]
    return [(Cell(config),) for config in configs]


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_sweep_that_is_told_to_stop_gives_what_has_ended_and_goes_on(tmp_path: Path, at_once: int) -> None:
    whole = run_sweep(cells(), SweepSettings(tmp_path / "whole", tmp_path / "scratch"))
    places = tmp_path / "cells", tmp_path / "runs"
    cut = run_sweep(cells(), SweepSettings(*places, at_once=at_once, stop=After(30)))
    assert 0 < len(cut) < 4
    assert any(places[1].glob("*/checkpoint.safetensors"))
    assert essence(cut) == {key: record for key, record in essence(whole).items() if key in cut}
    assert essence(run_sweep(cells(), SweepSettings(*places, at_once=at_once))) == essence(whole)
    assert not any(places[1].iterdir())


def test_an_interrupt_reaches_the_runs_side_by_side(tmp_path: Path) -> None:
    """One of two threads is broken off; the other saves what it has, and nothing is lost."""
    places = tmp_path / "cells", tmp_path / "runs"
    seen: list[int] = []
    pressed: list[bool] = []  # once: the other thread must not be broken off as well before it hears of it

    def broken() -> bool:
        seen.append(threading.get_ident())
        if len(set(seen)) == 2 and len(seen) > 12 and not pressed:
            pressed.append(True)
            raise TrainingInterrupted("by hand")
        return False

    with pytest.raises(TrainingInterrupted, match="by hand"):
        run_sweep(cells(), SweepSettings(*places, at_once=2, stop=broken))
    assert [*places[0].glob("*.json"), *places[1].glob("*/checkpoint.safetensors")]
    assert len(run_sweep(cells(), SweepSettings(*places, at_once=2))) == 4


def test_runs_at_once_belong_to_one_process(tmp_path: Path) -> None:
    for at_once, jobs in ((0, 1), (2, 2)):
        with pytest.raises(ValueError, match="`at_once`"):
            SweepSettings(tmp_path, tmp_path, at_once=at_once, jobs=jobs)


def test_a_piece_is_cut_off_packed_opened_elsewhere_and_gone_on_with(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piece, parcels = scripts["piece"], scripts["parcels"]
    monkeypatch.setitem(piece.PIECES, "which-model", ("which-model",))
    monkeypatch.setattr(parcels, "PARCEL", 9000)

    def record(folder: Path) -> dict[str, Any]:
        made = json.loads((folder / "results" / "which-model" / "which-model.json").read_text())
        return {name: value for name, value in made.items() if name != "environment"}

    def run(folder: Path, out: Path) -> dict[str, Any]:
        capsys.readouterr()
        arguments = ["--preset", "tiny", "--at-once", "2", "--beyond", "8", "--folder", str(folder), "--out", str(out)]
        piece.main(["which-model", *arguments])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    def undrawn(folder: Path, name: str, *_: Any, **__: Any) -> None:
        (folder / f"{name}.png").touch()

    with monkeypatch.context() as hurry:  # the last run draws
        hurry.setattr(picture_files, "write_pictures", undrawn)
        assert run(tmp_path / "whole", tmp_path / "whole-out")["in_progress"] == []
        hurry.setattr(piece, "TimeIsUp", lambda _seconds: After(47))
        report = run(tmp_path / "one", tmp_path / "out")
    assert 0 < report["runs_drawn"]["which-model"] < 6
    assert report["in_progress"]
    assert all(0 < run["epoch"] < run["of"] for run in report["in_progress"])
    there = report["parcels"]["there"]
    assert there > parcels.MOST == report["parcels"]["sent"]  # more than one call brings back
    for first in range(parcels.MOST, there, parcels.MOST):
        parcels.main(["send", str(tmp_path / "one"), str(tmp_path / "out"), "--first", str(first)])
    files = sorted(tmp_path.glob("out/*"))
    assert sum(file.name.startswith("state-") for file in files) == there

    with pytest.raises(ValueError, match="state-001 is missing"):
        parcels.open_parcels(tmp_path / "two", [file for file in files if file.name != "state-001"])
    assert not (tmp_path / "two" / "scratch").exists()
    parcels.main(["open", str(tmp_path / "two"), *map(str, files)])
    run(tmp_path / "two", tmp_path / "out-two")
    assert record(tmp_path / "two") == record(tmp_path / "whole")
    assert (tmp_path / "out-two" / "which-model.png").stat().st_size > 1000
    ended = {(one["value"], one["relu"]): one for one in record(tmp_path / "two")["runs"]}
    longer = record(tmp_path / "two")["beyond"]
    assert {(one["value"], one["relu"]) for one in longer} == set(ended)
    for one in longer:
        assert one["epochs"] <= 8
        assert (one["finished"] == "stationary") == (one["stationarity"] < 0.01)
        before = ended[one["value"], one["relu"]]["distance"]["nonnegative"]["Z"]
        assert one["distance"]["nonnegative"]["Z"] == pytest.approx(before, abs=0.3)  # from there, at a small rate


_PARTIAL = {"fig1": (16, 6), "fig3": (9, 2), "fig5": (12, 4), "fig7": (60, 4), "fig9": (125, 2)}


@pytest.mark.parametrize(
    ("name", "times", "planned"),
    [("fig2", 23, 6), *(pytest.param(name, *given, marks=pytest.mark.slow) for name, given in _PARTIAL.items())],
)
def test_what_has_ended_is_drawn(tmp_path: Path, name: str, times: int, planned: int) -> None:
    """Two runs of six, one value of four: empty panels, one point on an axis."""
    place = Place(tmp_path / "results", tmp_path / "scratch", stop=After(times))
    assert 0 < len(reproduce(Request(name, "tiny"), place)["runs"]) < planned
    assert (tmp_path / "results" / name / f"{name}.png").stat().st_size > 1000


def test_parcels_that_do_not_belong_together_are_named(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    parcels = scripts["parcels"]
    (tmp_path / "run" / "scratch").mkdir(parents=True)
    (tmp_path / "run" / "scratch" / "file").write_bytes(bytes(range(256)) * 8)
    assert parcels.send(tmp_path / "run", tmp_path / "out") == (1, 1)
    with pytest.raises(ValueError, match=r"results\.zip must be among the files, got state-000"):
        parcels.open_parcels(tmp_path / "new", [tmp_path / "out" / "state-000"])
    (tmp_path / "out" / "state-000").write_bytes(b"other")
    with pytest.raises(ValueError, match="state-000 is damaged"):
        parcels.open_parcels(tmp_path / "new", sorted((tmp_path / "out").iterdir()))


def test_precision_and_throughput_at_tiny_size(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--preset", "tiny", "--epochs", "20", "--folder", str(tmp_path)]
    assert scripts["precision"].main([*tiny, "--lambda-z", "0.003", "--out", str(tmp_path / "precision.json")])
    record = json.loads((tmp_path / "precision.json").read_text())
    assert 0 < record["change"]["bf16"] < min(record["distance"]["float32"].values())
    assert "bf16 moves Z by" in capsys.readouterr().out
    out = tmp_path / "throughput.json"
    arguments = ["--device", "cpu", "--tiny", "--networks", "resnet18", "--epochs", "5", "--steps", "1"]
    scripts["throughput"].main([*arguments, "--at-once", "2", "--out", str(out)])
    record = json.loads(out.read_text())
    network = record["networks"]["resnet18"]
    rates = network["loop"]
    assert set(rates) == {
        *("plain", "recorded", "recorded, cudnn.benchmark", "recorded, 2 at once", "recorded, exact float32")
    }
    assert all(rate > 0 for rate in rates.values())
    assert network["bare"]["bf16"].keys() == {"plain", "lists, one run"}
    assert network["share"] > 0  # ratios of times on a busy CPU: no bound
    assert network["loop_over_bare"] > 0
    assert record["metrics"][0]["over_float64"] > 0
    at_40k = {"loop": {"recorded": 4e4, "recorded, exact float32": 1e4}}
    minutes = scripts["throughput"].piece_minutes({"resnet18": at_40k})
    # Figs. 5: 10 runs of 2000 epochs on 3000 images, 20 looks at those and 10000 others, at three times the exact rate.
    assert minutes["fig5"] == pytest.approx((10 * 2000 * 3000 / 4e4 + 10 * 20 * 13000 / 3e4) / 60, abs=0.06)
    assert minutes["which-model"] == pytest.approx(2 * minutes["fig5"], abs=0.11)  # half of its runs are Fig. 5's


@pytest.mark.slow
def test_every_piece_at_tiny_size(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    piece = scripts["piece"]
    for name, figures in piece.PIECES.items():
        piece.main(
            [
                name,
                "--preset",
                "tiny",
                "--beyond",
                "4",
                "--folder",
                str(tmp_path / "run"),
                "--out",
                str(tmp_path / name),
            ]
        )
        assert {path.name for path in (tmp_path / name).iterdir()} == {"results.zip", *(f"{f}.png" for f in figures)}
        assert sum(path.stat().st_size for path in (tmp_path / name).iterdir()) < 64 << 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("error:the training step cannot be recorded")  # whatever else is asked for
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_runs_at_once_on_a_gpu_are_the_runs_one_by_one(tmp_path: Path, precision: str) -> None:
    """Recorded steps on three streams: to the rounding of kernels that may be chosen anew."""
    model = ModelSpec("resnet18", (8, 8, 12, 16))
    change = {"device": "cuda", "precision": precision, "model": model, "batch_size": 32}
    configs = [TrainConfig(**{**vars(CONFIG), **change, "seed": seed, "learning_rate": 0.01}) for seed in range(4)]
    chains = [(Cell(config),) for config in configs]
    plain = [(Cell(TrainConfig(**{**vars(config), "cuda_graphs": False})),) for config in configs]
    one_by_one = run_sweep(plain, SweepSettings(tmp_path / "one", tmp_path / "scratch"))
    cut = run_sweep(chains, SweepSettings(tmp_path / "three", tmp_path / "runs", at_once=3, stop=After(10)))
    assert len(cut) < 4
    at_once = run_sweep(chains, SweepSettings(tmp_path / "three", tmp_path / "runs", at_once=3))
    for (recorded,), (made,) in zip(chains, plain, strict=True):
        a, b = at_once[recorded.key]["result"], one_by_one[made.key]["result"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=5e-3 if precision == "float32" else 0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("error:the training step cannot be recorded")  # whatever else is asked for
def test_throughput_on_a_gpu(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    out = tmp_path / "throughput.json"
    scripts["throughput"].main(["--tiny", "--epochs", "5", "--steps", "5", "--at-once", "2", "--out", str(out)])
    networks = json.loads(out.read_text())["networks"]
    assert all(isinstance(rate, float) for each in networks.values() for rate in each["loop"].values())
    assert all(each["bare"]["bf16"]["recorded"] > 0 for each in networks.values())


def test_which_model_of_the_paper_shares_the_runs_of_figure_5() -> None:
    """Half of its runs are the figure's own; the other half differ from them in the last ReLU alone."""
    own = [job.cell for job in presets.figure_plan(5, "paper").jobs]
    jobs = which_model.which_model_jobs(which_model.WHICH_MODEL["paper"])
    assert {job.cell.key for job in jobs if job.labels["relu"]} == {cell.key for cell in own}
    signed = [job.cell.config for job in jobs if not job.labels["relu"]]
    assert sorted(c.penalties.lambda_z for c in signed) == pytest.approx(presets.LAMBDAS[5])
    assert not any(c.model.feature_relu for c in signed)
    back = {Cell(replace(c, model=replace(c.model, feature_relu=True))).key for c in signed}
    assert back == {cell.key for cell in own}
    assert [job.labels["value"] for job in jobs[:4]] == [0.0039, 0.0039, 0.0069, 0.0069]  # the most telling first
