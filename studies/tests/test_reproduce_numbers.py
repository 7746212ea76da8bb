"""The numbers of docs/reproduce.md against the records in results/: every row of its tables, made again from them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
MODELS = ("nonnegative", "signed")
PRINTED = {"Dataset1": {"Z": "0.043", "b": "0.207"}, "Dataset2": {"Z": "0.091", "b": "0.41"}}
IN_THE_PAPER = {
    (5, "minority"): "<= .0033",
    (5, "complete"): "(.0063, .0069]",
    (6, "minority"): "<= .0045",
    (6, "complete"): "(.0086, .0094]",
    (7, "minority"): "<= 300",
    (7, "complete"): "(1000, 1100]",
    (8, "minority"): "(400, 450]",
    (8, "complete"): "(2200, 2500]",
}


def record(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / name / f"{name}.json").read_text(encoding="utf-8"))


def minutes(name: str) -> str:
    return f"{record(name)['environment']['cpu_minutes'] / 2:.1f}"


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Median (smallest to largest)."""
    found = list(values)
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(np.median(found), min(found), max(found), d=digits)


def short(value: float) -> str:
    """.0033 and 1100."""
    return f"{value:g}".removeprefix("0")


def bracket(ends: Sequence[float | None]) -> str:
    low, high = ("-" if end is None else short(end) for end in ends)
    return f"({low}, {high}]"


def brackets(seen: Sequence[Sequence[float | None]]) -> str:
    """The bracket of all seeds, or each with the number of its seeds, the most frequent first."""
    counts = Counter(map(bracket, seen)).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return "; ".join(f"{text} ({n} of {len(seen)} seeds)" for text, n in counts)


def rows_of_distances(figures: str, name: str, command: str, printed: bool) -> Iterable[str]:
    for counts, paper in PRINTED.items():
        for which, word in (("Z", "Z, Frobenius"), ("b", "b, Euclidean")):
            runs = [run for run in record(name)["runs"] if run["counts"] == counts]
            both = [spread(run["distance"][model][which] for run in runs) for model in MODELS]
            yield (
                f"| {figures} | {command} | with fig1 | {counts}: relative distance of {word}, to each model (right) | "
                f"{paper[which] if printed else '-'} | {both[0]} | {both[1]} |"
            )


STANDARD_NORMS = {
    "layernorm": "LayerNorm", "rmsnorm": "RMSNorm", "cosine": "cosine head", "batchnorm": "BatchNorm", "none": "none",
}  # fmt: skip


def rows_of_figures() -> Iterable[str]:
    runs = record("fig1")["runs"]
    ends = {
        counts: spread((math.log(run["nc1_uniform"][-1]) for run in runs if run["counts"] == counts), 1)
        for counts in PRINTED
    }
    words = ", ".join(f"{text} on {counts}" for counts, text in ends.items())
    yield f"| 1 | `fig1` | {minutes('fig1')} | ln NC1 ends at {words} | near -10 | - | - |"
    yield from rows_of_distances("2", "fig2", "`fig2`", printed=False)
    yield from rows_of_distances("3, 4", "fig3", "`fig3`, `fig4`", printed=True)
    for number in (5, 6, 7, 8):
        r = record(f"fig{number}")
        for event, word in (("minority", "small classes collapsed"), ("complete", "all collapsed")):
            seen = brackets([o[event] for o in r["observed"]])
            told = []
            for model in MODELS:
                verdicts = "/".join(dict.fromkeys(o["verdict"][model][event] for o in r["observed"]))
                value = r["predicted"][model][event]
                told.append(f"{f'{value:.0f}' if value > 1 else f'{value:.5f}'.removeprefix('0')} ({verdicts})")
            yield (
                f"| {number} | `fig{number}` | {minutes(f'fig{number}')} | {word}: {seen} | "
                f"{IN_THE_PAPER[number, event]} | {told[0]} | {told[1]} |"
            )
    r = record("fig9")
    for value in (500, 5500):
        here = [run for run in r["runs"] if run["value"] == value]
        pairs = ("A", "B", "across")
        net = ", ".join(f"{p} {np.median([run['cosines'][p] for run in here]):.3f}" for p in pairs)
        both = [", ".join(f"{p} {here[0]['optimum_cosines'][m][p]:.3f}" for p in pairs) for m in MODELS]
        what = f"cosines at n_A = {value}: {net}"
        yield f"| 9 | `fig9` | {minutes('fig9')} | {what} | towards -1/9 | {both[0]} | {both[1]} |"


