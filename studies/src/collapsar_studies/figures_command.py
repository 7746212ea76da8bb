"""``collapsar figures``: the pictures and tables of the theory, each with the record behind it."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from collapsar.cli import app
from collapsar_studies.options import Json, print_json

figures = typer.Typer(help="Pictures and tables of the theory, with the records behind them.", no_args_is_help=True)
app.add_typer(figures, name="figures")

Out = Annotated[Path, typer.Option("--out", help="Folder for NAME.json, NAME.png and NAME.svg.")]


@figures.command(
    epilog="""Examples:

    collapsar figures theory --out results/theory

    collapsar figures theory --only vanish --only remedies --out pictures"""
)
def theory(
    out: Out = Path("results/theory"),
    only: Annotated[list[str] | None, typer.Option("--only", help="Draw only this picture; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Draw every picture of the theory, with its record; this takes about 15 s and always writes the same files."""
    from collapsar_studies.theory_figures import FIGURES, theory_figures

    log = Console(stderr=True, highlight=False)

    def progress(name: str) -> None:
        if sys.stderr.isatty():
            log.print(f"{name}: {FIGURES[name].title if name in FIGURES else ''}")

    records = theory_figures(out, only or (), progress)
    if as_json:
        print_json({name: str(out / f"{name}.json") for name in records})
        return
    if "figures_5_to_8" in records:
        _print_table(records["figures_5_to_8"])
    console = Console(highlight=False)
    for name, record in records.items():
        console.print(f"{out / name}.png  {record['title']}", soft_wrap=True)


@figures.command(
    epilog="""Example:

    collapsar figures table"""
)
def table(as_json: Json = False) -> None:
    """Where the networks of Hong & Ling's Figs. 5-8 collapse, beside the thresholds of both feature models."""
    from collapsar_studies.theory_figures import table_record

    record = table_record()
    if as_json:
        print_json(record)
    else:
        _print_table(record)


@figures.command(
    epilog="""Examples:

    collapsar figures remedies 500x5,100x5 --lambda-z 0.0036 --lambda-b 0.02

    collapsar figures remedies exp:5000:50:10 --lambda-z 0.0003 --out runs/remedies --json"""
)
def remedies(
    counts: Annotated[
        str, typer.Argument(metavar="COUNTS", help="Class counts, as for `collapsar solve`.", show_default=False)
    ],
    lambda_z: Annotated[float, typer.Option("--lambda-z", help="Penalty of the mean predictions.", show_default=False)],
    lambda_b: Annotated[
        float, typer.Option("--lambda-b", help="Penalty of the head's bias; inf: no bias, 0: free bias.")
    ] = math.inf,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write the record and the picture into this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What each mitigation of imbalance does to these counts: thresholds, states, margins, for both feature models."""
    from collapsar_studies.theory_figures import remedies_record, write_figure

    record = remedies_record(counts, lambda_z, lambda_b)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_figure(out, "remedies", "remedies_figure", "remedies: thresholds, margins, geometry", record)
    if as_json:
        print_json(record)
    else:
        _print_remedies(record)


def _print_table(record: dict[str, Any]) -> None:
    console = Console(highlight=False)
    shown = Table("figure", "event", "networks", "signed", "nonnegative", title="Transitions in lambda_z or in n_A")
    for row in record["rows"]:
        k_a, k_b = row["k"]
        what = "lambda_z" if row["varied"] == "lambda_z" else "n_A"
        for event in ("minority", "complete"):
            low, high = row["observed"][event]
            seen = f"<= {high:g}" if low is None else f"({low:g}, {high:g}]"
            cells = [_inside(row[model][event], row["inside"][model][event]) for model in ("signed", "nonnegative")]
            shown.add_row(f"{row['figure']}: k=({k_a},{k_b}), {what}", event, seen, *cells)
    console.print(shown)
    console.print("networks: the bracket that can be read from the figure; *: the model's value lies in it")


def _inside(value: float, inside: bool) -> str:
    return f"{value:.5f}{'*' if inside else ''}" if value < 1 else f"{value:.1f}{'*' if inside else ''}"


def _print_remedies(record: dict[str, Any]) -> None:
    groups = record["groups"]
    last = len(groups) - 1
    shown = Table("mitigation", "merge (signed)", "vanish", "state", "margins: largest", "smallest")
    for remedy in record["remedies"]:
        signed, other = remedy["signed"], remedy["nonnegative"]
        shown.add_row(
            remedy["words"],
            _cell(signed["thresholds"]["merge"][last], ".5g"),
            _cell(other["thresholds"]["vanish"][last], ".5g"),
            other["states"][last],
            _cell(other["margins"][0], "+.3f"),
            _cell(other["margins"][last], "+.3f"),
        )
    console = Console(highlight=False)
    console.print(shown)
    console.print(
        f"Of the smallest classes ({groups[last]['classes']} of {groups[last]['samples']} samples): lambda_z at which "
        "they merge with signed features and vanish with nonnegative ones, and their state with the latter. "
        "Margins are in nats, for nonnegative features, without the offsets and scales of the training loss.",
        soft_wrap=True,
    )


def _cell(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
