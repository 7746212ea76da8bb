"""Files of labels and of counts as people have them: lists, tables, JSON, image folders, arrays.

A file that can mean only one thing is read; otherwise it is refused, and the error says how to choose. Nothing is
unpickled.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labelled = list[Any]
"""One label per sample."""
Counted = dict[str, Any]
"""Samples by class name, in the classes' order."""

_IMAGES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}  # torchvision's
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_LABEL_WORDS = {"label", "labels", "class", "classes", "target", "targets", "y", "category", "class_id", "category_id"}
_LABEL_WORDS |= {"label_id", "class_name", "class_idx", "label_idx", "fine_label", "species"}
_LABEL_ARRAYS = ("labels", "train_labels", "y_train", "y", "targets")  # of an archive, as `collapsar train` takes them
_COUNT_WORDS = {"count", "counts", "n", "num", "num_samples", "num_images", "samples", "images", "image_count"}
_COUNT_WORDS |= {"instance_count", "frequency", "freq", "class_counts", "class_count"}
# Of a column that says which sample it is; without a name: pandas' index.
_SAMPLE_WORDS = {"", "id", "image", "image_id", "image_name", "img", "index", "idx", "file", "file_name", "filename"}
_SAMPLE_WORDS |= {"path", "name", "key", "uuid", "text", "sentence", "review", "comment", "tweet", "question"}
_COUNT_FIELDS = ("image_count", "instance_count", "count", "num_samples", "num_images")
_CHOOSE = "`column` (on the command line --column)"
_DECIMAL = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d\d?)?")
_FILE_NAME = re.compile(r"[/\\]|\.[A-Za-z]\w{1,4}$")
_LIBSVM = re.compile(r"(\S+)(\s+\d+:\S+)+")
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f]")  # no text has them
_PATH_LABEL = re.compile(r"(\S.*?)\s+(\S+)")


def read_label_file(path: Path, column: str | int | None = None) -> tuple[Labelled | Counted, str]:
    """One label per sample, or samples by class, whichever the file holds, and what was assumed in reading it.

    Args:
        path: A text file (one label or one count per line, ``path label``, ``class count``, CSV, TSV, LIBSVM), JSON
            (an array, an object of counts, an object for each sample, LVIS or COCO categories) or JSON lines, a
            ``.npy`` array, any of these in gzip; an ``.npz`` archive with one array of labels; or a folder with one
            folder of images per class.
        column: In a table, the name or number (from 1) of the column with the labels; for categories, the field with
            the counts.

    Raises:
        ValueError: The file cannot be read, or can be read in several ways.
    """
    if path.is_dir():
        return _folder(path), ""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"`class_counts`: {path} cannot be read ({error})") from None
    if raw[:4] == b"PK\x03\x04" and path.suffix == ".npz":
        return _array(_labels_in_archive(raw, path), path)
    if raw[:6] == b"\x93NUMPY" or path.suffix == ".npy":
        return _array(raw, path)
    text, assumed = _decoded(raw, path)
    if path.name.removesuffix(".gz").endswith(".json") or text.lstrip()[:1] in ("{", "["):
        return _json(text, path, column), assumed
    lines, left_out = _without_comments([line for line in text.splitlines() if line.strip()])
    if not lines:
        raise ValueError(f"`class_counts`: {path} holds no labels; give one label per line")
    return _table(lines, path, column), "; ".join(filter(None, (assumed, left_out)))


def _decoded(raw: bytes, path: Path) -> tuple[str, str]:
    wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return raw.decode("utf-16" if wide else "utf-8-sig"), ""
    except UnicodeDecodeError:
        pass
    if not wide and not _BINARY.search(raw):  # one byte is one letter: even a wrong letter keeps equal names equal
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode("cp1252"), "not UTF-8, so letters with accents are taken for Latin-1"
    raise ValueError(
        f"`class_counts`: {path} is not text in UTF-8; save it as UTF-8 with one label per line, or as a .npy array"
    )


