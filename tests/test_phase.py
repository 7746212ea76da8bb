from __future__ import annotations

import io
import json
import math
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import collapsar as cs
from collapsar.cli import main
from collapsar.core.states import CLASS_STATES as STATES
from collapsar.phase import grid as phase_grid
from collapsar.phase import sweep as sweep_module
from collapsar.phase.curves import zero_lines
from collapsar.phase.diagram import UNKNOWN, ModelPhase, PhaseDiagram, phase_diagram
from collapsar.phase.grid import Axis, PhaseConfig, PhaseSettings
from collapsar.phase.grid_states import phase_chunk
from collapsar.phase.sweep import parts_folder, sweep
from collapsar.report.phase_plot import FILLS, phase_figure
from collapsar.report.style import png_bytes, svg_string
from collapsar.theory.two_cluster import two_cluster

INF = math.inf
X, Y = Axis("lambda_z", 1e-3, 1.5e-2, 24, "log"), Axis("r", 1, 12, 12)


@pytest.fixture(scope="module")
def diagram() -> PhaseDiagram:
    return phase_diagram(X, Y)


# --- zero lines


def test_the_zero_line_of_a_cone_is_a_circle():
    y, x = np.mgrid[:40, :50]
    (line,) = zero_lines(np.hypot(x - 25, y - 20) - 10.3)
    assert line[0] == line[-1]
    assert max(abs(np.hypot(c - 25, r - 20) - 10.3) for c, r in line) < 0.02
    assert len(line) == len(set(line)) + 1


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ([[1, 2], [3, 4]], []),
        ([[-1, 1], [-1, 1]], [{(0.5, 0.0), (0.5, 1.0)}]),
        # saddles: the middle goes with the sign of the mean
        ([[1, -1], [-1, 3]], [{(0.5, 0.0), (1.0, 0.25)}, {(0.25, 1.0), (0.0, 0.5)}]),
        ([[3, -5], [-5, 3]], [{(0.375, 0.0), (0.0, 0.375)}, {(1.0, 0.625), (0.625, 1.0)}]),
        ([[-1, 1, 1], [-1, 1, math.nan]], [{(0.5, 0.0), (0.5, 1.0)}]),
        ([[math.nan, 1], [-1, 1]], []),
    ],
)
def test_zero_lines_of_small_fields(field, expected):
    found = [set(line) for line in zero_lines(field)]
    assert len(found) == len(expected)
    assert all(line in found for line in expected)


def test_squares_can_be_left_out():
    field = np.tile([[-1.0], [1.0]], (1, 5))
    (line,) = zero_lines(field, [[True, True, False, True]])[:1]
    assert {c for c, _ in line} == {0.0, 1.0, 2.0}


def test_a_closed_line_is_cut_where_its_squares_end():
    y, x = np.mgrid[:40, :50]
    (line,) = zero_lines(np.hypot(x - 25, y - 20) - 10.3, np.broadcast_to(np.arange(49) < 25, (39, 49)))
    assert line[0][0] == line[-1][0] == 25.0
    assert {line[0][1] > 20, line[-1][1] > 20} == {True, False}
    assert min(c for c, _ in line) == pytest.approx(25 - 10.3, abs=0.02)


# --- the grid


def test_what_each_axis_moves():
    fixed = PhaseSettings(num_classes=8, k_a=2, n_a=300, n_b=60, oversampling=2)
    axes = {name: Axis(name, 2, 4, 3) for name in ("r", "n_a", "n_b", "oversampling")}

    def counts(x, y):
        config = PhaseConfig(axes[x], axes[y], fixed)
        return *config.counts[0].T, *config.counts[:, 0].T

    r_moves_a = counts("r", "oversampling")
    assert r_moves_a[0].tolist() == [120, 180, 240]
    assert r_moves_a[3].tolist() == [120, 180, 240]  # 60 samples, two, three, four times
    r_beside_b = counts("r", "n_b")
    assert r_beside_b[0].tolist() == [4, 6, 8]
    assert r_beside_b[2].tolist() == [4, 6, 8]
    assert r_beside_b[3].tolist() == [4, 6, 8]
    r_beside_a = counts("r", "n_a")
    assert r_beside_a[0].tolist() == [2, 2, 2]
    assert np.allclose(r_beside_a[1], [2, 4 / 3, 1])
    both = counts("n_a", "n_b")
    assert both[0].tolist() == [2, 3, 4]
    assert both[3].tolist() == [4, 6, 8]


