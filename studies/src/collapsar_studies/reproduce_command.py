"""``collapsar reproduce``: the paper's figures and the studies, trained, compared with theory and drawn."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from collapsar.cli import app
from collapsar_studies.names import NAMES, check
from collapsar_studies.options import Json, print_json

# Off a terminal, a line of progress at most this often.
_SECONDS_BETWEEN_LINES = 60.0


@app.command(
    epilog="""Examples:

    collapsar reproduce fig5 --jobs 2

    collapsar reproduce all --preset tiny

    collapsar reproduce which-model --seed 0 --seed 1 --out results

    collapsar reproduce fig1 --preset paper --network vgg11 --jobs 1"""
)
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="fig1 to fig9, which-model, effective, standard, noise, rest, starts, text, all (of these) or advice.",
            show_default=False,
        ),
    ],
    preset: Annotated[
        str, typer.Option(help="paper: the paper's full settings, on a GPU; cpu: minutes on two cores; tiny: seconds.")
    ] = "cpu",
    data: Annotated[str | None, typer.Option("--data", help="Data set to use instead of the preset's.")] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Folder with the data set's files.")] = None,
    network: Annotated[str | None, typer.Option("--network", help="Another network, for figures only.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Seed to use instead of the preset's; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the results; default: results (cpu), else runs/reproduce-PRESET."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", help="Number of processes; -1: one per core. More than one needs joblib.")
    ] = 1,
    dask_scheduler: Annotated[
        str | None, typer.Option("--dask-scheduler", help='Train on a dask cluster: "tcp://host:8786".')
    ] = None,
    as_json: Json = False,
) -> None:
    """Train the networks behind a figure of Hong & Ling (2024), and draw it together with both feature models.

    Finished runs are not repeated: after an interruption, run the same command again to resume. The studies go beyond
    the paper: which-model trains one network with and without its last ReLU and compares both with both feature models;
    effective asks what predicts the loss of the small classes when there is nothing but weight decay; standard trains
    as people do, with a norm before the head and decay on it, by SGD and AdamW; advice asks whether following
    `collapsar advise` helps.
    """
    check(name, preset)
    from collapsar_studies.reproduce import Place, Request, needs_a_gpu
    from collapsar_studies.reproduce import reproduce as run

    folder = out if out is not None else Path("results") if preset == "cpu" else Path("runs") / f"reproduce-{preset}"
    if name == "advice":
        given = {"--data": data, "--data-dir": data_dir, "--network": network, "--dask-scheduler": dask_scheduler}
        _advice(folder, preset, tuple(seed or ()), jobs, given, as_json=as_json)
        return
    place = Place(folder, Path("runs") / "reproduce-scratch", data_dir, jobs, dask_scheduler)
    records = {}
    for each in NAMES if name == "all" else (name,):
        request = Request(each, preset, data, *_fitting(each, name, network, seed))
        if warning := needs_a_gpu(request):
            _complain(warning)
        with _Bar(each) as bar, _going_on(each):
            records[each] = run(request, place, progress=bar.advance, note=_complain)
        if not as_json:
            _print(records[each])
            Console(highlight=False).print(str(folder / each / f"{each}.png"), soft_wrap=True)
    if as_json:
        print_json(records if name == "all" else records[name])


def _advice(
    folder: Path, preset: str, seeds: tuple[int, ...], jobs: int, given: Mapping[str, Any], *, as_json: bool
) -> None:
    """Run the study of the advice, which has its own sweep, data and networks."""
    from collapsar_studies.advice_study import run as run_advice

    unknown = [option for option, value in given.items() if value is not None]
    if unknown:
        raise ValueError(f"`{unknown[0]}` is for the figures and the other studies; leave it out")
    with _Bar("advice") as bar:
        record = run_advice(preset, out=folder / "advice", seeds=seeds, jobs=jobs, progress=bar.advance)
    if as_json:
        print_json(record)
    else:
        Console(highlight=False).print(f"{folder / 'advice' / 'advice.png'}  {record['title']}", soft_wrap=True)


def _fitting(each: str, name: str, network: str | None, seed: list[int] | None) -> tuple[str | None, tuple[int, ...]]:
    """Under "all", options that a study does not know are meant for the others."""
    skip = name == "all"
    return (
        None if skip and not each.startswith("fig") else network,
        () if skip and each == "effective" else tuple(seed or ()),
    )


@contextmanager
def _going_on(name: str) -> Iterator[None]:
    """Make Ctrl-C speak of the whole command, not of the one run that it stopped."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{name} was interrupted; run the same command again to resume") from None


