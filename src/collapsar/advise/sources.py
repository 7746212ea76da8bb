"""The problem to advise on: from a diagnosis of a trained network, or with many class sizes joined into a few."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from collapsar.advise.advice import advise
from collapsar.advise.weight_decay import advise_weight_decay
from collapsar.core.counts import CountsLike, class_counts
from collapsar.core.known import IDLE
from collapsar.core.loss import Loss
from collapsar.core.problem import Problem
from collapsar.core.record_types import AdviceRecord, DiagnosisRecord, is_a

# Optima of this many sizes take milliseconds.
MOST_SIZES = 64


def advise_diagnosis(record: DiagnosisRecord, margin: float = 0.1, *, layers: int | None = None) -> AdviceRecord:
    """Advice on a diagnosed network: what was measured, and what the optimum says, kept apart.

    If the training had no feature penalty, the penalties behind the optimum were read from the trained head, and that
    reading misses where training with weight decay alone loses classes: the verdict is then that of
    :func:`~collapsar.advise.weight_decay.advise_weight_decay` for the same counts and decay, or "undecided" if no decay
    is known. That was measured for the plain loss: for another the optimum is used, with a caution. A verdict that
    the measured classes contradict is also "undecided".

    Args:
        record: as ``collapsar diagnose --json`` prints it.
        margin: as for :func:`~collapsar.advise.advice.advise`.
        layers: decayed linear layers above the last normalisation, the head included; None: unknown.

    Returns:
        ``Advice.to_dict()`` with ``cautions``; ``measured``: the diagnosis's headline if it found classes merged,
        vanished or lost, otherwise None; ``decay``: ``DecayAdvice.to_dict()`` or None. ``verdict`` may be "undecided",
        and ``penalties_are_the_cause`` is None then.

    Raises:
        ValueError: as for :func:`problem_of_diagnosis`; ``layers`` is given but the training had a feature penalty.
    """
    problem, cautions = problem_of_diagnosis(record)
    assert record["prediction"] is not None  # there is a problem
    decay, effective = record["known"].get("lambda_w"), record["prediction"]["source"] == "effective"
    if layers is not None and not (effective and isinstance(decay, float) and problem.loss.is_plain):
        raise ValueError(
            "`layers` is for training with weight decay alone and the plain loss; say the decay to `diagnose` with "
            "--weight-decay"
        )
    advice = advise(problem, margin, class_names=record.get("class_names"))
    gone = record.get("num_collapsed", 0) + record.get("num_lost", 0) > 0
    measured = record["headline"] if gone else None
    out: AdviceRecord = {**advice.to_dict(), "cautions": list(cautions), "from_diagnosis": True, "measured": measured}
    out["decay"] = None
    ordinary = decay if effective and isinstance(decay, float) and decay > 0 else None
    if ordinary is not None and not problem.loss.is_plain:
        out["cautions"].append(
            "What weight decay alone loses was measured only for plain cross-entropy; for this loss see the optimum."
        )
    if ordinary is not None and problem.loss.is_plain:
        out["decay"] = advise_weight_decay(problem.class_counts, ordinary, layers=layers, margin=margin).to_dict()
        out["verdict"] = out["decay"]["verdict"]
        if out["verdict"] == "collapsed" and not gone:
            out["verdict"] = "undecided"
    elif effective and gone == (advice.verdict in ("separated", "close")):
        out["verdict"] = "undecided"
    out["penalties_are_the_cause"] = None if out["verdict"] == "undecided" else out["verdict"] != "separated"
    return out


def _no_optimum(record: Mapping[str, Any]) -> str:
    """Why a diagnosis has no optimum to compare its network with, as far as its record tells, and what helps."""
    model, cautions = record.get("model") or {}, (record.get("known") or {}).get("cautions", ())
    if idle := next((caution for caution in cautions if caution.startswith(IDLE)), ""):
        return f"`record` has no penalty to advise on. {idle} The diagnosis says what helps each class."
    if model.get("name") in ("none", "frozen") and model.get("sentence"):
        return f"`record` has no optimum to advise on. {model['sentence']}"
    needed = "--lambda-w" if model.get("name") in ("sample", "batch") else "--lambda-w and --lambda-h"
    return (
        "`record` has no penalties: none was given and none could be read from the network (a class without samples, "
        "no class alive, a head that is not at rest, or a loss that does not pull it outwards); give `collapsar "
        f"diagnose` {needed}."
    )


def problem_of_diagnosis(record: Mapping[str, Any]) -> tuple[Problem, tuple[str, ...]]:
    """The problem that a diagnosis compared its network with, and what makes it less than certain.

    Args:
        record: as ``collapsar diagnose --json`` prints it.

    Returns:
        The problem, at the penalties of the training if the diagnosis knew them, otherwise at the effective ones; and
        sentences of caution.

    Raises:
        ValueError: it is not a diagnosis, or the diagnosis found no penalties.

    Example:
        >>> prediction = {"features": "signed", "lambda_z": 0.004, "lambda_b": 0.02, "source": "as trained"}
        >>> record = {"kind": "diagnosis", "class_counts": [50, 5], "loss": {}, "at_rest": True,
        ...           "known": {"loss": {}, "cautions": []}, "prediction": prediction}
        >>> problem_of_diagnosis(record)[0].lambda_z
        0.004
    """
    if not is_a(record, DiagnosisRecord):
        raise ValueError(f'`record` must be a diagnosis (kind "diagnosis"), got kind {record.get("kind")!r}')
    prediction = record.get("prediction")
    if prediction is None:
        raise ValueError(f"{_no_optimum(record)} Measured: {record.get('headline', 'no headline')}")
    try:
        chosen = prediction.get("problem") or (record.get("model") or {}).get("problem")
        problem = (
            Problem.from_dict(chosen)
            if chosen is not None
            else Problem(
                record["class_counts"],
                float(prediction["lambda_z"]),
                float(prediction["lambda_b"]),
                Loss(**record["known"]["loss"]),
                features=prediction["features"],
            )
        )
        cautions = [str(caution) for caution in record["known"]["cautions"]]
        effective, at_rest = prediction["source"] == "effective", bool(record["at_rest"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"`record` is an incomplete diagnosis: {error}") from None
    if effective and problem.normalization is None:
        cautions.append(
            "The optimum below is for penalties read from the trained head. Without a feature penalty this estimate is "
            "known to misjudge when classes are lost: take it as a hint."
        )
    if not at_rest:
        cautions.append("The head was not at rest: the optimum describes the end of training, not this moment.")
    return problem, tuple(cautions)


def joined_sizes(counts: CountsLike, most: int = MOST_SIZES) -> tuple[NDArray[np.int64], float]:
    """Counts with many different sizes joined into a few: an optimum costs the cube of their number.

    The smallest sizes decide what merges and are kept; the others matter through the total and the bias.

    Args:
        counts: samples per class.
        most: different sizes, an even number.

    Returns:
        Counts with at most that many different sizes, the smaller half unchanged and each other one the mean of its
        neighbours; and the largest relative change of a class's count, 0 if nothing was joined.

    Example:
        >>> n, change = joined_sizes("exp:1280:5:1000", 16)
        >>> np.unique(n).size, int(n.min()), round(change, 2)
        (16, 5, 0.35)
    """
    n = class_counts(counts)
    sizes, half = np.unique(n), most // 2
    if sizes.size <= most:
        return n, 0.0
    edges = np.geomspace(sizes[half], sizes[-1], half + 1)
    place = np.clip(np.searchsorted(edges, n, side="right") - 1, -1, half - 1)
    joined = n.copy()
    for i in np.unique(place[place >= 0]):
        joined[place == i] = round(float(n[place == i].mean()))
    return joined, float(np.abs(joined / n - 1).max())


def joined_classes(counts: CountsLike, loss: Loss, most: int = MOST_SIZES) -> tuple[NDArray[np.int64], Loss, float]:
    """The same for counts with a loss whose vectors have one value for each size; unchanged if they have several.

    Args:
        counts: samples per class.
        loss: with vectors of one entry per class, or none.
        most: different sizes, an even number.

    Returns:
        Counts, the loss with its vectors averaged over the classes that are one size now, and the largest change of a
        class's count.

    Example:
        >>> counts = class_counts("exp:1280:5:1000")
        >>> n, loss, _ = joined_classes(counts, Loss(offsets=np.log(counts)), 16)
        >>> np.unique(n).size, np.unique(loss.offsets).size
        (16, 16)
    """
    n = class_counts(counts)
    place = np.unique(n, return_inverse=True)[1]
    given = {name: v for name, v in vars(loss).items() if isinstance(v, np.ndarray)}
    first = np.unique(place, return_index=True)[1]
    if any(v.shape != n.shape or (v != v[first[place]]).any() for v in given.values()):
        return n, loss, 0.0
    joined, change = joined_sizes(n, most)
    if not change:
        return n, loss, 0.0
    if loss.class_weights is not None:  # the shares of the loss stay the same
        given["class_weights"] = loss.class_weights * n / joined
    _, group, members = np.unique(joined, return_inverse=True, return_counts=True)
    means = {name: (np.bincount(group, v) / members)[group] for name, v in given.items()}
    return joined, replace(loss, **means), change


def load_diagnosis(path: str | Path) -> DiagnosisRecord:
    """A diagnosis from its file.

    Raises:
        ValueError: the file is not JSON of an object.
        OSError: it cannot be read.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be what `collapsar diagnose --json` prints; it is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} must be the JSON of `collapsar diagnose --json`, got a list or a number")  # noqa: TRY004
    return cast("DiagnosisRecord", record)  # whose kind is checked where it is used