def test_shares_are_whole_numbers_of_classes():
    config = PhaseConfig(Axis("share_a", 0.01, 0.99, 60), Axis("lambda_z", 1e-3, 1e-2, 5), PhaseSettings(6, 3))
    assert config.x_values.tolist() == [k / 6 for k in range(1, 6)]
    assert config.sizes[0].tolist() == [[k, 6 - k] for k in range(1, 6)]


@pytest.mark.parametrize("axes", [(X, Y), (Y, X), (Axis("n_a", 50, 900, 70), Axis("n_b", 50, 900, 9))])
def test_the_parts_cover_every_cell_once(axes, monkeypatch):
    monkeypatch.setattr(phase_grid, "CHUNK_CELLS", 50)
    config = PhaseConfig(*axes)
    number = np.arange(np.prod(config.shape)).reshape(config.shape)
    cells = [config.cut(number, i) for i in range(config.num_chunks)]
    assert config.num_chunks > 3
    assert sorted(np.concatenate([c.ravel() for c in cells])) == list(range(number.size))
    # along lambda_z a part is whole: its thresholds are found once
    if config.has_penalty:
        assert all(c.shape[config.along] == X.num for c in cells)


def test_the_digest_knows_the_whole_configuration():
    base = PhaseConfig(X, Y)
    changed = [
        PhaseConfig(Y, X),
        PhaseConfig(Axis("lambda_z", 1e-3, 1.5e-2, 25, "log"), Y),
        PhaseConfig(Axis("lambda_z", 1e-3, 1.5e-2, 24), Y),
        PhaseConfig(X, Y, tol=1e-8),
        *(
            PhaseConfig(X, Y, replace(PhaseSettings(), **{name: value}))
            for name, value in (
                *(("num_classes", 11), ("k_a", 4), ("n_a", 501.0), ("n_b", 101.0)),
                *(("lambda_z", 0.1), ("lambda_b", INF), ("oversampling", 2.0)),
            )
        ),
    ]
    assert len({config.digest for config in [base, *changed]}) == len(changed) + 1
    for config in changed:
        again = PhaseConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert again.digest == config.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lambda_z", "cannot be read from"),
        ("lambda_z:1:2:3:log:5", "cannot be read from"),
        ("lambda_z:a:2", "cannot be read from"),
        ("lambda_z:1:2:many", "cannot be read from"),
        ("lambda:1:2", "`name` of an axis must be one of lambda_z"),
        ("lambda_z:2:1", "must have finite low < high"),
        ("lambda_z:nan:1", "must have finite low < high"),
        ("lambda_z:1:inf", "must have finite low < high"),
        ("lambda_z:0:1", "must be > 0"),
        ("lambda_b:0:1:9:log", "must be >= 0"),
        ("lambda_b:-1:1", "must be >= 0"),
        ("share_a:0.1:1", "must stay below 1"),
        ("r:1:2:1", "must have 2 to"),
        ("r:1:2:100000", "must have 2 to"),
        ("r:1:2:9:cubic", "`scale` of the axis r"),
    ],
)
def test_bad_axes(text, message):
    with pytest.raises(ValueError, match=message):
        Axis.parse(text)


@pytest.mark.parametrize(
    "settings",
    [
        *({"num_classes": 1}, {"num_classes": 2.5}, {"k_a": 0}, {"k_a": 10}, {"n_a": 0.0}, {"n_b": math.nan}),
        *({"lambda_z": 0.0}, {"lambda_z": INF}, {"lambda_b": -1.0}, {"lambda_b": math.nan}, {"oversampling": 0.0}),
    ],
)
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be"):
        PhaseSettings(**settings)


