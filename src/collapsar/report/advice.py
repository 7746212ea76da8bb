"""Advice in words: an advice record for people. Needs neither matplotlib nor torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from collapsar.core import record_types as rt
from collapsar.core.sentences import listed
from collapsar.report.record import defined
from collapsar.report.words import number_text, range_text, share_text

_FACTOR_WORDS = {
    "weights": "loss weight",
    "temperatures": "temperature",
    "scales": "logit scale",
    "oversampling": "oversampling (each copy penalised)",
    "oversampling-held": "oversampling (penalty kept as a mean)",
}


def remedy_words(family: str) -> str:
    """The name of a kind of mitigation."""
    others = {"penalty": "a weaker penalty", "more-samples": "more samples"}
    return others.get(family) or _FACTOR_WORDS.get(family, family)


def class_words(members: Sequence[int], names: Sequence[str] | None = None) -> str:
    """The classes of a group, in short; by their numbers if they have no names.

    Example:
        >>> class_words([5, 6, 7, 8], [str(k) for k in range(10)])
        '5-8'
        >>> class_words([0, 2], ["cat", "dog", "eel"])
        'cat, eel'
    """
    own: list[str] = [str(k if names is None else names[k]) for k in members]
    if len(own) > 2 and own == [str(k) for k in range(members[0], members[0] + len(own))]:
        return f"{own[0]}-{own[-1]}"
    return ", ".join(own) if len(own) <= 4 else f"{', '.join(own[:3])}, ... ({len(own)})"


def verdict_words(record: rt.AdviceRecord) -> str:
    """The finding in a few sentences: what was measured, for advice on a diagnosis, then what theory says."""
    measured, decay = record.get("measured"), record.get("decay")
    parts = [f"Measured: {measured}"] if measured else []
    if decay is not None and decay["verdict"] == record["verdict"]:
        parts += decay_words(decay)[:2]
    elif decay is not None:
        parts.append(
            "It is undecided whether your decay is the cause: the model loses the smallest classes at "
            f"{number_text(decay['weight_decay'])}, but none was measured to be lost."
        )
    elif record["verdict"] == "undecided":
        parts.append(
            "It is undecided whether your penalties are the cause: the measurement and the optimum at the penalties "
            "read from the head contradict each other. More can be said with the training's own penalties (`collapsar "
            "diagnose --weight-decay`, or --lambda-w and --lambda-h)."
        )
    else:
        parts.append(_optimum_words(record))
    if measured and record["verdict"] == "separated" and not (decay is None and _outvoted(record)):
        parts.append(
            "So something else lost the classes: an early end of training, dead units, too few directions, the prior."
        )
    return " ".join(parts)


def _optimum_words(record: rt.AdviceRecord) -> str:
    groups, room = record["groups"], f"{100 * record['margin']:.0f} %"
    lost = [g for g in groups if not g["apart"]]
    separated = [g for g in groups if g["state"] == "separated"]
    least = min((g["safety"] for g in separated if defined(g["safety"])), default=math.inf)
    near = [g for g in separated if defined(g["safety"]) and g["safety"] <= least * (1 + 1e-9)]
    if not record["problem"].get("normalization") and not all(defined(g["safety"]) for g in separated):
        near = []  # a class whose approximate threshold the optimum contradicts may be nearer to the true one
    standing = "every class is separated"
    if carried := [g for g in groups if g["state"] != "separated" and g["apart"]]:
        own = "its own" if _count(carried) == 1 else "their own"
        standing = f"{_group_words(carried)} right without features of {own}, and every other class is separated"
    if record["verdict"] == "separated":
        safe = record.get("safe_factor")
        by = "" if safe is None else f", by a factor of {number_text(safe, 3)}"
        if outvoted := _outvoted(record):
            return f"Your penalties merge no class: at the optimum {standing}{by}.{outvoted}"
        text = f"Your penalties are not the cause: at the optimum {standing}{by}."
        if not record.get("measured"):
            text += " If small classes do badly, check the number and variety of their samples, and the prior."
        return text
    if record["verdict"] == "close":
        text = f"Close: {standing} at the optimum, but not at a penalty {room} larger."
        if near and least < 1 + record["margin"]:  # thresholds that are not approximate
            text = (
                f"Close: {standing} at the optimum, but {_group_words(near)} less than {room} below the "
                f"threshold (safety {number_text(least, 3)})."
            )
        return text + _outvoted(record)
    if record["verdict"] == "collapsed":
        return "Your penalties are too strong for every class: at the optimum no class has predictions of its own."
    told = []
    if gone := [g for g in lost if g["state"] != "separated"]:
        own = "its" if _count(gone) == 1 else "their"
        states = ", ".join(dict.fromkeys(g["state"] for g in gone))
        told.append(f"{_group_words(gone)} without predictions of {own} own ({states})")
    if weak := [g for g in lost if g["state"] == "separated"]:
        scores = "its own score does" if _count(weak) == 1 else "their own scores do"
        told.append(
            f"{_group_words(weak)} separated, but {scores} not lead at the class mean, not even with equal priors"
        )
    return f"Your penalties are the cause: at the optimum {', and '.join(told)}."


def _outvoted(record: rt.AdviceRecord) -> str:
    """Which classes lose to larger ones at the optimum itself, with features of their own; "" for none."""
    groups = [g for g in record["groups"] if g["apart"] and g["margin"] < 0]
    if not groups or record["verdict"] not in ("separated", "close"):
        return ""
    lead = "But" if record["verdict"] == "separated" else "Also,"
    text = f" {lead} {_group_words(groups)} outvoted by larger ones even at the class mean: "
    if _prior_share(record) > 0:
        text += "correct the prior, or "
    return f"{text}weaken the penalties, which shorten all scores but not the prior's."


def _count(groups: Sequence[rt.OutlookRecord]) -> int:
    return sum(len(g["classes"]) for g in groups)


def _group_words(groups: Sequence[rt.OutlookRecord]) -> str:
    """Some classes as the subject of a sentence, with its verb: "the 5 classes of 100 samples are"."""
    size, count = range_text(g["samples"] for g in groups), _count(groups)
    return f"the class of {size} samples is" if count == 1 else f"the {count} classes of {size} samples are"


def setting_words(suggestion: rt.SuggestionRecord, record: rt.AdviceRecord) -> str:
    """What to set, with its number.

    Example:
        >>> from collapsar.advise.advice import advise
        >>> from collapsar.core.problem import Problem
        >>> advice = advise(Problem("500x5,100x5", 0.0036, 0.02), families=["weights", "penalty"]).to_dict()
        >>> [setting_words(s, advice) for s in advice["suggestions"]]
        ['head decay or feature penalty × 0.705', 'loss weight 1.238 for classes 5-9']
    """
    remedy, factors, groups = suggestion["remedy"], suggestion["factors"], record["groups"]
    if remedy == "penalty":
        return f"{_penalty_words(record)} × {_down(factors[0])}"
    if remedy == "more-samples":
        raised = [g for g in groups if factors[g["classes"][0]] > g["samples"]]
        names = _class_list(raised, record)
        return f"at least {min(factors):.0f} samples of {names}"
    raised = [g for g in groups if factors[g["classes"][0]] > 1]
    names = _class_list(raised, record)
    values = [factors[g["classes"][0]] for g in raised]
    what = _FACTOR_WORDS[remedy]
    if _normalized(record):
        what = what.split(" (", maxsplit=1)[0]
    if len(set(values)) == 1:
        return f"{what} {_up(values[0])} for {names}"
    root = "" if remedy.startswith("oversampling") else "√"
    level = _level(suggestion["level"])
    return f"{what} {root}({level}/n) where n < {level}, to {_up(max(values))}"


def _normalized(record: rt.AdviceRecord) -> bool:
    return record["problem"].get("normalization") is not None


def _penalty_words(record: rt.AdviceRecord) -> str:
    return "head decay" if _normalized(record) else "head decay or feature penalty"


def _class_list(groups: Sequence[rt.OutlookRecord], record: rt.AdviceRecord) -> str:
    members = sorted(k for g in groups for k in g["classes"])
    return f"{'class' if len(members) == 1 else 'classes'} {class_words(members, record['class_names'])}"


def _up(value: float) -> str:
    return f"{value + 0.0005:.3f}"


def _level(value: float) -> str:
    """Samples, four digits or whole, never rounded down, since fewer would not suffice."""
    unit = 10.0 ** min(math.floor(math.log10(value)) - 3, 0)
    return f"{math.ceil(value / unit - 1e-9) * unit:.10g}"


def _down(value: float) -> str:
    """Three digits, never rounded up."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return number_text(math.floor(value / unit) * unit)


