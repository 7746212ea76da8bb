"""``collapsar advise``: from counts and penalties to mitigations with numbers. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table
from typer import Argument, Option

import collapsar as cs
from collapsar.advise.advice import advise as advise_on
from collapsar.advise.recipe import Norm, Recipe, Schedule
from collapsar.advise.sources import advise_diagnosis, joined_sizes, load_diagnosis
from collapsar.advise.standard import StandardAdvice, advise_standard
from collapsar.advise.weight_decay import advise_weight_decay
from collapsar.cli.options import (
    DecayOptions,
    Features,
    Html,
    Json,
    LabelFile,
    LossOptions,
    Picture,
    Prices,
    command,
    listed_options,
    picture_given,
    said,
)
from collapsar.cli.output import RELU_WORDS, console, plain_table, taking_long, tell, write_picture
from collapsar.core.counts import LabelCounts
from collapsar.core.files import write_atomically
from collapsar.core.record_types import AdviceRecord, DecayRecord, DiagnosisRecord
from collapsar.core.records import to_json
from collapsar.core.sentences import problem_words
from collapsar.report import advice as words

MOST_ROWS = 12

_NEEDED = "--norm, --lr, --steps, --batch-size, --width and --weight-decay"


@dataclass(frozen=True)
class Training(DecayOptions):
    """Weight decay in place of penalties.

    Alone, or with a norm before the head.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = Option("sgd", help="What applies the decay.")
    norm: Norm | None = Option(None, help="Standard training: what normalises the features before the head.")
    lr: float | None = Option(None, help="With --norm: peak learning rate.")
    steps: int | None = Option(None, help="With --norm: number of updates in the run.")
    batch_size: int | None = Option(None, help="With --norm: samples per update.")
    width: int | None = Option(None, help="With --norm: number of features before the head.")
    schedule: Schedule = Option("cosine", help="With --norm: how the learning rate decreases.")
    head_weight_decay: float | None = Option(
        None, help="With --norm: weight decay of the head, if it differs from --weight-decay."
    )
    length: float | None = Option(
        None, help="With --norm: length of the features; default sqrt(width), or 16, the scale, for cosine."
    )

    def recipe(self, smoothing: float) -> Recipe | None:
        """The standard training that the options describe, None without --norm."""
        if self.norm is None:
            return None
        self.check(self.norm)
        if self.length is not None and (self.norm == "none" or self.gain_decay is not None):
            raise ValueError("--length needs a norm that fixes it: leave it out with --norm none or --gain-decay")
        own = self.head_weight_decay
        if own is not None and not 0 < own < np.inf:
            raise ValueError(
                f"--head-weight-decay must be finite and > 0, got {own:g}: without decay of the head nothing merges"
            )
        given = {name: getattr(self, name) for name in ("lr", "steps", "batch_size", "width")}
        given["weight_decay"] = self.weight_decay if own is None else own
        missing = {name for name, value in given.items() if value is None}
        if missing:
            raise ValueError(f"--norm needs {listed_options(missing)} as well: they say how far the decay has acted")
        return Recipe(
            self.optimizer,
            **given,
            norm=self.norm,
            schedule=self.schedule,
            gain_decay=self.gain_decay,
            length=self.length,
            smoothing=smoothing,
        )