def test_bad_configurations():
    with pytest.raises(ValueError, match="must be different parameters, got r twice"):
        PhaseConfig(Y, Y)
    with pytest.raises(ValueError, match="`tol` must be"):
        PhaseConfig(X, Y, tol=0.0)
    with pytest.raises(ValueError, match="fewer than two whole numbers of 10 classes"):
        PhaseConfig(Axis("share_a", 0.41, 0.44), Y)


# --- states and curves


def test_states_and_thresholds_agree_in_every_cell(diagram):
    for part in diagram.models:
        agreement = part.agreement
        assert agreement.cells == 2 * X.num * Y.num
        assert agreement.equal == agreement.known >= 0.8 * agreement.cells
        assert (part.gap <= 1e-9).all()
        assert (part.status == "OPTIMAL").all()
    found = {tuple(pair) for part in diagram.models for pair in part.states.reshape(2, -1).T}
    assert found == {(0, 0), (0, 1), (0, 2), (2, 2)}
    assert not (diagram.model("nonnegative").states == STATES.index("merged")).any()


def test_signed_states_are_those_of_the_closed_form_optimum(diagram):
    config, part = diagram.config, diagram.model("signed")
    rng = np.random.default_rng(0)
    for i, j in zip(rng.integers(0, Y.num, 60), rng.integers(0, X.num, 60), strict=True):
        n_a, n_b = config.counts[i, j]
        exact = two_cluster(5, 5, n_a, n_b, config.parameter("lambda_z")[i, j], 0.02)
        a, b = (STATES[code] for code in part.states[:, i, j])
        wanted = {"apart": "separated", "merged": "merged", "vanished": "vanished", "zero": "vanished"}[exact.state]
        assert b == wanted
        assert (a == "vanished") == (exact.state == "zero") == part.zero[i, j]


def test_the_merge_curve_is_corollary_4(diagram):
    # JMLR Cor. 4: merged iff r >= (1/k_A)(1/(lambda_Z sqrt(n_B)) - k_B), solved for lambda_Z
    (merge,) = [c for c in diagram.model("signed").curves if c.transition == "merge"]
    assert merge.cluster == "B"
    assert merge.exact
    for z, r in merge.lines[0]:
        assert z == pytest.approx(1 / (math.sqrt(100) * (5 * r + 5)), rel=0.03)  # interpolated between the rows


def test_curves_pass_through_the_thresholds(diagram):
    for part in diagram.models:
        for curve in part.curves:
            on_rows = [
                (z, r) for line in curve.lines for z, r in line if np.abs(diagram.config.y_values - r).min() == 0
            ]
            assert len(on_rows) >= 5
            for z, r in on_rows[::3]:
                n = [round(100 * r)] * 5 + [100] * 5
                t = cs.thresholds(cs.Problem(n, 1.0, 0.02, features=part.features))
                value = t.complete if curve.transition == "complete" else getattr(t, curve.transition)[-1]
                assert z == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "settings"),
    [
        ("n_a:50:800:5:log", "n_b:50:800:5:log", PhaseSettings(6, 2, lambda_z=0.006)),
        ("share_a:0.1:0.9", "lambda_b:0.01:1:4:log", PhaseSettings(7, 3, 500, 50, lambda_z=0.004)),
        ("oversampling:1:8:5", "r:2:20:5", PhaseSettings(lambda_z=0.003, lambda_b=INF)),
        ("lambda_b:0:0.1:4", "lambda_z:1e-3:1e-2:9", PhaseSettings(n_a=300.0, n_b=30.5)),
    ],
)
def test_any_two_parameters(x, y, settings):
    d = phase_diagram(x, y, settings)
    for part in d.models:
        assert part.states.shape == (2, *d.config.shape)
        assert (part.gap <= 1e-9).all()
        agreement = part.agreement
        assert agreement.equal == agreement.known > 0.3 * agreement.cells
        assert any(curve.lines for curve in part.curves)
    # a cell, by the general solver, with the counts written out
    i, j = d.config.shape[0] // 2, d.config.shape[1] // 2
    k, (n_a, n_b) = d.config.sizes[i, j].astype(int), d.config.counts[i, j]
    counts = np.array([n_a] * k[0] + [n_b] * k[1])
    problem = cs.Problem(
        [1] * counts.size,
        d.config.parameter("lambda_z")[i, j],
        d.config.parameter("lambda_b")[i, j],
        cs.Loss(class_weights=counts),
        counts,
    )
    for part in d.models:
        s = cs.solve(problem.replace(features=part.features))
        assert [s.class_states[0], s.class_states[-1]] == [STATES[code] for code in part.states[:, i, j]]