def _labels_in_archive(raw: bytes, path: Path) -> bytes:
    """The array of an ``.npz`` that has a usual name of labels, as the bytes of a ``.npy``."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            found = [name for name in names if name in _LABEL_ARRAYS]
            if len(found) == 1:
                return archive.read(f"{found[0]}.npy")
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"`class_counts`: {path} is not a readable .npz archive ({error})") from None
    raise ValueError(
        f"`class_counts`: {path} must hold one array of labels, called {', '.join(_LABEL_ARRAYS[:-1])} or "
        f"{_LABEL_ARRAYS[-1]}; it holds {', '.join(names)}; save the labels as a .npy array"
    )


def _array(raw: bytes, path: Path) -> tuple[Labelled, str]:
    try:
        array = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"`class_counts`: {path} is not a readable .npy array of labels ({error})") from None
    labels, assumed = labels_of_array(array)
    if labels.ndim != 1:
        raise ValueError(
            f"`class_counts`: {path} has shape {array.shape}; labels have shape (N,), or (N, K) with one 1 in each row"
        )
    return (labels.astype(str) if labels.dtype.kind == "b" else labels).tolist(), assumed


def labels_of_array(array: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Labels stored as a column, a row or one-hot, as shape (N,), and what was assumed; any other array unchanged."""
    if array.ndim == 2 and 1 in array.shape:
        return array.ravel(), ""
    one_hot = array.ndim == 2 and array.size > 0 and array.dtype.kind in "biuf"
    if one_hot and bool(((array == 0) | (array == 1)).all() and (array.sum(axis=1) == 1).all()):
        return array.argmax(axis=1), f"one-hot, one class for each of {array.shape[1]} columns"
    return array, ""


def _folder(path: Path) -> Counted:
    """Images by class, in torchvision's order of classes: names as text."""
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names = [entry.name for entry in classes]
    if names and all(name.lower() in _SPLITS for name in names):
        raise ValueError(f"`class_counts`: {path} holds the splits {', '.join(names)}; name one: {classes[0]}")
    counts = {entry.name: sum(file.suffix.lower() in _IMAGES for file in entry.rglob("*")) for entry in classes}
    if not any(counts.values()):
        raise ValueError(f"`class_counts`: {path} must have one folder of images per class; its folders have none")
    return counts


# --- JSON


def _json(text: str, path: Path, column: str | int | None) -> Labelled | Counted:
    try:
        value = json.loads(text)
    except ValueError as error:
        try:  # an object on each line
            value = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise ValueError(f"`class_counts`: {path} is not readable JSON ({error})") from None
    if isinstance(value, dict) and isinstance(value.get("categories"), list):
        return _categories(value["categories"], value.get("annotations"), path, column)
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        counted = {*_COUNT_FIELDS, *([] if column is None or str(column).lower() in _LABEL_WORDS else [str(column)])}
        if all("name" in entry and counted & entry.keys() for entry in value):
            return _categories(value, None, path, column)
        return _records(value, path, column)
    if isinstance(value, dict) and value:
        if all(_FILE_NAME.search(name) for name in value):
            return _scalars(list(value.values()), path)
        return dict(zip(value, _scalars(list(value.values()), path), strict=True))
    if isinstance(value, list) and value:
        values = _scalars(value, path)
        whole = whole_numbers(values)
        if whole is not None and min(whole) > 0:  # labels from 0 would have a 0
            return dict(zip(map(str, range(len(whole))), whole, strict=True))
        return values
    raise ValueError(f'`class_counts`: {path} must hold counts, such as {{"cat": 60, "dog": 30}}, or labels')


def _scalars(values: list[Any], path: Path) -> list[Any]:
    if all(isinstance(v, bool) for v in values):
        return [str(v) for v in values]
    if not all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in values):
        raise ValueError(f'`class_counts`: {path} must hold one number per class, such as {{"cat": 60, "dog": 30}}')
    return values


def _records(entries: list[dict[str, Any]], path: Path, column: str | int | None) -> Labelled | Counted:
    """A table with an object for each row; fields that hold lists or objects are not columns."""
    table = {
        name: ["" if (cell := entry.get(name)) is None else str(cell) for entry in entries]
        for name in entries[0]
        if not any(isinstance(entry.get(name), list | dict) for entry in entries)
    }
    names, columns = list(table), list(table.values())
    if column is not None:
        return columns[_chosen(column, names, len(names), path)]
    return _named_columns(names, columns, path)


