"""Arguments and options that several commands share, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

import collapsar as cs
from collapsar.core.counts import LabelCounts

__all__ = [
    "BEHIND_A_NORM",
    "VECTORS",
    "ClassNames",
    "Column",
    "Counts",
    "DataDir",
    "Features",
    "Html",
    "IgnoreIndex",
    "Json",
    "LambdaB",
    "LambdaH",
    "LambdaW",
    "LambdaZ",
    "Norm",
    "Offsets",
    "Over",
    "Scales",
    "Show",
    "Smoothing",
    "Temperatures",
    "Weights",
    "class_vector",
    "counts_given",
    "loss_given",
    "names_in",
    "over_of",
    "picture_given",
    "price",
]

Counts = Annotated[
    str,
    typer.Argument(
        metavar="COUNTS",
        help='Samples per class: "500x5,100x5" (five classes of 500, five of 100), "exp:5000:50:10" (geometric), '
        '"step:5000:50:10", plain "500,300,100", or a file of labels or counts, or a folder of folders of images.',
        show_default=False,
    ),
]
LambdaZ = Annotated[
    float | None,
    typer.Option("--lambda-z", help="Price of the predictions, sqrt(lambda_w * lambda_h), each penalty with its half."),
]
LambdaW = Annotated[float | None, typer.Option("--lambda-w", help="Penalty of the head's weight; with --lambda-h.")]
LambdaH = Annotated[float | None, typer.Option("--lambda-h", help="Penalty of the features, summed over samples.")]


def _length(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a number: give the length of the features, sqrt(width) behind a LayerNorm, RMSNorm or "
            "BatchNorm without a gain"
        ) from None


Norm = Annotated[
    float | None,
    typer.Option(
        "--norm",
        parser=_length,
        metavar="<float>",
        help="Length of features behind a norm without gain, sqrt(width); with --lambda-w alone.",
    ),
]
Over = Annotated[
    Literal["sample", "batch"] | None,
    typer.Option(
        "--over",
        help="With --norm: sample (the default) for LayerNorm, RMSNorm and cosine heads, batch for BatchNorm.",
    ),
]
LambdaB = Annotated[
    float, typer.Option("--lambda-b", help="Penalty of the head's bias; inf: no bias (the default), 0: free bias.")
]
Features = Annotated[
    Literal["signed", "nonnegative"],
    typer.Option("--features", help="nonnegative: features out of a ReLU, as in most networks; signed: without."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Weights = Annotated[str | None, typer.Option("--class-weights", help='Loss weight per class, e.g. "1x5,3x5".')]
Offsets = Annotated[str | None, typer.Option("--offsets", help="Logit offsets of the training loss, per class.")]
Scales = Annotated[str | None, typer.Option("--scales", help="Logit scales per class (CDT, VS loss).")]
Temperatures = Annotated[str | None, typer.Option("--temperatures", help="Temperatures per class of the sample (LDT).")]
Column = Annotated[
    str | None, typer.Option("--column", help="Of a table of labels: name or number of the column with the labels.")
]
IgnoreIndex = Annotated[
    int | None, typer.Option("--ignore-index", help="Label of samples without one, such as -1 or 255: left out.")
]
Smoothing = Annotated[float, typer.Option("--smoothing", help="Label smoothing, in [0, 1).")]
Html = Annotated[Path | None, typer.Option("--html", help="Also write a page that opens in any browser.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where the data set lies, if not in a standard place.")
]
ClassNames = Annotated[
    Path | None, typer.Option("--class-names", "--classes", help="Text file with one class name per line.")
]
Show = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")]


def counts_given(counts: str, column: str | None, ignore_index: int | None) -> LabelCounts:
    """Counts and names; how a file was read goes to stderr."""
    found = cs.label_counts(counts, column=column, ignore_index=ignore_index)
    if found.note:
        typer.echo(found.note, err=True)
    return found


def names_in(path: Path) -> list[str]:
    """Names as they stand, one per line: a blank may be a class."""
    if not path.is_file():
        raise ValueError(f"`--class-names` {path} is no file; give a text file with one class name per line")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"`--class-names` {path} is not a text file; write one name per line") from None
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def picture_given(picture: Path | None, name: str = "--picture", kinds: Sequence[str] = (".png", ".svg")) -> None:
    """Refuse a picture in a format that is not written, before the work."""
    if picture is not None and picture.suffix.lower() not in kinds:
        raise ValueError(f"`{name}` must end in {' or '.join(kinds)}, got {str(picture)!r}")


VECTORS = ("class_weights", "offsets", "scales", "temperatures")


def loss_given(given: Mapping[str, Any], num_classes: int) -> cs.Loss:
    """The loss that the options describe."""
    vectors = {name: class_vector(name, given[name], num_classes) for name in VECTORS}
    return cs.Loss(**vectors, smoothing=given["smoothing"])


def class_vector(name: str, text: str | None, num_classes: int) -> list[float] | None:
    """Numbers per class from "1x5,3x5" or "1,1,3"."""
    if text is None:
        return None
    values: list[float] = []
    for group in text.split(","):
        number, _, repeat = group.partition("x")
        try:
            values += [float(number)] * (int(repeat) if repeat else 1)
        except ValueError:
            raise ValueError(
                f'`{name}` cannot be read from {text!r} (at {group!r}); write "1x5,3x5" or "1,1,3"'
            ) from None
    if len(values) != num_classes:
        raise ValueError(f"`{name}` must have one entry per class: got {len(values)} for {num_classes} classes")
    return values


def over_of(norm: float | None, over: Literal["sample", "batch"] | None) -> Literal["sample", "batch"]:
    """What features are normalised over; refuses to say nothing about a norm whose length is not given."""
    if over is not None and norm is None:
        raise ValueError(f"--over {over} goes with --norm, the length of the features: sqrt(width) for a LayerNorm")
    return over or "sample"


BEHIND_A_NORM = "; behind a norm --lambda-w and --norm"


def price(lambda_z: float | None, lambda_w: float | None, lambda_h: float | None, more: str = "") -> float:
    """Return lambda_z as given, or from the two penalties behind it; ``more`` is what a command takes instead."""
    if lambda_z is not None and lambda_w is None and lambda_h is None:
        return lambda_z
    if lambda_z is None and lambda_w is not None and lambda_h is not None:
        for name, value in (("lambda_w", lambda_w), ("lambda_h", lambda_h)):
            if not 0 < value < np.inf:
                raise ValueError(f"`{name}` must be finite and > 0, got {value!r}")
        return cs.Penalties(lambda_w, lambda_h).lambda_z
    raise ValueError(f"give either --lambda-z, or both --lambda-w and --lambda-h{more}")