def test_without_a_bias_price_nonnegative_classes_share_and_the_curve_says_so():
    d = phase_diagram("lambda_z:4e-4:2e-3:6:log", "r:20:50:4", PhaseSettings(lambda_b=0.0))
    part = d.model("nonnegative")
    assert part.one_by_one.any()
    assert (part.states == STATES.index("merged")).any()
    assert (part.predicted == UNKNOWN).any()
    (vanish,) = [c for c in part.curves if c.transition == "vanish"]
    assert not vanish.exact
    assert "column form" in vanish.note
    assert all(c.exact for c in d.model("signed").curves)


@pytest.mark.parametrize(
    ("over", "x", "y"),
    [
        ("sample", "r:2:20:2", "lambda_w:0.5:12:3:log"),
        ("sample", "norm:4:14:2", "lambda_w:0.5:12:2:log"),
        ("batch", "norm:4:14:4", "r:2:20:3"),
    ],
)
def test_normalised_features_have_a_diagram_in_lambda_w(over, x, y):
    """Certified states against the roots of the merge threshold, in every cell."""
    settings = PhaseSettings(n_a=100, n_b=20, lambda_b=0.02, over=over, lambda_w=3.0, norm=128**0.5)
    d = phase_diagram(x, y, settings)
    agreement = d.model("signed").agreement
    assert agreement.equal == agreement.known == agreement.cells
    assert {"separated", "merged"} <= {STATES[code] for code in np.unique(d.model("signed").states)}
    assert PhaseDiagram.from_dict(json.loads(json.dumps(d.to_dict()))).to_dict() == d.to_dict()
    figure = phase_figure(d.to_dict())
    assert f"normalised per {over}" in figure.get_suptitle()


@pytest.mark.parametrize(("over", "name"), [(None, "norm"), (None, "lambda_w"), ("batch", "lambda_z")])
def test_an_axis_of_the_other_model_is_refused(over, name):
    with pytest.raises(ValueError, match=f"the axis {name}"):
        PhaseConfig(Axis(name, 1.0, 2.0), Axis("r", 1.0, 2.0), PhaseSettings(over=over))


def test_a_range_without_transitions_says_so():
    low = phase_diagram("lambda_z:1e-5:2e-5:3", "r:1:2:3")
    for part in low.models:
        assert all(not curve.lines for curve in part.curves)
        assert "everything collapses: nowhere in this range" in part.notes
        assert (part.states == 0).all()
    assert "B merges: nowhere in this range, it is separated everywhere" in low.model("signed").notes
    assert "B vanishes: nowhere in this range" in low.model("nonnegative").notes
    high = phase_diagram("lambda_z:0.1:0.2:3", "r:2:3:3")
    for part in high.models:
        assert "everything collapses: everywhere in this range" in part.notes
        assert "B vanishes: nowhere in this range, which lies beyond" in part.notes
        assert part.zero.all()


def test_a_transition_that_is_another_one_is_not_said_to_lie_nowhere():
    """With several large classes they merge where everything collapses, which has a curve of its own."""
    found = phase_diagram("lambda_z:3e-3:1e-2:12:log", "share_a:0.1:0.9:5", PhaseSettings(lambda_b=0.02)).model(
        "signed"
    )
    assert found.zero.any()
    assert not any("A merges" in note or "separated everywhere" in note for note in found.notes)