def _categories(entries: list[Any], annotations: Any, path: Path, column: str | int | None) -> Counted:
    """LVIS's categories with their counts, or COCO's with the annotations to be counted, in the order of the ids."""
    if not all(isinstance(entry, dict) and "name" in entry for entry in entries):
        raise ValueError(f"`class_counts`: {path}: each category must have a name")
    entries = sorted(entries, key=lambda entry: entry.get("id", 0))
    fields = [str(column)] if column is not None else [f for f in _COUNT_FIELDS if all(f in e for e in entries)]
    if len(fields) > 1 and any(entry[fields[0]] != entry[fields[1]] for entry in entries):
        raise ValueError(f"`class_counts`: {path} has counts in {' and '.join(fields)}; choose one with {_CHOOSE}")
    if fields:
        if not all(fields[0] in entry for entry in entries):
            raise ValueError(f"`class_counts`: {path}: its categories have no {fields[0]!r}, only {sorted(entries[0])}")
        return {str(entry["name"]): entry[fields[0]] for entry in entries}
    if not isinstance(annotations, list):
        fields_known = " or ".join(_COUNT_FIELDS[:3])
        raise ValueError(f"`class_counts`: {path}: its categories have no {fields_known}")  # noqa: TRY004
    found = Counter(entry.get("category_id") for entry in annotations)
    return {str(entry["name"]): found[entry.get("id")] for entry in entries}


# --- text


def _without_comments(lines: list[str]) -> tuple[list[str], str]:
    """The lines without leading comments, such as the header of ``numpy.savetxt``; and what was left out."""
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    if first == 0 or any(line.startswith("#") for line in lines[first:]):  # hashtags may be labels
        return lines, ""
    if any(lines[first].count(mark) == lines[first - 1].count(mark) > 0 for mark in "\t;,"):  # names of columns
        first -= 1
        lines = [*lines[:first], lines[first].lstrip("# "), *lines[first + 1 :]]
    said = {0: "", 1: "a line of comments, beginning with #, left out"}
    return lines[first:], said.get(first, f"{first} lines of comments, beginning with #, left out")


def _table(lines: list[str], path: Path, column: str | int | None) -> Labelled | Counted:
    if column is None and all(_LIBSVM.fullmatch(line.strip()) for line in lines):
        return [line.split()[0] for line in lines]
    rows = _rows(lines)
    width, named = len(rows[0]), isinstance(column, str) and not column.isdecimal() and column in rows[0]
    if width == 1:
        cells = [row[0] for row in rows]
        header, body = (cells[0], cells[1:]) if named else _header(cells)
        if column not in (None, 1, "1", header):
            raise ValueError(f"`class_counts`: {path} has one column, no {column!r}")
        counted = header is not None and header.lower() in _COUNT_WORDS
        if counted or _looks_counted(body, path):
            return dict(zip(map(str, range(len(body))), body, strict=True))
        return body
    columns: list[list[str]] = [list(cells) for cells in zip(*rows, strict=True)]
    names = rows[0] if named or _is_header(columns) else None
    columns = [cells[1:] for cells in columns] if names else columns
    if column is not None:
        return columns[_chosen(column, names, width, path)]
    if names:
        return _named_columns(names, columns, path)
    if width == 2:
        return _two_columns(columns[0], columns[1], path)
    raise ValueError(
        f"`class_counts`: {path} has {width} columns; choose the one with the labels by {_CHOOSE}, counted from 1"
    )