@command(
    "collapsar advise 500x5,100x5 --lambda-z 0.0036 --lambda-b 0.02",
    "collapsar advise labels.txt --lambda-w 5e-4 --lambda-h 1e-5 --html advice.html",
    "collapsar advise labels.txt --weight-decay 5e-4 --layers 2",
    "collapsar advise labels.txt --optimizer adamw --weight-decay .05 --lr 1e-3 --steps 100000 --batch-size 256"
    "\n      --norm layernorm --width 768",
    "collapsar advise --diagnosis diagnosis.json --json",
)
def advise(
    *,
    context: typer.Context,
    counts: str | None = Argument(
        None, metavar="COUNTS", help="As for `collapsar solve`: a labels file, or 500x5,100x5, or exp:..."
    ),
    prices: Prices,
    features: Features = "signed",
    training: Training,
    diagnosis: Path | None = Option(
        None, help="The output of `collapsar diagnose --json`, or its input: a run's folder or a file of features."
    ),
    margin: float = Option(0.1, help="Room that a mitigation must leave; 0.1 is 10 % in lambda_z."),
    loss: LossOptions,
    file: LabelFile,
    exact: bool = Option(
        False, "--exact", help="Solve for every class size; by default, more than 64 of them are grouped."
    ),
    html: Html = None,
    picture: Picture = None,
    as_json: Json = False,
) -> None:
    """Which classes merge at your penalties, and the least change that keeps them separated, and its cost.

    Every mitigation is given at the weakest setting that brings each class across its threshold with room to spare,
    checked by solving the problem after the change. Needs no training and no torch.
    """
    recipe = training.recipe(loss.smoothing)
    _check_options(context)
    picture_given(picture)
    if recipe is not None:
        n = _read(counts, file).counts
        recipe = replace(recipe, loss=loss.loss(n.size))
        with taking_long(f"advice for {n.size} classes"):
            advice = advise_standard(n, recipe)
        tell(advice.to_dict(), lambda: _print_standard(advice, recipe), as_json=as_json)
        return
    if training.optimizer == "adamw":
        raise ValueError(
            "--optimizer adamw: its decay is decoupled from the gradient and is not the derivative of a penalty; say "
            f"how far it has acted with {_NEEDED}, or put the penalties into the loss"
        )
    if training.weight_decay is not None:
        n, how = _read(counts, file).counts, {"layers": training.layers, "optimizer": training.optimizer}
        decay = advise_weight_decay(n, training.weight_decay, margin=margin, **how).to_dict()
        tell(decay, lambda: _print_decay(decay), as_json=as_json)
        return
    if diagnosis is not None:
        record = advise_diagnosis(_diagnosis(diagnosis), margin, layers=training.layers)
    else:
        read, cautions = _read(counts, file), ()
        n, remedies = read.counts, loss.loss(read.counts.size)
        if not exact and not loss.vectors(n.size):
            n, cautions = _joined(n)
        lambda_z = prices.price(f"; for weight decay alone --weight-decay, or better {_NEEDED}")
        problem = cs.Problem(n, lambda_z, prices.lambda_b, remedies, features=features)
        with taking_long(f"advice for {n.size} classes"):
            advice = advise_on(problem, margin, class_names=read.names).to_dict()
        total = int(read.counts.sum())
        record: AdviceRecord = {**advice, "num_samples": total, "cautions": list(cautions), "from_diagnosis": False}
    _write(record, html, picture)
    tell(record, lambda: _print_advice(record), as_json=as_json)


_OF_COUNTS = {"counts", "column", "ignore_index"}
_OF_LOSS = {field.name for field in fields(LossOptions)}
_OF_STANDARD = {field.name for field in fields(Training)} - {"weight_decay", "layers", "optimizer"}
# The option that decides which advice is given, the options that go with it, and the message that refuses others.
_KINDS = (
    (
        "norm",
        _OF_COUNTS | _OF_STANDARD | _OF_LOSS | {"weight_decay", "optimizer"},
        f"--norm describes a training: it goes with COUNTS and {_NEEDED}",
    ),
    (
        "weight_decay",
        _OF_COUNTS | {"layers", "optimizer", "margin"},
        "--weight-decay means no feature penalty: it goes only with COUNTS, --layers, --optimizer and --margin",
    ),
    (
        "diagnosis",
        {"html", "layers", "margin", "optimizer", "picture"},
        "give --diagnosis alone: it contains counts, penalties, loss and features",
    ),
)


def _check_options(context: typer.Context) -> None:
    """Refuse options that would be ignored."""
    given = said(context)
    if "norm" not in given and (more := given & _OF_STANDARD):
        first = next(field.name for field in fields(Training) if field.name in more)
        raise ValueError(
            f"{listed_options([first])} goes with --norm; give layernorm, rmsnorm, cosine, batchnorm or none"
        )
    for option, beside, refusal in _KINDS:
        if option in given:
            if more := given - beside - {option, "as_json"}:
                raise ValueError(f"{refusal}; got {listed_options(more)}")
            return
    if "layers" in given:
        raise ValueError("--layers goes with --weight-decay: the model of given penalties has one layer above them")


def _read(counts: str | None, file: LabelFile) -> LabelCounts:
    if counts is None:
        raise ValueError("give COUNTS: a file of labels, or 500x5,100x5; or --diagnosis FILE")
    return file.read(counts)


