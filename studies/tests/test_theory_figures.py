"""The records behind the pictures against numbers in print, and the command that makes them."""

from __future__ import annotations

import doctest
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from collapsar.cli import main
from collapsar.theory import two_cluster
from collapsar_studies import theory_figures as tf
from collapsar_studies.theory_models import landscape_record, models_record


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["collapsar", "figures", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(str(end.value.code))


PRINTED = {  # figure: signed minority, complete; nonnegative minority, complete
    5: ("0.00333", "0.00745", "0.00329", "0.00675"),
    6: ("0.00455", "0.01016", "0.00447", "0.00871"),
    7: ("300", "1393", "290.5", "1088"),
    8: ("433", "3964", "419", "2545"),
}


def test_the_table_of_figures_5_to_8() -> None:
    """To the digits in print; and which values lie in the brackets read from the figures."""
    rows = {row["figure"]: row for row in tf.table_record()["rows"]}
    for figure, printed in PRINTED.items():
        found = [rows[figure][model][event] for model in tf.MODELS for event in ("minority", "complete")]
        for value, digits in zip(found, printed, strict=True):
            assert value == pytest.approx(float(digits), abs=0.51 * 10.0 ** -len(digits.partition(".")[2]))
    inside = {model: [rows[f]["inside"][model] for f in PRINTED] for model in tf.MODELS}
    # the nonnegative model misses one bracket of eight, Fig. 8's complete collapse: 2545 against (2200, 2500]
    assert [cell["minority"] for cell in inside["nonnegative"]] == [True] * 4
    assert [cell["complete"] for cell in inside["nonnegative"]] == [True, True, True, False]
    # the signed model is late at every complete collapse and, by a percent, at the minority's in Figs. 5 and 6
    assert [cell["complete"] for cell in inside["signed"]] == [False] * 4
    assert [cell["minority"] for cell in inside["signed"]] == [False, False, True, True]


def test_the_models_side_by_side() -> None:
    record = models_record()
    rows = {(row["group"], row["words"]): row for row in record["rows"]}
    assert record["layer_peeled_ratio"]["ratio"] == pytest.approx(12.19, abs=0.005)
    for row in rows.values():
        smaller = [row[kind] for kind in ("merge", "vanish") if row[kind] is not None and np.isfinite(row[kind])]
        assert smaller == sorted(smaller)
        assert smaller[-1] < row["complete"]
    # soft thresholding at sqrt(n)/N, the same as cross-entropy's merge thresholds
    square, cross = rows["squared error", "2 factors, no bias"], rows["cross-entropy", "signed features, no bias"]
    assert square["vanish"] == pytest.approx(cross["merge"], rel=1e-12)
    assert square["complete"] == pytest.approx(cross["complete"], rel=1e-12)
    assert rows["squared error", "2 factors, free bias"]["vanish"] == pytest.approx(_between_by_svd(), rel=1e-12)
    for words in ("3 factors, nonnegative, no bias", "4 factors, nonnegative, no bias"):
        assert rows["cross-entropy", words]["spinodal"] > rows["cross-entropy", words]["vanish"]


def _between_by_svd() -> float:
    """The singular value of the full matrix that is neither cluster's contrast."""
    n = np.repeat([500.0, 100.0], 5)
    values = np.linalg.svd((np.eye(10) - (n / n.sum())[:, None]) * np.sqrt(n), compute_uv=False)
    other = [v for v in values if min(abs(v - np.sqrt(500)), abs(v - 10), abs(v)) > 1e-6]
    assert len(other) == 1
    return float(other[0] / n.sum())


def test_descent_rests_at_the_saddles_of_the_theory_and_ends_at_the_optimum() -> None:
    """Zero, only A's contrasts, B merged: ranks 0, k_A - 1, k_A; the way out of the last is B's contrast."""
    record = landscape_record()
    assert [rest["rank"] for rest in record["rests"]] == [0, 4, 5]
    assert record["rests"][0]["spectral_norm"] == pytest.approx(record["complete"], rel=1e-4)
    assert record["rests"][2]["spectral_norm"] == pytest.approx(record["merge"], rel=1e-4)
    assert all(rest["curvature"] < 0 for rest in record["rests"])
    assert record["trace"][-1]["verdict"] == "global"
    assert record["trace"][-1]["excess"] < 1e-11
    # the certified gap never claims more than the truth
    assert all(row["gap"] >= row["excess"] - 1e-12 for row in record["trace"])


def test_large_samples_record() -> None:
    record = tf.large_samples_record()
    assert record["slope"]["A"] == pytest.approx(-0.770, abs=5e-4)
    assert record["slope"]["B"] == pytest.approx(0.917, abs=5e-4)
    last = record["runs"][-1]
    for pair in ("A", "B", "across"):
        scaled = (last["cosines"][pair] - record["etf_cosine"]) * last["log10_N"] * np.log(10)
        assert scaled == pytest.approx(record["slope"][pair], abs=0.06)
        for row in record["runs"]:
            if "solver" in row:
                assert row["solver"][pair] == pytest.approx(
                    row["cosines"][pair], abs=2e-3 if row["log10_N"] < 4 else 1e-4
                )


def test_the_walk_has_the_erratum_in_it() -> None:
    record = tf.walk_record()
    at = int(np.argmin(np.abs(np.array(record["lambda_z"]) - 0.003)))
    assert record["d"][at] < -0.1
    assert record["d"][at] == two_cluster(5, 5, 500, 100, float(record["lambda_z"][at]), 0.02).d


def test_the_command_writes_record_and_picture_twice_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = ("--only", "two_cluster")
    assert run(monkeypatch, "theory", *only, "--only", "landscape", "--out", str(tmp_path / "first")) == 0
    assert run(monkeypatch, "theory", *only, "--out", str(tmp_path / "second")) == 0
    names = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert names == sorted(f"{name}.{end}" for name in ("two_cluster", "landscape") for end in ("json", "png", "svg"))
    for name in names[3:]:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    record = json.loads((tmp_path / "first" / "two_cluster.json").read_text())
    assert record["figure"] == "two_cluster"
    assert (tmp_path / "first" / "landscape.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "first" / "landscape.svg").read_text().startswith("<svg ")


def test_remedies_of_ones_own_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("remedies", "300x3,100,20x2", "--lambda-z", "0.004", "--lambda-b", "0.1")
    assert run(monkeypatch, *arguments, "--out", str(tmp_path / "new"), "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert [group["classes"] for group in record["groups"]] == [3, 1, 2]
    assert record["remedies"][0]["signed"]["thresholds"]["merge"][1] is None
    assert {file.suffix for file in (tmp_path / "new").iterdir()} == {".json", ".png", ".svg"}
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "remedies", "30x2,5x2", "--lambda-z", "0.01") == 0
    assert "LDT" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("theory", "--only", "nothing"),
        ("remedies", "5x2", "--lambda-z", "-1"),
        ("remedies", "5x2"),
        ("remedies", "-5x2", "--lambda-z", "0.1"),
        ("remedies", "5x3", "--lambda-z", "0.1", "--lambda-b", "nan"),
        ("remedies", "20x3,5", "--lambda-z", "0.01", "--out", "/dev/null/folder"),
        ("unknown",),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("collapsar: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


PAGES = sorted((Path(__file__).parents[2] / "docs" / "theory").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_examples_and_links_of_the_pages(page: Path) -> None:
    assert doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert links
    for link in links:
        assert (page.parent / link).exists(), link
