"""``diagnose`` from files, modules and runs; the command and its gate; what the pages show."""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import collapsar as cs
from collapsar.advise.sources import problem_of_diagnosis
from collapsar.core.known import KnownTraining
from collapsar.diagnose import feature_files
from collapsar.diagnose.readers import diagnose
from collapsar.metrics import class_moments
from collapsar.monitor import known_training
from collapsar.monitor.differences import PenaltyWarning
from collapsar.training import ClassAwareSampler
from networks import nonnegative_network, samples, signed_network

ROOT = Path(__file__).parent.parent


def arrays(lambda_z=0.0045, **more):
    """The paper's optimum at (5, 5, 500, 100) with vanished minority."""
    counts, W, H, b = signed_network(lambda_z=lambda_z)
    X, y = samples(counts, H, noise=1e-3)
    return {"features": X.astype(np.float32), "labels": y, "weight": W, "bias": b, **more}


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("files") / "features.npz"
    np.savez_compressed(path, **arrays())
    return path


def test_a_file_says_what_arrays_say(npz):
    d = diagnose(npz)
    assert d.separation.vanished_classes == (5, 6, 7, 8, 9)
    assert d.effective is not None
    assert d.effective.lambda_z == pytest.approx(0.0045, rel=1e-2)
    assert d.source == "features.npz"
    values: dict[str, Any] = {entry["name"]: entry["value"] for entry in d.to_dict()["metrics"]}
    within = 1e-6 * 16  # the noise's variance in 16 dimensions
    means = d.measurement.class_means
    shares = d.measurement.class_counts / d.measurement.class_counts.sum()
    between = shares @ np.sum((means - shares @ means) ** 2, axis=1)
    assert values["nc1_trace_ratio"] == pytest.approx(within / between, rel=0.05)
    assert values["nc4_agreement"] <= 1
    assert any("divide by differences" in note for note in d.notes)


def test_safetensors_and_other_names_and_half_precision(tmp_path, npz):
    held = arrays()
    path = tmp_path / "features.safetensors"
    save_file({"features": held["features"], "labels": held["labels"], "head.weight": held["weight"],
               "head.bias": held["bias"], "weight_decay": np.array(0.01)}, path)  # fmt: skip
    d = diagnose(path)
    np.testing.assert_array_equal(d.measurement.Z, diagnose(npz).measurement.Z)
    assert (d.known.lambda_w, d.known.lambda_b) == (0.01, 0.01)
    from safetensors.torch import save_file as save_torch

    half = {"features": torch.from_numpy(held["features"]).bfloat16(), "labels": torch.from_numpy(held["labels"])}
    save_torch({**half, "weight": torch.from_numpy(held["weight"]), "bias": torch.from_numpy(held["bias"])}, path)
    assert diagnose(path).separation.vanished_classes == (5, 6, 7, 8, 9)


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("folder", [False, True])
def test_numbers_in_either_byte_order_are_read(tmp_path, npz, order, folder):
    """Both are valid .npy; torch takes the machine's own only."""
    held = {name: values.astype(values.dtype.newbyteorder(order)) for name, values in arrays().items()}
    path = tmp_path / ("folder" if folder else "f.npz")
    if folder:
        path.mkdir()
        for name, values in held.items():
            np.save(path / f"{name}.npy", values)
    else:
        np.savez(path, **held)
    np.testing.assert_array_equal(diagnose(path).measurement.Z, diagnose(npz).measurement.Z)
    moments = class_moments(held["features"], held["labels"], 10)
    assert torch.equal(moments.class_means, class_moments(arrays()["features"], arrays()["labels"], 10).class_means)


def test_penalties_and_names_in_the_file_give_way_to_the_callers(tmp_path):
    path = tmp_path / "f.npz"
    names = np.array([f"k{k}" for k in range(10)])
    np.savez(path, **arrays(lambda_w=0.01, lambda_h=0.0045**2 / 0.01, lambda_b=0.02, class_names=names))
    d = diagnose(path)
    assert d.prediction is not None
    assert (d.prediction.source, d.prediction.lambda_z) == ("as trained", pytest.approx(0.0045))
    assert d.class_names[5] == "k5"
    mine = diagnose(path, known=KnownTraining(lambda_w=0.04), class_names=list("abcdefghij"))
    assert mine.known.lambda_w == 0.04
    assert mine.known.lambda_b == 0.02
    assert mine.class_names[5] == "f"


