"""``collapsar solve`` and ``collapsar thresholds``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer
from numpy.typing import NDArray
from typer import Option

import collapsar as cs
from collapsar.app.theory_records import exact_vanish, near_merge, solution_groups, solution_record, thresholds_record
from collapsar.cli.options import (
    BEHIND_A_NORM,
    Counts,
    DecayOptions,
    Features,
    Html,
    Json,
    LabelFile,
    LambdaB,
    LossOptions,
    NormOptions,
    Prices,
    command,
    listed_options,
    said,
)
from collapsar.cli.output import RELU_WORDS, console, in_step, plain_table, taking_long, tell
from collapsar.core.files import write_atomically
from collapsar.core.normalization import own_penalties
from collapsar.core.record_types import DecayRecord, ReportRecord
from collapsar.core.sentences import problem_words
from collapsar.core.types import Mask, Vector
from collapsar.report.advice import DECAY_COLUMNS, class_words, decay_rows
from collapsar.report.words import sentence

if TYPE_CHECKING:  # with scipy
    from collapsar.core.thresholds import Thresholds


@command(
    "collapsar solve 500x5,100x5 --lambda-z 0.0037 --lambda-b 0.02",
    "collapsar solve labels.txt --lambda-w 1e-3 --lambda-h 1e-6 --features nonnegative --json",
    "collapsar solve 100x5,20x5 --lambda-b 0 --norm 11.3 --lambda-w 12 --html optimum.html",
    "collapsar solve 100x5,20x5 --norm layernorm --width 128 --weight-decay 2",
)
def solve(
    *,
    context: typer.Context,
    counts: Counts,
    prices: Prices,
    norm: NormOptions,
    decay: DecayOptions,
    features: Features = "signed",
    loss: LossOptions,
    file: LabelFile,
    tol: float = Option(1e-9, help="Relative duality gap to reach."),
    max_steps: int = Option(300, help="The largest number of steps."),
    out: Path | None = Option(None, help="Save the solution here (.npz)."),
    html: Html = None,
    as_json: Json = False,
) -> None:
    """The exact optimum: which classes are separated, merged or vanished at this penalty, with a certificate."""
    read = file.read(counts)
    if decay.given:
        problem = _decayed(context, read.counts, decay, norm, loss)
    else:
        if norm.norm is None:
            level = prices.price(BEHIND_A_NORM)
        elif prices.lambda_w is None or prices.lambda_z is not None or prices.lambda_h is not None:
            raise ValueError("--norm goes only with --lambda-w: features of a given length have no penalty")
        else:
            level = prices.lambda_w
        problem = norm.problem(read.counts, level, prices.lambda_b, loss.loss(read.counts.size), features)
    solution = _watched(problem, tol, max_steps)
    if out is not None:
        solution.save(out, read.names)
    if html is not None:
        from collapsar.app.solution_report import solution_report
        from collapsar.report import report_page

        optimum = solution_report(solution, html.stem, read.names)
        page: ReportRecord = {"kind": "report", "runs": [], "solutions": [optimum]}
        write_atomically(html, report_page(page))
    record = solution_record(solution, read.names)
    tell(record, lambda: _print_solution(solution, read.names), as_json=as_json)
    if solution.status is not cs.Status.OPTIMAL:
        raise cs.NotConvergedError(solution)


def _decayed(
    context: typer.Context, counts: NDArray[np.int64], decay: DecayOptions, norm: NormOptions, loss: LossOptions
) -> cs.Problem:
    """The problem of a training with weight decay; bias and features that are not given are as in ``advise``."""
    given = said(context)
    if more := given & {"lambda_z", "lambda_w", "lambda_h"}:
        raise ValueError(f"weight decay is the penalty of the head, and the only one; got {listed_options(more)} too")
    if context.info_name == "solve" and decay.weight_decay is None:
        raise ValueError(f"{listed_options(given & {'layers', 'gain_decay'})} goes with --weight-decay")
    lambda_b, features = (context.params[name] if name in given else None for name in ("lambda_b", "features"))
    return decay.problem(counts, norm, lambda_b, loss.loss(counts.size), features)


def _watched(problem: cs.Problem, tol: float, max_steps: int) -> cs.Solution:
    """The solution; on a terminal, with a line of progress."""
    if not sys.stderr.isatty():
        with taking_long(f"optimum of {_kinds(problem)}"):
            return cs.solve(problem, tol, max_steps=max_steps, throw=False)
    with console(stderr=True).status("solving") as line:

        def say(step: int, certificate: cs.Certificate) -> None:
            line.update(f"step {step}: relative gap {certificate.relative_gap:.1e}, goal {tol:g}")

        return cs.solve(problem, tol, max_steps=max_steps, progress=say, throw=False)


def _kinds(problem: cs.Problem) -> str:
    return f"{problem.num_classes} classes of {np.unique(problem.class_counts).size} sizes"


def _print_solution(s: cs.Solution, names: Sequence[str] | None) -> None:
    """One row per cluster, then the certificate."""
    shown = console()
    shown.print(problem_words(s.problem))
    if s.problem.features == "signed" and s.problem.normalization is None:
        shown.print(RELU_WORDS)
    groups, like = solution_groups(s), bool(np.any(s.quotient.sizes > 1))
    keys = ["own", "sibling", "length"] if like else ["own", "length"]
    logits, bias = (in_step([[row[key] for key in some] for row in groups]) for some in (keys, ["bias"]))
    rows = [
        (class_words(row["classes"], names), str(row["samples"]), row["state"], *own, *b)
        for row, own, b in zip(groups, logits, bias, strict=True)
    ]
    shown.print(plain_table("classes", "samples", "state", "own logit", *keys[1:], "bias", rows=rows))
    sibling = "sibling: the logit of another class with as many samples; " if like else ""
    shown.print(f"own logit: at the class mean, without the bias; {sibling}length: of all its logits together.")
    shown.print(
        f"objective {s.certificate.primal:.12g}, at most {s.certificate.gap:.2g} above the optimum "
        f"(certified); rank of Z {s.rank}; {s.num_steps} steps"
    )


@command(
    "collapsar thresholds 500x5,100x5 --lambda-b 0.02",
    "collapsar thresholds 100x5,20x5 --lambda-b 0 --norm 11.3 --lambda-w 3",
    "collapsar thresholds 500x5,100x5 --lambda-b 0.02 --lambda-z 0.0037 --features nonnegative",
    "collapsar thresholds 500x5,100x5 --weight-decay 5e-4 --layers 2",
)
def thresholds(
    *,
    context: typer.Context,
    counts: Counts,
    lambda_b: LambdaB = float("inf"),
    features: Features = "signed",
    lambda_z: float | None = Option(None, help="Also show the state of each class at this penalty."),
    norm: NormOptions,
    lambda_w: float | None = Option(None, help="With --norm: also show the state of each class at this penalty."),
    decay: DecayOptions,
    loss: LossOptions,
    file: LabelFile,
    as_json: Json = False,
) -> None:
    """The penalties lambda_z at which classes merge, vanish, and everything collapses.

    With --lambda-z also the state of every class there, from the certified optimum. With --norm, behind a LayerNorm or
    BatchNorm, they are values of lambda_w, the decay of the head. With --layers they are weight decays on everything,
    without a norm before the head.
    """
    read = file.read(counts)
    if decay.layers is not None and norm.norm is None:
        _thresholds_of_layers(context, read.counts, decay, as_json=as_json)
        return
    if decay.given:
        at, problem = decay.weight_decay, _decayed(context, read.counts, decay, norm, loss)
    else:
        if (lambda_w if norm.norm is None else lambda_z) is not None:
            raise ValueError("give --lambda-z, or --norm with --lambda-w: features of a given length have no lambda_z")
        at = lambda_z if norm.norm is None else lambda_w
        problem = norm.problem(read.counts, 1.0 if at is None else at, lambda_b, loss.loss(read.counts.size), features)
    with taking_long(f"thresholds of {_kinds(problem)}"):
        t = cs.thresholds(problem)
    here = None if at is None else _watched(problem, 1e-9, 300)
    known = (problem, t, near_merge(problem, t), exact_vanish(t, here), here, read.names)
    tell(thresholds_record(*known), lambda: _print_thresholds(*known), as_json=as_json)
    if here is not None and here.status is not cs.Status.OPTIMAL:
        raise cs.NotConvergedError(here)


def _thresholds_of_layers(
    context: typer.Context, counts: NDArray[np.int64], decay: DecayOptions, *, as_json: bool
) -> None:
    """The weight decays at which the smallest classes are lost, by the model that ``advise`` judges by."""
    from collapsar.advise.weight_decay import advise_weight_decay  # with scipy

    if more := said(context) - {"counts", "column", "ignore_index", "weight_decay", "layers", "as_json"}:
        raise ValueError(f"--layers goes only with COUNTS and --weight-decay; got {listed_options(more)}")
    here = decay.weight_decay
    found = advise_weight_decay(counts, 1.0 if here is None else here, margin=0.0, layers=decay.layers).to_dict()
    record = {"kind": "thresholds-weight-decay", "class_counts": found["class_counts"], "model": found["model"]}
    record |= {k: v for k, v in found["predictions"][0].items() if k != "verdict" or here is not None}
    tell(record, lambda: _print_layers(found, here), as_json=as_json)


def _print_layers(record: DecayRecord, here: float | None) -> None:
    shown, columns = console(), [str(column) for column in DECAY_COLUMNS]
    n, (row,) = record["class_counts"], decay_rows(record)
    shown.print(f"{len(n)} classes, {sum(n)} samples; weight decay on everything, no feature penalty")
    columns[-1] = f"at {here:g}" if here is not None else ""
    cells = len(columns) - (here is None)
    shown.print(plain_table(*columns[:cells], rows=[row[:cells]], folds=range(cells)))
    shown.print(f"lost: the model ({record['model']}) is better off without its smallest classes.")


def _print_thresholds(
    problem: cs.Problem, t: Thresholds, near: Vector, exact: Mask, here: cs.Solution | None, names: Sequence[str] | None
) -> None:
    """One row per kind of class, and the state at the optimum ``here``."""
    from collapsar.theory.clusters import clusters_of  # with scipy: the commands that need none do not wait for it
    from collapsar.theory.thresholds import opposite

    normalised, signed = problem.normalization is not None, problem.features == "signed"
    unit, none = ("lambda_w", "never") if normalised else ("lambda_z", "always")
    late = ~t.exact & ~np.isnan(t.vanish_bound)
    labels = clusters_of(problem).labels
    alone = np.bincount(labels)[labels] == 1
    kinds: dict[tuple[str, ...], list[int]] = {}
    for k, samples in enumerate(problem.class_counts):
        merge = _level(t.merge[k], "gradual" if alone[k] else none)
        if not np.isnan(near[k]):
            merge = _level(near[k], none, exact=opposite(problem))
        vanish = f"≤ {t.vanish_bound[k]:.6g}" if late[k] else _level(t.vanish[k], none, exact=bool(exact[k]))
        row = (str(samples), *([merge] if signed else []), vanish, *([] if here is None else [here.class_states[k]]))
        kinds.setdefault(row, []).append(k)
    shown = console()
    shown.print(problem_words(problem, lambda_z=here is not None))
    if signed and not normalised:
        shown.print(RELU_WORDS)
    columns = ["classes", "samples", *([f"merge at {unit}"] if signed else []), f"vanish at {unit}"]
    columns += [] if here is None else [f"state at {own_penalties(problem).mean():g}"]
    rows = [(class_words(members, names), *row) for row, members in kinds.items()]
    if told := any(set(row[2:]) - {"gradual", "never"} for row in rows):  # else the notes say it all
        shown.print(plain_table(*columns, rows=sorted(rows, key=lambda row: -int(row[1]))))
    if np.isfinite(t.complete):
        shown.print(f"everything collapses (Z = 0) from {unit} = {t.complete:.6g}")
    for note in _normalised_notes(t, alone) if normalised and signed else _notes(problem, t, near, exact):
        shown.print(note if told else sentence(note.split(": ", 1)[1]))


def _level(value: float, none: str, *, exact: bool = True) -> str:
    return none if np.isnan(value) else f"{value:.6g}" if exact else f"≈ {value:.3g}"


def _normalised_notes(t: Thresholds, alone: Mask) -> list[str]:
    notes = []
    if alone.any():
        notes.append(
            "gradual: a class without another of as many samples has no threshold. As the decay grows, its scores "
            "approach those of others; its state at a given --lambda-w comes from the certified optimum."
        )
    if np.isnan(t.merge[~alone]).any():
        notes.append("never: classes of this size get equal features at no decay of the head.")
    return notes


def _notes(problem: cs.Problem, t: Thresholds, near: Vector, exact: Mask) -> list[str]:
    from collapsar.theory.thresholds import opposite  # with scipy

    notes = []
    if not np.isnan(near).all() and not opposite(problem):
        notes.append(
            "≈ approximate: a class without another of as many samples merges with none; near this value its "
            "predictions turn parallel to those of other classes."
        )
    if problem.features == "signed" and np.ptp(t.vanish) <= 1e-9 * t.complete:
        notes.append("With signed features all columns vanish together here, not one after another.")
    if (t.exact & ~exact).any():
        notes.append("≈ approximate: the certified optimum contradicts this value.")
    if not t.exact.all():
        penalty = "--lambda-z" if problem.normalization is None else "--lambda-w"
        notes.append(
            "≤ at the latest: below this value classes share feature directions. Small ones have merged by then and "
            "mostly vanish just there; a large one may vanish at half of it, and a class may vanish and come back. "
            f"The state at a given {penalty} comes from the certified optimum."
        )
    if (np.isnan(t.vanish) & t.exact).any():
        notes.append("always: the bias alone predicts the class well; its column is zero at every lambda_z.")
    return notes
