"""The page of an optimum, of penalised and of normalised features: its record by two roads, its words, its pictures."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import collapsar as cs
from collapsar.app.report_record import report_record
from collapsar.app.solution_report import solution_report
from collapsar.cli import main
from collapsar.report import report_page
from collapsar.report.advice_page import advice_page
from collapsar.report.diagnosis import class_thresholds
from collapsar.report.style import styled
from test_report import EVIL, Page

PROBLEMS = {
    "per sample": cs.Problem.from_normalized("100x5,20x5", lambda_w=12.0, norm=11.3, lambda_b=0.0),
    "per batch": cs.Problem.from_normalized("100x5,20x5", lambda_w=3.0, norm=11.3, over="batch", lambda_b=0.0),
    "by rows": cs.Problem.from_normalized([30] * 3, lambda_w=[1.0, 1.0, 2.0], norm=3.0, lambda_b=0.0),
    "penalised": cs.Problem("500x5,100x5", 0.0037, 0.02),
    "distinct": cs.Problem.from_normalized([500, 100, 20, 5], lambda_w=12.0, norm=11.3, lambda_b=0.0),
    "nonnegative": cs.Problem("exp:5000:50:60", 0.0005, 0.02, features="nonnegative"),
    "nothing left": cs.Problem("50x3,10x3", 1.0, 0.02),
}


@pytest.fixture(scope="module")
def solutions():
    return {name: cs.solve(problem, throw=False) for name, problem in PROBLEMS.items()}


@pytest.fixture(scope="module")
def records(solutions):
    return {name: solution_report(s, name) for name, s in solutions.items()}


@pytest.mark.parametrize("name", ["per sample", "per batch", "by rows", "penalised", "distinct", "nonnegative"])
def test_lengths_and_cosines_are_those_of_the_factors(solutions, records, name):
    s, record = solutions[name], records[name]
    W, H, _ = s.factors(2 * s.problem.num_classes)
    for side, vectors in (("heads", W), ("features", H)):
        lengths = np.linalg.norm(vectors, axis=0)
        np.testing.assert_allclose(record[side]["lengths"], lengths / lengths.max(), atol=1e-6)
        cosines = np.array(record[side]["cosines"], dtype=float)
        seen = np.isfinite(cosines)
        assert (seen == (np.outer(lengths, lengths) > 1e-8 * lengths.max() ** 2)).all()
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(cosines[seen], ((vectors / lengths).T @ (vectors / lengths))[seen], atol=1e-6)
        places = np.array(record["geometry"][side])
        np.testing.assert_allclose(places @ places.T / lengths.max() ** 2, vectors.T @ vectors / lengths.max() ** 2
                                   * (places**2).sum() / (vectors**2).sum(), atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "transition"), [("per sample", "merge"), ("per batch", "vanish"), ("penalised", "merge")]
)
def test_the_path_goes_through_the_closed_form_threshold(records, name, transition):
    path = records[name]["path"]
    level = getattr(cs.thresholds(PROBLEMS[name]), transition)[9]
    small = path["clusters"].index([5, 6, 7, 8, 9])
    values = path["apart" if transition == "merge" else "length"][small]
    for price, value in zip(path["prices"], values, strict=True):
        if value is not None and abs(price / level - 1) > 0.02:
            assert (value < 1e-4) == (price > level), price


def test_paths_are_left_out_where_they_would_take_minutes_or_have_no_axis(records):
    assert {name for name, record in records.items() if record["path"] is None} == {"by rows", "nonnegative"}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_page_says_what_the_solution_says(records, solutions, name, request):
    if name in ("per batch", "penalised", "distinct"):  # pictures of the others' kinds
        request.getfixturevalue("undrawn")
    text = report_page({"kind": "report", "runs": [], "solutions": [records[name]]})
    page, s = Page(text), solutions[name]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    words = page.by_tag["body"][0]
    for state in set(s.class_states):
        assert state in words
    assert f"{s.problem.num_classes} classes" in words
    assert f"rank {s.rank}" in words
    stored = json.loads(page.scripts[0])
    assert stored["solutions"] == [records[name]]
    assert ("λ$_W$" in text or "head decay" in text) == (s.problem.normalization is not None)


@pytest.mark.usefixtures("undrawn")
def test_a_class_alone_in_its_size_is_said_to_change_gradually(records):
    text = Page(report_page({"kind": "report", "runs": [], "solutions": [records["distinct"]]})).by_tag["body"][0]
    assert "merged" in records["distinct"]["class_states"]
    assert "has no sharp threshold here" in text
    assert "No value of" not in text


def test_approximate_thresholds_are_called_so_and_a_separated_class_is_not_said_to_have_collapsed():
    s = cs.solve(cs.Problem("exp:5000:50:10", 0.0036, 0.02))
    assert s.class_states[2] == "separated"  # past its approximate threshold
    page = Page(report_page({"kind": "report", "runs": [], "solutions": [solution_report(s)]}))
    words = " ".join(page.by_tag["body"][0].split())
    assert "past its threshold. The threshold of a class that shares its size with no other is approximate" in words
    assert f"≈ {np.sqrt(1797) / s.problem.num_samples:.3g}" in [cell.strip() for cell in page.by_tag["td"]]


@pytest.mark.usefixtures("undrawn")
def test_saved_optima_are_read_beside_networks_and_from_a_report(tmp_path, monkeypatch, capsys):
    solution = cs.solve(PROBLEMS["per sample"])
    names = [*"abcdefghi", EVIL]
    solution.save(tmp_path / "optimum.npz", names)
    record: Any = report_record([tmp_path / "optimum.npz", tmp_path / "optimum.npz"])
    assert [part["name"] for part in record["solutions"]] == ["optimum", "optimum (2)"]
    assert all(part["class_names"] == names for part in record["solutions"])
    with pytest.raises(ValueError, match=r"`class_names` must hold one name for each of 10 classes, got 9"):
        solution.save(tmp_path / "optimum.npz", names[:9])
    (tmp_path / "report.json").write_text(json.dumps(record))
    assert report_record([tmp_path / "report.json"]).get("solutions") == record["solutions"]
    out = tmp_path / "page.html"
    monkeypatch.setattr(
        "sys.argv", ["collapsar", "report", str(tmp_path / "optimum.npz"), "--out", str(out), "--no-open"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "At the optimum of 10 classes: 5 separated, 5 merged." in capsys.readouterr().out
    assert "5 separated, 5 merged" in out.read_text()


def test_where_a_class_that_shares_a_direction_vanishes_is_said_to_be_a_bound():
    """Nonnegative features: ``vanish_bound`` is where it is zero for certain."""
    problem = cs.Problem("589x3,74x3,37,20,12", 0.0037, 0.00325, features="nonnegative")
    page = Page(report_page({"kind": "report", "runs": [], "solutions": [solution_report(cs.solve(problem))]}))
    t, cells = cs.thresholds(problem), [cell.strip() for cell in page.by_tag["td"]]
    late = f"≤ {t.vanish_bound[8]:.3g}"
    assert cells.count(late) == 4
    assert f"{t.vanish[0]:.3g}" in cells  # the largest, exact
    words = " ".join(page.by_tag["body"][0].split())
    assert words.count(f"from {late}") == 4
    assert f"from {t.vanish[0]:.3g}" in words
    assert "From one marked ≤ on they are zero for certain." in words


def test_many_sizes_are_drawn_the_largest_first_with_a_page_for_more_classes_than_are_drawn():
    names = [f"c{k}" for k in range(12)]
    record: Any = solution_report(
        cs.solve(cs.Problem("40,90,10,80,20,70,30,60,50,100,110,120", 0.02, 0.02)), "few", names
    )
    assert [group["samples"] for group in record["groups"]] == sorted(record["class_counts"], reverse=True)
    with styled():
        ax = Figure().subplots()
        record["separation"] = {"states": record["class_states"]}
        class_thresholds(record, ax)
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert ticks == [f"c{k}" for k in np.argsort(record["class_counts"])[::-1]]
    drawn = sorted(
        point for line in ax.lines if line.get_marker() != "None" for point in np.asarray(line.get_xydata()).tolist()
    )
    assert [height for _, height in drawn] == pytest.approx(sorted(record["prediction"]["edge"], reverse=True))
    s = cs.solve(cs.Problem("exp:5000:5:450", 1e-4, 0.02))
    words = Page(report_page({"kind": "report", "runs": [], "solutions": [solution_report(s)]})).by_tag["body"][0]
    assert "At the optimum of 450 classes" in words
    assert "× 10⁻⁶" in words  # the first threshold, in its sentence
    assert "e-06" not in words.split("Download")[0]


def test_names_of_classes_stay_text(solutions):
    names = [EVIL, "b {row}", *"cdefghij"]
    record = solution_report(solutions["per sample"], EVIL, names)
    text = report_page({"kind": "report", "runs": [], "solutions": [record]})
    assert EVIL not in text
    assert EVIL in Page(text).by_tag["body"][0]
    assert "cosine of “b {row}” and “c”" in Page(text).by_tag["body"][0]


@pytest.mark.usefixtures("undrawn")
def test_solve_writes_the_page_with_the_names_of_the_labels(tmp_path, monkeypatch, capsys):
    (tmp_path / "labels.txt").write_text("\n".join(["cat"] * 40 + ["dog"] * 9 + ["axolotl"] * 3))
    page = tmp_path / "optimum.html"
    words = f"solve {tmp_path / 'labels.txt'} --lambda-b 0 --norm 5 --lambda-w 2 --html {page} --json"
    monkeypatch.setattr("sys.argv", ["collapsar", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    record = json.loads(capsys.readouterr().out)
    assert record["class_names"] == ["axolotl", "cat", "dog"]
    (tmp_path / "optimum.json").write_text(json.dumps(record))
    (read,) = report_record([tmp_path / "optimum.json"]).get("solutions", [])
    (drawn,) = json.loads(Page(page.read_text()).scripts[0])["solutions"]
    assert read == drawn  # the page of what was printed is the page that was written
    assert set(record["class_states"]) <= set(page.read_text().replace("<", " ").replace(">", " ").split())
    assert "cosine of “axolotl” and “cat”" in page.read_text()


@pytest.mark.usefixtures("undrawn")
def test_advice_for_normalised_features_is_in_their_own_penalty():
    record = cs.advise(PROBLEMS["per sample"]).to_dict() | {"cautions": [], "from_diagnosis": False}
    shown = advice_page(record).split("<body>")[1].split('<script type="application/json"')[0]
    words = " ".join(re.sub(r"<(/?sub|[^>]* data-label=[^>]*)>", "", shown).split())
    assert "lambda_w" not in words  # λ with an index
    assert "norm 11.3 per sample" in words
    assert "threshold λW" in words
    assert "λZ" not in words
    assert "× 10⁻¹" not in words  # a shift of the calibration that is rounding