@pytest.mark.parametrize("axis", ["lambda_z:1e-3:2e-2:24:log", "lambda_z:3e-3:1e-2:24:log"])
def test_names_of_curves_leave_a_narrow_band_between_them_free(axis):
    """The band of merged classes is narrower than a line of text: its states are seen beside the names, not below."""
    d = phase_diagram(axis, "r:1:50:24", PhaseSettings(lambda_b=0.02))
    figure = phase_figure(d.to_dict())
    figure.draw_without_rendering()
    ax = figure.axes[0]
    named = {text.get_text(): text for text in ax.texts}
    assert {"B merges", "B vanishes"} <= set(named)
    curves = {c.transition: np.array(c.lines[0]) for c in d.model("signed").curves if c.cluster == "B"}
    for words, other in (("B merges", "vanish"), ("B vanishes", "merge")):
        text = named[words]
        centre = ax.transAxes.transform(text.get_position())
        turn = np.radians(text.get_rotation())
        along = np.array([np.cos(turn), np.sin(turn)])
        points = ax.transData.transform(curves[other]) - centre
        half = len(words) * 0.047 / 2 * figure.dpi
        near = points[np.abs(points @ along) < half]
        away = np.abs(near @ np.array([-along[1], along[0]])) / figure.dpi
        assert away.min(initial=np.inf) > 0.05  # more than half a letter


def test_log_axes_of_less_than_a_decade_have_numbers():
    figure = phase_figure(phase_diagram("lambda_z:3e-3:1e-2:4:log", "r:1:5:3").to_dict())
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    low, high = axis.get_view_interval()
    assert [
        t.get_text() for at, t in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True) if low < at < high
    ] == ["0.005", "0.01"]


def test_disagreement_is_counted(diagram):
    part = diagram.model("signed")
    states = part.states.copy()
    edge = np.argwhere(np.diff(part.predicted[1], axis=1) > 0)[0]
    states[1, edge[0], edge[1]] = states[1, edge[0], edge[1] + 1]  # off by one cell
    states[0, 0, 0] = STATES.index("vanished")  # far from any transition of A
    changed = ModelPhase(**{**vars(part), "states": states})
    agreement = changed.agreement
    assert (agreement.known - agreement.equal, agreement.near) == (2, 1)
    assert agreement.share == pytest.approx(1 - 1 / agreement.known)


def test_records_come_back(diagram):
    record = json.loads(json.dumps(diagram.to_dict(), allow_nan=False))
    assert PhaseDiagram.from_dict(record).to_dict() == record
    for changes in (
        *({"kind": "demo"}, {"config_digest": "0"}, {"models": record["models"][0]}, {"models": [{}]}),
        {"config": {**record["config"], "tol": 1e-8}},
        {"config": None},
    ):
        with pytest.raises(ValueError, match=r"`record`|`values`"):
            PhaseDiagram.from_dict({**record, **changes})
    short = {**record["models"][0], "states": [row[:1] for row in record["models"][0]["states"]]}
    with pytest.raises(ValueError, match="another shape"):
        PhaseDiagram.from_dict({**record, "models": [short]})
    with pytest.raises(ValueError, match="`features` must be one of"):
        diagram.model("relu")  # type: ignore[arg-type]


# --- the sweep


SMALL = Axis("lambda_z", 1e-3, 1e-2, 6, "log"), Axis("r", 2, 8, 4)


@pytest.fixture
def small(monkeypatch) -> PhaseConfig:
    """Four parts of a few cells."""
    monkeypatch.setattr(phase_grid, "CHUNK_CELLS", 6)
    return PhaseConfig(*SMALL)


