"""``collapsar diagnose``. torch, matplotlib and jinja2 are imported when they are needed, not before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from typer import Argument, Option

from collapsar.cli.options import ClassNames, DataDir, Html, Json, Picture, command, names_in, picture_given
from collapsar.cli.output import console, plain_table, refuse, tell, write_picture
from collapsar.core.files import write_atomically
from collapsar.core.known import KnownTraining
from collapsar.core.loss import Loss
from collapsar.core.record_types import DiagnosisRecord
from collapsar.diagnose.record import Diagnosis
from collapsar.report.class_marks import part_of, shown_classes
from collapsar.report.class_rows import class_rows
from collapsar.report.words import ABSENT, number_text

_MOST_ROWS = 40


@dataclass(frozen=True)
class Known:
    """What is known about the training."""

    weight_decay: float | None = Option(None, help="Weight decay of SGD on the head: sets both lambda_w and lambda_b.")
    lambda_w: float | None = Option(None, help="Penalty of the head's weight, if known.")
    lambda_h: float | None = Option(None, help="Penalty of the features, summed over samples, if known.")
    lambda_b: float | None = Option(None, help="Penalty of the head's bias, if known.")
    features: Literal["auto", "signed", "nonnegative"] = Option(
        "auto", help="Feature model to predict with; auto: nonnegative if no feature is below 0."
    )
    smoothing: float = Option(0.0, help="Label smoothing, in [0, 1).")
    frozen: bool = Option(
        False, "--frozen", help="Only the head was trained, on given features: solve it, and each mitigation, on them."
    )

    def training(self) -> KnownTraining:
        """The same, in the form for a diagnosis."""
        if self.weight_decay is not None and (self.lambda_w is not None or self.lambda_b is not None):
            raise ValueError("give either --weight-decay, or --lambda-w and --lambda-b")
        return KnownTraining(
            lambda_w=self.weight_decay if self.lambda_w is None else self.lambda_w,
            lambda_h=self.lambda_h,
            lambda_b=self.weight_decay if self.lambda_b is None else self.lambda_b,
            loss=Loss(smoothing=self.smoothing),
            features=None if self.features == "auto" else self.features,
            body="frozen" if self.frozen else None,
        )


@command(
    "collapsar diagnose features.npz --weight-decay 5e-4 --html diagnosis.html",
    "collapsar diagnose runs/demo-digits/between-seed0 --json",
    "collapsar diagnose features.safetensors --max-merged 0 --class-names names.txt",
)
def diagnose(
    *,
    path: Path = Argument(
        ...,
        metavar="PATH",
        help="An .npz or .safetensors file with features (N, d), labels (N,), weight (K, d) and optionally bias (K,), "
        "or the folder of a training run.",
        show_default=False,
    ),
    max_merged: int | None = Option(
        None, min=0, help="Exit with 1 if more classes than this are merged, vanished, lost or dead."
    ),
    min_recall: float | None = Option(
        None, min=0.0, max=1.0, help="Exit with 1 if a smaller share than this of any class's samples is recognised."
    ),
    known: Known,
    class_names: ClassNames = None,
    html: Html = None,
    picture: Picture = None,
    data_dir: DataDir = None,
    ignore_index: int = Option(
        -100, help="In a file of features: label of samples without a class; they are left out."
    ),
    as_json: Json = False,
) -> None:
    """Say which classes of a trained network have merged or vanished, and what the theory says about it.

    Compares the network with the exact optima, estimates the penalties that act on it, and says how far to trust that.
    Penalties that are not given are read from the network. With --max-merged and --min-recall it is a gate for CI.
    """
    from collapsar.diagnose.readers import diagnose as run

    picture_given(picture)
    training = known.training()
    names = None if class_names is None else names_in(class_names)
    found = run(path, known=training, class_names=names, data_dir=data_dir, ignore_index=ignore_index)
    record = found.to_dict()
    if html is not None:
        from collapsar.report import diagnosis_page

        write_atomically(html, diagnosis_page(record))
    if picture is not None:
        from collapsar.report import diagnosis_figure

        write_picture(picture, diagnosis_figure(record), "diagnosis", record["headline"])
    tell(record, lambda: print_diagnosis(record), as_json=as_json)
    refuse(_failures(found, max_merged, min_recall))


def _failures(d: Diagnosis, max_merged: int | None, min_recall: float | None) -> list[str]:
    """The reasons for which a gate fails."""
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


def print_diagnosis(record: DiagnosisRecord) -> None:
    """The headline, a row per class, the findings, the metrics."""
    shown, classes = console(), shown_classes(record, _MOST_ROWS)
    shown.print(record["headline"], style="bold", soft_wrap=True)
    columns = ("class", "samples", "right", "measured", "theory", "length", "lambda_z")
    rows = [
        (r.name, r.samples, r.recognised, ", ".join((r.state, *r.marks)), r.theory, r.length, r.price)
        for r in class_rows(part_of(record, classes), record["class_names"])
    ]
    shown.print(plain_table(*columns, rows=rows))
    if more := len(record["class_names"]) - len(rows):
        shown.print(f"... and {more} more classes; --json has them all")
    price = (
        ""
        if all(row[-1] == ABSENT for row in rows)
        else "; lambda_z: read from its predictions (≥: it is not separated, and gives a bound)"
    )
    shown.print(
        "right: share of its samples that the head recognises; length: of its mean prediction, relative to the "
        f"longest{price}.",
        soft_wrap=True,
    )
    for sentence in (*record["words"], *record["notes"]):
        shown.print(f"- {sentence}", soft_wrap=True)
    if metrics := [(m["name"], _value(m["value"]), m["meaning"]) for m in record["metrics"]]:
        shown.print(plain_table("metric", "value", "meaning", rows=metrics, folds=(2,)))


def _value(value: float | str) -> str:
    return value if isinstance(value, str) else number_text(value, 4)