def _joined(n: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    joined, change = joined_sizes(n)
    if change == 0:
        return n, ()
    caution = (
        f"{np.unique(n).size} class sizes were joined into {np.unique(joined).size}, keeping the smallest and changing "
        f"the others by at most {100 * change:.0f} %; --exact solves for all of them, which takes longer."
    )
    return joined, (caution,)


def _diagnosis(path: Path) -> DiagnosisRecord:
    """The record from a file of ``collapsar diagnose --json``, or from input of that command."""
    if not path.is_dir() and path.suffix not in (".npz", ".safetensors"):
        return load_diagnosis(path)
    from collapsar.diagnose.readers import diagnose

    return diagnose(path).to_dict()


def _write(record: AdviceRecord, html: Path | None, picture: Path | None) -> None:
    if html is not None:
        from collapsar.report.advice_page import advice_page

        write_atomically(html, advice_page(record))
    if picture is not None:
        from collapsar.report.advice_plots import advice_figure, advice_title

        shown = to_json(record)
        write_picture(picture, advice_figure(shown), "advice", advice_title(shown))


def _print_advice(record: AdviceRecord) -> None:
    shown, problem, suggestions = console(), record["problem"], record["suggestions"]
    shown.print(problem_words(cs.Problem.from_dict(problem), samples=record.get("num_samples")))
    if problem["features"] == "signed" and not record.get("from_diagnosis"):
        shown.print(RELU_WORDS)
    shown.print(words.verdict_words(record), style="bold")
    for caution in record.get("cautions", ()):
        shown.print(f"Caution: {caution}")
    columns = ("classes", "samples", "at the optimum", "threshold", "safety", "margin", "corrected")
    shown.print(plain_table(*columns, rows=_state_rows(record)))
    if suggestions:
        room = f"{100 * record['margin']:.0f} %"
        shown.print(f"The least changes that leave {room} room, cheapest first, each verified by solving again:")
        shown.print(plain_table(*words.SUGGESTION_COLUMNS, rows=words.suggestion_rows(record), folds=(1,)))
        shown.print(f"1: {suggestions[0]['words']}. {' '.join(suggestions[0]['caveats'])}")
    elif record["verdict"] in ("merging", "collapsed") and record.get("decay") is None:
        shown.print("No single mitigation reaches the target; combine two, or lower the penalty and try again.")
    for sentence in filter(None, (words.room_words(record), words.prior_words(record))):
        shown.print(sentence)
    if not suggestions:
        return
    if record["without_effect"]:
        shown.print(f"Not sufficient alone: {', '.join(map(words.remedy_words, record['without_effect']))}.")
    if not all(s["verified"] for s in suggestions):
        shown.print("?: not confirmed by solving again.")
    shown.print(
        "margin: nats at the mean of a smallest class; corrected: under equal priors; extra: samples per epoch; "
        "majority: change of its margin; shift: of calibration. All other classes: factor 1."
    )


def _state_rows(record: AdviceRecord) -> list[tuple[str, ...]]:
    """A row per group, without the middle ones if there are many."""
    rows = words.group_rows(record)
    return (
        rows if len(rows) <= MOST_ROWS else [*rows[:3], (f"... {len(rows) - MOST_ROWS} more",), *rows[3 - MOST_ROWS :]]
    )


def _print_standard(advice: StandardAdvice, recipe: Recipe) -> None:
    told = Table.grid("", "", padding=(0, 2, 0, 0))
    for name, text in (("verdict", advice.verdict), ("why", advice.reason), ("cure", advice.cure)):
        told.add_row(name, text)
    meaning = "sum of lr * wd over the run; far below 1, decay has not acted; well above 1, it has"
    told.add_row("clock", f"{advice.clock:.3g} ({meaning})")
    if recipe.norm == "cosine":
        free = "if the head also normalises its own rows, as in CosFace and LDAM, their decay changes no score"
        told.add_row("rows", f"taken as free: {free}, and this advice does not apply")
    if recipe.norm != "none" and recipe.length is None and recipe.gain_decay is None:
        usual = "the usual scale of cosine heads" if recipe.norm == "cosine" else "the square root of the width"
        told.add_row("assumed", f"features of length {recipe.norm_length:.3g} before the head, {usual} (--length)")
    console().print(told)


def _print_decay(record: DecayRecord) -> None:
    shown, n = console(), record["class_counts"]
    shown.print(f"{len(n)} classes, {sum(n)} samples, {max(n)} in the largest, {min(n)} in the smallest")
    for sentence in words.decay_words(record):
        shown.print(sentence)
    shown.print(plain_table(*words.DECAY_COLUMNS, rows=words.decay_rows(record), folds=range(len(words.DECAY_COLUMNS))))
