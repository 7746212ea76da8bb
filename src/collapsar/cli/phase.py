"""``collapsar phase``. matplotlib, joblib and dask are imported when they are needed, not before."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

import collapsar as cs
from collapsar.cli.app import app
from collapsar.cli.options import Json, picture_given
from collapsar.cli.output import bars, plain_table, print_json, write_picture

if TYPE_CHECKING:
    from collapsar.phase.diagram import ModelPhase, PhaseDiagram

__all__ = ["phase"]

_AXIS_HELP = (
    "NAME:LOW:HIGH:NUM or NAME:LOW:HIGH:NUM:log; names: lambda_z, lambda_b, r, n_a, n_b, share_a, oversampling; with "
    "--over lambda_w and norm instead of lambda_z."
)


@app.command(
    epilog="""Examples:

    collapsar phase --x lambda_z:1e-3:2e-2:60:log --y r:1:50:60 --lambda-b 0.02 --out phase.png

    collapsar phase --x n_a:50:2000:50:log --y n_b:20:500:50:log --lambda-z 0.005 --jobs 4 --out phase.svg

    collapsar phase --x share_a:0.1:0.9 --y lambda_z:1e-3:1e-2:40:log --classes 20 --json

    collapsar phase --x r:1:20:40 --y lambda_w:0.1:10:40:log --over sample --norm 11.3 --out ln.png"""
)
def phase(
    x: Annotated[str, typer.Option("--x", help=f"Horizontal axis: {_AXIS_HELP}", show_default=False)],
    y: Annotated[str, typer.Option("--y", help="Vertical axis, another parameter.", show_default=False)],
    classes: Annotated[int, typer.Option("--classes", help="K, the number of classes.")] = 10,
    k_a: Annotated[int | None, typer.Option("--k-a", help="k_A, the large ones among them.  [default: half]")] = None,
    n_a: Annotated[float, typer.Option("--n-a", help="n_A, samples per large class.")] = 500.0,
    n_b: Annotated[float, typer.Option("--n-b", help="n_B, samples per small class.")] = 100.0,
    lambda_z: Annotated[float, typer.Option("--lambda-z", help="Price of the predictions.")] = 0.0036,
    lambda_b: Annotated[float, typer.Option("--lambda-b", help="Penalty of the bias; inf: none, 0: free.")] = 0.02,
    oversampling: Annotated[float, typer.Option("--oversampling", help="Repeats of every small class's sample.")] = 1.0,
    over: Annotated[
        Literal["sample", "batch"] | None,
        typer.Option("--over", help="Features normalised per sample (LayerNorm) or batch (BatchNorm)."),
    ] = None,
    lambda_w: Annotated[
        float | None, typer.Option("--lambda-w", help="With --over: penalty of the head's weight; 1 if not given.")
    ] = None,
    norm: Annotated[
        float | None, typer.Option("--norm", help="With --over: length of the features, sqrt(width); 1 if not given.")
    ] = None,
    tol: Annotated[float, typer.Option("--tol", help="Relative duality gap of every cell.")] = 1e-9,
    out: Annotated[
        Path | None, typer.Option("--out", help="Picture, .png, .svg or .pdf; the record beside it, as .json.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes; -1: one per core. More than one needs joblib.")] = 1,
    dask_scheduler: Annotated[
        str | None, typer.Option("--dask-scheduler", help='Compute on a dask cluster: "tcp://host:8786".')
    ] = None,
    as_json: Json = False,
) -> None:
    """Which classes stay separated, merge or vanish, over a grid of two parameters, with the exact thresholds drawn in.

    Every cell is a certified optimum, for signed and for nonnegative features; for networks that normalise their
    features with --over, where lambda_w is the penalty. "r" is the imbalance n_A / n_B and moves
    n_A; "share_a" is k_A / K. A sweep that is interrupted goes on where it stopped when the same command is given again
    with the same --out; a finished one computes nothing.
    """
    from collapsar.phase.grid import Axis, PhaseConfig, PhaseSettings
    from collapsar.phase.sweep import sweep

    picture_given(out, "--out", (".png", ".svg", ".pdf"))
    if out is not None:
        import collapsar.report.phase_plot  # noqa: F401 - that matplotlib is missing is said before the work, not after
    priced = (n_a, n_b, lambda_z, lambda_b, oversampling, over, *_norm_settings(over, lambda_w, norm))
    settings = PhaseSettings(classes, max(1, classes // 2) if k_a is None else k_a, *priced)
    config = PhaseConfig(Axis.parse(x), Axis.parse(y), settings, tol)
    record_file = None if out is None else out.with_suffix(".json")
    with bars("parts") as bar:
        task = bar.add_task(f"{config.shape[0]} x {config.shape[1]} cells", total=config.num_chunks)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        diagram = sweep(config, record_file, jobs=jobs, dask_scheduler=dask_scheduler, progress=progress, note=_note)
    record = diagram.to_dict()
    if out is not None:
        from collapsar.report.phase_plot import phase_figure

        write_picture(out, phase_figure(record), "phase", "Phase diagram of the two feature models", dpi=300)
    if as_json:
        print_json(record)
    else:
        _print_phase(diagram, out, record_file)
    failed = sum(int((part.status != cs.Status.OPTIMAL.name).sum()) for part in diagram.models)
    if failed:
        print(f"collapsar: {failed} cells did not reach the gap {tol:g}; they are marked", file=sys.stderr)
        raise typer.Exit(1)


def _norm_settings(over: str | None, lambda_w: float | None, norm: float | None) -> tuple[float, float]:
    """Penalty of the head's weight and length of the features, 1 where they are not given."""
    if over is None and (lambda_w is not None or norm is not None):
        raise ValueError("--lambda-w and --norm go with --over sample or --over batch; without a norm give --lambda-z")
    return 1.0 if lambda_w is None else lambda_w, 1.0 if norm is None else norm