@pytest.fixture(scope="module")
def whole() -> Any:
    """The same diagram of the same parts in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase_grid, "CHUNK_CELLS", 6)
        return phase_diagram(*SMALL).to_dict()


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Which parts were computed."""
    seen: list[int] = []

    def counted(config, chunk, compute=phase_chunk):
        seen.append(chunk)
        return compute(config, chunk)

    monkeypatch.setattr(sweep_module, "phase_chunk", counted)
    return seen


def interrupt_after(parts: int):
    def progress(done: int, total: int) -> None:
        if done == parts:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """What a sweep leaves that is interrupted after three of its parts."""
    out = tmp_path_factory.mktemp("interrupted") / "phase.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase_grid, "CHUNK_CELLS", 6)
        with pytest.raises(KeyboardInterrupt):
            sweep(PhaseConfig(*SMALL), out, progress=interrupt_after(3))
    return parts_folder(out)


def test_a_killed_sweep_continues_and_a_finished_one_computes_nothing(small, whole, computed, tmp_path):
    out = tmp_path / "phase.json"
    with pytest.raises(KeyboardInterrupt):
        sweep(small, out, progress=interrupt_after(2))
    assert not out.exists()
    assert computed == [0, 1]
    steps: list[tuple[int, int]] = []
    d = sweep(small, out, progress=lambda *at: steps.append(at))
    assert computed == [0, 1, 2, 3]
    assert steps == [(2, 4), (3, 4), (4, 4)]
    assert d.to_dict() == whole  # as if it had never been interrupted
    assert not parts_folder(out).exists()
    before = out.read_bytes(), out.stat().st_mtime_ns
    assert sweep(small, out).to_dict() == d.to_dict()
    assert computed == [0, 1, 2, 3]
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before


def as_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def with_unknown_compression(archive: bytes) -> bytes:
    first = archive.index(b"PK\x01\x02")  # its entry in the directory
    return archive[: first + 10] + b"\x63\x00" + archive[first + 12 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda here, other: here[: len(here) // 2], "zip"),
        (lambda here, other: here.replace("OPTIMAL".encode("utf-32-le"), "STALLED".encode("utf-32-le"), 1), "CRC"),
        (lambda here, other: other, "another sweep"),
        (lambda here, other: with_unknown_compression(here), "compression method"),
        (lambda here, other: b"", "No data"),
        (lambda here, other: b"[1, 2]", "pickle"),
        (lambda here, other: as_npy(), "context manager"),
    ],
)
def test_a_damaged_part_is_named_and_computed_again(small, whole, interrupted, computed, tmp_path, damage, words):
    out = tmp_path / "phase.json"
    shutil.copytree(interrupted, parts_folder(out))
    other, path = sorted(parts_folder(out).iterdir())[:2]
    path.write_bytes(damage(path.read_bytes(), other.read_bytes()))
    notes: list[str] = []
    d = sweep(small, out, note=notes.append)
    assert computed == [1, 3]
    assert len(notes) == 1
    assert str(path) in notes[0]
    assert words in notes[0]
    assert d.to_dict() == whole


def test_a_damaged_record_is_named_and_computed_again(small, computed, tmp_path):
    out = tmp_path / "phase.json"
    sweep(small, out)
    for text in ("{", json.dumps({"kind": "phase"})):
        computed.clear()
        out.write_text(text)
        notes: list[str] = []
        sweep(small, out, note=notes.append)
        assert computed == [0, 1, 2, 3]
        assert len(notes) == 1
        assert str(out) in notes[0]
    assert PhaseDiagram.from_dict(json.loads(out.read_text())).config == small


def test_another_configuration_does_not_meet_these_parts(small, computed, tmp_path):
    out = tmp_path / "phase.json"
    with pytest.raises(KeyboardInterrupt):
        sweep(small, out, progress=interrupt_after(2))
    other = PhaseConfig(small.x, small.y, PhaseSettings(lambda_b=INF))
    assert sweep(other, out).config == other
    assert computed == [0, 1, 0, 1, 2, 3]
    assert len(list(parts_folder(out).iterdir())) == 2  # still there for whoever comes back
    assert sweep(small, out).config == small
    assert computed == [0, 1, 0, 1, 2, 3, 2, 3]