def object_array(path):
    np.savez(path, **arrays(labels=np.array([{}, None] * 1500, dtype=object)))


def announced(path):
    """Four terabytes announced in a file of a few hundred bytes."""
    held = arrays()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 35, 16)})
    np.savez(path, labels=held["labels"], weight=held["weight"])
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("features.npy", header.getvalue())


def truncated(path):
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:20000])


def text(path):
    path.write_text("not an archive")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (object_array, "never unpickled"),
        (announced, "4096 GiB"),
        (truncated, "damaged"),
        (text, "damaged"),
        (lambda path: np.savez(path, features=np.ones((2, 2)), labels=[0, 1]), "no `weight`"),
        (lambda path: np.savez(path, **arrays(head_weight=np.ones((10, 16)))), "twice"),
        (lambda path: np.savez(path, **arrays(lambda_w=[1.0, 2.0])), "`lambda_w`.*one number"),
        (lambda path: np.savez(path, **arrays(weight=np.ones((16, 10)))), "`bias`|`features`"),
        (lambda path: np.savez(path, **arrays(labels=np.full(3000, 10))), r"\[0, 10\)"),
        (lambda path: np.savez(path, **arrays(features=np.full((3000, 16), np.nan))), "finite"),
        (
            lambda path: np.savez(path, **arrays(class_names=np.array(["a", "b"]))),
            "hold one name for each of 10 classes, got 2",
        ),
        (lambda path: np.savez(path, **arrays(features=np.ones((0, 16)), labels=np.ones(0, int))), "with a label, got"),
        (lambda path: np.savez(path, **arrays(labels=np.full(3000, -100))), "a sample with a label, got none"),
    ],
)
def test_every_bad_file_is_one_line_and_exit_2(tmp_path, write, says, capsys):
    path = tmp_path / "bad.npz"
    write(path)
    with pytest.raises(ValueError, match=says):
        diagnose(path)
    code, out, err = command(capsys, path)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1


