"""The explorer without a browser: one file, and JavaScript that says what the package says.

Node runs the page's own modules; where it is missing those tests are skipped, and the browser's tests say the same.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import collapsar as cs
from collapsar.app.theory_records import near_merge
from collapsar.cli.app import app
from collapsar.report import explorer
from collapsar.theory import least_oversampling
from make_explorer_cases import DATA, answer, problem_of

HERE = Path(__file__).parent
SOURCES = Path(explorer.__file__).parent / "explorer"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed: the page's JavaScript is not run here")
CASES = json.loads(DATA.read_text())


def node(*arguments):
    done = subprocess.run([str(NODE), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the page


def test_the_page_is_one_file_that_may_connect_to_nothing():
    page = explorer.explorer_page()
    assert len(page) < 200_000
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "{{" not in page
    script = re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    assert script is not None
    assert not re.search(r"^(import|export)\b", script[1], re.MULTILINE)
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert policy in " ".join(page.split())


@needs_node
def test_the_inlined_modules_are_one_valid_module(tmp_path):
    script = re.search(r'<script type="module">(.*?)</script>', explorer.explorer_page(), re.DOTALL)
    file = tmp_path / "page.mjs"
    file.write_text(script[1] if script else "")
    node("--check", file)  # two modules that declare one name are an error here


def test_the_committed_page_is_what_the_sources_say():
    committed = HERE.parent / "docs" / "explorer.html"
    assert committed.read_text() == explorer.explorer_page(), (
        "run `collapsar explore --out docs/explorer.html --no-open`"
    )


def test_the_site_s_page_links_to_it_where_the_site_has_it():
    docs = HERE.parent / "docs"  # explorer.md becomes explorer.html, so the explorer itself must lie elsewhere
    assert re.search(r'html_static_path = .*"explorer.html"', (docs / "conf.py").read_text())
    assert 'href="_static/explorer.html"' in (docs / "explorer.md").read_text()


def test_a_module_that_cannot_be_inlined_is_named(monkeypatch):
    monkeypatch.setattr(explorer, "MODULES", ("model", "linalg"))
    with pytest.raises(ValueError, match=r"`model\.mjs` cannot be inlined.*linalg"):
        explorer.explorer_page()


def test_the_command_writes_and_opens_it(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    page = tmp_path / "page.html"
    out = CliRunner().invoke(app, ["explore", "--out", str(page)])
    assert out.exit_code == 0, out.output
    assert page.read_text() == explorer.explorer_page()
    assert opened == [page.as_uri()]
    out = CliRunner().invoke(app, ["explore", "--output", str(page), "--no-open", "--json"])
    assert json.loads(out.stdout) == {"page": str(page), "bytes": page.stat().st_size}
    assert len(opened) == 1


# --- the solver against the package


@pytest.mark.parametrize("i", range(7, len(CASES), 40))
def test_the_stored_answers_are_the_package_s(i):
    stored, now = CASES[i]["answer"], answer(CASES[i]["problem"])
    assert stored["states"] == now["states"]
    for name in ("own", "other", "b", "primal", "complete"):
        assert np.allclose(stored[name], now[name], rtol=0, atol=1e-7), name


@pytest.fixture(scope="module")
def answers():
    return json.loads(node(HERE / "explorer_cases.mjs", SOURCES, DATA))


@needs_node
def test_every_certified_optimum_is_the_package_s(answers):
    closed = [(case["answer"], mine) for case, mine in zip(CASES, answers, strict=True) if mine["closed"]]
    assert len(closed) > 280
    for theirs, mine in closed:
        assert mine["states"] == theirs["states"]
        assert mine["primal"] == pytest.approx(theirs["primal"], abs=2e-9)
        for name in ("own", "other", "b"):
            assert np.abs(np.subtract(mine[name], theirs[name])).max() <= 1e-6, name


@needs_node
def test_behind_a_batchnorm_the_optimum_is_the_package_s_at_the_decay_shown(answers):
    tried = 0
    for case, mine in zip(CASES[::9], answers[::9], strict=True):
        plain = problem_of(case["problem"])
        if not mine["closed"] or mine["batchDecay"] is None or not np.array_equal(plain.mass, plain.class_counts):
            continue
        length, rest = 3.0, {"lambda_b": plain.lambda_b, "loss": plain.loss, "features": plain.features}
        decay = mine["batchDecay"] * length**2
        p = cs.Problem.from_normalized(plain.class_counts, lambda_w=decay, norm=length, over="batch", **rest)
        s = cs.solve(p, throw=False)
        first = np.cumsum([0] + [g["k"] for g in case["problem"]["groups"]])[:-1]
        np.testing.assert_allclose(np.diag(s.Z)[first], mine["own"], atol=2e-5 * max(1.0, *map(abs, mine["own"])))
        tried += 1
    assert tried > 15


@needs_node
def test_where_the_certificate_stays_open_the_bounds_still_hold(answers):
    still_open = [(case, mine) for case, mine in zip(CASES, answers, strict=True) if not mine["closed"]]
    assert still_open
    for case, mine in still_open:
        assert case["problem"]["features"] == "nonnegative"
        optimum, slack = case["answer"]["primal"], 1e-9
        assert mine["dual"] <= optimum + slack
        assert optimum <= mine["primal"] + slack


@needs_node
def test_thresholds_are_the_package_s(answers):
    for case, mine in zip(CASES, answers, strict=True):
        theirs = case["answer"]
        assert mine["complete"] == pytest.approx(theirs["complete"], rel=1e-8)
        assert mine["exact"] == theirs["exact"]
        for name in ("merge", "vanish"):
            assert mine[name] == [None if x is None else pytest.approx(x, rel=1e-8) for x in theirs[name]]


@needs_node
def test_angles_are_those_of_the_gram_matrices(answers):
    met = dict.fromkeys("WHZ", 0)
    for case, mine in list(zip(CASES, answers, strict=True))[::4]:
        if not mine["closed"]:
            continue
        s, groups = cs.solve(problem_of(case["problem"])), case["problem"]["groups"]
        first = np.cumsum([0] + [g["k"] for g in groups])
        for name, gram in (("W", s.classifier_gram()), ("H", s.feature_gram()), ("Z", s.Z.T @ s.Z)):
            norm = np.sqrt(np.maximum(np.diag(gram), 0.0))
            for g, h in np.ndindex(len(groups), len(groups)):
                k, l = first[g], first[h + 1] - 1
                cosine = mine["cosines"][name][g][h]
                if min(norm[k], norm[l]) <= 1e-3 * norm.max() or k == l:  # roots: a tolerance of 1e-10 leaves 1e-5
                    continue
                assert cosine == pytest.approx(gram[k, l] / (norm[k] * norm[l]), abs=1e-5)
                met[name] += 1
    assert min(met.values()) > 20, met


@needs_node
def test_positions_are_one_linear_map_of_the_gram_matrix_s_root(answers):
    met = 0
    for case, mine in list(zip(CASES, answers, strict=True))[::9]:
        groups = case["problem"]["groups"]
        if not mine["closed"] or len(groups) == 1:
            continue
        s, K = cs.solve(problem_of(case["problem"])), sum(g["k"] for g in groups)
        labels = np.repeat(np.arange(len(groups)), [g["k"] for g in groups])
        within = np.concatenate([np.arange(g["k"]) for g in groups])
        sizes = np.array([g["k"] for g in groups])[labels]
        angle = 2 * np.pi * (within + labels / 2) / sizes
        ring = np.array([np.cos(angle), np.sin(angle), 0 * angle]) * (sizes > 1)
        corner = np.array([[0, 0, 1], [0, 0, -1]] if len(groups) == 2 else [[0, 0, 1], [-0.9, 0, -0.6], [0.9, 0, -0.6]])
        height = corner[labels].T - corner[labels].mean(axis=0)[:, None]
        for name, gram in (("W", s.classifier_gram()), ("H", s.feature_gram())):
            value, vector = np.linalg.eigh(gram)
            root = (vector * np.sqrt(np.maximum(value, 0.0))) @ vector.T
            expected = (ring + height) @ root
            assert np.allclose(np.array(mine["positions"][name]).T, expected, atol=2e-4 * np.abs(root).max() * K**0.5)
            met += 1
    assert met > 10, met


# --- links and Python

STATES = [
    {},
    {"k": [3, 7, 0], "n": [450, 100, 1], "z": 0.005, "f": "nonnegative", "v": "W", "x": "b"},
    {"k": [4, 2, 4], "n": [5000, 1000, 3000], "z": 0.0012, "b": "inf", "x": "s"},
    {"z": 0.0045, "s": 3.5, "held": True, "e": 0.1, "f": "nonnegative"},
    {"z": 0.0045, "s": 2, "w": 1.3, "t": 0.7, "d": 1.2, "l": 1.4, "c": 0.8},
    {"n": [500.5, 100.25, 1], "z": 0.0036, "w": 1.1},
    {"k": [1, 1, 0], "n": [90, 10, 1], "z": 0.02},
    {"b": 0, "z": 0.0037},
    # a class alone in its size whose features raise another's score as much
    {"k": [6, 5, 1], "n": [4310, 3333, 44], "z": 0.001118, "b": 0.0131},
    {"k": [2, 1, 1], "n": [4226, 5, 572], "z": 0.001166, "b": 0},
]


@pytest.fixture(scope="module")
def states():
    return json.loads(node(HERE / "explorer_state.mjs", SOURCES, json.dumps(STATES)))


@needs_node
@pytest.mark.parametrize("i", range(len(STATES)))
def test_links_restore_the_state_and_the_python_text_is_the_same_problem(states, i, capsys):
    mine = states["answers"][i]
    groups = 3 if mine["state"]["k"][2] else 2
    for state in (mine["state"], mine["again"]):  # a group that is switched off is not in the link
        state["k"], state["n"] = state["k"][:groups], state["n"][:groups]
    assert mine["again"] == mine["state"]
    space: dict = {}
    exec(mine["python"], space)  # what the page's button copies
    problem, solution = space["problem"], space["solution"]
    assert mine["closed"]
    first = np.unique(np.stack([problem.class_counts, problem.mass]), axis=1, return_index=True)[1]
    assert sorted(mine["own"]) == pytest.approx(sorted(np.diag(solution.Z)[first]), abs=1e-6)
    t = space["cs"].thresholds(problem)
    assert mine["thresholds"]["complete"] == pytest.approx(t.complete, rel=1e-8)
    first = np.cumsum([0, *(k for k in mine["state"]["k"] if k)])[:-1]
    assert mine["states"] == [solution.class_states[k] for k in first]
    near = near_merge(problem, t)[first]
    assert mine["thresholds"]["gradual"] == [None if np.isnan(x) else pytest.approx(x, rel=1e-8) for x in near]
    assert "Thresholds(" in capsys.readouterr().out


@needs_node
def test_a_cure_is_the_least_change_that_brings_the_classes_back(states):
    found = [(m, name, x) for m in states["answers"] for name, x in m["cures"].items() if x is not None]
    assert len(found) >= 10
    near = [{**m["state"], name: x * factor} for m, name, x in found for factor in (0.999, 1.001)]
    around = json.loads(node(HERE / "explorer_state.mjs", SOURCES, json.dumps(near), "--classes"))["answers"]
    for (mine, _, _), below, above in zip(found, around[::2], around[1::2], strict=True):
        assert below["states"][mine["small"]] != "separated"
        assert above["states"][mine["small"]] == "separated"
    closed_form = states["answers"][0]["cures"]["s"]
    assert closed_form == pytest.approx(least_oversampling(5, 5, 500, 100, 0.0037), rel=1e-5)


@needs_node
def test_every_preset_and_every_step_of_the_tour_has_a_proved_optimum(states):
    assert len(states["panels"]) > 40
    assert [i for i, closed in enumerate(states["panels"]) if not closed] == [states["panels"].index(False)]  # the tail
