"""``collapsar solve`` and ``collapsar thresholds``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import collapsar as cs
from collapsar.app.theory_records import solution_record, thresholds_record
from collapsar.cli.app import app
from collapsar.cli.options import (
    BEHIND_A_NORM,
    Column,
    Counts,
    Features,
    Html,
    IgnoreIndex,
    Json,
    LambdaB,
    LambdaH,
    LambdaW,
    LambdaZ,
    Norm,
    Offsets,
    Over,
    Scales,
    Smoothing,
    Temperatures,
    Weights,
    counts_given,
    loss_given,
    over_of,
    price,
)
from collapsar.cli.output import print_json, print_solution, print_thresholds
from collapsar.core.files import write_atomically

__all__ = ["solve", "thresholds"]


@app.command(
    epilog="""Examples:

    collapsar solve 500x5,100x5 --lambda-z 0.0037 --lambda-b 0.02

    collapsar solve labels.txt --lambda-w 1e-3 --lambda-h 1e-6 --features nonnegative --json

    collapsar solve 100x5,20x5 --lambda-b 0 --norm 11.3 --lambda-w 12 --html optimum.html"""
)
def solve(
    context: typer.Context,
    counts: Counts,
    lambda_z: LambdaZ = None,
    lambda_w: LambdaW = None,
    lambda_h: LambdaH = None,
    lambda_b: LambdaB = float("inf"),
    norm: Norm = None,
    over: Over = None,
    features: Features = "signed",
    class_weights: Weights = None,
    offsets: Offsets = None,
    scales: Scales = None,
    temperatures: Temperatures = None,
    smoothing: Smoothing = 0.0,
    column: Column = None,
    ignore_index: IgnoreIndex = None,
    tol: Annotated[float, typer.Option("--tol", help="Relative duality gap to reach.")] = 1e-9,
    max_steps: Annotated[int, typer.Option("--max-steps", help="Steps of the algorithm at most.")] = 300,
    out: Annotated[Path | None, typer.Option("--out", help="Save the solution here (.npz).")] = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """The exact optimum: which classes are separated, merged or vanished at this penalty, with a certificate."""
    read = counts_given(counts, column, ignore_index)
    n = read.counts
    loss = loss_given(context.params, n.size)
    kind = over_of(norm, over)
    if norm is None:
        problem = cs.Problem(n, price(lambda_z, lambda_w, lambda_h, BEHIND_A_NORM), lambda_b, loss, features=features)
    elif lambda_w is None or lambda_z is not None or lambda_h is not None:
        raise ValueError("--norm goes with --lambda-w alone: features of a given length have no penalty")
    else:
        problem = cs.Problem.from_normalized(
            n, lambda_w=lambda_w, norm=norm, over=kind, lambda_b=lambda_b, loss=loss, features=features
        )
    solution = _watched(problem, tol, max_steps)
    if out is not None:
        solution.save(out)
    if html is not None:
        from collapsar.app.solution_report import solution_report
        from collapsar.report import report_page

        page = {"kind": "report", "runs": [], "solutions": [solution_report(solution, html.stem, read.names)]}
        write_atomically(html, report_page(page))
    if as_json:
        print_json(solution_record(solution, read.names))
    else:
        print_solution(solution, read.names)
    if solution.status is not cs.Status.OPTIMAL:
        raise cs.NotConvergedError(solution)


def _watched(problem: cs.Problem, tol: float, max_steps: int) -> cs.Solution:
    """The solution; on a terminal, with a line that says how far the solver is."""
    if not sys.stderr.isatty():
        return cs.solve(problem, tol, max_steps=max_steps, throw=False)
    with Console(stderr=True).status("solving") as line:

        def say(step: int, certificate: cs.Certificate) -> None:
            line.update(f"step {step}: relative gap {certificate.relative_gap:.1e}, asked for {tol:g}")

        return cs.solve(problem, tol, max_steps=max_steps, progress=say, throw=False)


@app.command(
    epilog="""Examples:

    collapsar thresholds 500x5,100x5 --lambda-b 0.02

    collapsar thresholds 100x5,20x5 --lambda-b 0 --norm 11.3 --lambda-w 3

    collapsar thresholds 500x5,100x5 --lambda-b 0.02 --lambda-z 0.0037 --features nonnegative"""
)
def thresholds(
    context: typer.Context,
    counts: Counts,
    lambda_b: LambdaB = float("inf"),
    features: Features = "signed",
    lambda_z: Annotated[float | None, typer.Option("--lambda-z", help="Also the state of each class here.")] = None,
    norm: Norm = None,
    over: Over = None,
    lambda_w: Annotated[
        float | None, typer.Option("--lambda-w", help="With --norm: also the state of each class here.")
    ] = None,
    class_weights: Weights = None,
    offsets: Offsets = None,
    scales: Scales = None,
    temperatures: Temperatures = None,
    smoothing: Smoothing = 0.0,
    column: Column = None,
    ignore_index: IgnoreIndex = None,
    as_json: Json = False,
) -> None:
    """The penalties lambda_z at which classes merge, vanish, and everything collapses.

    With --lambda-z also the state of every class there, from the certified optimum. With --norm, behind a LayerNorm or
    BatchNorm, they are values of lambda_w, the decay of the head.
    """
    read = counts_given(counts, column, ignore_index)
    n = read.counts
    loss = loss_given(context.params, n.size)
    kind = over_of(norm, over)
    if (norm is None and lambda_w is not None) or (norm is not None and lambda_z is not None):
        raise ValueError("give --lambda-z, or --norm with --lambda-w: features of a given length have no lambda_z")
    at = lambda_z if norm is None else lambda_w
    level = 1.0 if at is None else at
    if norm is None:
        problem = cs.Problem(n, level, lambda_b, loss, features=features)
    else:
        problem = cs.Problem.from_normalized(
            n, lambda_w=level, norm=norm, over=kind, lambda_b=lambda_b, loss=loss, features=features
        )
    t = cs.thresholds(problem)
    here = None if at is None else _watched(problem, 1e-9, 300)
    if as_json:
        print_json(thresholds_record(problem, t, here, read.names))
    else:
        print_thresholds(problem, t, here, read.names)
    if here is not None and here.status is not cs.Status.OPTIMAL:
        raise cs.NotConvergedError(here)
