"""Sweeps of training runs: killed and continued, damaged and mended, failed and kept."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from collapsar import Penalties
from collapsar.training import ModelSpec, TrainConfig, train
from collapsar_studies import sweep as sweep_module
from collapsar_studies.sweep import Cell, SweepSettings, load_cell, run_sweep
from collapsar_studies.time_left import TimeLeft

CONFIG = TrainConfig(
    dataset="digits",
    class_counts=(20,) * 5 + (5,) * 5,
    penalties=Penalties(0.05, 0.0005, 0.02),
    epochs=6,
    model=ModelSpec("mlp", widths=(16,)),
    clip_norm=1.0,
    eval_every=3,
    device="cpu",
)


def chain(epochs: int = 6, seed: int = 0) -> tuple[Cell, ...]:
    """Three runs, each from where the one before ended."""
    first = Cell(replace(CONFIG, epochs=epochs, seed=seed), detail="curve")
    second = Cell(replace(CONFIG, epochs=epochs, seed=seed, weight_decay=0.01), start=first, detail="layers")
    return first, second, Cell(replace(CONFIG, epochs=epochs, seed=seed, weight_decay=0.02), start=second)


def settings(folder: Path) -> SweepSettings:
    return SweepSettings(folder / "cells", folder / "scratch")


def essence(records: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how a sweep was run: all but the time it took."""
    return {key: {name: v for name, v in r.items() if name != "cpu_seconds"} for key, r in records.items()}


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing must be trained")


def run_and_die_late(folder: Path, chains: list[tuple[Cell, ...]]) -> None:
    """A sweep that is stopped once, leaves a checkpoint and goes on from it, for a parent that kills it."""
    torch.set_num_threads(1)
    epochs = itertools.count()
    interrupted = replace(settings(folder), stop=lambda: next(epochs) == 10)
    for _ in range(2):
        run_sweep(chains, interrupted)


