"""``collapsar advise``: from counts and penalties to remedies with numbers. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import collapsar as cs
from collapsar.advise.advice import advise as advise_on
from collapsar.advise.recipe import Norm, Recipe, Schedule
from collapsar.advise.sources import advise_diagnosis, joined_sizes, load_diagnosis
from collapsar.advise.standard import StandardAdvice, advise_standard
from collapsar.advise.weight_decay import advise_weight_decay
from collapsar.cli.app import app
from collapsar.cli.options import (
    VECTORS,
    Column,
    Features,
    Html,
    IgnoreIndex,
    Json,
    LambdaB,
    LambdaH,
    LambdaW,
    LambdaZ,
    Offsets,
    Scales,
    Smoothing,
    Temperatures,
    Weights,
    counts_given,
    loss_given,
    picture_given,
    price,
)
from collapsar.cli.output import RELU_WORDS, plain_table, print_json, write_picture
from collapsar.core.counts import LabelCounts
from collapsar.core.files import write_atomically
from collapsar.core.records import to_json
from collapsar.report.advice import (
    DECAY_COLUMNS,
    SUGGESTION_COLUMNS,
    class_words,
    decay_rows,
    decay_words,
    prior_words,
    remedy_words,
    room_words,
    suggestion_rows,
    verdict_words,
)
from collapsar.report.words import number_text, problem_words

__all__ = ["advise"]

MOST_ROWS = 12

_COUNTS_HELP = "As for `collapsar solve`: a labels file, or 500x5,100x5, or exp:..."
CountsOrNone = Annotated[str | None, typer.Argument(metavar="COUNTS", help=_COUNTS_HELP)]
WeightDecay = Annotated[
    float | None, typer.Option("--weight-decay", help="Ordinary training: decay on everything, no feature penalty.")
]
Layers = Annotated[
    int | None,
    typer.Option(
        "--layers",
        help="With --weight-decay or --diagnosis: linear layers above the last normalisation, with the head.",
    ),
]
Optimizer = Annotated[Literal["sgd", "adam", "adamw"], typer.Option("--optimizer", help="What applies the decay.")]
StandardNorm = Annotated[
    Norm | None, typer.Option("--norm", help="Standard training: what normalises the features before the head.")
]
Lr = Annotated[float | None, typer.Option("--lr", help="With --norm: learning rate at its peak.")]
Steps = Annotated[int | None, typer.Option("--steps", help="With --norm: updates in the run.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="With --norm: samples per update.")]
Width = Annotated[int | None, typer.Option("--width", help="With --norm: features before the head.")]
LrSchedule = Annotated[Schedule, typer.Option("--schedule", help="With --norm: how the learning rate goes down.")]
GainDecay = Annotated[
    float | None,
    typer.Option("--gain-decay", help="With --norm: weight decay of its gain; leave out if it has none or is exempt."),
]
Length = Annotated[
    float | None,
    typer.Option("--length", help="With --norm: of the features; default sqrt(width), and 16, its scale, for cosine."),
]
HeadWeightDecay = Annotated[
    float | None, typer.Option("--head-weight-decay", help="With --norm: the head's own, if not --weight-decay.")
]
Diagnosed = Annotated[
    Path | None,
    typer.Option(
        "--diagnosis",
        help="What `collapsar diagnose` printed as --json, or what it reads: a run's folder, a file of features.",
    ),
]
Margin = Annotated[float, typer.Option("--margin", help="Room a remedy must leave: 0.1 is 10% in lambda_z.")]
Exact = Annotated[bool, typer.Option("--exact", help="Solve for every class size; by default more than 16 are joined.")]
Picture = Annotated[Path | None, typer.Option("--picture", help="Also draw before and after, .png or .svg.")]


@app.command(
    epilog="""Examples:

    collapsar advise 500x5,100x5 --lambda-z 0.0036 --lambda-b 0.02

    collapsar advise labels.txt --lambda-w 5e-4 --lambda-h 1e-5 --html advice.html

    collapsar advise labels.txt --weight-decay 5e-4 --layers 2

    collapsar advise labels.txt --optimizer adamw --weight-decay .05 --lr 1e-3 --steps 100000 --batch-size 256
      --norm layernorm --width 768

    collapsar advise --diagnosis diagnosis.json --json"""
)
def advise(
    context: typer.Context,
    counts: CountsOrNone = None,
    lambda_z: LambdaZ = None,
    lambda_w: LambdaW = None,
    lambda_h: LambdaH = None,
    lambda_b: LambdaB = float("inf"),
    features: Features = "signed",
    weight_decay: WeightDecay = None,
    layers: Layers = None,
    optimizer: Optimizer = "sgd",
    norm: StandardNorm = None,
    lr: Lr = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    width: Width = None,
    schedule: LrSchedule = "cosine",
    gain_decay: GainDecay = None,
    head_weight_decay: HeadWeightDecay = None,
    length: Length = None,
    diagnosis: Diagnosed = None,
    margin: Margin = 0.1,
    class_weights: Weights = None,
    offsets: Offsets = None,
    scales: Scales = None,
    temperatures: Temperatures = None,
    smoothing: Smoothing = 0.0,
    column: Column = None,
    ignore_index: IgnoreIndex = None,
    exact: Exact = False,
    html: Html = None,
    picture: Picture = None,
    as_json: Json = False,
) -> None:
    """Which classes merge at your penalties, and the least change that keeps them separated, with its price.

    Every remedy is the least setting that brings each class across its threshold with room to spare, checked by solving
    the problem after the change. No training, no torch.
    """
    given = context.params
    recipe = _recipe(context)
    _check_options(context, recipe is not None)
    picture_given(picture)
    if recipe is not None:
        _print_standard(advise_standard(_given(counts, column, ignore_index).counts, recipe), recipe, as_json=as_json)
        return
    if optimizer == "adamw":
        raise ValueError(
            "--optimizer adamw: its decay is decoupled from the gradient and is the derivative of no penalty; say how "
            f"far it has acted with {_NEEDED}, or put the penalties into the loss"
        )
    if weight_decay is not None:
        n = _given(counts, column, ignore_index).counts
        decay = advise_weight_decay(n, weight_decay, layers=layers, optimizer=optimizer, margin=margin)
        _print_decay(decay.to_dict(), as_json=as_json)
        return
    if diagnosis is not None:
        record = advise_diagnosis(_diagnosis(diagnosis), margin, layers=layers)
    else:
        record = _on_counts(given)
    _write(record, html, picture)
    if as_json:
        print_json(record)
    else:
        _print_advice(record)


def _on_counts(given: dict[str, Any]) -> dict[str, Any]:
    """Advice at the counts, penalties and loss that the options say."""
    read = _given(given["counts"], given["column"], given["ignore_index"])
    n, names, cautions = read.counts, read.names, ()
    loss = loss_given(given, n.size)
    if not given["exact"] and not any(given[name] for name in VECTORS):
        n, cautions = _joined(n)
    lambda_z = price(given["lambda_z"], given["lambda_w"], given["lambda_h"], _OTHER_TRAININGS)
    problem = cs.Problem(n, lambda_z, given["lambda_b"], loss, features=given["features"])
    advice = advise_on(problem, given["margin"], class_names=names).to_dict()
    return {**advice, "cautions": list(cautions), "from_diagnosis": False}


_NEEDED = "--norm, --lr, --steps, --batch-size, --width and --weight-decay"
_OTHER_TRAININGS = f"; for weight decay alone --weight-decay, or better {_NEEDED}"
_OF_STANDARD = ("norm", "lr", "steps", "batch_size", "width", "schedule", "gain_decay", "head_weight_decay", "length")


def _said(context: typer.Context) -> set[str]:
    """The options that the user wrote."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _recipe(context: typer.Context) -> Recipe | None:
    """The standard training that the options describe, None without --norm."""
    given = context.params
    if given["norm"] is None:
        said = _said(context)
        rest = [name for name in _OF_STANDARD if name in said]
        if rest:
            raise ValueError(
                f"--{rest[0].replace('_', '-')} goes with --norm: layernorm, rmsnorm, cosine, batchnorm, none"
            )
        return None
    if given["layers"] is not None:
        raise ValueError("--layers and --norm describe two different trainings; give one of them")
    if given["length"] is not None and (given["norm"] == "none" or given["gain_decay"] is not None):
        raise ValueError("--length goes with a norm that fixes it: not with --norm none, and not with --gain-decay")
    own = given["head_weight_decay"]
    if own is not None and not 0 < own < float("inf"):
        raise ValueError(
            f"--head-weight-decay must be finite and > 0, got {own:g}: without decay of the head nothing merges"
        )
    decay = given["weight_decay"] if own is None else own
    needed = {name: given[name] for name in ("lr", "steps", "batch_size", "width")} | {"weight_decay": decay}
    missing = [f"--{name.replace('_', '-')}" for name, value in needed.items() if value is None]
    if missing:
        raise ValueError(f"--norm needs {', '.join(missing)} as well: they say how far the decay has acted")
    rest = {name: given[name] for name in ("norm", "schedule", "gain_decay", "length")}
    return Recipe(given["optimizer"], **needed, **rest)