def rows_of_which_model() -> Iterable[str]:
    r = record("which-model")
    for row in r["table"]:
        n_b, relu = row["n_b"], row["relu"]
        seen = [t for t in r["transitions"] if (t["n_b"], t["relu"]) == (n_b, relu)]
        distances = " | ".join(
            "{:.3f} ({:.3f} to {:.3f})".format(*row[f"{model}_{which}"]) for which in "Zb" for model in MODELS
        )
        yield (
            f"| {r['n_a']}, {n_b} | {'yes' if relu else 'no'} | {row['runs']} | {distances} | "
            f"{row['nearer_to_nonnegative'][0]} of {row['nearer_to_nonnegative'][1]} | "
            f"{brackets([t['minority'] for t in seen])} | {brackets([t['complete'] for t in seen])} |"
        )
    for n_b in r["minorities"]:
        p, five = r["predicted"][str(n_b)], lambda v: f"{v:.5f}".removeprefix("0")
        norms = [
            spread(b["norm"] for b in r["between"] if (b["n_b"], b["relu"]) == (n_b, relu)) for relu in (False, True)
        ]
        optimum = next(b["signed"] for b in r["between"] if b["n_b"] == n_b)
        yield (
            f"| {r['n_a']}, {n_b} | {five(p['nonnegative']['minority'])} | {five(p['signed']['minority'])} | "
            f"{five(p['signed']['vanish'])} | {five(p['nonnegative']['complete'])} | {five(p['signed']['complete'])} | "
            f"{norms[0]} | {norms[1]} | {optimum:.3f} |"
        )


def rows_of_standard() -> Iterable[str]:
    for row in record("standard")["table"]:
        z = " | ".join(f"{row[name]:.3f}" for name in ("sample", "batch", "penalised"))
        merged = f"{row['merged']} of {row['runs']}"
        yield f"| {STANDARD_NORMS[row['norm']]} | {row['factor']:g} | {z} | {row['b']:.3f} | {merged} |"


@pytest.mark.parametrize("row", [*rows_of_figures(), *rows_of_which_model(), *rows_of_standard()])
def test_a_row_of_the_page_is_the_records(row: str) -> None:
    assert row in PAGE.splitlines()


def test_the_page_has_no_other_rows() -> None:
    made = {*rows_of_figures(), *rows_of_which_model()}
    until = PAGE.index("## Weight decay on everything")
    starts = ("| 1 ", "| 2 ", "| 3", "| 5", "| 6", "| 7", "| 8", "| 9", "| 200,")
    assert {line for line in PAGE[:until].splitlines() if line.startswith(starts)} == made


def test_networks_at_rest_follow_the_nonnegative_model_on_dataset2() -> None:
    """Every network and every seed: Z within .05, b within .10, and the signed optimum farther in both."""
    runs = [run for run in record("fig2")["runs"] if run["counts"] == "Dataset2"]
    assert len(runs) == 9
    assert {run["seed"] for run in runs} == {0, 1, 2}
    for run in runs:
        near, far = (run["distance"][model] for model in MODELS)
        assert near["Z"] <= 0.05
        assert near["b"] <= 0.10
        assert far["Z"] > near["Z"]
        assert far["b"] > near["b"]


def test_transitions_are_inside_or_next_to_those_of_the_nonnegative_model() -> None:
    for number in (5, 6, 7, 8):
        for seen in record(f"fig{number}")["observed"]:
            assert set(seen["verdict"]["nonnegative"].values()) <= {"inside", "next"}


def test_networks_with_a_norm_and_a_decayed_head_follow_the_model_of_their_norm() -> None:
    """Z within .05 and b within .10 away from the threshold; LayerNorm and RMSNorm merge within a tenth of it."""
    r = record("standard")
    for run in (run for run in r["runs"] if run["norm"] in ("layernorm", "rmsnorm", "cosine")):
        assert run["distance"]["sample"]["b"] <= 0.10
        assert run["distance"]["sample"]["Z"] <= (0.05 if run["factor"] in (0.3, 0.6, 1.4) else 0.10)
    exact = [m["bracket"] for m in r["merged"] if m["norm"] in ("layernorm", "rmsnorm")]
    assert exact == [[0.9, 1.1]] * 6
    assert all(t["right"] for t in r["tuned"])
    assert len(r["tuned"]) == 20


@pytest.mark.parametrize("name", [*(f"fig{n}" for n in range(1, 10)), "which-model", "standard"])
def test_records_say_where_they_were_made(name: str) -> None:
    environment = record(name)["environment"]
    assert environment["failed"] == []
    assert environment["threads"] == [1]
    assert len(environment["versions"]) == 1
    assert "torch" in environment["versions"][0]
    assert all(commit != "None" for commit in environment["commits"])
    assert (ROOT / "results" / name / f"{name}.png").read_bytes().startswith(b"\x89PNG")
