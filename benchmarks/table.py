"""From the JSON of a benchmark run to docs/benchmarks.md, its picture, and results/benchmarks/solver.json.

    make bench                                # or: python benchmarks/table.py RUN.json [RUN.json ...]

A run may come in pieces, of one commit on one machine; a later piece replaces entries of the same name.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from collapsar.core.files import write_atomically
from collapsar.report import png_bytes, styled, svg_string
from collapsar.report.style import COLOURS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "results" / "benchmarks"

Entry = Mapping[str, Any]

CASES = {
    "dataset1": "Dataset1, K = 10, J = 3",
    "inaturalist_like": "iNaturalist-like, K = 8142",
    "zipf": "Zipf, K = 50 000",
}


LONG = ("zipf", "distinct100")  # only with COLLAPSAR_BENCH=all


def read(files: Iterable[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine of the run, and one flat entry per benchmark of the solver."""
    machines: list[dict[str, Any]] = []
    entries: dict[str, dict[str, Any]] = {}
    for file in files:
        run = json.loads(Path(file).read_text(encoding="utf-8"))
        info = run["machine_info"]
        machine = {
            "commit": run.get("commit_info", {}).get("id", "unknown"),
            "cpu": re.sub(r"\(R\)|\(TM\)|\s*@.*", "", info["cpu"].get("brand_raw", "unknown CPU")).strip(),
            "cores": info["cores"],
            "blas_threads": info["blas_threads"],
            "system": f"{info['system']} {info['machine']}",
            "versions": {"python": info["python_version"], **info["versions"]},
            "date": run["datetime"][:10],
        }
        if machines and machine != machines[-1]:
            raise SystemExit(
                f"{file} is of another commit, day or machine than the piece before it: run the whole again"
            )
        machines.append(machine)
        for bench in run["benchmarks"]:
            if bench["extra_info"].get("kind") in KINDS:
                stats = bench["stats"]
                entries[bench["name"]] = {
                    "name": bench["name"],
                    "seconds": stats["median"],
                    "rounds": stats["rounds"],
                    **bench["extra_info"],
                }
    ordered = sorted(entries.values(), key=lambda e: (e["kind"], e.get("K", 0), e.get("J", 0), e.get("multiple", 0)))
    return {**machines[-1], "pieces": len(machines)}, ordered


def duration(seconds: float | None) -> str:
    """Two or three digits and a unit."""
    if seconds is None:
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.0f} µs"


def gap(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def markdown(header: str, rows: Iterable[Iterable[str]]) -> str:
    columns = header.count("|") + 1
    lines = [f"| {header} |", "|" + "---|" * columns, *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines)


def case(e: Entry) -> str:
    return CASES.get(e.get("case", ""), f"all counts distinct, K = {e['K']}") + model(e)


def model(e: Entry) -> str:
    """The feature model, where it is not the default."""
    return ", nonnegative features" if e.get("features") == "nonnegative" else ""


def cone_row(e: Entry) -> list[str]:
    answered = e.get("their_gap") is not None
    note = "" if answered else f" ({e['their_status']})"
    return [
        case(e),
        e["their_solver"],
        duration(e["their_seconds"]) + note,
        duration(e.get("their_seconds_again")),
        gap(e.get("their_gap")),
        duration(e["seconds"]),
        gap(e["gap"]),
        f"{e['ratio']:,.0f}" if answered else "no answer",
    ]


def svd_row(e: Entry) -> list[str]:
    row = [str(e["K"]), f"{e['multiple']:g}", duration(e["svd_seconds"]), duration(e["seconds"])]
    return [*row, f"{e['svds']:,.0f}", str(e["steps"]), gap(e["gap"])]


def size_row(e: Entry) -> list[str]:
    memory = f"{e['peak_mib']:,.0f} MiB" if "peak_mib" in e else "–"
    name = CASES.get(e.get("case", ""), "geometric" if e["kind"] == "clusters" else "two clusters").split(",")[0]
    row = [name + model(e), f"{e['K']:,}".replace(",", " "), str(e["J"]), duration(e["seconds"])]
    return [*row, str(e["steps"]), gap(e["gap"]), memory]


def many_row(e: Entry) -> list[str]:
    if e["kind"] == "batch":
        what = f"{e['problems']:,}".replace(",", " ") + " two-cluster problems at once" + model(e)
        return [what, duration(e["seconds"]), "–", "–", gap(e["gap"])]
    what = f"path of {e['problems']} penalties, {case(e)}"
    return [what, duration(e["seconds"]), duration(e["cold_seconds"]), f"{e['ratio']:.1f}", gap(e["gap"])]


TABLES: dict[str, tuple[tuple[str, ...], str, Callable[[Entry], list[str]]]] = {
    "cone": (
        ("cone",),
        "problem | cvxpy with | theirs | theirs again | their gap | ours | our gap | theirs / ours",
        cone_row,
    ),
    "svd": (("svd",), "K | multiplier | one SVD | ours | in SVDs | steps | gap", svd_row),
    "size": (("classes", "clusters", "many"), "counts | K | J | time | steps | gap | peak memory", size_row),
    "many": (("batch", "path"), "work | time | one by one | ratio | largest gap", many_row),
}


KINDS = {kind for kinds, _, _ in TABLES.values() for kind in kinds}


def machine_words(machine: Mapping[str, Any], entries: list[dict[str, Any]]) -> str:
    command = "`make bench`"
    if any(e.get("case") in LONG for e in entries):
        command = "`COLLAPSAR_BENCH=all make bench`"
    if machine["pieces"] > 1:
        command += f", in {machine['pieces']} pieces"
    cores = "one core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"Measured on {machine['date']} on {cores} of an {machine['cpu']} ({machine['system']}), BLAS "
        f"threads: {machine['blas_threads']}, processor seconds; {versions}; commit {machine['commit'][:7]}. "
        f"Command: {command}."
    )