def _print_standard(advice: StandardAdvice, recipe: Recipe, *, as_json: bool) -> None:
    if as_json:
        print_json(advice.to_dict())
        return
    for name, text in (("verdict", advice.verdict), ("why", advice.reason), ("cure", advice.cure)):
        typer.echo(f"{name:8} {text}")
    words = "sum of lr * wd over the run; far below 1 decay has not acted, well above 1 it has"
    typer.echo(f"{'clock':8} {advice.clock:.3g} ({words})")
    if recipe.norm != "none" and recipe.length is None and recipe.gain_decay is None:
        usual = "the usual scale of cosine heads" if recipe.norm == "cosine" else "the square root of the width"
        typer.echo(f"{'assumed':8} features of length {recipe.norm_length:.3g} before the head, {usual} (--length)")


def _check_options(context: typer.Context, standard: bool) -> None:
    """Refuse what would be ignored."""
    said = _said(context) - {"weight_decay", "as_json", "optimizer"}
    of_counts = {"counts", "column", "ignore_index"}
    if standard and (more := said - of_counts - {*_OF_STANDARD}):
        raise ValueError(f"--norm describes a training: it goes with COUNTS and {_NEEDED}; got {_listed(more)}")
    diagnosed, said = "diagnosis" in said, said - {"margin", "diagnosis"}
    if context.params["weight_decay"] is not None:
        said -= {"layers", *of_counts, *_OF_STANDARD}
        if diagnosed or said:
            raise ValueError(
                "--weight-decay is ordinary training: it goes with COUNTS, --layers, --optimizer and --margin only; "
                f"got {_listed(said or {'diagnosis'})}"
            )
    elif "layers" in said and not diagnosed:
        raise ValueError("--layers goes with --weight-decay: the model of given penalties has one layer above them")
    elif diagnosed and said - {"html", "picture", "layers"}:
        raise ValueError(
            "give --diagnosis alone: it names counts, penalties, loss and features; "
            f"got {_listed(said - {'html', 'picture', 'layers'})}"
        )


