"""``collapsar diagnose``. torch, matplotlib and jinja2 are imported when they are needed, not before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from collapsar.cli.app import app
from collapsar.cli.options import ClassNames, DataDir, Html, Json, Smoothing, names_in, picture_given
from collapsar.cli.output import plain_table, print_json, write_picture
from collapsar.core.files import write_atomically
from collapsar.core.known import KnownTraining
from collapsar.core.problem import Loss
from collapsar.diagnose.record import Diagnosis

__all__ = ["diagnose"]

_MOST_ROWS = 40

Source = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        help="An .npz or .safetensors file with features (N, d), labels (N,), weight (K, d) and maybe bias (K,), "
        "or the folder of a training run.",
        show_default=False,
    ),
]
MaxMerged = Annotated[
    int | None,
    typer.Option(
        "--max-merged", min=0, help="Exit with 1 if more classes than this are merged, vanished, lost or dead."
    ),
]
MinRecall = Annotated[
    float | None,
    typer.Option(
        "--min-recall",
        min=0.0,
        max=1.0,
        help="Exit with 1 if a smaller share than this of any class's samples is recognised.",
    ),
]
WeightDecay = Annotated[
    float | None, typer.Option("--weight-decay", help="SGD's, on the head: lambda_w and lambda_b in one.")
]
KnownLambdaW = Annotated[float | None, typer.Option("--lambda-w", help="Penalty of the head's weight, if known.")]
KnownLambdaH = Annotated[
    float | None, typer.Option("--lambda-h", help="Penalty of the features, summed over samples, if known.")
]
KnownLambdaB = Annotated[float | None, typer.Option("--lambda-b", help="Penalty of the head's bias, if known.")]
Model = Annotated[
    Literal["auto", "signed", "nonnegative"],
    typer.Option("--features", help="Feature model to predict with; auto: nonnegative if no feature is below 0."),
]
Frozen = Annotated[
    bool,
    typer.Option(
        "--frozen", help="Only the head was trained, on given features: solve it on them, and each mitigation."
    ),
]
Picture = Annotated[Path | None, typer.Option("--picture", help="Write a picture, .png or .svg.")]
IgnoreIndex = Annotated[
    int, typer.Option("--ignore-index", help="Label of samples without one in a file of features: they are left out.")
]


@app.command(
    epilog="""Examples:

    collapsar diagnose features.npz --weight-decay 5e-4 --html diagnosis.html

    collapsar diagnose runs/demo-digits/between-seed0 --json

    collapsar diagnose features.safetensors --max-merged 0 --class-names names.txt"""
)
def diagnose(
    path: Source,
    max_merged: MaxMerged = None,
    min_recall: MinRecall = None,
    weight_decay: WeightDecay = None,
    lambda_w: KnownLambdaW = None,
    lambda_h: KnownLambdaH = None,
    lambda_b: KnownLambdaB = None,
    features: Model = "auto",
    smoothing: Smoothing = 0.0,
    frozen: Frozen = False,
    class_names: ClassNames = None,
    html: Html = None,
    picture: Picture = None,
    data_dir: DataDir = None,
    ignore_index: IgnoreIndex = -100,
    as_json: Json = False,
) -> None:
    """Say which classes of a trained network have merged or vanished, and what theory says of it.

    Compares the network with the exact optima, reads the penalties it acts as if it had, and says how far to trust
    that. Penalties that are not given are read from the network. With --max-merged and
    --min-recall it is a gate for CI.
    """
    from collapsar.diagnose.readers import diagnose as run

    picture_given(picture)
    if weight_decay is not None and (lambda_w is not None or lambda_b is not None):
        raise ValueError("give either --weight-decay, or --lambda-w and --lambda-b")
    known = KnownTraining(
        lambda_w=weight_decay if lambda_w is None else lambda_w,
        lambda_h=lambda_h,
        lambda_b=weight_decay if lambda_b is None else lambda_b,
        loss=Loss(smoothing=smoothing),
        features=None if features == "auto" else features,
        body="frozen" if frozen else None,
    )
    names = None if class_names is None else names_in(class_names)
    found = run(path, known=known, class_names=names, data_dir=data_dir, ignore_index=ignore_index)
    record = found.to_dict()
    if html is not None:
        from collapsar.report import diagnosis_page

        write_atomically(html, diagnosis_page(record))
    if picture is not None:
        from collapsar.report import diagnosis_figure

        write_picture(picture, diagnosis_figure(record), "diagnosis", record["headline"])
    if as_json:
        print_json(record)
    else:
        _print(found)
    failures = _failures(found, max_merged, min_recall)
    for failure in failures:
        Console(stderr=True, highlight=False, markup=False).print(f"collapsar: {failure}", soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _failures(d: Diagnosis, max_merged: int | None, min_recall: float | None) -> list[str]:
    """What the gates do not let through."""
    failures = []
    if max_merged is not None and d.num_gone > max_merged:
        noun = "class is" if d.num_collapsed == 1 else "classes are"
        both = [f"{d.num_collapsed} {noun} merged or vanished"] if d.num_collapsed else []
        for word, more in (("lost", set(d.lost)), ("dead", set(d.dead) - set(d.lost))):
            rest = sorted(more - set(d.collapsed))
            both += [f"{len(rest)} {word} though separated ({d.named(rest)})"] if rest else []
        failures.append(f"{' and '.join(both)}, more than {max_merged}")
    if min_recall is not None:
        recalls = d.measurement.accuracies
        short = sorted((k for k in range(len(recalls)) if recalls[k] < min_recall), key=lambda k: recalls[k])
        if short:
            noun = "class" if len(short) == 1 else "classes"
            failures.append(
                f"recall is below {min_recall:g} in {len(short)} {noun}: {d.named(short)}; "
                f"the least is {recalls[short[0]]:.3g}"
            )
    return failures


def _print(d: Diagnosis) -> None:
    """The headline, a row per class, the findings, the metrics."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(d.headline, style="bold", soft_wrap=True)
    shown = _order(d)
    table = plain_table("class", "samples", "right", "measured", "theory", "length", "lambda_z")
    for k in shown[:_MOST_ROWS]:
        table.add_row(*_row(d, k))
    console.print(table)
    if len(shown) > _MOST_ROWS:
        console.print(f"... and {len(shown) - _MOST_ROWS} more classes; --json has them all")
    console.print(
        "right: share of its samples that the head recognises; length: of its mean prediction, relative to the "
        "longest; lambda_z: read from its predictions (>=: it is not separated, and gives a bound).",
        soft_wrap=True,
    )
    for sentence in (*d.words, *d.notes):
        console.print(f"- {sentence}", soft_wrap=True)
    metrics = d.to_dict()["metrics"]
    if metrics:
        scalars = plain_table("metric", "value", "meaning", folds=(2,))
        for metric in metrics:
            value = metric["value"]
            scalars.add_row(
                metric["name"], f"{value:.4g}" if isinstance(value, float) else str(value), metric["meaning"]
            )
        console.print(scalars)


def _order(d: Diagnosis) -> list[int]:
    """Collapsed classes first where there are too many rows, else by number."""
    states = d.separation.states
    if len(states) <= _MOST_ROWS:
        return list(range(len(states)))
    gone = {*d.lost, *d.dead}
    return sorted(range(len(states)), key=lambda k: (states[k] == "separated" and k not in gone, k))


def _row(d: Diagnosis, k: int) -> list[str]:
    m, theory = d.measurement, d.prediction
    reading = "-"
    if d.effective is not None and d.effective.by_class[k] == d.effective.by_class[k]:  # not NaN
        reading = f"{'' if d.effective.tells[k] else '>= '}{d.effective.by_class[k]:.4g}"
    counts = int(m.class_counts[k])
    return [
        d.class_names[k],
        str(counts),
        f"{100 * m.accuracies[k]:.0f}%" if counts else "-",
        f"{d.separation.states[k]}{', lost' if k in d.lost else ''}{', dead' if k in d.dead else ''}",
        "-" if theory is None else theory.seen[k],
        f"{d.separation.relative_norms[k]:.3f}" if counts else "-",
        reading,
    ]