def _note(sentence: str) -> None:
    print(f"collapsar: {sentence}", file=sys.stderr)


def _print_phase(diagram: PhaseDiagram, out: Path | None, record_file: Path | None) -> None:
    """One row per feature model: how many cells in which state, and how well states and thresholds agree."""
    from collapsar.phase.diagram import STATES

    console = Console(highlight=False)
    table = plain_table("", *(f"{part.features} features" for part in diagram.models))
    for pair in [(a, b) for a in range(3) for b in range(3)]:
        counts = [_cells(part.states, pair) for part in diagram.models]
        if any(counts):
            name = "all zero" if pair == (2, 2) else f"A {STATES[pair[0]]}, B {STATES[pair[1]]}"
            cells = [f"{n / part.gap.size:.1%}" for n, part in zip(counts, diagram.models, strict=True)]
            table.add_row(name, *cells)
    table.add_row("largest gap, relative", *(f"{part.gap.max():.1e}" for part in diagram.models))
    table.add_row("as the thresholds say", *(_agreement_words(part) for part in diagram.models))
    console.print(table)
    for part in diagram.models:
        for note in part.notes:
            console.print(f"{part.features}: {note}", soft_wrap=True)
    if out is not None:
        console.print(f"Picture: {out}\nRecord:  {record_file}", soft_wrap=True)


def _agreement_words(part: ModelPhase) -> str:
    """Share of the cells whose state is the one that the closed forms predict, where they do."""
    agreement = part.agreement
    if not agreement.known:
        return "-"
    known = "" if agreement.known == agreement.cells else f" of the {agreement.known / agreement.cells:.0%} they know"
    return f"{agreement.equal / agreement.known:.2%}{known}"


def _cells(states: Any, pair: tuple[int, int]) -> int:
    return int(((states[0] == pair[0]) & (states[1] == pair[1])).sum())
