"""Advice with numbers: which classes merge at the given penalties, and the least change that keeps them apart.

Each mitigation has one dial; the least turn is found that brings every class across its threshold with a margin, and is
then verified by solving the problem after the change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Literal

import numpy as np

from collapsar.advise.families import FAMILIES, Treatment, has_crossed, has_crossed_certified, least_treatment
from collapsar.advise.outlook import Outlook, calibration_shift, clearance, outlooks, prior_share
from collapsar.core.checks import must_be
from collapsar.core.normalization import own_penalties, strengthened
from collapsar.core.problem import Problem
from collapsar.core.record_types import AdviceRecord, PriceRecord, SuggestionRecord
from collapsar.core.sentences import names_of, problem_words
from collapsar.solver import Solution, Status, solve
from collapsar.solver.solve import solve_near

Verdict = Literal["separated", "close", "merging", "collapsed"]

# In the study of efficacy networks with this safety did better than those just across the threshold.
ROOM = 2.0
# How far below a threshold the optimum is tried: a factor of safety is shown with as many digits.
JUST_BELOW = 5e-3

_VERDICTS: dict[Verdict, str] = {
    "separated": "No class merges or vanishes at these penalties.",
    "close": "No class merges or vanishes at these penalties, but some are close to their threshold.",
    "merging": "The penalties are the cause: some classes have no predictions of their own.",
    "collapsed": "The penalties are too strong for every class.",
}

CAVEATS: dict[str, tuple[str, ...]] = {
    "penalty": (
        "Weaker penalties let norms and confidence grow; check test calibration.",
        "Apply the factor to the head's decay or the feature penalty, or its root to both: predictions are the same.",
    ),
    "weights": ("Rare samples with large weights cause noisy steps; lower the learning rate if the loss jumps.",),
    "temperatures": ("Training loss only: leave the temperatures out when predicting.",),
    "scales": ("Training loss only: leave the scales out when predicting, which lowers the scaled classes' logits.",),
    "oversampling": (
        "Holds where the feature penalty grows with the number of copies (it is summed over the epoch's samples).",
        "More than the balancing factor dilutes every class's loss share and makes things worse.",
    ),
    "oversampling-held": ("Holds where the feature penalty is a mean over the batch with an unchanged factor.",),
    "more-samples": ("New labelled samples, not copies. The head's and the features' penalties stay as they are.",),
}
# With a norm before the head features are not penalised: the two kinds of oversampling are the same.
_NORMALIZED_CAVEATS = CAVEATS | {
    "penalty": ("Less decay on the head lets its weights and its confidence grow; check test calibration.",),
    "oversampling": ("Works only through the shares of the loss; past the balancing factor it can make things worse.",),
    "more-samples": ("New labelled samples, not copies. The head's penalty stays as it is.",),
}


@dataclass(frozen=True)
class Price:
    """What a mitigation costs, ranked in the order of the attributes.

    Attributes:
        new_samples: labelled samples to collect.
        extra_samples: further samples to pass through the network in each epoch.
        calibration_shift: total variation between mean predicted and actual class frequencies, at the optimum, without
            prior correction.
        majority_margin_change: nats by which the decision margin of the largest classes changes.
    """

    new_samples: int
    extra_samples: int
    calibration_shift: float
    majority_margin_change: float

    @property
    def rank(self) -> tuple[int, int, float]:
        """Sorting key: new data first, then passes, then calibration."""
        return self.new_samples, self.extra_samples, round(self.calibration_shift, 6)


@dataclass(frozen=True)
class Suggestion:
    """One mitigation, at the least setting that reaches the target.

    Attributes:
        treatment: family, dial, factor per class, and the problem after the change.
        words: a description.
        outlooks: every kind of class at the optimum after the change.
        price: what it costs.
        verified: whether all classes are separated at the certified optimum after the change, and with the margin.
        relative_gap: certified gap of the optimum after the change.
        prior_share: how much of the prior to correct after training, see :func:`collapsar.advise.outlook.prior_share`.
        caveats: what to know before using it.
    """

    treatment: Treatment
    words: str
    outlooks: tuple[Outlook, ...]
    price: Price
    verified: bool
    relative_gap: float
    prior_share: float
    caveats: tuple[str, ...]

    def to_dict(self) -> SuggestionRecord:
        """The fields as JSON-able values."""
        t = self.treatment
        return {
            "remedy": t.family,
            "words": self.words,
            "level": t.level,
            "factors": t.factors.tolist(),
            "problem": t.problem.to_dict(),
            "groups": [o.to_dict() for o in self.outlooks],
            "price": PriceRecord(**asdict(self.price)),
            "verified": self.verified,
            "relative_gap": self.relative_gap,
            "prior_share": self.prior_share,
            "caveats": list(self.caveats),
        }


@dataclass(frozen=True)
class Advice:
    """What :func:`advise` found.

    Attributes:
        problem: counts and penalties as given.
        margin: by how much the penalty may still grow after a mitigation.
        verdict: "separated": every class is separated with the margin, the penalties are not the cause of trouble;
            "close": apart, but not with the margin; "merging": some classes have no predictions of their own;
            "collapsed": no class has.
        outlooks: every kind of class at the present optimum, largest first.
        calibration_shift: of the present optimum.
        prior_share: of the present optimum, how much of the prior to correct.
        suggestions: the mitigations that work, cheapest first; empty if none is needed.
        without_effect: families with no setting that reaches the target.
        roomy_penalty: factor of the head's or the features' penalty that gives every class a safety of 2: separation
            begins at the threshold, but good accuracy needs distance from it. None if there is enough already.
        safe_factor: the factor by which the penalty may grow before a class is no longer separated: the least safety,
            if the optimum just below it confirms it; None if it does not, or the verdict is not "separated".
        class_names: as given, or the indices.
    """

    problem: Problem
    margin: float
    verdict: Verdict
    outlooks: tuple[Outlook, ...]
    calibration_shift: float
    prior_share: float
    suggestions: tuple[Suggestion, ...]
    without_effect: tuple[str, ...]
    roomy_penalty: float | None
    safe_factor: float | None
    class_names: tuple[str, ...]

    @property
    def penalties_are_the_cause(self) -> bool:
        """Whether classes merge, vanish or come close to it because of the penalties."""
        return self.verdict != "separated"

    @property
    def outvoted(self) -> tuple[Outlook, ...]:
        """Kinds of classes that are separated but whose own means are misclassified."""
        return tuple(o for o in self.outlooks if o.state == "separated" and o.margin < 0)

    def __str__(self) -> str:
        """The finding, the classes and the cheapest mitigations as plain text."""
        lines = [problem_words(self.problem), _VERDICTS[self.verdict]]
        for o in self.outlooks:
            room = "" if np.isnan(o.safety) else f", safety {o.safety:.3g}"
            who = "1 class" if len(o.classes) == 1 else f"{len(o.classes)} classes"
            lines.append(f"  {who} of {o.samples} samples: {o.state}{room}")
        if self.suggestions:
            lines.append(f"What restores separation with {100 * self.margin:.0f} % room, cheapest first:")
        for s in self.suggestions:
            low, high = s.treatment.factors.min(), s.treatment.factors.max()
            lines.append(f"  {s.words}: {f'{low:.4g}' if low == high else f'{low:.4g} to {high:.4g}'}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def to_dict(self) -> AdviceRecord:
        """Everything as JSON-able values; undefined numbers are NaN."""
        return {
            "kind": "advice",
            "problem": self.problem.to_dict(),
            "class_names": list(self.class_names),
            "margin": self.margin,
            "verdict": self.verdict,
            "penalties_are_the_cause": self.penalties_are_the_cause,
            "calibration_shift": self.calibration_shift,
            "prior_share": self.prior_share,
            "groups": [o.to_dict() for o in self.outlooks],
            "suggestions": [s.to_dict() for s in self.suggestions],
            "without_effect": list(self.without_effect),
            "roomy_penalty": self.roomy_penalty,
            "safe_factor": self.safe_factor,
        }


def advise(
    problem: Problem,
    margin: float = 0.1,
    *,
    families: Iterable[str] = tuple(FAMILIES),
    class_names: Iterable[str] | None = None,
) -> Advice:
    """Which classes are separated, merging or vanished at the optimum, and the least mitigations against that.

    Args:
        problem: counts, penalties and loss of your training. The penalties must be ones that the theory covers:
            L2 on the head and on the features, given or measured on a trained head, or on the head alone after a norm
            (:meth:`collapsar.Problem.from_normalized`); for weight decay without either, use
            :func:`collapsar.advise.weight_decay.advise_weight_decay`.
        margin: a mitigation must hold for penalties (lambda_z; lambda_w of normalised features) up to ``(1 + margin)``
            times the given one; >= 0.
        families: keys of the mitigations to consider.
        class_names: K names, the indices by default.

    Returns:
        The advice; ``suggestions`` are sorted by price and verified by solving.

    Raises:
        ValueError: ``problem`` is not a Problem, ``margin`` is negative or not finite, a family is unknown, or the
            names do not fit.

    Example:
        >>> advice = advise(Problem("300x5,50x5", lambda_z=0.005, lambda_b=0.02))
        >>> advice.verdict, [s.treatment.family for s in advice.suggestions[:2]]
        ('merging', ['penalty', 'scales'])
        >>> print(advise(Problem("300x5,50x5", lambda_z=0.002, lambda_b=0.02)))
        10 classes, 1750 samples, signed features, lambda_z 0.002, lambda_b 0.02
        No class merges or vanishes at these penalties.
          5 classes of 300 samples: separated, safety 4.95
          5 classes of 50 samples: separated, safety 2.02
    """
    must_be(Problem, problem)
    if not 0 <= margin < np.inf:
        raise ValueError(f"`margin` must be finite and >= 0, got {margin!r}")
    chosen = tuple(families)
    unknown = [name for name in chosen if name not in FAMILIES]
    if unknown:
        raise ValueError(f"`families` must be among {', '.join(FAMILIES)}, got {', '.join(unknown)}")
    if problem.normalization is not None:
        chosen = tuple(name for name in chosen if name != "oversampling-held")
    names = names_of(None if class_names is None else tuple(class_names), problem.num_classes)
    now = solve(problem, throw=False)
    present = outlooks(now)
    verdict = _verdict(now, margin)
    settings: dict[str, Treatment | None] = {}
    if verdict != "separated":
        for name in chosen:
            family = FAMILIES[name]
            like = settings.get(family.like) if family.like is not None else None
            settings[name] = least_treatment(family, problem, margin, like=like)
    found = [_suggestion(t, present, margin) for t in settings.values() if t is not None]
    found.sort(key=lambda s: (not s.verified, s.price.rank))
    return Advice(
        problem=problem,
        margin=margin,
        verdict=verdict,
        outlooks=present,
        calibration_shift=calibration_shift(now),
        prior_share=prior_share(now),
        suggestions=tuple(found),
        without_effect=tuple(name for name, t in settings.items() if t is None),
        roomy_penalty=_roomy_penalty(problem, settings.get("penalty"), margin),
        safe_factor=_safe_factor(problem, present) if verdict == "separated" else None,
        class_names=names,
    )


def _roomy_penalty(problem: Problem, penalty: Treatment | None, margin: float) -> float | None:
    """As the advice's ``roomy_penalty``.

    Whether a factor of the penalty suffices depends only on its product with ``1 + margin`` (squared where the margin
    multiplies lambda_z), so the least factor for one margin gives the least for another.
    """
    if penalty is None:
        enough = has_crossed(problem, ROOM - 1) or has_crossed_certified(problem, ROOM - 1)
        penalty = None if enough else least_treatment(FAMILIES["penalty"], problem, ROOM - 1)
        return None if penalty is None else float(penalty.factors[0])
    power = 2 if problem.normalization is None else 1
    return float(penalty.factors[0]) * ((1 + margin) / ROOM) ** power


def _safe_factor(problem: Problem, present: tuple[Outlook, ...]) -> float | None:
    """As the advice's ``safe_factor``: the threshold may be approximate, but the optimum below it is not."""
    separated = [o for o in present if o.state == "separated"]
    known = [o.safety for o in separated if np.isfinite(o.safety)]
    # A class whose approximate threshold is contradicted may be nearer to the true one; after a norm, none merges it.
    if not known or (problem.normalization is None and len(known) < len(separated)):
        return None
    states = solve(strengthened(problem, min(known) * (1 - JUST_BELOW)), throw=False).class_states
    return min(known) if all(states[k] == "separated" for o in separated for k in o.classes) else None


