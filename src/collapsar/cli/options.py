"""Arguments and options that several commands share, how they are read, and how commands take them in groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import numpy as np
import typer
from typer import Argument, Option
from typer.models import OptionInfo

import collapsar as cs
from collapsar.cli.app import app
from collapsar.core.checks import must_be_positive
from collapsar.core.counts import LabelCounts
from collapsar.core.normalization import GATHERS, norm_length

Counts = Annotated[
    str,
    Argument(
        metavar="COUNTS",
        help='Samples per class: "500x5,100x5" (five classes of 500, five of 100), "exp:5000:50:10" (geometric), '
        '"step:5000:50:10", "500,300,100", a file of labels or counts, or a folder with a folder of images per class.',
        show_default=False,
    ),
]
LambdaB = Annotated[
    float, Option("--lambda-b", help="Penalty of the head's bias; inf: no bias (the default), 0: free bias.")
]
Features = Annotated[
    Literal["signed", "nonnegative"],
    Option("--features", help="nonnegative: features that pass a ReLU, as in most networks; signed: all others."),
]
Json = Annotated[bool, Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Html = Annotated[Path | None, Option("--html", help="Also write a page that opens in any browser.")]
Picture = Annotated[Path | None, Option("--picture", help="Also write a picture, .png or .svg.")]
DataDir = Annotated[
    Path | None, Option("--data-dir", help="Folder with the data set, if it is not in a standard place.")
]
ClassNames = Annotated[
    Path | None, Option("--class-names", "--classes", help="Text file with one class name per line.")
]
Show = Annotated[bool, Option("--open/--no-open", help="Open the page in a browser.")]


def command(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command with these examples; each field of a dataclass that it takes is an option of its own.

    The help lists these options together, under the first line of the dataclass's docstring.
    """
    epilog = "\n\n".join(("Examples:", *(f"    {example}" for example in examples)))
    return lambda function: app.command(epilog=epilog)(_ungrouped(function))


def _ungrouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer reads it: the fields of its dataclasses in their places among its parameters."""
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}
    flat: dict[str, tuple[Any, Any]] = {}
    for p in parameters:
        if p.name in groups:
            hints = get_type_hints(p.annotation, include_extras=True)
            panel = (p.annotation.__doc__ or "").partition("\n")[0].rstrip(".")
            flat |= {f.name: _in_panel(panel, hints[f.name], f.default) for f in fields(p.annotation)}
        else:
            flat[p.name] = (p.annotation, p.default)

    @wraps(command)
    def called(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**given, **made)

    called.__annotations__ = {name: kind for name, (kind, _) in flat.items()}
    called.__signature__ = inspect.Signature(  # pyright: ignore[reportAttributeAccessIssue] - what typer reads
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in flat.items()
        ]
    )
    return called


def _in_panel(panel: str, annotation: Any, default: Any) -> tuple[Any, Any]:
    """An option's annotation and default, listed in this panel of the help."""
    if not isinstance(default, OptionInfo):
        kind, option = get_args(annotation)
        return Annotated[kind, _in_panel(panel, kind, option)[1]], default
    listed = copy(default)
    listed.rich_help_panel = panel
    return annotation, listed


BEHIND_A_NORM = "; behind a norm --lambda-w and --norm"


@dataclass(frozen=True)
class Prices:
    """The penalties."""

    lambda_z: float | None = Option(
        None, help="Penalty of the mean predictions, sqrt(lambda_w * lambda_h); a penalty is (lambda/2) ||.||^2."
    )
    lambda_w: float | None = Option(None, help="Penalty of the head's weight; with --lambda-h.")
    lambda_h: float | None = Option(None, help="Penalty of the features, summed over samples.")
    lambda_b: LambdaB = float("inf")

    def price(self, more: str = "") -> float:
        """lambda_z as given, or from the two penalties behind it; ``more`` names what a command accepts instead."""
        if self.lambda_z is not None and self.lambda_w is None and self.lambda_h is None:
            return self.lambda_z
        if self.lambda_z is None and self.lambda_w is not None and self.lambda_h is not None:
            must_be_positive(lambda_w=self.lambda_w, lambda_h=self.lambda_h)
            return cs.Penalties(self.lambda_w, self.lambda_h).lambda_z
        raise ValueError(f"give either --lambda-z, or both --lambda-w and --lambda-h{more}")