def group_rows(record: rt.AdviceRecord) -> list[tuple[str, ...]]:
    """One row per group of classes at the present optimum: names, samples, state, distance from the threshold."""
    numbers = ("threshold", "safety", "margin", "corrected_margin")
    return [
        (
            class_words(group["classes"], record["class_names"]),
            str(group["samples"]),
            group["state"],
            *(number_text(group[name]) for name in numbers),
        )
        for group in record["groups"]
    ]


def suggestion_rows(record: rt.AdviceRecord) -> list[tuple[str, ...]]:
    """One row per mitigation: rank, what to set, margins of the smallest classes, prices."""
    rows = []
    for i, s in enumerate(record["suggestions"], 1):
        small, price = s["groups"][-1], s["price"]
        shift = price["calibration_shift"]
        extra = f"{price['new_samples']} new" if price["new_samples"] else f"{price['extra_samples']}"
        rows.append(
            (
                f"{i}{'' if s['verified'] else '?'}",
                setting_words(s, record),
                _signed(small["margin"]),
                _signed(small["corrected_margin"]),
                extra,
                _signed(price["majority_margin_change"]),
                share_text(round(shift, 7) if defined(shift) else None),  # less is rounding
            )
        )
    return rows


SUGGESTION_COLUMNS = (*("", "set", "margin", "corrected", "extra", "majority", "shift"),)


