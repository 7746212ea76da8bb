"""Files of labels and counts as people have them: read where they have one reading, refused where they have several.

The same data everywhere, 60, 30 and 10 samples of three classes; counted here by ``Counter``.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import collapsar as cs

Y = [0] * 60 + [1] * 30 + [2] * 10
COUNTS, NUMBERS = [60, 30, 10], ("0", "1", "2")
WORDS = [("cat", "dog", "elk")[k] for k in Y]
BY_NAME = {"cat": 60, "dog": 30, "elk": 10}
LVIS = [{"id": 3 - i, "name": name, "image_count": n} for i, (name, n) in enumerate(reversed(BY_NAME.items()))]


def lines(values: Any) -> str:
    return "\n".join(map(str, values))


READ: dict[str, tuple[str, str | bytes, dict[str, Any], tuple[str, ...]]] = {
    "plain": ("y.txt", lines(Y), {}, NUMBERS),
    "windows lines": ("y.txt", "\r\n".join(map(str, Y)), {}, NUMBERS),
    "byte-order mark": ("y.txt", lines(Y).encode("utf-8-sig"), {}, NUMBERS),
    "utf-16": ("y.txt", lines(Y).encode("utf-16"), {}, NUMBERS),
    "gzip": ("y.txt.gz", gzip.compress(lines(Y).encode()), {}, NUMBERS),
    "header": ("y.csv", "label\n" + lines(Y), {}, NUMBERS),
    "header of names": ("y.csv", "label\n" + lines(WORDS), {}, tuple(BY_NAME)),
    "own header": ("y.csv", "what_it_is\n" + lines(Y), {}, NUMBERS),
    "quoted": ("y.csv", lines(f'"{k}"' for k in Y), {}, NUMBERS),
    "names with spaces": ("y.txt", lines(f"great {w}" for w in WORDS), {}, ("great cat", "great dog", "great elk")),
    "names with commas": (
        "y.txt",
        lines(f"{w}, wild" if w == "elk" else w for w in WORDS),
        {},
        ("cat", "dog", "elk, wild"),
    ),
    "id,label": ("y.csv", "id,label\n" + lines(f"im{i}.jpg,{k}" for i, k in enumerate(Y)), {}, NUMBERS),
    "three columns, by name": (
        "y.csv",
        "id,genus,kind\n" + lines(f"{i},x,{w}" for i, w in enumerate(WORDS)),
        {"column": "kind"},
        tuple(BY_NAME),
    ),
    "three columns, by number": (
        "y.csv",
        lines(f"{i};x;{w}" for i, w in enumerate(WORDS)),
        {"column": 3},
        tuple(BY_NAME),
    ),
    "tsv": ("y.tsv", lines(f"im{i}.jpg\t{k}" for i, k in enumerate(Y)), {}, NUMBERS),
    "tsv of numbers": ("y.tsv", lines(f"{i}\t{k}" for i, k in enumerate(Y)), {}, NUMBERS),
    "path label": ("train.txt", lines(f"train/n{k:08d}/n{k:08d}_{i}.JPEG {k}" for i, k in enumerate(Y)), {}, NUMBERS),
    "path with spaces": (
        "train.txt",
        lines(f"my train/{i} of 100.jpg {w}" for i, w in enumerate(WORDS)),
        {},
        tuple(BY_NAME),
    ),
    "libsvm": ("y.libsvm", lines(f"{k} 1:0.{i} 7:1e-3" for i, k in enumerate(Y)), {}, NUMBERS),
    "pandas floats": ("y.txt", lines(f"{k}.0" for k in Y), {}, NUMBERS),
    "nan": ("y.txt", lines([*Y, *["nan"] * 5]), {}, NUMBERS),
    "empty cells": ("y.csv", "id,label\n" + lines(f"{i},{k}.0" for i, k in enumerate(Y)) + "\n100,\n101,", {}, NUMBERS),
    "-1 beside 0, 1, 2": ("y.txt", lines([*Y, *[-1] * 500]), {}, NUMBERS),
    "-100": ("y.txt", lines([*Y, *[-100] * 500]), {}, NUMBERS),
    "-1 said": ("y.txt", lines([*Y, *[-1] * 500]), {"ignore_index": -1}, NUMBERS),
    "255 said": ("y.txt", lines([*Y, *[255] * 500]), {"ignore_index": 255}, NUMBERS),
    "JSON object": ("n.json", json.dumps({"0": 60, "1": 30, "2": 10}, indent=1), {}, NUMBERS),
    "JSON object of names": ("n.json", json.dumps(BY_NAME), {}, tuple(BY_NAME)),
    "JSON array": ("n.json", json.dumps(COUNTS), {}, NUMBERS),
    "JSON labels": ("n.json", json.dumps(Y), {}, NUMBERS),
    "JSON names": ("n.json", json.dumps(WORDS), {}, tuple(BY_NAME)),
    "JSON path to label": ("n.json", json.dumps({f"a/{i}.png": k for i, k in enumerate(Y)}), {}, NUMBERS),
    "JSON lines": (
        "metadata.jsonl",
        lines(json.dumps({"file_name": f"{i}.png", "label": k, "boxes": [1, 2]}) for i, k in enumerate(Y)),
        {},
        NUMBERS,
    ),
    "JSON records": (
        "y.json",
        json.dumps([{"text": f"so {i}", "mood": w} for i, w in enumerate(WORDS)]),
        {},
        tuple(BY_NAME),
    ),
    "JSON records, by name": (
        "y.json",
        json.dumps([{"name": f"{i}.png", "label": k + 1, "target": k} for i, k in enumerate(Y)]),
        {"column": "target"},
        NUMBERS,
    ),
    "JSON records without some labels": ("y.json", json.dumps([{"label": k} for k in [*Y, None, None]]), {}, NUMBERS),
    "LVIS": ("lvis.json", json.dumps({"categories": LVIS}), {}, tuple(BY_NAME)),
    "LVIS's list": ("lvis.json", json.dumps(LVIS), {}, tuple(BY_NAME)),
    "LVIS, two counts": (
        "l.json",
        json.dumps([{**c, "instance_count": 99} for c in LVIS]),
        {"column": "image_count"},
        tuple(BY_NAME),
    ),
    "COCO": (
        "coco.json",
        json.dumps(
            {
                "categories": [{"id": 7 + i, "name": n} for i, n in enumerate(BY_NAME)],
                "annotations": [{"category_id": 7 + k} for k in Y],
            }
        ),
        {},
        tuple(BY_NAME),
    ),
    "header of a breed": (
        "y.csv",
        "id,breed\n" + lines(f"{i:x}f,{w}" for i, w in enumerate(WORDS)),
        {},
        tuple(BY_NAME),
    ),
    "header above files": (
        "y.csv",
        "which,breed\n" + lines(f"{i}.jpg,{w}" for i, w in enumerate(WORDS)),
        {},
        tuple(BY_NAME),
    ),
    "header above texts": (
        "y.csv",
        "text,mood\n" + lines(f'"so, {i}",{w}' for i, w in enumerate(WORDS)),
        {},
        tuple(BY_NAME),
    ),
    "header of another column": (
        "y.csv",
        "path,kind,split\n" + lines(f"{i}.jpg,{w},train" for i, w in enumerate(WORDS)),
        {"column": "kind"},
        tuple(BY_NAME),
    ),
    "header said": ("y.csv", "breed\n" + lines(WORDS), {"column": "breed"}, tuple(BY_NAME)),
    "header of a table said": (
        "y.csv",
        "which,breed\n" + lines(f"a{i},{w}" for i, w in enumerate(WORDS)),
        {"column": "breed"},
        tuple(BY_NAME),
    ),
    "pandas' index, tabs": ("y.tsv", "\tlabel\n" + lines(f"{i}\t{w}" for i, w in enumerate(WORDS)), {}, tuple(BY_NAME)),
    "tabs at the ends": ("y.txt", lines(f"{w}\t" for w in WORDS), {}, tuple(BY_NAME)),
    "commas at the ends": (
        "y.csv",
        "id,label,\n" + lines(f"{i},{w}," for i, w in enumerate(WORDS)),
        {},
        tuple(BY_NAME),
    ),
    "empty cells, tabs": ("y.tsv", "id\tlabel\n" + lines(f"{i}\t{k}" for i, k in enumerate([*Y, ""])), {}, NUMBERS),
    "pandas' index": ("y.csv", ",label\n" + lines(f"{i},{w}" for i, w in enumerate(WORDS)), {}, tuple(BY_NAME)),
    "pandas' counts": ("n.csv", ",count\n" + lines(f"{w},{n}" for w, n in BY_NAME.items()), {}, tuple(BY_NAME)),
    "numpy's savetxt": ("y.txt", lines(f"{k:.18e}" for k in Y), {}, NUMBERS),
    "numpy's savetxt of counts": ("n.txt", lines(f"{n:.18e}" for n in COUNTS), {}, NUMBERS),
    "count per line": ("n.txt", lines(COUNTS), {}, NUMBERS),
    "class count": ("n.txt", lines(f"{k} {n}" for k, n in enumerate(COUNTS)), {}, NUMBERS),
    "class,count": ("n.csv", "name,count\n" + lines(f"{k},{n}" for k, n in BY_NAME.items()), {}, tuple(BY_NAME)),
}


@pytest.mark.parametrize("case", READ)
def test_what_has_one_reading_is_read(case: str, tmp_path: Path) -> None:
    name, content, choices, names = READ[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = cs.label_counts(path, **choices)
    assert (found.counts.tolist(), found.names) == (COUNTS, names)
    assert f"{name} read as " in found.note
    assert "3 classes, 100 samples" in found.note


ARRAYS = [np.array(Y, float), np.array(Y)[:, None], np.array(Y)[None], np.array(WORDS), np.array(Y, np.uint8)]
ARRAYS += [np.eye(3)[Y], np.eye(3, dtype=bool)[Y], np.array([*Y, -1, -1]), np.array([*Y, -100])]


@pytest.mark.parametrize("array", ARRAYS)
def test_arrays_are_read(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", array)
    assert cs.class_counts(tmp_path / "y.npy").tolist() == COUNTS


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "y.txt",
            lines([*Y, -1]).encode(),
            "1 without a label left out; the label -1 is taken to mark samples without a label",
        ),
        ("y.txt", "\n".join(["kläffer"] * 60 + ["dog"] * 30 + ["elk"] * 10).encode("latin-1"), "not UTF-8"),
        (
            "y.txt",
            lines(["breed", *WORDS]).encode(),
            "breed, on the first line, has one sample: if that line is a header",
        ),
        ("y.npy", np.eye(4)[Y], "one-hot, one class for each of 4 columns"),
        ("y.txt", lines(["# of my set", "# 2026", *WORDS]).encode(), "2 lines of comments, beginning with #, left out"),
        ("y.csv", lines(["# mine", "#key,label", *(f"x,{y}" for y in WORDS)]).encode(), "a line of comments"),
    ],
)
def test_what_was_assumed_is_said(name: str, content: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    np.save(path, content) if isinstance(content, np.ndarray) else path.write_bytes(content)
    found = cs.label_counts(path)
    assert says in found.note
    assert sorted(found.counts.tolist()) == sorted([*COUNTS, 1] if "breed" in says else COUNTS)


@pytest.mark.parametrize("tags", [["#a", "#b", "#a"], ["#a", "b", "#a"]])
def test_hashtags_are_labels(tags: list[str], tmp_path: Path) -> None:
    (tmp_path / "y.txt").write_text(lines(tags))
    assert cs.label_counts(tmp_path / "y.txt").names == (tags[0], tags[1])


def test_names_in_latin_1_are_names(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_bytes("name,count\nkläffer,60\nélan,30\n".encode("latin-1"))
    assert cs.label_counts(tmp_path / "n.csv").names == ("kläffer", "élan")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x_train": np.zeros((100, 2)), "y_train": Y, "x_test": np.zeros(3), "y_test": [0, 1, 2]}, None),
        ({"features": np.zeros((100, 2)), "labels": np.array(Y)[:, None], "weight": np.eye(3)}, None),
        ({"y": Y, "labels": Y}, "one array of labels, called labels, train_labels, .* it holds y, labels;"),
        ({"arr_0": Y}, "it holds arr_0;"),
        ({"labels": np.array(["a", None], dtype=object)}, "not a readable .npy array"),
    ],
)
def test_an_archive_is_read_where_one_array_is_called_as_labels_are(tmp_path: Path, arrays: dict, said: str) -> None:
    np.savez(tmp_path / "y.npz", **arrays)
    if said is None:
        assert cs.class_counts(tmp_path / "y.npz").tolist() == COUNTS
    else:
        with pytest.raises(ValueError, match=said):
            cs.class_counts(tmp_path / "y.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "y.npz").read_bytes()[:90])
    with pytest.raises(ValueError, match="is not a readable"):
        cs.class_counts(tmp_path / "cut.npz")


@pytest.mark.parametrize("name", ["y.npy", "y.json", "y.txt"])
def test_truth_values_are_two_classes(name: str, tmp_path: Path) -> None:
    truth = [True] * 60 + [False] * 30
    if name == "y.npy":
        np.save(tmp_path / name, np.array(truth))
    else:
        (tmp_path / name).write_text(json.dumps(truth) if name == "y.json" else lines(truth))
    found = cs.label_counts(tmp_path / name)
    assert (found.names, found.counts.tolist()) == (("False", "True"), [30, 60])
    assert cs.counts_from_labels(truth)[0] == ["False", "True"]


def test_two_classes_by_sign_are_two_classes(tmp_path: Path) -> None:
    (tmp_path / "y.libsvm").write_text(lines(f"{y} 1:0.5" for y in [1] * 60 + [-1] * 30))
    found = cs.label_counts(tmp_path / "y.libsvm")
    assert (found.names, found.counts.tolist()) == (("-1", "1"), [30, 60])


def test_a_long_step_profile_one_count_per_line_is_counts(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("500\n" * 50 + "5\n" * 50)
    assert cs.class_counts(tmp_path / "n.txt").tolist() == [500] * 50 + [5] * 50


def test_labels_are_ordered_as_numbers(tmp_path: Path) -> None:
    y = [k for k in range(12) for _ in range(k + 1)]
    (tmp_path / "y.txt").write_text(lines(f"{k}.0" for k in y))
    assert cs.class_counts(tmp_path / "y.txt").tolist() == list(range(1, 13))


def test_image_folders_are_counted(tmp_path: Path) -> None:
    for name, n in BY_NAME.items():
        for i in range(n):
            file = tmp_path / "train" / name / f"part{i % 2}" / f"{i}.JPG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        (tmp_path / "train" / name / "notes.txt").touch()
    found = cs.label_counts(tmp_path / "train")
    assert (found.counts.tolist(), found.names) == (COUNTS, tuple(BY_NAME))
    with pytest.raises(ValueError, match="splits train"):
        cs.class_counts(tmp_path)


REFUSED: dict[str, tuple[str, str, str]] = {
    "several columns": ("y.csv", lines(f"{i},x,{k}" for i, k in enumerate(Y)), "3 columns"),
    "several named columns": ("y.csv", "a,b,c\n" + lines(f"{i},{k},{k}" for i, k in enumerate(Y)), "--column"),
    "two label columns": (
        "y.csv",
        "class,label\n" + lines(f"{w},{k}" for w, k in zip(WORDS, Y, strict=True)),
        "--column",
    ),
    "ids": ("y.txt", lines(f"sample-{i}" for i in range(100)), "100 different labels in 100 samples"),
    "negative, neutral, positive": ("y.txt", lines(k - 1 for k in Y), "--ignore-index -1"),
    "-1 beside classes from 1": ("y.txt", lines([-1 if k == 0 else k for k in Y]), "--ignore-index -1"),
    "several negative labels": ("y.txt", lines([*Y, -1, -2]), "--ignore-index -2"),
    "nothing but -1": ("y.txt", lines([-1] * 9), "--ignore-index -1"),
    "no text": ("y.txt", "\x80\x02cnumpy\x00", "UTF-8"),
    "void": ("y.txt", lines([*Y, *[255] * 500]), "--ignore-index 255"),
    "from 1": ("y.txt", lines(k + 1 for k in Y), "60,30,10"),
    "regression": ("y.txt", lines(f"{k / 7:.3f}" for k in Y), "not whole"),
    "regression to numpy's digits": ("y.txt", lines(f"{k / 7:.18e}" for k in Y), "not whole"),
    "counts or labels": ("n.txt", lines([500, 3, 500, 3]), "4 counts or 4 labels"),
    "no JSON": ("n.json", "{'cat': 1}", "not readable JSON"),
    "JSON of lists": ("n.json", '{"cat": [1, 2], "dog": [3]}', "one number per class"),
    "JSON records of lists": (
        "n.json",
        json.dumps([{"id": i, "label": [k, 7]} for i, k in enumerate(Y)]),
        "columns id",
    ),
    "JSON records of names": ("n.json", json.dumps([{"name": w} for w in BY_NAME]), "columns name"),
    "JSON with an empty class": ("n.json", '{"cat": 60, "dog": 0}', "class dog"),
    "LVIS, two counts": (
        "l.json",
        json.dumps([{**c, "instance_count": 99} for c in LVIS]),
        "image_count and instance_count",
    ),
    "only nan": ("y.txt", "nan\nnan", "no labels"),
    "one class": ("y.txt", "0\n0\n0", "at least two"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_several_readings_is_refused(case: str, tmp_path: Path) -> None:
    name, content, says = REFUSED[case]
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError) as error:
        cs.class_counts(tmp_path / name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_classes_without_samples_are_named(tmp_path: Path) -> None:
    (tmp_path / "y.txt").write_text(lines([0, 0, 1, 3, 3, 1]))
    found = cs.label_counts(tmp_path / "y.txt")
    assert found.names == ("0", "1", "3")
    assert "no sample has label 2" in found.note


class Series:
    """What is used of a pandas Series."""

    def __init__(self, values: list[Any], index: list[Any]) -> None:
        self.values, self.index = np.array(values), index

    def items(self) -> Any:
        return zip(self.index, self.values, strict=True)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (Counter(Y), NUMBERS),
        (Counter(reversed(WORDS)), tuple(BY_NAME)),
        ({2: 10, 0: 60, 1: 30}, NUMBERS),
        ({2.0: 10, 0.0: 60, 1.0: 30}, NUMBERS),
        ({"elk": 60, "dog": 30, "cat": 10}, ("elk", "dog", "cat")),  # a dict's own order is its writer's choice
        (Series([10, 60, 30], [2, 0, 1]), NUMBERS),
    ],
)
def test_counts_by_class(spec: Any, names: tuple[str, ...]) -> None:
    found = cs.label_counts(spec)
    assert (found.counts.tolist(), found.names) == (COUNTS, names)
    assert cs.Problem(spec, 0.01).class_counts.tolist() == COUNTS


@pytest.mark.parametrize(
    "labels", [Y, np.array(Y, float), np.eye(3)[Y], np.array(WORDS), WORDS, np.array(WORDS, object)]
)
def test_labels_are_counted(labels: Any) -> None:
    names, counts = cs.counts_from_labels(labels)
    assert counts.tolist() == COUNTS
    assert names == (list(BY_NAME) if isinstance(labels[0], str) else list(NUMBERS))


def test_labels_of_no_class_are_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="ignore_index=-100"):
        assert cs.counts_from_labels([*Y, -100])[1].tolist() == COUNTS
    with pytest.warns(UserWarning, match="ignore_index=-1`"):
        assert cs.counts_from_labels([*Y, -1])[0] == list(NUMBERS)


@pytest.mark.parametrize(
    "labels", [[0.5, 1.0], np.eye(3)[Y] * 0.9, np.ones((4, 3)), [float("nan"), 1.0], [], [0, 1, -1]]
)
def test_what_is_no_label_is_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match="`labels`"):
        cs.counts_from_labels(labels)


@pytest.mark.parametrize(
    "labels", [[0.0, float("nan"), 1.0], np.array(["a", None, "b"], object), np.array(["a", float("nan")], object)]
)
def test_missing_labels_are_counted_in_the_message(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"1 of . are missing"):
        cs.counts_from_labels(labels)


@pytest.mark.parametrize("labels", [Y, np.array(Y), WORDS, np.random.default_rng(0).integers(1, 4, 400)])
@pytest.mark.parametrize("series", [False, True])
def test_a_problem_of_labels_says_what_to_call(labels: Any, series: bool) -> None:
    labels = Series(list(labels), list(range(len(labels)))) if series else labels
    with pytest.raises(ValueError, match="counts_from_labels"):
        cs.Problem(labels, 0.01)


@pytest.mark.parametrize("counts", [[1, 1, 2, 2], list(range(50, 0, -1)), [3, 2, 1] * 20, [1] * 200])
def test_counts_that_are_small_stay_counts(counts: list[int]) -> None:
    assert cs.class_counts(counts).tolist() == counts


def test_the_commands_take_the_choices(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from collapsar.cli.app import app

    path = tmp_path / "y.csv"
    path.write_text("id,genus,kind\n" + lines(f"{i},x,{k}" for i, k in enumerate([*Y, -1, -1])))
    choices = [str(path), "--column", "kind", "--ignore-index", "-1"]
    for command in (["thresholds"], ["solve", "--lambda-z", "0.01"], ["advise", "--lambda-z", "0.001"]):
        result = CliRunner().invoke(app, [*command, *choices, "--json"])
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        assert record.get("class_counts", record["problem"]["class_counts"]) == COUNTS
        assert "2 without a label left out" in result.stderr


def test_an_archive_that_is_called_an_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "y.npy").open("wb") as file:
        np.savez(file, np.arange(3))
    with pytest.raises(ValueError, match=r"y.npy is not a readable .npy array"):
        cs.class_counts(tmp_path / "y.npy")