def test_sweep_says_what_is_wrong(small, tmp_path):
    with pytest.raises(ValueError, match="`jobs` must be"):
        sweep(small, jobs=0)
    with pytest.raises(ValueError, match="`out` must be in an existing folder"):
        sweep(small, tmp_path / "nowhere" / "phase.json")


def test_processes_find_the_same(small, tmp_path):
    pytest.importorskip("joblib")
    out = tmp_path / "phase.json"
    assert sweep(small, out, jobs=2).to_dict() == phase_diagram(small.x, small.y).to_dict()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_dask_cluster_of_two_workers_finds_the_same(small, tmp_path):
    joblib, distributed = pytest.importorskip("joblib"), pytest.importorskip("dask.distributed")
    wanted = phase_diagram(small.x, small.y).to_dict()
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp://"
    ) as cluster:
        assert sweep(small, tmp_path / "a.json", dask_scheduler=cluster.scheduler_address).to_dict() == wanted
        with distributed.Client(cluster), joblib.parallel_config(backend="dask"):  # pointed at it by the user
            assert sweep(small, tmp_path / "b.json").to_dict() == wanted


# --- the picture


def test_the_picture_names_its_curves_and_states(diagram):
    record = diagram.to_dict()
    figure = phase_figure(record)
    assert figure.get_size_inches()[0] == pytest.approx(3.3)
    signed, nonnegative = figure.axes
    assert {text.get_text() for text in signed.texts} == {"B merges", "B vanishes", "all zero"}
    assert {text.get_text() for text in nonnegative.texts} == {"B vanishes", "all zero"}
    assert [ax.get_title() for ax in figure.axes] == ["signed features", "nonnegative features"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["all separated", "B merged", "B vanished", "all zero"]
    assert r"\lambda_Z" in signed.get_xlabel()
    assert "imbalance" in signed.get_ylabel()
    assert png_bytes(figure, 100)[:4] == b"\x89PNG"
    assert "B vanishes" in svg_string(figure, "phase")


def test_labels_lie_on_their_curves_inside_the_panel(diagram):
    figure = phase_figure(diagram.to_dict())
    figure.draw_without_rendering()
    for ax, part in zip(figure.axes, diagram.models, strict=True):
        named = {("" if c.transition == "complete" else f"{c.cluster} {c.transition}")[:6]: c for c in part.curves}
        for text in ax.texts:
            x, y = text.get_position()
            assert 0 < x < 1
            assert 0 < y < 1
            curve = named["" if text.get_text() == "all zero" else text.get_text()[:6]]
            at = ax.transAxes.transform((x, y))
            on = ax.transData.transform(np.concatenate([np.array(line) for line in curve.lines]))
            dense = np.concatenate([np.linspace(p, q, 20) for p, q in pairwise(on)])
            assert np.hypot(*(dense - at).T).min() / figure.dpi < 0.12  # inches


def test_what_is_fixed_stands_inside_the_picture(diagram):
    record = diagram.to_dict()
    record["config"]["settings"] |= {"over": "sample", "lambda_w": 3.14, "norm": 11.3, "oversampling": 1.25}
    figure = phase_figure(record)
    figure.draw_without_rendering()
    title = next(text for text in figure.texts if "normalised per" in text.get_text())
    box = title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y1 <= figure.bbox.height


def test_open_cells_and_large_classes_are_marked(diagram):
    record = diagram.to_dict()
    part = record["models"][0]
    part["status"][3][5] = "STALLED"
    part["states"] = part["states"][::-1]  # now it is A that merges and vanishes
    figure = phase_figure(record)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"A merged", "A vanished", "gap open"} <= set(words)
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [np.asarray(line.get_xdata()).tolist() for line in crosses] == [[record["x_values"][5]]]