@dataclass(frozen=True)
class NormOptions:
    """A norm before the head."""

    norm: str | None = Option(
        None,
        metavar="<name or length>",
        help="What normalises the features: layernorm, rmsnorm, batchnorm (without gain) or cosine, with --width; or "
        "their length. With --lambda-w and no other penalty.",
    )
    width: int | None = Option(None, min=1, help="With a named norm: number of features before the head.")
    over: Literal["sample", "batch"] | None = Option(
        None, help="With a length: sample (the default) for LayerNorm, RMSNorm and cosine heads, batch for BatchNorm."
    )

    def normalised(self) -> tuple[float, Literal["sample", "batch"]] | None:
        """The length of the features, and whether per sample or batch; None without --norm."""
        if self.norm in ("layernorm", "rmsnorm", "batchnorm", "cosine"):
            if self.width is None or self.over is not None:
                raise ValueError(f"--norm {self.norm} goes with --width, the number of features, and without --over")
            return norm_length(self.norm, self.width), "batch" if self.norm == "batchnorm" else "sample"
        if self.width is not None:
            raise ValueError("--width goes with --norm layernorm, rmsnorm, batchnorm or cosine")
        if self.norm is None:
            if self.over is not None:
                raise ValueError(
                    f"--over {self.over} goes with --norm, the length of the features: sqrt(width) for a LayerNorm"
                )
            return None
        try:
            return float(self.norm), self.over or "sample"
        except ValueError:
            raise ValueError(
                f"--norm {self.norm} is neither a length of features nor layernorm, rmsnorm, batchnorm or cosine"
            ) from None

    def problem(
        self,
        counts: np.ndarray,
        level: float,
        lambda_b: float,
        loss: cs.Loss,
        features: Literal["signed", "nonnegative"],
    ) -> cs.Problem:
        """The problem at this lambda_z; behind a norm at this lambda_w."""
        found = self.normalised()
        if found is None:
            return cs.Problem(counts, level, lambda_b, loss, features=features)
        length, over = found
        return cs.Problem.from_normalized(
            counts, lambda_w=level, norm=length, over=over, lambda_b=lambda_b, loss=loss, features=features
        )


@dataclass(frozen=True)
class DecayOptions:
    """Weight decay in place of penalties.

    By SGD, or by Adam with the decay in its gradient.
    """

    weight_decay: float | None = Option(None, help="Weight decay on everything, without a feature penalty.")
    layers: int | None = Option(
        None, help="Without --norm: linear layers above the last normalisation, the head included."
    )
    gain_decay: float | None = Option(
        None, help="With --norm: weight decay of its gain; leave out if it has none or is exempt."
    )

    @property
    def given(self) -> bool:
        """Whether the options describe such a training."""
        return any(value is not None for value in vars(self).values())

    def check(self, norm: object) -> None:
        """Refuse layers together with a norm: they are counted from a norm further down."""
        if norm is not None and self.layers is not None:
            raise ValueError("--layers and --norm describe two different trainings; give one of them")

    def problem(
        self,
        counts: np.ndarray,
        norm: NormOptions,
        lambda_b: float | None,
        loss: cs.Loss,
        features: Literal["signed", "nonnegative"] | None,
    ) -> cs.Problem:
        """The problem that the training solves; None for the bias means as in ``advise``.

        Behind a norm the head's decay is its penalty, and the bias is free. One layer above a decayed norm: all three
        are penalised, and features come out of a ReLU.
        """
        self.check(norm.norm)
        wd = 1.0 if self.weight_decay is None else self.weight_decay
        must_be_positive(weight_decay=wd)
        if norm.norm is not None and self.gain_decay is None:
            return norm.problem(counts, wd, lambda_b or 0.0, loss, features or "signed")
        if norm.norm is not None and self.gain_decay is not None:
            if norm.norm in ("layernorm", "rmsnorm"):
                raise ValueError(f"--gain-decay with --norm {norm.norm}: {GATHERS}")
            if norm.norm != "batchnorm":
                raise ValueError(f"--gain-decay goes with --norm batchnorm, got {norm.norm}: it has no gain")
            how: Any = {"lambda_gain": self.gain_decay, "over": "batch", "features": features or "signed"}
            return cs.Problem.from_gain_decay(counts, lambda_w=wd, lambda_b=lambda_b or 0.0, loss=loss, **how)
        if self.gain_decay is not None or self.weight_decay is None:
            raise ValueError("--gain-decay goes with --norm, --layers with --weight-decay")
        if self.layers is None:
            raise ValueError("--weight-decay goes with --layers, or with --norm and --width")
        if self.layers != 1:
            way = f"`collapsar thresholds --layers {self.layers}` says where the smallest classes are lost"
            raise ValueError(f"no certified optimum is known for several decayed layers above a norm; {way}")
        how = {"features": features or "nonnegative", "loss": loss, "lambda_b": wd if lambda_b is None else lambda_b}
        return cs.Problem.from_penalties(counts, lambda_w=wd, lambda_h=wd / counts.sum(), **how)