def _joined(n: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    joined, change = joined_sizes(n)
    if change == 0:
        return n, ()
    caution = (
        f"{np.unique(n).size} class sizes were joined into {np.unique(joined).size}, the smallest kept, the others "
        f"changed by at most {100 * change:.0f} %; --exact solves for all of them, in minutes."
    )
    return joined, (caution,)


def _listed(names: set[str]) -> str:
    return ", ".join("COUNTS" if name == "counts" else f"--{name.replace('_', '-')}" for name in sorted(names))


def _diagnosis(path: Path) -> dict[str, Any]:
    """The record of a file of ``collapsar diagnose --json``, or of what that command would read."""
    if not path.is_dir() and path.suffix not in (".npz", ".safetensors"):
        return load_diagnosis(path)
    from collapsar.diagnose.readers import diagnose

    return diagnose(path).to_dict()


def _given(counts: str | None, column: str | None, ignore_index: int | None) -> LabelCounts:
    if counts is None:
        raise ValueError("give COUNTS: a file of labels, or 500x5,100x5; or --diagnosis FILE")
    return counts_given(counts, column, ignore_index)


def _write(record: dict[str, Any], html: Path | None, picture: Path | None) -> None:
    if html is not None:
        from collapsar.report.advice_page import advice_page

        write_atomically(html, advice_page(to_json(record)))
    if picture is not None:
        from collapsar.report.advice_plots import advice_figure, advice_title

        shown = to_json(record)
        write_picture(picture, advice_figure(shown), "advice", advice_title(shown))


def _print_advice(record: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    problem = record["problem"]
    console.print(problem_words(cs.Problem.from_dict(problem)))
    if problem["features"] == "signed" and not record["from_diagnosis"]:
        console.print(RELU_WORDS)
    console.print(verdict_words(record), style="bold")
    for caution in record["cautions"]:
        console.print(f"Caution: {caution}")
    console.print(_state_table(record))
    if not record["suggestions"]:
        if record["verdict"] in ("merging", "collapsed") and record.get("decay") is None:
            console.print("No single remedy reaches the target; combine two, or lower the penalty and try again.")
        for sentence in (room_words(record), prior_words(record)):
            if sentence:
                console.print(sentence)
        return
    console.print(
        f"The least change that leaves {100 * record['margin']:.0f}% room, cheapest first, each solved again after it:"
    )
    table = plain_table(*SUGGESTION_COLUMNS, folds=(1,))
    for row in suggestion_rows(record):
        table.add_row(*row)
    console.print(table)
    best = record["suggestions"][0]
    console.print(f"1: {best['words']}. {' '.join(best['caveats'])}")
    for sentence in (room_words(record), prior_words(record)):
        if sentence:
            console.print(sentence)
    if record["without_effect"]:
        console.print(f"Not sufficient alone: {', '.join(map(remedy_words, record['without_effect']))}.")
    if not all(s["verified"] for s in record["suggestions"]):
        console.print("?: not confirmed by re-solving.")
    console.print(
        "margin: nats at the mean of a smallest class, corrected: under equal priors; extra: samples per epoch; "
        "majority: change of its margin; shift: of calibration. All other classes: factor 1."
    )


def _state_table(record: dict[str, Any]) -> Table:
    table = plain_table("classes", "samples", "at the optimum", "threshold", "safety", "margin", "corrected")
    groups = record["groups"]
    shown = groups if len(groups) <= MOST_ROWS else [*groups[:3], *groups[-(MOST_ROWS - 3) :]]
    for i, g in enumerate(shown):
        if len(shown) < len(groups) and i == 3:
            table.add_row(f"... {len(groups) - len(shown)} more")
        table.add_row(
            class_words(g, record["class_names"]),
            str(g["samples"]),
            g["state"],
            *(number_text(g[name], 3) for name in ("threshold", "safety", "margin", "corrected_margin")),
        )
    return table


def _print_decay(record: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    console = Console(highlight=False)
    n = record["class_counts"]
    console.print(f"{len(n)} classes, {sum(n)} samples, {max(n)} in the largest, {min(n)} in the smallest")
    for sentence in decay_words(record):
        console.print(sentence)
    table = plain_table(*DECAY_COLUMNS, folds=range(len(DECAY_COLUMNS)))
    for row in decay_rows(record):
        table.add_row(*row)
    console.print(table)
