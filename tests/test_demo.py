"""The main job, as a newcomer runs it: ``collapsar demo`` trains, agrees with theory and writes a report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from collapsar.app.demo import COLLAPSE_NUMBERS, POSITIONS
from collapsar.cli.app import app
from collapsar.core import record_types as rt
from collapsar.theory import normalized_two_cluster
from record_fit import misfits
from test_report import Page


@pytest.mark.slow
def test_the_demonstration_agrees_with_theory_and_writes_a_small_report(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert list(misfits(record, rt.DemoRecord)) == []
    assert [run["position"] for run in record["runs"]] == list(POSITIONS)
    for run in record["runs"]:
        assert run["measured"]["states"] == run["predicted"]["states"]
        assert all({*COLLAPSE_NUMBERS} <= r.keys() for r in run["history"])  # None where nothing is left to measure
    below, between, above = record["runs"]
    assert [run["advice"] is None for run in (below, between, above)] == [True, False, False]
    assert all(math.isfinite(r[name]) for r in below["history"] for name in COLLAPSE_NUMBERS)
    assert below["distance"]["Z"] < 0.02
    assert between["distance"]["Z"] < 0.02
    standard = record["standard"]
    for run, (factor, cosine) in zip(standard["runs"], ((0.5, 0.3579), (1.4, 1.0)), strict=True):
        model = normalized_two_cluster((5, 5), (100, 20), factor * standard["merge"], standard["width"] ** 0.5)
        assert run["lambda_w"] == pytest.approx(factor * standard["merge"])
        assert run["measured"]["states"] == run["predicted"]["states"]
        assert run["predicted"]["cosines"]["minority"] == pytest.approx(model.cosines[1], abs=1e-5)
        assert run["measured"]["cosines"]["minority"] == pytest.approx(cosine, abs=0.02)
        assert run["distance"]["Z"] < 0.02
        assert run["distance"]["b"] < 0.02
    report = tmp_path / "report.html"
    assert report.stat().st_size < 2_000_000
    page = Page(report.read_text(encoding="utf-8"))
    assert json.loads(page.scripts[0]) == record
    headings = {heading.strip() for heading in page.by_tag["h2"]}
    assert {"The geometry", "What to change", "Networks with standard training", "Definitions"} <= headings
    assert "5 minority classes" in page.by_tag["h1"][0]