def test_states_keep_their_order_without_colour():
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    levels = [luminance(fill) for fill in FILLS]
    assert all(a / b > 1.2 for a, b in pairwise(levels))


def test_the_picture_asks_for_a_whole_record(diagram):
    for record in ({}, {"kind": "demo"}, {**diagram.to_dict(), "models": [{}]}):
        with pytest.raises(ValueError, match="`record` must be a"):
            phase_figure(record)


# --- the command


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["collapsar", "phase", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    return end.value.code if isinstance(end.value.code, int) else 0, shown.out, shown.err


AXES = ("--x", "lambda_z:1e-3:1e-2:6:log", "--y", "r:2:8:4")


def test_the_command_writes_picture_and_record(monkeypatch, capsys, tmp_path, computed):
    out = tmp_path / "phase.png"
    code, shown, errors = run(monkeypatch, capsys, *AXES, "--out", out)
    assert (code, errors) == (0, "")
    assert "as the thresholds say" in shown
    assert str(out) in shown
    assert out.read_bytes()[:4] == b"\x89PNG"
    d = PhaseDiagram.from_dict(json.loads((tmp_path / "phase.json").read_text()))
    assert d.config.settings == PhaseSettings()
    computed.clear()
    for name, magic in (("phase.svg", b"<svg"), ("phase.pdf", b"%PDF")):  # from the record, which is there
        code, shown, _ = run(monkeypatch, capsys, *AXES, "--out", tmp_path / name, "--json")
        assert code == 0
        assert computed == []
        assert json.loads(shown) == d.to_dict()
        assert (tmp_path / name).read_bytes()[:4] == magic
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phase.json", "phase.pdf", "phase.png", "phase.svg"]


def test_the_command_takes_every_setting(monkeypatch, capsys):
    code, shown, _ = run(
        monkeypatch, capsys, "--x", "lambda_b:0.01:1:3:log", "--y", "share_a:0.2:0.8:3", "--classes", 5, "--n-a", 400,
        "--n-b", 40.5, "--lambda-z", 0.004, "--oversampling", 2, "--tol", 1e-8, "--json",
    )  # fmt: skip
    assert code == 0
    config = PhaseConfig.from_dict(json.loads(shown)["config"])
    assert config.settings == PhaseSettings(5, 2, 400.0, 40.5, 0.004, 0.02, 2.0)
    assert config.tol == 1e-8
    code, shown, _ = run(monkeypatch, capsys, *AXES, "--k-a", 2, "--lambda-b", "inf", "--json")
    assert json.loads(shown)["config"]["settings"]["lambda_b"] == "inf"


def test_the_command_says_where_nothing_happens(monkeypatch, capsys):
    code, shown, _ = run(monkeypatch, capsys, "--x", "lambda_z:1e-5:2e-5:3", "--y", "r:1:2:3")
    assert code == 0
    assert "signed: B merges: nowhere in this range, it is separated everywhere" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--x", "lambda_z:1:2"), "Missing option"),
        ((*AXES[:2], "--y", "lambda_z:1:2"), "different parameters"),
        ((*AXES[:2], "--y", "size:1:2"), "`name` of an axis"),
        ((*AXES[:2], "--y", "r:5:1"), "finite low < high"),
        ((*AXES, "--classes", "1"), "`num_classes` must be"),
        ((*AXES, "--k-a", "10"), "`k_a` must be"),
        ((*AXES, "--n-b", "nan"), "`n_b` must be"),
        ((*AXES, "--lambda-b", "-1"), "`lambda_b` must be"),
        ((*AXES, "--tol", "0"), "`tol` must be"),
        ((*AXES, "--jobs", "0"), "`jobs` must be"),
        ((*AXES, "--out", "phase.jpg"), "`--out` must end in"),
        ((*AXES, "--out", "nowhere/at/all/phase.png"), "existing folder"),
    ],
)
def test_bad_usage_is_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, shown, errors = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert shown == ""
    assert errors.count("\n") == 1
    assert message in errors
    assert list(Path.cwd().iterdir()) == []
