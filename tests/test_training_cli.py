"""``collapsar train`` on anybody's data, with the options of the loop, alone and in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from typer.testing import CliRunner

from collapsar.app.demo import COLLAPSE_NUMBERS
from collapsar.cli.app import app
from collapsar.cli.training import Model, Precision
from collapsar.training import load_run
from collapsar.training.checkpoint import load_records
from collapsar.training.config import PRECISIONS
from collapsar.training.models import BODIES


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Six classes of noise around their own picture."""
    generator = np.random.default_rng(0)
    pictures, labels = generator.integers(0, 200, (6, 8, 8)), np.arange(240) % 6
    images = (pictures[labels] + generator.integers(0, 56, (240, 8, 8))).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    return str(tmp_path / "mine.npz")


def _arguments(data: str, out: Path, *more: str) -> list[str]:
    settings = [
        "--lambda-z",
        "0.02",
        "--lambda-b",
        "0.02",
        "--epochs",
        "12",
        "--batch-size",
        "16",
        "--seed",
        "3",
        "--json",
    ]
    return ["train", "--data", data, "--counts", "20x3,5x3", "--out", str(out), *settings, *more]


def _train(data: str, out: Path, *more: str) -> dict[str, Any]:
    ended = CliRunner().invoke(app, _arguments(data, out, *more))
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return json.loads(ended.stdout)


def test_train_on_an_npz_file_of_ones_own(data: str, tmp_path: Path) -> None:
    record = _train(data, tmp_path / "run", "--precision", "bf16", "--accelerator", "cpu")
    header, *evaluations = load_records(tmp_path / "run")
    config = header["config"]
    assert (config["dataset"], config["precision"], config["device"]) == (data, "bf16", "cpu")
    assert config["class_counts"] == [20, 20, 20, 5, 5, 5]
    last = evaluations[-1]
    assert record["accuracy"]["test_balanced"] == pytest.approx(last["test_balanced_accuracy"])
    assert {"lambda_w", "lambda_h", "lambda_z", "effective_lambda_h", "effective_lambda_z"} <= last.keys()
    assert last["lambda_z"] == pytest.approx(0.02)
    assert all({*COLLAPSE_NUMBERS} <= r.keys() for r in (*evaluations, *record["history"]))
    assert last["nc1_uniform"] == pytest.approx(record["measured"]["nc1_uniform"])


def test_counts_come_from_a_column_of_a_table_as_for_every_command(data: str, tmp_path: Path) -> None:
    table = tmp_path / "train.csv"
    rows = [f"{k}.png,{split},{k}" for k in range(6) for split in range(3)]
    table.write_text("\n".join(("file,split,label", *rows, "x.png,0,255")))
    more = ("--counts", str(table), "--column", "label", "--ignore-index", "255")
    _train(data, tmp_path / "run", *more, "--accelerator", "cpu")
    header, *_ = load_records(tmp_path / "run")
    assert header["config"]["class_counts"] == [3] * 6


def test_the_papers_networks_have_names_here(data: str, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, _arguments(data, tmp_path / "run", "--model", "resnet19"))
    assert refused.exit_code == 2
    assert set(get_args(Model)) == set(BODIES)
    assert set(get_args(Precision)) == set(PRECISIONS)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # each start of a process imports torch
def test_two_processes_give_the_record_of_one(data: str, tmp_path: Path) -> None:
    one = _train(data, tmp_path / "one", "--accelerator", "cpu")
    command = Path(sys.executable).with_name("collapsar")
    if not command.exists():
        pytest.skip("the command is not installed")
    ended = subprocess.run(
        [str(command), *_arguments(data, tmp_path / "two", "--accelerator", "cpu", "--devices", "2")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    two = json.loads(ended.stdout)
    assert load_run(tmp_path / "two").config.devices == 2
    assert np.allclose(two["measured"]["Z"], one["measured"]["Z"], rtol=1e-3, atol=1e-4)
    assert two["measured"]["states"] == one["measured"]["states"]


def test_the_help_of_train_shows_counts_not_pictures() -> None:
    words = CliRunner().invoke(app, ["train", "--help"]).output
    assert "exp:500:10:10" in words
    assert not any(ord(letter) > 0xFFFF for letter in words)  # ":100:" would be drawn as an emoji