def picture(entries: list[dict[str, Any]]) -> Figure:
    """Time against K for all-distinct counts, ours and theirs, and one SVD for scale."""
    ours = sorted((e["K"], e["seconds"], e["svd_seconds"]) for e in entries if e["kind"] == "svd" and e["multiple"] < 1)
    with styled():
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        ax = figure.subplots()
        K = [k for k, _, _ in ours]
        ax.plot(K, [svd for _, _, svd in ours], color=COLOURS["muted"], linestyle="--", label="one SVD")
        ax.plot(K, [t for _, t, _ in ours], color=COLOURS["blue"], marker="o", markersize=4, label="Collapsar")
        for solver, colour, marker in (("SCS", "vermilion", "s"), ("CLARABEL", "purple", "^")):
            theirs = [e for e in entries if e["kind"] == "cone" and e["case"] != "dataset1"]
            theirs = sorted(
                (e["K"], e["their_seconds"], e.get("their_gap") is not None) for e in theirs if is_of(e, solver)
            )
            solved = [(k, t) for k, t, answered in theirs if answered]
            failed = [(k, t) for k, t, answered in theirs if not answered]
            name = f"cvxpy with {solver.capitalize() if solver != 'SCS' else solver}"
            ax.plot(*zip(*solved, strict=True), color=COLOURS[colour], marker=marker, markersize=4, label=name)
            if failed:
                at = list(zip(*failed, strict=True))
                ax.plot(*at, color=COLOURS[colour], marker="x", linestyle="", label=f"{name}: no answer")
        ax.set(xscale="log", yscale="log", xlabel="classes K, all counts distinct", ylabel="seconds")
        ax.set_xticks(K, [str(k) for k in K])
        ax.minorticks_off()
        ax.grid(visible=True, linewidth=0.4)
        figure.legend(loc="outside upper center", ncols=2)
    return figure


def is_of(e: Entry, solver: str) -> bool:
    """Whether cvxpy ran this solver; its default is SCS for these programs."""
    return e["their_solver"] in ((solver, "default") if solver == "SCS" else (solver,))


def main(files: list[str]) -> None:
    machine, entries = read(files)
    text = PAGE.read_text(encoding="utf-8")
    parts = {"machine": machine_words(machine, entries)}
    for name, (kinds, header, row) in TABLES.items():
        parts[name] = markdown(header, (row(e) for kind in kinds for e in entries if e["kind"] == kind))
    for name, part in parts.items():
        marked = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not marked.search(text):
            raise SystemExit(f"{PAGE.name} has no place for the table {name!r}")
        text = marked.sub(lambda m, part=part: f"{m[1]}{part}\n{m[2]}", text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    summary = {"machine": machine, "benchmarks": entries}
    write_atomically(RESULTS / "solver.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_atomically(PAGE, text)
    figure = picture(entries)
    label = "Time against the number of classes: Collapsar, cvxpy with SCS and with Clarabel, and one SVD"
    write_atomically(PAGE.with_suffix(".svg"), svg_string(figure, "benchmarks", label) + "\n")
    write_atomically(PAGE.with_suffix(".png"), png_bytes(figure))


if __name__ == "__main__":
    main(sys.argv[1:])
