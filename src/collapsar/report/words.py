"""A record in words: numbers as text, states of clusters, and the finding in one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from collapsar.core.record_types import DemoRecord
from collapsar.core.sentences import percent
from collapsar.report.record import defined

ABSENT = "–"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DATA_WORDS = {"digits": "pictures of handwritten digits", "fashion-mnist": "pictures of clothes"}
_NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm", "batchnorm": "BatchNorm", "cosine": "cosine head"}
_COLLAPSED = ("merged", "vanished")
_MOST_NAMED = 20


class Clustered(TypedDict):
    """Classes in clusters that are drawn together."""

    class_names: list[str]
    class_counts: list[int]
    clusters: list[list[int]]


def number_text(value: float | str | None, digits: int = 3) -> str:
    """A number for a reader: this many significant digits, with "× 10ⁿ" where needed, "–" if undefined.

    Example:
        >>> number_text(0.00448), number_text(-8.4e-15, 2), number_text(None)
        ('0.00448', '−8.4 × 10⁻¹⁵', '–')
    """
    if not defined(value):
        return ABSENT
    text = f"{value:.{digits}g}"
    if value != 0 and not 1e-4 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    elif "e" in text:
        text = f"{value:.0f}"
    return text.replace("-", "−")


def fixed_text(value: float | None) -> str:
    """A number of order one to three decimals: anything smaller is noise."""
    return f"{value:.3f}".replace("-", "−") if defined(value) else ABSENT


def told(columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> tuple[list[Any], list[list[Any]]]:
    """A table without the columns that are empty in every row; the first stays, and rows may be short.

    Example:
        >>> told(("class", "samples", "penalty"), [("cat", "9", "–"), ("dog", "5", "–")])
        (['class', 'samples'], [['cat', '9'], ['dog', '5']])
    """
    kept = [
        i for i in range(len(columns)) if i == 0 or not rows or any(len(row) > i and row[i] != ABSENT for row in rows)
    ]
    return [columns[i] for i in kept], [[row[i] for i in kept if i < len(row)] for row in rows]


def power_text(value: float) -> str:
    """A power of ten, as "10⁻⁴"."""
    return f"10{str(round(math.log10(value))).translate(_SUPERSCRIPTS)}"


def share_text(value: float | str | None) -> str:
    """A share in per cent: two significant digits below 10 %, whole above, except just below 100 %; "–" if undefined.

    Example:
        >>> share_text(0.6053), share_text(0.00582), share_text(0.0), share_text(None)
        ('61 %', '0.58 %', '0 %', '–')
    """
    if not defined(value):
        return ABSENT
    return percent(value) if value >= 0.0995 else f"{number_text(100 * value, 2)} %"


def shortened(name: str, longest: int) -> str:
    """The name, cut if it is longer."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def sentence(text: str) -> str:
    """The text with its first letter in upper case, the rest unchanged."""
    return text[:1].upper() + text[1:]


def data_words(record: DemoRecord) -> str:
    """A description of the images."""
    return _DATA_WORDS.get(record["data"], f"the data set {record['data']}")


def cluster_names(record: Clustered) -> list[str]:
    """A name per cluster: "majority" and "minority" if there are two, otherwise their class counts."""
    if len(record["clusters"]) == 2:
        return ["majority", "minority"]
    return [f"n = {cluster_counts(record, cluster)}" for cluster in record["clusters"]]


def range_text(counts: Iterable[int]) -> str:
    """One number, or a range."""
    return " to ".join(map(str, dict.fromkeys((min(found := list(counts)), max(found)))))


def cluster_counts(record: Clustered, cluster: Sequence[int]) -> str:
    """Images per class of a cluster."""
    return range_text(record["class_counts"][k] for k in cluster)


def _classes(record: DemoRecord, j: int) -> str:
    """A cluster as the subject of a sentence: "the 5 minority classes", "the class with 500 images"."""
    cluster, two = record["clusters"][j], len(record["clusters"]) == 2
    noun = "class" if len(cluster) == 1 else "classes"
    size = "" if len(cluster) == 1 else f"{len(cluster)} "
    if two:
        return f"the {size}{cluster_names(record)[j]} {noun}"
    return f"the {size}{noun} with {cluster_counts(record, cluster)} images"


def summary_of_states(states: Sequence[str], cluster: Sequence[int]) -> str:
    """One phrase for the states in a cluster.

    Example:
        >>> summary_of_states(["separated", "merged", "vanished", "vanished"], [1, 2, 3])
        '2 vanished, 1 merged'
    """
    found = Counter(states[k] for k in cluster).most_common()  # the most frequent first
    return found[0][0] if len(found) == 1 else ", ".join(f"{count} {state}" for state, count in found)


def outcome(record: DemoRecord, states: Sequence[str]) -> str:
    """The states of all classes, in a few words: "all separated", "minority vanished", "all vanished"."""
    names = cluster_names(record)
    parts = [summary_of_states(states, cluster) for cluster in record["clusters"]]
    sentences = []
    for part in dict.fromkeys(parts):  # each phrase once, in order
        who = [name for name, found in zip(names, parts, strict=True) if found == part]
        word = "without images" if part == "unseen" else part
        if len(who) == len(names):
            return word if "," in part else f"all {word}"
        if part != "separated":
            sentences.append(f"{', '.join(who) if len(who) <= 3 else f'{len(who)} sizes'} {word}")
    return ", ".join(sentences)


