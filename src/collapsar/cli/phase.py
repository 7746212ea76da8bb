"""``collapsar phase``. matplotlib, joblib and dask are imported when they are needed, not before."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typer import Option

import collapsar as cs
from collapsar.cli.options import Json, command, picture_given
from collapsar.cli.output import bars, console, plain_table, refuse, tell, write_picture

if TYPE_CHECKING:
    from collapsar.phase.diagram import ModelPhase, PhaseDiagram
    from collapsar.phase.grid import PhaseSettings

_AXIS_HELP = (
    "NAME:LOW:HIGH:NUM or NAME:LOW:HIGH:NUM:log; names: lambda_z, lambda_b, r, n_a, n_b, share_a, oversampling; with "
    "--over, lambda_w and norm instead of lambda_z."
)


@dataclass(frozen=True)
class Fixed:
    """What stays fixed, unless it is on an axis."""

    classes: int = Option(10, help="K, the number of classes.")
    k_a: int | None = Option(None, help="k_A, how many of them are large.  [default: half]")
    n_a: float = Option(500.0, help="n_A, samples per large class.")
    n_b: float = Option(100.0, help="n_B, samples per small class.")
    lambda_z: float = Option(0.0036, help="Penalty of the mean predictions.")
    lambda_b: float = Option(0.02, help="Penalty of the bias; inf: none, 0: free.")
    oversampling: float = Option(1.0, help="How often each sample of a small class is shown.")
    over: Literal["sample", "batch"] | None = Option(
        None, help="Features normalised per sample (LayerNorm) or batch (BatchNorm)."
    )
    lambda_w: float | None = Option(None, help="With --over: penalty of the head's weight; 1 if not given.")
    norm: float | None = Option(None, help="With --over: length of the features, sqrt(width); 1 if not given.")

    def settings(self) -> PhaseSettings:
        """The same, in the form for a phase diagram."""
        from collapsar.phase.grid import PhaseSettings

        if self.over is None and (self.lambda_w is not None or self.norm is not None):
            raise ValueError(
                "--lambda-w and --norm go with --over sample or --over batch; without a norm give --lambda-z"
            )
        given = {name: value for name, value in vars(self).items() if name != "classes" and value is not None}
        return PhaseSettings(self.classes, **{"k_a": max(1, self.classes // 2), **given})


@command(
    "collapsar phase --x lambda_z:1e-3:2e-2:60:log --y r:1:50:60 --lambda-b 0.02 --out phase.png",
    "collapsar phase --x n_a:50:2000:50:log --y n_b:20:500:50:log --lambda-z 0.005 --jobs 4 --out phase.svg",
    "collapsar phase --x share_a:0.1:0.9 --y lambda_z:1e-3:1e-2:40:log --classes 20 --json",
    "collapsar phase --x r:1:20:40 --y lambda_w:0.1:10:40:log --over sample --norm 11.3 --out ln.png",
)
def phase(
    *,
    x: str = Option(..., help=f"Horizontal axis: {_AXIS_HELP}", show_default=False),
    y: str = Option(..., help="Vertical axis: another parameter, in the same form.", show_default=False),
    fixed: Fixed,
    tol: float = Option(1e-9, help="Relative duality gap of every cell."),
    out: Path | None = Option(None, help="Picture to write: .png, .svg or .pdf; the record goes beside it, as .json."),
    jobs: int = Option(1, help="Processes; -1: one per core. More than one needs joblib."),
    dask_scheduler: str | None = Option(None, help='Compute on a dask cluster: "tcp://host:8786".'),
    as_json: Json = False,
) -> None:
    """Which classes stay separated, merge or vanish, over a grid of two parameters, with the exact thresholds drawn in.

    Every cell is a certified optimum, for signed and for nonnegative features; with --over, for networks that normalise
    their features, where lambda_w is the penalty. "r" is the imbalance n_A / n_B and changes n_A; "share_a" is k_A / K.
    An interrupted sweep resumes where it stopped when the same command is run again with the same --out; a finished one
    is not computed again.
    """
    from collapsar.phase.grid import Axis, PhaseConfig
    from collapsar.phase.sweep import sweep

    picture_given(out, "--out", (".png", ".svg", ".pdf"))
    if out is not None:
        import collapsar.report.phase_plot  # noqa: F401 - that matplotlib is missing is said before the work, not after
    config = PhaseConfig(Axis.parse(x), Axis.parse(y), fixed.settings(), tol)
    record_file = None if out is None else out.with_suffix(".json")
    with bars("parts") as bar:
        task = bar.add_task(f"{config.shape[0]} x {config.shape[1]} cells", total=config.num_chunks)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def note(sentence: str) -> None:
            print(f"collapsar: {sentence}", file=sys.stderr)

        diagram = sweep(config, record_file, jobs=jobs, dask_scheduler=dask_scheduler, progress=progress, note=note)
    record = diagram.to_dict()
    if out is not None:
        from collapsar.report.phase_plot import phase_figure

        write_picture(out, phase_figure(record), "phase", "Phase diagram of the two feature models", dpi=300)
    tell(record, lambda: _print_phase(diagram, out, record_file), as_json=as_json)
    failed = sum(int((part.status != cs.Status.OPTIMAL.name).sum()) for part in diagram.models)
    refuse([f"{failed} cells did not reach the gap {tol:g}; they are marked"] if failed else [])


def _print_phase(diagram: PhaseDiagram, out: Path | None, record_file: Path | None) -> None:
    """A column per feature model: the share of cells in each state, and how well states and thresholds agree."""
    from collapsar.core.states import CLASS_STATES

    shown, models = console(), diagram.models
    rows: list[tuple[str, ...]] = []
    for a, b in [(a, b) for a in range(3) for b in range(3)]:
        counts = [int(((part.states[0] == a) & (part.states[1] == b)).sum()) for part in models]
        if any(counts):
            name = "all zero" if (a, b) == (2, 2) else f"A {CLASS_STATES[a]}, B {CLASS_STATES[b]}"
            rows.append((name, *(f"{100 * n / part.gap.size:.1f} %" for n, part in zip(counts, models, strict=True))))
    rows.append(("largest gap, relative", *(f"{part.gap.max():.1e}" for part in models)))
    rows.append(("as the thresholds say", *(_agreement_words(part) for part in models)))
    shown.print(plain_table("", *(f"{part.features} features" for part in models), rows=rows))
    for part in models:
        for note in part.notes:
            shown.print(f"{part.features}: {note}", soft_wrap=True)
    if out is not None:
        shown.print(f"Picture: {out}\nRecord:  {record_file}", soft_wrap=True)


def _agreement_words(part: ModelPhase) -> str:
    """Share of the cells whose state is the one that the closed forms predict, among those they predict."""
    agreement = part.agreement
    if not agreement.known:
        return "-"
    known = (
        ""
        if agreement.known == agreement.cells
        else f" of the {100 * agreement.known / agreement.cells:.0f} % they know"
    )
    return f"{100 * agreement.equal / agreement.known:.2f} %{known}"