LONG = [chain(40, seed) for seed in range(2)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The records of the long chains, never interrupted."""
    return run_sweep(LONG, settings(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("draw", range(2))
def test_a_killed_sweep_ends_in_the_same_records(tmp_path: Path, whole: dict[str, Any], draw: int) -> None:
    chains = LONG
    process = multiprocessing.get_context("fork").Process(target=run_and_die_late, args=(tmp_path / "cut", chains))
    process.start()
    while not any((tmp_path / "cut" / "scratch").glob("*/checkpoint.safetensors")) and process.is_alive():
        time.sleep(0.001)
    time.sleep(random.Random(draw).uniform(0.0, 0.15))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    found = list((tmp_path / "cut" / "cells").glob("*.json"))
    assert len(found) < 6  # it died before its end
    again = run_sweep(chains, settings(tmp_path / "cut"))
    assert essence(again) == essence(whole)
    assert len(whole) == 6
    assert not any((tmp_path / "cut" / "scratch").iterdir())


def test_done_cells_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_sweep([chain()], settings(tmp_path))
    monkeypatch.setattr(sweep_module, "train", never)
    calls = []
    again = run_sweep([chain()], settings(tmp_path), lambda *call: calls.append(call[:2]))
    assert again == done
    assert calls == [(3, 3)]
    record = done[chain()[0].key]
    assert record["environment"]["threads"] == 1
    assert record["environment"]["versions"]["torch"] == str(torch.__version__)
    assert [point["epoch"] for point in record["result"]["curve"]] == [3, 6]


@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_a_damaged_record_is_named_and_made_again(tmp_path: Path, damage: str) -> None:
    cells = chain()
    done = run_sweep([cells], settings(tmp_path))
    path = tmp_path / "cells" / f"{cells[1].key[:16]}.json"
    text = path.read_text()
    wrong = {
        "cut": text[:100],
        "changed": text.replace('"epochs": 6', '"epochs": 7'),
        "other": (tmp_path / "cells" / f"{cells[2].key[:16]}.json").read_text(),
    }
    path.write_text(wrong[damage])
    notes: list[str] = []
    again = run_sweep([cells], settings(tmp_path), note=notes.append)
    assert essence(again) == essence(done)  # its start was gone, and was trained once more
    assert len(notes) == 1
    assert str(path) in notes[0]


def test_a_damaged_checkpoint_is_named_and_not_trusted(tmp_path: Path) -> None:
    cells = chain()
    whole = run_sweep([cells], settings(tmp_path / "whole"))
    folder = tmp_path / "scratch" / cells[0].key
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"nonsense")
    notes: list[str] = []
    assert essence(run_sweep([cells], settings(tmp_path), note=notes.append)) == essence(whole)
    assert len(notes) == 1
    assert str(folder) in notes[0]


def test_a_diverged_run_is_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(replace(CONFIG, learning_rate=1e30, clip_norm=math.inf))
    after = Cell(CONFIG, start=cell)
    records = run_sweep([(cell, after)], settings(tmp_path))
    assert "diverged" in records[cell.key]["error"]
    assert records[cell.key]["result"] is None
    assert "diverged" in records[after.key]["error"]
    monkeypatch.setattr(sweep_module, "train", never)
    assert run_sweep([(cell, after)], settings(tmp_path)) == records


def test_a_record_is_of_its_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(CONFIG)
    run_sweep([(cell,)], settings(tmp_path))
    notes: list[str] = []
    assert load_cell(tmp_path / "cells", cell, note=notes.append) is not None
    monkeypatch.setattr(sweep_module, "digest", lambda *_: "another")
    assert load_cell(tmp_path / "cells", cell, note=notes.append) is None
    assert "other training images" in notes[0]


def test_the_key_is_of_everything_that_decides_a_run() -> None:
    other: dict[str, Any] = {
        "dataset": "fashion-mnist",
        "class_counts": (20,) * 10,
        "penalties": Penalties(0.05, 0.0005, math.inf),
        "epochs": 7,
        "model": ModelSpec("mlp", widths=(16,), feature_relu=False),
        "batch_size": 64,
        "learning_rate": 0.05,
        "learning_rate_steps": ((0.0, 1.0),),
        "momentum": 0.8,
        "weight_decay": 0.01,
        "warm_fraction": 0.0,
        "warm_factor": 0.2,
        "clip_norm": 2.0,
        "stop_at": 0.1,
        "eval_every": 2,
        "seed": 1,
        "device": "auto",
        "devices": 2,
        "precision": "bf16",
        "compile": True,
        "cuda_graphs": True,
    }
    cells = [Cell(CONFIG), Cell(CONFIG, start=Cell(CONFIG)), Cell(CONFIG, detail="curve")]
    cells += [Cell(replace(CONFIG, **{name: value})) for name, value in other.items()]
    cells.append(Cell(CONFIG, start=Cell(replace(CONFIG, seed=1))))
    assert len({cell.key for cell in cells}) == len(cells)
    known = {field.name for field in fields(TrainConfig)}
    assert other.keys() <= known
    assert Cell(TrainConfig.from_json(CONFIG.to_json())).key == cells[0].key


def test_wrong_chains_and_settings_are_refused(tmp_path: Path) -> None:
    first, second, _ = chain()
    with pytest.raises(ValueError, match="`chains` must hold the start"):
        run_sweep([(second, first)], settings(tmp_path))
    with pytest.raises(ValueError, match="each cell once"):
        run_sweep([(first,), (first, second)], settings(tmp_path))
    with pytest.raises(ValueError, match="`jobs`"):
        SweepSettings(tmp_path, tmp_path, jobs=0)
    with pytest.raises(ValueError, match="`detail`"):
        Cell(CONFIG, detail="all")  # pyright: ignore[reportArgumentType]


def test_the_time_left_is_that_of_the_pace_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of 6, 12 and 24 epochs of 125 images; the first is there, the second is gone on with at its half."""
    now = iter([100.0, 110.0, 130.0, 160.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    calls: list[tuple[int, int, float]] = []
    there, resumed, other = (Cell(replace(CONFIG, epochs=epochs)) for epochs in (6, 12, 24))
    images = {cell.key: 125 * cell.config.epochs for cell in (there, resumed, other)}
    left = TimeLeft(images, [there.key], lambda *call: calls.append(call))
    left.tick(resumed.key, 7, 12)  # one epoch in 10 seconds; 5 + 24 are left
    left.tick(resumed.key, 8, 12)  # two in 30; 4 + 24 are left
    left.ended([resumed.key])  # six in 60; 24 are left
    assert [call[:2] for call in calls] == [(1, 3), (1, 3), (1, 3), (2, 3)]
    assert math.isnan(calls[0][2])
    assert [call[2] for call in calls[1:]] == pytest.approx([10 * 29, 15 * 28, 10 * 24])


def test_a_run_that_broke_off_is_a_record_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [Cell(replace(CONFIG, seed=seed)) for seed in range(2)]

    def starved(config: TrainConfig, *arguments: Any, **settings: Any) -> Any:
        if config.seed == 0:
            raise torch.OutOfMemoryError("no memory\nleft")
        return train(config, *arguments, **settings)

    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "train", starved)
        records = run_sweep([(cell,) for cell in cells], settings(tmp_path), note=notes.append)
    assert [records[cell.key]["error"] for cell in cells] == ["broke off: OutOfMemoryError, no memory left", ""]
    assert records[cells[0].key]["result"] is None
    assert json.loads((tmp_path / "cells" / f"{cells[0].key[:16]}.json").read_text())["config"]["seed"] == 0
    again = run_sweep([(cell,) for cell in cells], settings(tmp_path), note=notes.append)
    assert [again[cell.key]["error"] for cell in cells] == ["", ""]
    assert again[cells[1].key] == records[cells[1].key]
    assert [("broke off" in note, "trained again" in note) for note in notes] == [(True, False), (True, True)]


def test_what_the_data_cannot_give_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class 3"):
        run_sweep([(Cell(CONFIG),), (Cell(replace(CONFIG, class_counts=(20,) * 3 + (9000,) * 7)),)], settings(tmp_path))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_make_the_same_records(tmp_path: Path) -> None:
    chains = [chain(6, seed) for seed in range(3)]
    alone = run_sweep(chains, settings(tmp_path / "alone"))
    together = run_sweep(chains, replace(settings(tmp_path / "together"), jobs=2))
    assert essence(together) == essence(alone)


def test_records_are_plain_json(tmp_path: Path) -> None:
    run_sweep([chain()], settings(tmp_path))
    for path in (tmp_path / "cells").iterdir():
        text = path.read_text()
        assert json.loads(text)["error"] == ""
        assert str(tmp_path) not in text
        assert len(text) < 10_000