def _signed(value: float | None) -> str:
    return number_text(value, 2) if value is None or value <= 0 else f"+{number_text(value, 2)}"


def prior_words(record: rt.AdviceRecord) -> str:
    """When to correct the prior, and by how much, for the advice as a whole; empty if it changes no decision."""
    after = record["suggestions"] or [record]
    shares = [_prior_share(found) for found in after]
    if not any(shares) or not any(g["apart"] and g["margin"] < 0 for found in after for g in found["groups"]):
        return ""
    text = (
        "Small classes will still lose against larger ones at equal evidence. If all classes matter equally, subtract "
        f"the log of each class's share of the loss{_less_offsets(record)} from the logits "
        "(collapsar.training.prior_correction), then fit a temperature: free."
    )
    ranks: dict[float, list[int]] = {}
    for rank, share in enumerate(shares, 1):
        ranks.setdefault(share, []).append(rank)
    if list(ranks) == [1.0]:
        return text
    less = ", ".join(
        (f"{share:g} of it" if share else "none of it")
        + (f" after {listed(members, len(members), last=' and ')}" if record["suggestions"] else "")
        for share, members in ranks.items()
        if share < 1
    )
    return f"{text} Subtract {less}: all of it would cost large classes more than the small ones gain."


def _less_offsets(record: rt.AdviceRecord) -> str:
    offsets = record["problem"]["loss"]["offsets"]
    return ", less the loss's own offset," if offsets is not None and any(offsets) else ""


def _prior_share(found: rt.AdviceRecord | rt.SuggestionRecord) -> float:
    """How much of the prior to correct; older records only say whether all of it is right."""
    share = found.get("prior_share")
    return float(all(g["corrected_margin"] > 0 for g in found["groups"])) if share is None else share


def room_words(record: rt.AdviceRecord) -> str:
    """What gives every class twice the room; empty if all have it."""
    factor = record["roomy_penalty"]
    if not defined(factor):
        return ""
    return (
        f"Below the threshold the classes separate; accuracy grows with the distance from it. Twice the room needs "
        f"{_penalty_words(record)} × {_down(factor)}. Train half of the epochs with a tenth of the penalties first: "
        "strong ones from the first step can keep small classes from being learned."
    )


def decay_words(record: rt.DecayRecord) -> list[str]:
    """What can be said about weight decay alone, sentence by sentence."""
    here, predictions = number_text(record["weight_decay"]), record["predictions"]
    verdict = {
        "separated": f"Your decay {here} is probably not the cause: the model, with its measured error, loses the "
        "smallest classes only at larger decays.",
        "collapsed": f"Your decay {here} is too strong: the model, with its measured error, has the smallest classes "
        "lost there.",
        "undecided": f"It is undecided whether your decay {here} is the cause.",
    }[record["verdict"]]
    if record["verdict"] == "undecided":
        if len(predictions) > 1:
            verdict += " It depends on the layers above the last normalisation: count them, and give --layers."
        else:
            verdict += f" {_why_undecided(predictions[0])}"
    if record["largest_safe"] is not None:
        margin = f"{100 * record['margin']:.0f} %"
        verdict += f" Decays up to {number_text(record['largest_safe'])} are below that by {margin} or more."
    model = (
        f"Model: {record['model']}, which came nearest to where trained networks lost their classes, with the error "
        f"measured there: perceptrons on {record['data']}, SGD, {' and '.join(record['networks'])} images."
    )
    beyond = " Your data are more imbalanced than any of these." if record["beyond"] else ""
    prior = (
        "Whatever the decay, the prior matters: for equal priors use balanced sampling, weights or prior correction."
    )
    return [verdict, model + beyond, prior]


def _why_undecided(prediction: rt.DecayPredictionRecord) -> str:
    layers = f"{prediction['layers']} layer{'' if prediction['layers'] == 1 else 's'} above the normalisation"
    if prediction["switches"] == 0:
        return f"No network with {layers} was measured."
    if not prediction["predicts"]:
        return f"With {layers} networks lost their small classes far from the model's prediction: it fails there."
    return "It lies where some networks had lost them and others had not, or too near to that."


def decay_rows(record: rt.DecayRecord) -> list[tuple[str, ...]]:
    """One row per number of layers: the prediction, the error measured, the decays between which networks switched."""
    rows = []
    for p in record["predictions"]:
        low, high = (number_text(value, 2) if defined(value) else "?" for value in p["measured_ratio"])
        measured = f"{low} to {high} ({p['switches']})" if p["switches"] else "never measured"
        interval = "model fails" if p["switches"] else "unknown"
        if p["interval"] is not None:
            interval = " to ".join(number_text(value, 3) for value in p["interval"])
        rows.append((str(p["layers"]), number_text(p["weight_decay"], 3), measured, interval, p["verdict"]))
    return rows


DECAY_COLUMNS = ("layers", "model: lost at decay", "measured / model (networks)", "lost between", "verdict")
