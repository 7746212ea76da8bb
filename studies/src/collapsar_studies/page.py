"""The tables of docs/reproduce.md and docs/advise.md that are made from records.

``python -m collapsar_studies.page`` at the root of the checkout writes them again: each stands between a line
``<!-- made from results/NAME -->`` and the next ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from collapsar.core.types import Record

PAGES = ("docs/reproduce.md", "docs/advise.md")
_PLACE = re.compile(r"(<!-- made from (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str, root: Path) -> str:
    """The page with every table made again.

    Args:
        page: Its text.
        root: The checkout, which has the records.

    Raises:
        ValueError: A place asks for an unknown table.
    """

    def made(place: re.Match[str]) -> str:
        name = place[2]
        if name not in TABLES:
            raise ValueError(f"`page` must ask for one of {', '.join(TABLES)}, got {name}")
        file, lines = TABLES[name]
        record = json.loads((root / file).read_text(encoding="utf-8"))
        return place[1] + "\n" + "\n".join(lines(record)) + "\n\n" + place[3]

    return _PLACE.sub(made, page)


def _table(*columns: str) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _span(values: Iterable[float], form: str = ".3f") -> str:
    """Smallest to largest, one number where they print alike."""
    found = [0.0 if abs(value) < 1e-12 else value for value in values]  # a zero has no sign
    low, high = (f"{end:{form}}" for end in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"


def _grouped(runs: Sequence[Record], *names: str) -> Iterator[tuple[tuple[Any, ...], list[Record]]]:
    for place in dict.fromkeys(tuple(run[name] for name in names) for run in runs):
        yield place, [run for run in runs if tuple(run[name] for name in names) == place]


def _rest(record: Record) -> Iterable[str]:
    yield from _table(
        "d", "decay", "runs", "Z: entry by entry", "one penalty per row", "the same, Z averaged", "rows read",
        "rows forecast", "off balance",
    )  # fmt: skip
    for (width, wd), runs in sorted(_grouped(record["runs"], "width", "wd"), key=lambda item: item[0]):
        away = [_span(run["distance"][name] for run in runs) for name in ("entries", "rows", "rows_averaged")]
        read = ", ".join(_span((run["rows"][i] for run in runs), ".3g") for i in (0, 1))
        said = ", ".join(f"{value:.3g}" for value in runs[0]["forecast"]["rows"])
        sure = _span(run["residual"] for run in runs)
        yield _row(str(width), f"{wd:g}", str(len(runs)), *away, read, said, sure)


def _spread(record: Record) -> Iterable[str]:
    yield from _table("d", "decay", "found", "apart from each other", "to their rows' optimum", "the same, averaged")
    for row in record["spread"]:
        away = [f"{row[name]:.3f}" for name in ("apart", "rows", "rows_averaged")]
        yield _row(str(row["width"]), f"{row['wd']:g}", f"{row['settled']} of {row['starts']}", *away)


_NORMS = {"batchnorm": "BatchNorm", "cosine": "cosine head", "layernorm": "LayerNorm"}
_NETWORKS = {"mlp": "perceptron", "vit": "vision transformer"}
_WAYS = {
    "fresh": "fresh weights",
    "long": "fresh weights, three times as long",
    "gentle": "a tenth of the decay for the first half",
    "below": "(where the raised ones come from)",
    "raised": "from the network at .6",
}


def _starts(record: Record) -> Iterable[str]:
    yield from _table(
        "network", "data", "decay / merge", "way there", "Z", "b", "contrast of small classes", "optimum", "merged"
    )
    labels = "norm", "network", "data", "factor", "way"
    for (norm, network, data, factor, way), runs in _grouped(record["runs"], *labels):
        away = [_span(run["distance"][name] for run in runs) for name in "Zb"]
        seen, said = (
            _span(run[name][1] / run[name][0] for run in runs) for name in ("contrasts", "predicted_contrasts")
        )
        merged = f"{sum(run['merged'] for run in runs)} of {len(runs)}"
        name = f"{_NORMS[norm]}, {_NETWORKS[network]}"
        yield _row(name, data, f"{factor:g}", _WAYS[way], *away, seen, said, merged)


def _text(record: Record) -> Iterable[str]:
    yield from _table("head", "decay", "/ merge", "Z", "b", "contrasts", "of the optimum", "training accuracy")
    for run in record["runs"]:
        factor = "-" if run["factor"] is None else f"{run['factor']:.2g}"
        both = [", ".join(_span([value]) for value in run[name]) for name in ("contrasts", "predicted_contrasts")]
        away = [f"{run['distance'][name]:.3f}" for name in "Zb"]
        yield _row(run["optimizer"], f"{run['decay']:.3g}", factor, *away, *both, f"{run['accuracy']:.3f}")


def _noise(record: Record) -> Iterable[str]:
    yield from _table(
        "L", "rate", "images a batch", "small classes lost", "noise as decay", "in training mode", "head gradient"
    )
    for row in record["table"]:
        ends = "; ".join(
            "({}, {}]".format(*("-" if end is None else f"{end:.3g}" for end in pair)) for pair in row["measured"]
        )
        cells = ["-" if row[name] is None else f"{row[name]:.2g}" for name in ("noise", "as_trained")]
        still = "-" if row["stationarity"] is None else f"{row['stationarity']:.2f}"
        yield _row(str(row["layers"]), f"{row['rate']:g}", str(row["batch"]), ends, *cells, still)


_METHODS = {
    "nothing": "nothing",
    "advice": "the advice",
    "inverse-weights": "weights 1/n",
    "effective-number": "effective-number weights",
    "logit-adjustment": "logit adjustment",
    "balanced-sampling": "balanced sampling",
    "decoupled": "decoupled head",
}


def _regime(name: str) -> Callable[[Record], Iterable[str]]:
    """Of one regime of the advice study: as people use each method, in brackets with the prior corrected."""

    def lines(record: Record) -> Iterable[str]:
        methods = next(row for row in record["regimes"] if row["regime"] == name)["methods"]
        yield from _table("method", "balanced", "minority", "advice minus it", "classes merged (of 10)")
        for method, words in _METHODS.items():
            row = methods[method]
            used = row["used"]
            both = []
            for measure in ("balanced", "minority"):
                value, other = row[f"{measure}_{used}"], row[f"{measure}_corrected"]["mean"]
                said = f"{100 * value['mean']:.1f} ± {100 * value['sd']:.1f}"
                both.append(said if used == "corrected" else f"{said} ({100 * other:.1f})")
            ahead = row[f"advice_minus_balanced_{used}"]
            paired = "{:.1f} ({:.1f} to {:.1f})".format(*(100 * ahead[end] for end in ("mean", "low", "high")))
            yield _row(words, *both, "-" if method == "advice" else paired, f"{row['merged_classes']:.1f}")

    return lines


TABLES: Mapping[str, tuple[str, Callable[[Record], Iterable[str]]]] = {
    "results/rest": ("results/rest/rest.json", _rest),
    "results/rest/spread": ("results/rest/rest.json", _spread),
    "results/starts": ("results/starts/starts.json", _starts),
    "results/text": ("results/text/text.json", _text),
    "results/noise": ("results/noise/noise.json", _noise),
    "results/advice-acting/acting": ("results/advice-acting/advice.json", _regime("acting")),
    "results/advice-acting/outvoting": ("results/advice-acting/advice.json", _regime("outvoting")),
}


if __name__ == "__main__":
    for each in map(Path, PAGES):
        each.write_text(with_tables(each.read_text(encoding="utf-8"), Path()), encoding="utf-8")