def _rows(lines: list[str]) -> list[list[str]]:
    """Cells by line: of a table with tabs, semicolons or commas, of ``path label`` or of single labels."""
    bare = [line.strip() for line in lines]
    for delimiter, cells in itertools.product("\t;,", (bare, lines)):  # tabs at an end may stand for empty cells
        if delimiter in cells[0]:
            rows = [[cell.strip() for cell in row] for row in csv.reader(cells, delimiter=delimiter)]
            if len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows):
                return rows if any(row[-1] for row in rows) else [row[:-1] for row in rows]
    pairs = [_PATH_LABEL.fullmatch(line) for line in bare]
    found = [match.groups() for match in pairs if match]
    if len(found) == len(lines) and (
        whole_numbers([b for _, b in found]) or all(_FILE_NAME.search(a) for a, _ in found)
    ):
        return [list(pair) for pair in found]
    return [[line[1:-1] if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'" else line] for line in bare]


def _header(cells: list[str]) -> tuple[str | None, list[str]]:
    """A single column's header, if its first line is one, and the rest."""
    first, rest = cells[0], cells[1:]
    word = first.lower() in _LABEL_WORDS | _COUNT_WORDS and first not in rest
    if rest and not is_number(first) and (word or all(is_number(cell) for cell in rest)):
        return first, rest
    return None, cells


def _is_header(columns: list[list[str]]) -> bool:
    first = [cells[0] for cells in columns]
    if len(columns[0]) == 1 or any(is_number(cell) and cell for cell in first) or "" in first[1:]:
        return False
    known = _LABEL_WORDS | _COUNT_WORDS | _SAMPLE_WORDS
    return any(
        (cell.lower() in known and cells.count(cell) == 1)
        or all(map(is_number, cells[1:]))
        or (not _FILE_NAME.search(cell) and all(map(_FILE_NAME.search, cells[1:])))
        for cell, cells in zip(first, columns, strict=True)
    )


def is_number(cell: Any) -> bool:
    """Whether a cell holds a number, or nothing."""
    try:
        float(cell)
    except (TypeError, ValueError):
        return cell == ""
    return True


def _chosen(column: str | int, names: list[str] | None, width: int, path: Path) -> int:
    if names and str(column) in names:
        return names.index(str(column))
    if re.fullmatch(r"\d+", str(column)) and 1 <= int(column) <= width:
        return int(column) - 1
    have = f"the columns {', '.join(names)}" if names else f"{width} columns without names, counted from 1"
    raise ValueError(f"`column`: {path} has {have}, no {column!r}")


def _named_columns(names: list[str], columns: list[list[str]], path: Path) -> Labelled | Counted:
    labelled = [j for j, name in enumerate(names) if name.lower() in _LABEL_WORDS]
    counted = [j for j, name in enumerate(names) if name.lower() in _COUNT_WORDS]
    if len(names) == 2 and len(counted) == 1 and len(set(columns[1 - counted[0]])) == len(columns[0]):
        return dict(zip(columns[1 - counted[0]], columns[counted[0]], strict=True))
    if len(labelled) == 1 and not counted:
        return columns[labelled[0]]
    if (
        len(names) == 2
        and not labelled
        and (names[0].lower() in _SAMPLE_WORDS or all(map(_FILE_NAME.search, columns[0])))
    ):
        return _two_columns(columns[0], columns[1], path)
    raise ValueError(
        f"`class_counts`: {path} has the columns {', '.join(names)}; choose the one with the labels by {_CHOOSE}"
    )


def _two_columns(first: list[str], second: list[str], path: Path) -> Labelled | Counted:
    """``path label`` or ``class count`` lines."""
    n = len(first)
    if all(_FILE_NAME.search(cell) for cell in first):
        return second
    whole = whole_numbers(second)
    if len(set(first)) == n:
        if whole is not None and min(whole) > 0 and max(whole) >= n:  # labels would leave most classes empty
            return dict(zip(first, whole, strict=True))
        if whole is not None and set(whole) == set(range(max(whole) + 1)) and len(set(whole)) < n:
            return second
        if whole is None and 2 * len(set(second)) <= n:
            return second
    raise ValueError(
        f"`class_counts`: {path} has two columns; if one holds labels, choose it with {_CHOOSE} 1 or 2; to give counts "
        'of classes, use JSON such as {"cat": 60, "dog": 30}'
    )


def _looks_counted(cells: list[str], path: Path) -> bool:
    """Whether numbers, one per line, are counts: as labels they would name most classes without giving them samples."""
    whole = whole_numbers(cells)
    if whole is None or min(whole) < 1 or max(whole) < len(whole):
        return False
    distinct, falling = len(set(whole)) == len(whole), all(a >= b for a, b in itertools.pairwise(whole))
    if distinct or falling or min(whole) >= len(whole):
        return True
    if max(whole) >= 10 * len(whole):
        raise ValueError(
            f"`class_counts`: {path} could be {len(whole)} counts or {len(whole)} labels; give counts as a JSON array, "
            "or labels as whole numbers from 0 or as names"
        )
    return False


def whole_numbers(cells: Sequence[Any]) -> list[int] | None:
    """The cells as whole numbers, including "3.0" and numpy's "3.0e+00", or None if one is anything else."""
    texts = list(map(str, cells))
    if all(map(str.isdecimal, texts)):  # of any length
        return list(map(int, texts)) or None
    values = list(map(float, texts)) if all(map(_DECIMAL.fullmatch, texts)) else [math.nan]
    return list(map(int, values)) if all(map(float.is_integer, values)) else None