def finding(record: DemoRecord) -> str:
    """One sentence: which classes collapse at which penalty, and what theory predicted.

    It is about the cluster that collapses at the smallest penalty; of several, the last in the record.
    """
    stories = [_story(record, j) for j in range(len(record["clusters"]))]
    j = min(reversed(range(len(stories))), key=lambda j: stories[j][0])
    first, text = stories[j]
    if first == math.inf:
        right, total, _ = _hits(record)
        return f"No class collapses at the penalties tried{', as theory predicts' if right == total else ''}."
    cluster, levels = record["clusters"][j], record["thresholds"][record["features"]]
    found = [part[cluster[0]] for part in (levels.get("merge"), levels["vanish"]) if part is not None]
    level = next(filter(defined, found), None)
    theory = f"; the theory puts the threshold at {number_text(level)}" if level is not None else ""
    size = f" ({cluster_counts(record, cluster)} training images each)" if len(record["clusters"]) == 2 else ""
    return f"{sentence(_classes(record, j))}{size} {text}{theory}."


def meaning(record: DemoRecord) -> str:
    """What the words of the finding mean, and which classes belong to which of two clusters."""
    named = ""
    clusters = record["clusters"]
    if len(clusters) == 2 and sum(map(len, clusters)) <= _MOST_NAMED:
        large, small = (", ".join(record["class_names"][k] for k in cluster) for cluster in clusters)
        named = f"Minority: {small}. Majority: {large}. "
    return (
        f"{named}A class has collapsed when the network gives its images no scores of their own, so that it cannot "
        "distinguish them from others, not even images it was trained on. The penalty is how strongly training pulls "
        "all scores towards zero, as weight decay does."
    )


def _story(record: DemoRecord, j: int) -> tuple[float, str]:
    """The smallest penalty at which a class of the cluster has collapsed (inf: none), and a verb phrase."""
    cluster = record["clusters"][j]
    lost: dict[float, list[bool]] = {}
    for run in record["runs"]:
        states = run["measured"]["states"]
        lost.setdefault(run["lambda_z"], []).extend(states[k] in _COLLAPSED for k in cluster)
    levels = sorted(lost)
    some = [level for level in levels if any(lost[level])]
    if not some:
        return math.inf, "stay separated at every penalty tried"
    first, split = some[0], levels.index(some[0])
    verb = "collapses" if len(cluster) == 1 else "collapse"
    if not all(all(lost[level]) for level in levels[split:]):
        return first, f"{verb} in part, from penalty {number_text(first)} on"
    if split == 0:
        return first, f"{verb} at every penalty tried, from {number_text(first)} on"
    return first, f"{verb} between penalty {number_text(levels[split - 1])} and {number_text(first)}"


def _hits(record: DemoRecord) -> tuple[int, int, list[str]]:
    """How many class states theory got right, how many there are, and a phrase for each that it missed."""
    missed, total = [], 0
    for run in record["runs"]:
        pairs = zip(run["predicted"]["states"], run["measured"]["states"], strict=True)
        for name, (predicted, measured) in zip(record["class_names"], pairs, strict=True):
            total += 1
            if predicted != measured:
                missed.append(f"“{name}” at {number_text(run['lambda_z'])}: predicted {predicted}, measured {measured}")
    return total - len(missed), total, missed


def verdict(record: DemoRecord) -> str:
    """How many class states theory predicted, and which it missed (the first three by name)."""
    right, total, missed = _hits(record)
    runs = len(record["runs"])
    source = "The theory, which sees only the number of images per class and the penalties,"
    if right == total:
        return f"{source} gets the state of every class right, in {'the run' if runs == 1 else f'all {runs} runs'}."
    more = f"; and {len(missed) - 3} more" if len(missed) > 3 else ""
    where = "the run" if runs == 1 else f"the {runs} runs"
    return f"{source} predicts {right} of {total} class states in {where}. Missed: {'; '.join(missed[:3])}{more}."


def consequence(record: DemoRecord) -> str:
    """What collapse costs: test accuracies at the smallest penalty and at the first one with collapsed classes.

    Empty if an accuracy is undefined, or there is nothing to compare.
    """
    first, minority = record["runs"][0], record["clusters"][-1]
    later = [
        run
        for run in record["runs"]
        if any(run["measured"]["states"][k] in _COLLAPSED for k in minority) and run["lambda_z"] > first["lambda_z"]
    ]
    if not later or len(record["clusters"]) != 2:
        return ""
    accuracies = [run["accuracy"][name] for run in (first, later[0]) for name in ("test_minority", "test_majority")]
    if not all(map(defined, accuracies)):
        return ""
    small, large, small_after, large_after = map(share_text, accuracies)
    return (
        f"At penalty {number_text(first['lambda_z'])} the network recognises {small} of unseen minority images "
        f"and {large} of unseen majority images; at {number_text(later[0]['lambda_z'])} it recognises "
        f"{small_after} and {large_after}."
    )


def norm_name(norm: str) -> str:
    """The normalisation between backbone and head, in its usual spelling."""
    return _NORMS.get(norm, norm)


def standard_finding(record: DemoRecord) -> str:
    """Where small classes of networks with standard training merge, by theory and measured; "" without such runs."""
    standard = record.get("standard")
    if standard is None:
        return ""
    runs = [
        f"{outcome(record, run['measured']['states'])} at lambda_w {number_text(run['lambda_w'])} "
        f"(predicted: {outcome(record, run['predicted']['states'])}; scores {share_text(run['distance']['Z'])} away)"
        for run in standard["runs"]
    ]
    return (
        f"With a {norm_name(standard['norm'])} before the last layer and weight decay on that layer alone, the small "
        f"classes merge in theory above lambda_w {number_text(standard['merge'])}. Trained: {', '.join(runs)}."
    )