def _verdict(now: Solution, margin: float) -> Verdict:
    lost = clearance(now) <= 0
    if set(now.class_states) == {"vanished"} or lost.all():
        return "collapsed"
    if lost.any():
        return "merging"
    return "separated" if has_crossed_certified(now.problem, margin) else "close"


def _suggestion(treatment: Treatment, before: tuple[Outlook, ...], margin: float) -> Suggestion:
    after = solve_near(treatment.problem, treatment.target)
    groups, largest = outlooks(after), before[0]
    samples = sum(o.samples * len(o.classes) for o in before)
    extra = treatment.family.startswith("oversampling")
    n = treatment.problem.class_counts
    now = next(o.margin for o in groups if largest.classes[0] in o.classes)
    price = Price(
        new_samples=int(n.sum()) - samples,
        extra_samples=int(np.ceil(treatment.factors @ n - samples - 1e-9)) if extra else 0,
        calibration_shift=calibration_shift(after),
        majority_margin_change=now - largest.margin,
    )
    own = own_penalties(treatment.problem)
    caveats = CAVEATS if treatment.problem.normalization is None else _NORMALIZED_CAVEATS
    verified = bool(after.status is Status.OPTIMAL and not any(o.lost for o in groups) and treatment.target is not None)
    if verified:  # certain, even if the threshold itself is an estimate at the present bias
        least = 1 + margin
        groups = tuple(
            replace(
                o,
                threshold=float(np.fmax(o.threshold, least * own[o.classes[0]])),
                safety=float(np.fmax(o.safety, least)),
            )
            if o.state == "separated"
            else o
            for o in groups
        )
    return Suggestion(
        treatment=treatment,
        words=_words(treatment),
        outlooks=groups,
        price=price,
        verified=verified,
        relative_gap=after.certificate.relative_gap,
        prior_share=prior_share(after),
        caveats=caveats[treatment.family],
    )


def _words(treatment: Treatment) -> str:
    if treatment.problem.normalization is None:
        return FAMILIES[treatment.family].words
    own = {"penalty": "weaker decay of the head", "oversampling": "oversampling"}
    return own.get(treatment.family, FAMILIES[treatment.family].words)