def said(context: typer.Context) -> set[str]:
    """The names of the options that were given."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def listed_options(names: Iterable[str]) -> str:
    """Options by their names on the command line."""
    return ", ".join("COUNTS" if name == "counts" else f"--{name.replace('_', '-')}" for name in sorted(names))


@dataclass(frozen=True)
class LossOptions:
    """The loss.

    Options left out mean the plain cross-entropy.
    """

    class_weights: str | None = Option(None, help='Loss weight per class, e.g. "1x5,3x5".')
    offsets: str | None = Option(None, help="Logit offsets of the training loss, per class.")
    scales: str | None = Option(None, help="Logit scales per class (CDT, VS loss).")
    temperatures: str | None = Option(None, help="Temperatures per class of the sample (LDT).")
    smoothing: float = Option(0.0, help="Label smoothing, in [0, 1).")

    def vectors(self, num_classes: int) -> dict[str, list[float]]:
        """What is given per class."""
        given = {name: text for name, text in vars(self).items() if name != "smoothing" and text is not None}
        return {name: _class_vector(name, text, num_classes) for name, text in given.items()}

    def loss(self, num_classes: int) -> cs.Loss:
        """The loss that the options describe."""
        return cs.Loss(**self.vectors(num_classes), smoothing=self.smoothing)


def _class_vector(name: str, text: str, num_classes: int) -> list[float]:
    """Numbers per class from "1x5,3x5" or "1,1,3"."""
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


@dataclass(frozen=True)
class LabelFile:
    """A file of labels.

    How COUNTS is read if it is one.
    """

    column: str | None = Option(None, help="Name or number of the column with the labels in a table.")
    ignore_index: int | None = Option(
        None, help="Label of samples without a class, such as -1 or 255; they are left out."
    )

    def read(self, counts: str) -> LabelCounts:
        """Counts and names; how a file was read goes to stderr."""
        found = cs.label_counts(counts, column=self.column, ignore_index=self.ignore_index)
        if found.note:
            typer.echo(found.note, err=True)
        return found


def names_in(path: Path) -> list[str]:
    """Names unchanged, one per line: a blank may be a class."""
    if not path.is_file():
        raise ValueError(f"`--class-names` {path} is not a file; give a text file with one class name per line")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"`--class-names` {path} is not a text file; write one name per line") from None
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def picture_given(picture: Path | None, name: str = "--picture", kinds: Sequence[str] = (".png", ".svg")) -> None:
    """Refuse a picture in an unsupported format before any work is done."""
    if picture is not None and picture.suffix.lower() not in kinds:
        raise ValueError(f"`{name}` must end in {' or '.join(kinds)}, got {str(picture)!r}")