def _complain(sentence: str) -> None:
    print(f"collapsar: {sentence}", file=sys.stderr)


class _Bar:
    """A progress bar in a terminal, a line now and then in a log file."""

    def __init__(self, name: str) -> None:
        self.name, self.last = name, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} runs"))
        console = Console(stderr=True)
        self.bar = Progress(*columns, TextColumn("{task.fields[left]}"), console=console, disable=not _terminal())
        self.task = self.bar.add_task(name, total=None, left="")

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, done: int, total: int, seconds: float) -> None:
        left = "" if not seconds > 0 else f"about {_duration(seconds)} left"
        self.bar.update(self.task, completed=done, total=total, left=left)
        if not _terminal() and left and time.monotonic() - self.last >= _SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            print(f"{self.name}: {done} of {total} runs, {left}", file=sys.stderr)


def _terminal() -> bool:
    return sys.stderr.isatty()


def _duration(seconds: float) -> str:
    """Two digits are enough for an estimate.

    Example:
        >>> _duration(42), _duration(400), _duration(9000)
        ('42 s', '7 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# --- tables


def _print(record: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    tables = {"which-model": _which_model, "effective": _effective, "standard": _standard}
    tables |= {"noise": _noise, "rest": _rest, "starts": _starts, "text": _text}
    show = tables.get(record["figure"])
    if show is None:
        number = record["number"]
        show = _transitions if 5 <= number <= 8 else _cosines if number == 9 else _ends
    console.print(show(record))
    for sentence in record.get("statement", []):
        console.print(sentence)
    e = record["environment"]
    failed = f"; {len(e['failed'])} failed: {'; '.join(dict.fromkeys(e['failed']))}" if e["failed"] else ""
    console.print(
        f"{e['runs']} runs, {e['cpu_minutes']:g} minutes of processor time, {', '.join(e['devices'])}{failed}"
    )


def _ends(record: Mapping[str, Any]) -> Table:
    """Figs. 1 to 4: distances at the end, or NC1."""
    table = _table("counts", "network", "seed", "ln NC1", "Z: nonneg.", "signed", "b: nonneg.", "signed")
    for run in record["runs"]:
        nc1 = run["nc1_uniform"][-1] if isinstance(run["nc1_uniform"], list) else run["nc1_uniform"]
        cells = [f"{run['distance'][m][v]:.3f}" if "distance" in run else "-" for v in "Zb" for m in _MODELS]
        table.add_row(run["counts"], run["network"], str(run["seed"]), f"{math.log(nc1):.1f}", *cells)
    return table


_MODELS = ("nonnegative", "signed")


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _transitions(record: Mapping[str, Any]) -> Table:
    """Figs. 5 to 8: brackets of every seed beside both models."""
    table = _table("event", "seed", "networks", "nonnegative", "signed", "in the paper")
    for event in ("minority", "complete"):
        for seen in record["observed"]:
            cells = [f"{record['predicted'][m][event]:.4g} ({seen['verdict'][m][event]})" for m in _MODELS]
            paper = _bracket(record["in_the_paper"][event])
            table.add_row(event, str(seen["seed"]), _bracket(seen[event]), *cells, paper)
    return table


def _bracket(ends: Sequence[float | None]) -> str:
    low, high = ends
    return f"({'-' if low is None else f'{low:g}'}, {'-' if high is None else f'{high:g}'}]"


def _cosines(record: Mapping[str, Any]) -> Table:
    table = _table(
        "n_A", "seed", *(f"{pair}: {who}" for pair in ("A", "B", "across") for who in ("net", "nonneg.", "s."))
    )
    for run in record["runs"]:
        o = run["optimum_cosines"]
        cells = [f"{v[p]:.3f}" for p in ("A", "B", "across") for v in (run["cosines"], *(o[m] for m in _MODELS))]
        table.add_row(f"{run['value']:g}", str(run["seed"]), *cells)
    return table


def _which_model(record: Mapping[str, Any]) -> Table:
    table = _table("n_B", "last ReLU", "Z off: nonneg.", "signed", "b off: nonneg.", "signed", "nearer to nonneg.")
    for row in record["table"]:
        cells = [_spread(row[f"{m}_{v}"]) for v in "Zb" for m in _MODELS]
        table.add_row(
            str(row["n_b"]), "yes" if row["relu"] else "no", *cells, "{} of {}".format(*row["nearer_to_nonnegative"])
        )
    return table


def _spread(values: Sequence[float] | None) -> str:
    return "-" if values is None else "{:.3f} ({:.3f} to {:.3f})".format(*values)


def _standard(record: Mapping[str, Any]) -> Table:
    """The sweeps over the decay of the head: worst distance over the seeds to each of three models."""
    table = _table("norm", "lambda_w / merge", "Z: per sample", "per batch", "penalised", "b: own model", "merged")
    for row in record["table"]:
        cells = ["-" if row[name] is None else f"{row[name]:.4f}" for name in ("sample", "batch", "penalised", "b")]
        table.add_row(row["norm"], f"{row['factor']:g}", *cells, f"{row['merged']} of {row['runs']}")
    return table


def _rest(record: Mapping[str, Any]) -> Table:
    """AdamW at rest: distances of Z to the fixed point of its entries and to the optimum of its rows."""
    table = _table("d", "decay", "seed", "residual", "Z: entries", "rows", "rows, averaged", "rows read", "forecast")
    for run in record["runs"]:
        cells = [f"{run['distance'][name]:.3f}" for name in ("entries", "rows", "rows_averaged")]
        both = ["{:.3g}, {:.3g}".format(*rows) for rows in (run["rows"], run["forecast"]["rows"])]
        labels = str(run["width"]), f"{run['wd']:g}", str(run["seed"])
        table.add_row(*labels, f"{run['residual']:.3f}", *cells, *both)
    return table


def _noise(record: Mapping[str, Any]) -> Table:
    """Switches by learning rate and batch, and what the noise of the last network before them amounts to as decay."""
    table = _table("L", "rate", "batch", "switch", "noise as decay", "in training mode", "head gradient")
    number: Callable[[Any], str] = lambda v: "-" if v is None else f"{v:.2g}"  # noqa: E731
    for row in record["table"]:
        seen = "\n".join(map(_bracket, row["measured"]))
        cells = [number(row[name]) for name in ("noise", "as_trained", "stationarity")]
        table.add_row(str(row["layers"]), f"{row['rate']:g}", str(row["batch"]), seen, *cells)
    return table


def _beside(run: Mapping[str, Any]) -> list[str]:
    """How far a network is from its model in Z and b, and the contrasts of both."""
    away = [f"{run['distance'][name]:.3f}" for name in "Zb"]
    return away + ["{:.3g}, {:.3g}".format(*run[name]) for name in ("contrasts", "predicted_contrasts")]


def _starts(record: Mapping[str, Any]) -> Table:
    """Ways to approach the threshold, each network beside the model of its norm."""
    table = _table("norm", "/ merge", "way", "seed", "Z", "b", "contrast A, B", "of the optimum", "merged")
    for run in record["runs"]:
        labels = run["norm"], f"{run['factor']:g}", run["way"], str(run["seed"])
        table.add_row(*labels, *_beside(run), "yes" if run["merged"] else "no")
    return table


def _text(record: Mapping[str, Any]) -> Table:
    """A text transformer beside its optimum."""
    table = _table("head", "decay", "/ merge", "seed", "Z", "b", "contrast A, B", "of the optimum", "accuracy")
    for run in record["runs"]:
        factor = "-" if run["factor"] is None else f"{run['factor']:.2g}"
        labels = run["optimizer"], f"{run['decay']:g}", factor, str(run["seed"])
        table.add_row(*labels, *_beside(run), f"{run['accuracy']:.3f}")
    return table


def _effective(record: Mapping[str, Any]) -> Table:
    models = ("shallow", "deep", "descent", "body", "spinodal")
    table = _table("rate", "n_B", "L", "cold", "up", "down", *models)
    number: Callable[[Any], str] = lambda v: "-" if v is None else f"{v:.3g}"  # noqa: E731
    for row in record["table"]:
        seen = ["\n".join(_bracket(b) for b in row["measured"][branch]) or "-" for branch in ("cold", "up", "down")]
        said = [number(row["predicted"][name]) for name in models]
        table.add_row(f"{row['rate']:g}", str(row["n_b"]), str(row["layers"]), *seen, *said)
    return table