def test_bad_safetensors_and_unknown_endings(tmp_path):
    (tmp_path / "f.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "f.pt").write_bytes(b"")
    for name, says in (
        ("f.safetensors", "damaged"),
        ("f.pt", "collapsar audit.*reads a head alone"),
        ("g", "not exist"),
    ):
        with pytest.raises(ValueError, match=says):
            diagnose(tmp_path / name)
    with pytest.raises(ValueError, match="has no checkpoint"):
        diagnose(tmp_path)


def test_no_damage_gets_past_the_door(npz, tmp_path):
    """Bytes flipped at random: the file is read, or refused as a ValueError."""
    rng, whole, refused = np.random.default_rng(0), npz.read_bytes(), 0
    path = tmp_path / "f.npz"
    for _ in range(60):
        damaged = bytearray(whole)
        tail = len(whole) - 400 if rng.random() < 0.5 else 0  # half of them in the directory at the end
        for place in rng.integers(tail, len(whole), size=3):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            feature_files.read_features(path)
        except ValueError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1  # noqa: PT017
    assert refused > 30


def test_safetensors_are_read_without_their_library(tmp_path, monkeypatch):
    path = tmp_path / "features.safetensors"
    held = arrays()
    save_file({name: np.ascontiguousarray(value) for name, value in held.items()}, path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    read = feature_files.read_features(path)
    assert np.array_equal(read.features, held["features"])
    assert np.array_equal(read.labels, held["labels"])


def test_the_largest_size_is_a_limit_not_a_wall(npz, monkeypatch):
    monkeypatch.setattr(feature_files, "MAX_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"`features`.*more than the limit of"):
        diagnose(npz)


class Net(nn.Module):
    """Features in, features out; the batch norm is never used, its mode must survive."""

    def __init__(self, W, b) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2).eval()
        self.body = nn.Dropout(0.5)
        self.fc = nn.Linear(W.shape[1], W.shape[0])
        with torch.no_grad():
            self.fc.weight.copy_(torch.from_numpy(W))
            self.fc.bias.copy_(torch.from_numpy(b))

    def forward(self, x):
        return self.fc(self.body(x))


def test_a_module_with_a_loader_says_what_the_file_says(npz, monkeypatch):
    held = arrays()
    net = Net(held["weight"], held["bias"])
    x, y = torch.from_numpy(held["features"]), torch.from_numpy(held["labels"])
    pairs = [(x[i : i + 700], y[i : i + 700]) for i in range(0, len(y), 700)]
    d = diagnose(net, pairs, known=KnownTraining(lambda_w=0.01))
    of_file = diagnose(npz, known=KnownTraining(lambda_w=0.01))
    np.testing.assert_allclose(d.measurement.Z, of_file.measurement.Z, atol=1e-6)
    assert d.separation.states == of_file.separation.states
    assert d.forces.relative_gradient == pytest.approx(of_file.forces.relative_gradient, rel=1e-3)
    assert d.measurement.metrics == pytest.approx(dict(of_file.measurement.metrics), rel=1e-5, abs=1e-6, nan_ok=True)
    assert 0 < d.measurement.metrics["nc4_agreement"] <= 1
    monkeypatch.setattr(import_module("collapsar.diagnose.readers"), "_KEPT", 100)
    assert np.isnan(diagnose(net, pairs).measurement.metrics["nc4_agreement"])
    assert (net.training, net.norm.training) == (True, False)
    assert not net.fc._forward_pre_hooks
    mappings = [{"x": a, "labels": b} for a, b in pairs]
    assert diagnose(net, mappings, head="fc").separation.states == d.separation.states
    weighted = [(a, b.tolist(), torch.ones(len(b))) for a, b in pairs]  # what a loader adds is left alone
    np.testing.assert_array_equal(
        diagnose(torch.compile(net, backend="eager"), weighted).measurement.Z, d.measurement.Z
    )


def test_a_module_that_cannot_be_read_says_why():
    held = arrays()
    net = Net(held["weight"], held["bias"])
    x, y = torch.from_numpy(held["features"][:4]), torch.from_numpy(held["labels"][:4])
    samples: Any = torch.utils.data.TensorDataset(x, y)
    for call, says in (
        (lambda: diagnose(net), "without a loader"),
        (lambda: diagnose(net, samples), "must yield batches, got one sample"),
        (lambda: diagnose(net, [x]), r"\(inputs, labels\) or mappings with labels; got Tensor"),
        (lambda: diagnose(net, [(x, y)], head="nothing"), "`head`"),
        (lambda: diagnose(net, []), "at least one sample"),
        (lambda: diagnose("x.npz", [(x, y)]), "`loader` and `head` go with a module"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    assert not net.fc._forward_pre_hooks
    assert net.training


# --- the command


def command(capsys, *arguments) -> tuple[int, str, str]:
    """The command line in this process: exit code, stdout, stderr."""
    from collapsar.cli import main

    before, sys.argv = sys.argv, ["collapsar", "diagnose", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        sys.argv = before
    out = capsys.readouterr()
    return int(left.value.code or 0), out.out, out.err


@pytest.mark.parametrize(("allowed", "code"), [(0, 1), (4, 1), (5, 0), (10, 0)])
def test_the_gate_counts_merged_and_vanished_classes(npz, capsys, allowed, code):
    found, out, err = command(capsys, npz, "--max-merged", allowed, "--json")
    assert found == code
    assert json.loads(out)["num_collapsed"] == 5
    assert ("5 classes are merged or vanished" in err) is (code == 1)


def test_the_gate_passes_a_healthy_network(tmp_path, capsys):
    np.savez(tmp_path / "f.npz", **arrays(0.0027))
    code, out, err = command(capsys, tmp_path / "f.npz", "--max-merged", 0)
    assert (code, err) == (0, "")
    assert "All 10 classes are separated." in out


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_page_and_picture(npz, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"<kind {k}>" for k in range(10)), encoding="utf-8")
    page, picture = tmp_path / "d.html", tmp_path / "d.png"
    code, out, err = command(
        capsys, npz, "--weight-decay", 0.01, "--lambda-h", 0.002025, "--class-names", names, "--html", page,
        "--picture", picture,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "<kind 5>" in out
    assert "vanished" in out
    html = page.read_text(encoding="utf-8")
    assert "<kind 5>" not in html
    assert "&lt;kind 5&gt;" in html
    assert "5 of 10 classes have collapsed" in html
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, _ = command(capsys, npz, "--picture", tmp_path / "d.svg")
    assert (tmp_path / "d.svg").read_text().startswith("<svg")
    record = json.loads(command(capsys, npz, "--json", "--features", "nonnegative", "--lambda-b", 0.02)[1])
    assert record["prediction"]["features"] == "nonnegative"
    assert record["known"]["lambda_b"] == 0.02
    record = json.loads(command(capsys, npz, "--json", "--smoothing", 0.1, "--lambda-w", 0.01)[1])
    assert record["known"]["loss"]["smoothing"] == 0.1
    assert record["forces"]["relative_gradient"] > 0.1  # the network was trained without


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weight-decay", 0.1, "--lambda-w", 0.1], "--weight-decay"),
        (["--lambda-w", -1], "`lambda_w`"),
        (["--max-merged", -1], "max-merged"),
        (["--picture", "d.bmp"], "--picture"),
        (["--features", "relu"], "--features"),
        (["--class-names", "/nonexistent/names"], "names"),
        (["--html", "/nonexistent/d.html"], "nonexistent"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(npz, capsys, arguments, says):
    code, out, err = command(capsys, npz, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1


# --- pages and pictures


def on_page(sentence: str) -> str:
    """A sentence of a record as the page's text has it: lambda_z is λ with an index, 2e-06 is 2 × 10⁻⁶."""
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    sentence = re.sub(
        r"(\d(?:\.\d+)?)e([+-]\d\d)\b", lambda found: f"{found[1]} × 10{str(int(found[2])).translate(raised)}", sentence
    )
    return (
        sentence.replace("lambda_z", "λZ").replace("lambda_w", "λW").replace("lambda_h", "λH").replace("lambda_b", "λb")
    )


def listed(sentence):
    """A sentence as pages have it: lambda_z is λ with an index."""
    safe = escape(sentence, quote=False).replace("'", "&#39;")
    written = re.sub(
        r"lambda_([wzhb])", lambda found: f"λ<sub>{found[1].upper() if found[1] in 'zwh' else 'b'}</sub>", safe
    )
    return f">{written}</li>"


@pytest.mark.usefixtures("undrawn")
def test_the_page_holds_its_record_and_runs_nothing_else(npz):
    from collapsar.report import diagnosis_page
    from test_report import Page

    record = diagnose(npz).to_dict()
    text = diagnosis_page(record)
    page = Page(text)
    assert [heading.strip() for heading in page.by_tag["h1"]] == [record["headline"]]
    items = [item.strip() for item in page.by_tag["li"]]
    assert all(on_page(sentence) in items for sentence in (*record["words"], *record["notes"]))
    assert page.count("rect", "cell") == 200
    assert len(page.scripts) == 2
    held = json.loads(page.scripts[0])
    assert held["separation"] == record["separation"]
    assert re.findall(r"https?://(?!www\.w3\.org/)", text) == []
    with pytest.raises(ValueError, match='kind "diagnosis"'):
        diagnosis_page({"kind": "demo"})
    with pytest.raises(ValueError, match="missing: headline"):
        diagnosis_page({"kind": "diagnosis"})


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_a_demonstration_shows_each_diagnosis(npz, tmp_path):
    from collapsar.report import demo_page
    from test_report import Page, fake_record

    healthy = tmp_path / "healthy.npz"
    np.savez(healthy, **arrays(0.0027))
    record = fake_record()
    assert "network by network" not in demo_page(record)
    found = [diagnose(healthy), diagnose(npz)]
    for run, d in zip(record["runs"], found, strict=False):  # the third has none
        run["diagnosis"] = d.to_dict()
    text = demo_page(record)
    page = Page(text)
    assert page.count("section", "diagnosis") == 2
    headings = [heading.strip() for heading in page.by_tag["h3"]]
    for level, d in zip(("0.0045", "0.0105"), found, strict=True):
        assert f"Penalty {level}: {d.headline}" in headings
        assert set(map(on_page, d.words)) <= {item.strip() for item in page.by_tag["li"]}


@pytest.mark.parametrize("case", ["many", "vanished", "unseen", "plain"])
def test_pages_and_pictures_of_every_kind(case):
    from collapsar.diagnose.diagnosis import diagnose_measurement
    from collapsar.diagnose.measurement import measure
    from collapsar.report import diagnosis_figure, diagnosis_page, png_bytes

    counts, W, H = nonnegative_network([8] * 205 if case == "many" else [50, 50, 10], 1e-4 if case == "many" else 0.004)
    if case == "vanished":
        W, H = 0 * W, 0 * H
    X, y = samples(counts, H)
    if case == "unseen":
        X, y = X[y != 1], y[y != 1]
    record = diagnose_measurement(measure(X, y, W)).to_dict()
    assert record["headline"] in diagnosis_page(record)
    assert png_bytes(diagnosis_figure(record), dpi=40).startswith(b"\x89PNG")


def heights(lines) -> list[float]:
    """What is drawn, class by class."""
    points = [(x, y) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    return [float(y) for _, y in sorted(points)]


def test_the_pictures_show_the_record(npz):
    from matplotlib.figure import Figure

    from collapsar.report import styled
    from collapsar.report.diagnosis import class_lengths, price_readings

    record: Any = diagnose(npz, known=KnownTraining(0.01, 0.0045**2 / 0.01, 0.02)).to_dict()
    with styled():
        lengths = class_lengths(record, Figure().subplots())
        readings = price_readings(record, Figure().subplots())
    assert heights(lengths.measured) == record["separation"]["relative_norms"]
    assert len(lengths.measured) == 2  # one line per state
    theory = np.asarray(lengths.predicted[0].get_ydata(), dtype=float)
    np.testing.assert_allclose(theory, [1] * 5 + [0] * 5, atol=1e-3)
    assert heights(readings.classes) == record["effective"]["by_class"]
    assert len(readings.lines) == 3
    none: Any = {**record, "effective": {**record["effective"], "by_class": [None] * 10}}
    ax = Figure().subplots()
    assert price_readings(none, ax).classes == []
    assert [text.get_text() for text in ax.texts] == ["no class's scores\nimply a penalty"]


# --- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of digits: enough to be read, not to rest."""
    from collapsar.training import ModelSpec, TrainConfig, load_data, penalties_for, train

    config = TrainConfig(
        "digits", (40,) * 5 + (10,) * 5, penalties_for(0.01, 0.02), epochs=2, model=ModelSpec("mlp", widths=(32,)),
        weight_decay=1e-4, device="cpu",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "one"
    return folder, train(config, load_data("digits"), folder)


def test_a_run_folder_by_adamw_is_read_with_its_optimizers_state(tmp_path):
    """wd (sqrt(v) + eps), bias-corrected, by hand from the run's optimizer; the folder has the state as well."""
    from collapsar.core.penalties import Penalties
    from collapsar.training import ModelSpec, TrainConfig, load_data, train

    spec = ModelSpec("mlp", widths=(32, 16), feature_relu=False, feature_norm="layernorm")
    config = TrainConfig(
        "digits", (40,) * 5 + (10,) * 5, Penalties(0.0, 0.0, 0.0), epochs=60, model=spec, device="cpu", eval_every=60,
        optimizer="adamw", head_decay=30.0, learning_rate=2e-3, learning_rate_steps=((0.0, 1.0), (0.8, 0.1)),
    )  # fmt: skip
    result = train(config, load_data("digits"), tmp_path)
    assert result.optimizer is not None
    state = result.optimizer.state[result.model.head.weight]
    v = (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).double()
    rows = (30.0 * (v.sqrt() + 1e-8)).mean(dim=1).numpy()
    known = diagnose(tmp_path).known
    assert known.rest is not None
    assert known.norm is not None
    assert known.lambda_w is not None
    assert known.rest.correlation > 0.9
    assert known.norm.length == pytest.approx(4.0)
    np.testing.assert_allclose(known.lambda_w, rows, rtol=1e-6)


def test_a_run_folder_knows_its_penalties_and_its_data(run, capsys):
    folder, result = run
    d = diagnose(folder)
    assert d.measurement.class_counts.tolist() == [40] * 5 + [10] * 5
    assert d.known.lambda_w == pytest.approx(0.1 + 1e-4)
    assert d.known.lambda_h == pytest.approx(0.001)
    assert d.known.lambda_b == pytest.approx(0.02 + 1e-4)
    assert d.known.features == "nonnegative"
    last = result.records[-1]
    # The loop holds the row that all logits share, which moves no loss, against the penalty as well.
    W, b = (p.detach().double() for p in (result.model.head.weight, result.model.head.bias))
    shared = 10 * float((d.known.lambda_w * W.mean(0)).square().sum() + (d.known.lambda_b * b.mean()) ** 2)
    norm, penalty = last["head_gradient_norm"], last["head_gradient_norm"] / last["stationarity"]
    own = np.sqrt((norm**2 - shared) / (penalty**2 - shared))
    assert d.forces.relative_gradient == pytest.approx(own, rel=1e-6)
    assert d.measurement.loss == pytest.approx(last["train_loss"], rel=1e-5)
    np.testing.assert_allclose(d.measurement.accuracies, last["train_class_accuracies"])
    with pytest.raises(ValueError, match="give one of its runs: one"):
        diagnose(folder.parent)
    assert command(capsys, folder, "--json")[0] == 0


@pytest.mark.slow
def test_the_digits_demo_shows_the_diagnosis_and_it_agrees_with_the_construction(tmp_path):
    """The demo's penalties lie below, between and above the thresholds of the classes with 20 images."""
    from collapsar.app.demo import POSITIONS, demo
    from collapsar.report import demo_page
    from test_report import Page

    record: Any = demo("digits", out=tmp_path)
    page = Page(demo_page(record))
    assert page.count("section", "diagnosis") == 3
    items = [item.strip() for item in page.by_tag["li"]]
    some = "5 of 10 classes have collapsed: 5, 6, 7, 8 and 9 have vanished."
    expected = {
        "below": (["separated"] * 10, "All 10 classes are separated."),
        "between": (["separated"] * 5 + ["vanished"] * 5, some),
        "above": (["vanished"] * 10, "All 10 classes have vanished."),
    }  # fmt: skip
    for position, run in zip(POSITIONS, record["runs"], strict=True):
        found = run["diagnosis"]
        states, headline = expected[position]
        assert found["class_counts"] == [100] * 5 + [20] * 5
        assert found["separation"]["states"] == found["prediction"]["states"] == states
        assert found["headline"] == headline
        assert found["at_rest"]
        assert all(on_page(sentence) in items for sentence in found["words"])
        level = cs.thresholds(cs.Problem(found["class_counts"], 1.0, 0.02, features="nonnegative")).vanish[9]
        assert found["prediction"]["vanish"][9] == pytest.approx(level)
        if position != "above":
            assert found["fit"]["follows"] == "nonnegative"
            assert found["fit"]["models"]["nonnegative"]["distance"]["Z"] < 0.02
            assert found["effective"]["lambda_z"] == pytest.approx(run["lambda_z"], rel=0.01)
            assert found["effective"]["agree"]


def test_the_gates_count_lost_classes_and_recall(tmp_path, capsys):
    path = tmp_path / "f.npz"
    held = {"features": np.repeat(np.eye(3), 5, axis=0), "labels": np.repeat(np.arange(3), 5), "weight": 3 * np.eye(3)}
    np.savez(path, **held, bias=np.array([0.0, 0.0, -9.0]))
    for options, code, says in (
        (("--max-merged", "0"), 1, "1 lost though separated (2), more than 0"),
        (("--max-merged", "1"), 0, ""),
        (("--min-recall", "0.5"), 1, "recall is below 0.5 in 1 class: 2; the least is 0"),
        (("--min-recall", "0"), 0, ""),
    ):
        found, out, err = command(capsys, path, *options)
        assert (found, says in err) == (code, True), err
        assert "separated, lost" in out


def test_dead_classes_are_counted_named_and_kept_apart_from_those_without_samples(tmp_path, capsys):
    """Classes 3 and 5 have one row and other means; 6 has that row too, and no samples; 7 and 8 neither."""
    W = np.vstack([np.eye(5), np.eye(5)[[3, 3]], -np.ones((2, 5)) / 2]) - 1 / 9
    means = np.vstack([3 * np.eye(5), [0, 0, 0, 2, 1.5]])
    path = tmp_path / "dead.npz"
    bias = np.array([0, 0, 0, 0, 0, -0.1, -9, 0, 0])
    np.savez(path, features=np.repeat(means, 4, axis=0), labels=np.repeat(np.arange(6), 4), weight=W, bias=bias)
    found, out, err = command(capsys, path, "--max-merged", "1")
    assert (found, out.count(", dead")) == (1, 2)
    assert "1 lost though separated (5) and 1 dead though separated (3), more than 1" in err
    record: Any = diagnose(path).to_dict()
    assert (record["dead"], record["num_dead"], record["num_gone"]) == ([3, 5], 2, 2)
    assert {tuple(group) for group in record["shared_rows"]} == {(3, 5, 6), (7, 8)}
    text = " ".join(record["words"])
    assert (
        "None of the 4 samples of 5 is recognised: its row of the head coincides with that of 3, which the bias" in text
    )
    assert "Dead, as their rows of the head coincide: 3, 5 and 6. No features separate them" in text
    assert "6, 7 and 8 have no samples here, and their rows coincide with others': dead, not counted." in text
    assert command(capsys, path, "--max-merged", "2")[0] == 0


def test_points_without_spread_are_counted_and_nc4_decides_in_double_precision(tmp_path):
    means = np.array([[0.0, 0], [0, 0], [1, 0], [0, 1]])
    labels = np.repeat(np.arange(4), 3)
    path = tmp_path / "points.npz"
    np.savez(path, features=means[labels], labels=labels, weight=means)
    metrics = diagnose(path).measurement.metrics
    assert (metrics["cdnv"], metrics["cdnv_max"], metrics["cdnv_undefined"]) == (0.0, 0.0, 1.0)
    # float32 has eight units between 2^24 and 2^24 + 16: logits that differ by one are a tie there
    X = np.array([[2.0**24, 0], [2.0**24, 1], [2.0**24, 3], [2.0**24, 4]], dtype=np.float32)
    y, W, b = np.array([0, 0, 1, 1]), np.array([[1, 0], [1, 1]], dtype=np.float32), np.array([2, 0], dtype=np.float32)
    np.savez(path, features=X, labels=y, weight=W, bias=b)
    d = diagnose(path)
    decided = (X.astype(float) @ W.T.astype(float) + b).argmax(axis=1)
    assert decided.tolist() == [0, 0, 1, 1]
    assert d.measurement.accuracies.tolist() == [1.0, 1.0]
    assert d.measurement.metrics["nc4_agreement"] == 1.0


@pytest.mark.parametrize("spread", [0.1, 0.6, 3.0])
def test_nc4_compares_with_all_means_only_where_it_must(tmp_path, spread):
    """From samples close to their means to samples anywhere; class 4 has none."""
    rng = np.random.default_rng(4)
    M, W = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    W[:3] = 5 * M[:3]
    y = np.repeat([0, 1, 2, 3, 5], 20)
    X = M[y] + spread * rng.normal(size=(100, 3)) + 2
    path = tmp_path / "nc4.npz"
    np.savez(path, features=X, labels=y, weight=W, bias=-W @ np.full(3, 2.0))
    means = {k: X[y == k].mean(axis=0) for k in (0, 1, 2, 3, 5)}
    nearest = [min(means, key=lambda k: np.linalg.norm(x - means[k])) for x in X]
    decided = [int(np.argmax(W @ (x - 2))) for x in X]
    expected = np.mean([a == b for a, b in zip(nearest, decided, strict=True)])
    assert diagnose(path).measurement.metrics["nc4_agreement"] == pytest.approx(expected)


def test_pairs_of_npy_files_and_labels_that_are_names(tmp_path, npz):
    held = arrays()
    for name in ("features", "labels", "weight", "bias"):
        np.save(tmp_path / f"{name}.npy", held[name])
    for source in (tmp_path, tmp_path / "features.npy"):
        np.testing.assert_array_equal(diagnose(source).measurement.Z, diagnose(npz).measurement.Z)
    names = np.array([f"k{k}" for k in range(10)])
    path = tmp_path / "named.npz"
    np.savez(path, **arrays(labels=names[held["labels"]]))
    d = diagnose(path)
    assert d.class_names == tuple(names)
    np.testing.assert_array_equal(d.measurement.Z, diagnose(npz).measurement.Z)
    np.savez(path, **arrays(labels=names[held["labels"]], class_names=names[::-1]))
    assert diagnose(path).measurement.class_counts.tolist() == [100] * 5 + [500] * 5
    twice = np.where(names == "k3", "k4", names)
    for name, more, says in (
        ("k4", {}, "9 different names"),
        ("other", {"class_names": names}, "not in `class_names`: other"),
        ("k4", {"class_names": twice}, "shared by several classes: k4"),
    ):
        labels = names[held["labels"]].astype("U5")
        labels[labels == "k3"] = name
        np.savez(path, **{**arrays(labels=labels), **more})
        with pytest.raises(ValueError, match=says):
            diagnose(path)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.LayerNorm(8, elementwise_affine=False), "A LayerNorm feeds the head"),
        (nn.LayerNorm(8), "A LayerNorm feeds the head; its gain is trained, and taken at its present value"),
        (nn.BatchNorm1d(8), "A BatchNorm1d feeds the head"),
        (nn.Tanh(), "A Tanh feeds the head"),
        (nn.Identity(), "No normalisation was found before the head"),
    ],
)
def test_the_layer_before_the_head_is_seen_without_being_told(layer: nn.Module, says: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 6), torch.arange(60) % 7 % 3
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    found = diagnose(model, [(x, y)])
    assert any(text.startswith(f"Model: {says}") for text in found.words), found.words


@pytest.mark.parametrize("kind", ["class-aware", "weighted"])
def test_a_network_trained_with_a_sampler_is_compared_with_the_optimum_of_what_it_was_shown(kind: str) -> None:
    labels, times = np.repeat(np.arange(6), [100] * 3 + [20] * 3), np.array([1.0] * 3 + [2.5] * 3)
    own = ClassAwareSampler(labels, times)
    sampler = own if kind == "class-aware" else WeightedRandomSampler(times[labels].tolist(), 400)
    p = own.problem(0.015, 0.02, penalty="held", features="signed")
    assert np.all(cs.thresholds(p.replace(loss=cs.Loss(), feature_mass=None)).merge[3:] < 0.013)  # without it: merged
    optimum = cs.solve(p)
    W, H, b = (torch.from_numpy(part) for part in optimum.factors(16, lambda_w=0.1, lambda_h=0.015**2 / 0.1))
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 6)).double()
    for parameter, value in zip(model.parameters(), (torch.eye(16), W.T, b), strict=True):
        parameter.data = value.to(torch.float64)
    data = TensorDataset(H.T[labels], torch.from_numpy(labels))
    train, plain = DataLoader(data, 64, sampler=sampler), DataLoader(data, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalties = cs.Penalties(0.1, 0.015**2 / 0.1, 0.02)
    with pytest.warns(PenaltyWarning, match="the theory here holds with resampling"):
        known = known_training(model, model[1], optimizer, penalties=penalties, data=train)
    d = diagnose(model, plain, known=known)
    assert d.effective is not None
    assert d.fit is not None
    assert d.prediction is not None
    assert d.effective.lambda_z == pytest.approx(0.015)
    assert (d.at_rest, d.effective.agree, d.fit.follows) == (True, True, "signed")
    assert d.fit.models["signed"].distance.Z < 1e-6
    assert d.prediction.states == d.separation.states == optimum.class_states == ("separated",) * 6
    assert d.prediction.merge == pytest.approx(cs.thresholds(p).merge)
    problem, _ = problem_of_diagnosis(json.loads(d.to_json()))
    assert problem.loss_share == pytest.approx(p.loss_share)
    assert problem.mass == pytest.approx(p.mass)
    again = diagnose(model, train, known=known)  # the samples measured are those that training shows
    assert (again.known.exposure, again.known.loss) == (None, cs.Loss())
