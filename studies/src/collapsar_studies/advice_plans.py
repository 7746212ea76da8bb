"""What the advice study compares: settings, and in each the recipes with and without the advice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from typing import Literal

import numpy as np

from collapsar import Problem, advise, class_counts
from collapsar.advise.advice import Advice
from collapsar.advise.families import FAMILIES, Treatment
from collapsar.advise.mitigations import effective_number_weights, inverse_weights, logit_adjustment, oversampling
from collapsar.advise.recipe import Recipe as StandardRecipe
from collapsar.advise.standard import StandardAdvice, advise_standard
from collapsar.advise.weight_decay import advise_weight_decay
from collapsar.theory import thresholds
from collapsar.training import penalties_for
from collapsar.training.penalties import scaled
from collapsar_studies.advice_runs import ADAMW_RATE, BATCH, Recipe, Schedule, with_price

Regime = Literal["merging", "safe", "ordinary", "ordinary-strong", "standard", "acting", "outvoting"]

LAMBDA_B = 0.02
# Where the regimes lie: factors of the smallest class's threshold (penalised), weight decays (ordinary).
PENALISED: Mapping[str, float] = {"merging": 1.5, "safe": 1 / 3}
DECAYS: Mapping[str, float] = {"ordinary": 5e-4, "ordinary-strong": 1e-2}
STANDARD_SCHEDULE = Schedule(60, (128, 128), 2)


@dataclass(frozen=True)
class AdamWRegime:
    """How AdamW trains: its peak rate, its decay of the head, and of the rest where that is another."""

    schedule: Schedule
    rate: float
    decay: float
    body_decay: float | None = None


# "acting": decay of everything, with a clock of 3 and more; "outvoting": of the head, more than small classes bear.
ADAMW: Mapping[str, AdamWRegime] = {
    "standard": AdamWRegime(STANDARD_SCHEDULE, ADAMW_RATE, 0.05),
    "acting": AdamWRegime(STANDARD_SCHEDULE, 3 * ADAMW_RATE, 4.0),
    "outvoting": AdamWRegime(STANDARD_SCHEDULE, 3 * ADAMW_RATE, 60.0, 0.05),
}
SWEEP: Mapping[str, tuple[float, ...]] = {"penalised": (1 / 16, 1 / 4, 1 / 2), "ordinary": (1e-4, 2e-3, 5e-3)}
# Families that the study can carry out: no new data, and the feature penalty is a mean over the batch.
POSSIBLE = ("penalty", "weights", "temperatures", "scales", "oversampling-held")
HEAD_EPOCHS = 20


@dataclass(frozen=True)
class Setting:
    """One data set, profile, ratio and regime.

    Attributes:
        data: name of the data set.
        profile: "step" (half the classes large) or "exp" (geometric).
        ratio: largest over smallest class.
        largest: images of the largest class.
        regime: "merging" and "safe": penalised, 1.5 times above and three times below the smallest class's threshold;
            "ordinary" and "ordinary-strong": weight decay 5e-4 and 1e-2 on everything, no feature penalty; "standard":
            LayerNorm, AdamW with decay .05 on everything and a cosine schedule; "acting": the same at rate 3e-3 and
            decay 4, "outvoting": decay 60 on the head.
    """

    data: str
    profile: Literal["step", "exp"]
    ratio: int
    largest: int
    regime: Regime

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images per class, largest first."""
        counts = class_counts(f"{self.profile}:{self.largest}:{max(1, round(self.largest / self.ratio))}:10")
        return tuple(int(n) for n in counts)

    @property
    def penalised(self) -> bool:
        """Whether the features carry a penalty."""
        return self.regime in PENALISED

    @property
    def adamw(self) -> AdamWRegime | None:
        """How AdamW trains here; None where SGD does."""
        return ADAMW.get(self.regime)

    @property
    def name(self) -> str:
        """Short and unique within a preset."""
        return f"{self.regime}-{self.profile}-{self.ratio}"


@dataclass(frozen=True)
class StudyPreset:
    """One size of the study."""

    name: str
    settings: tuple[Setting, ...]
    schedule: Schedule
    seeds: tuple[int, ...]


def _settings(data: str, largest: int, ratios: tuple[int, ...], extra: int) -> tuple[Setting, ...]:
    full = [
        Setting(data, profile, ratio, largest, regime)
        for regime in ("merging", "ordinary")
        for profile in ("step", "exp")
        for ratio in ratios
    ]
    more = [
        Setting(data, profile, extra, largest, regime)
        for regime in ("ordinary-strong", "safe")
        for profile in ("step", "exp")
    ]
    return (*full, *more)


PRESETS: dict[str, Callable[[], StudyPreset]] = {
    "cpu": lambda: StudyPreset(
        "cpu", _settings("fashion-mnist", 500, (10, 50, 100), 50), Schedule(100, (128, 128), 2), (0, 1, 2, 3, 4)
    ),
    "long": lambda: StudyPreset(
        "long",
        tuple(Setting("fashion-mnist", "step", ratio, 500, "merging") for ratio in (10, 50)),
        Schedule(400, (128, 128), 2),
        (0, 1, 2),
    ),
    "standard": lambda: StudyPreset(
        "standard",
        tuple(Setting("fashion-mnist", "exp", ratio, 500, "standard") for ratio in (10, 50, 100)),
        STANDARD_SCHEDULE,
        (0, 1, 2),
    ),
    "acting": lambda: StudyPreset(
        "acting",
        (
            *(Setting("fashion-mnist", "exp", ratio, 500, "acting") for ratio in (10, 50, 100)),
            Setting("fashion-mnist", "exp", 100, 500, "outvoting"),
        ),
        STANDARD_SCHEDULE,
        (0, 1, 2),
    ),
    "tiny": lambda: StudyPreset("tiny", _settings("digits", 60, (10,), 10), Schedule(20, (32, 32), 1), (0, 1)),
}


def base_recipe(setting: Setting) -> Recipe:
    """Training with nothing done about the imbalance."""
    counts = setting.class_counts
    if setting.adamw is not None:
        how = setting.adamw
        return Recipe(
            Problem(counts, 1.0), weight_decay=how.decay, standard=True, rate=how.rate, body_decay=how.body_decay
        )
    if not setting.penalised:
        problem = Problem(counts, 1.0, features="nonnegative")  # only its loss is used
        return Recipe(problem, weight_decay=DECAYS[setting.regime])
    edge = float(np.nanmin(thresholds(Problem(counts, 1.0, LAMBDA_B, features="nonnegative")).vanish))
    lambda_z = PENALISED[setting.regime] * edge
    problem = Problem(counts, lambda_z, LAMBDA_B, features="nonnegative")
    return Recipe(problem, penalties_for(lambda_z, LAMBDA_B), penalised_samples=float(problem.num_samples))


def given_advice(setting: Setting, margin: float = 0.1, families: tuple[str, ...] = POSSIBLE) -> Advice:
    """What ``collapsar advise`` says about a penalised setting."""
    return advise(base_recipe(setting).problem, margin, families=families)


@cache
def standard_advice(setting: Setting) -> StandardAdvice:
    """What ``collapsar advise --norm layernorm --optimizer adamw`` says about a setting of AdamW's.

    Raises:
        ValueError: the setting trains with SGD.
    """
    how, counts = setting.adamw, setting.class_counts
    if how is None:
        raise ValueError(f"`setting` must be one of {', '.join(ADAMW)}, got {setting.regime}")
    steps = how.schedule.epochs * -(-sum(counts) // BATCH)
    recipe = StandardRecipe("adamw", how.decay, how.rate, steps, BATCH, "layernorm", how.schedule.widths[-1])
    return advise_standard(counts, recipe)


def recipes(setting: Setting) -> dict[str, Recipe]:
    """Every method's recipe; equal recipes are trained once.

    "sweep:X" are the values of a sweep of the penalties (penalised) or of the weight decay.
    """
    base = base_recipe(setting)
    plain, n = base.problem, np.array(setting.class_counts)
    blanket = {
        "inverse-weights": inverse_weights(n)(plain),
        "effective-number": effective_number_weights(n)(plain),
        "logit-adjustment": logit_adjustment(n)(plain),
    }
    balance = n.sum() / (n.size * n)
    found = {"nothing": base, **_advised(setting, base)}
    found |= {name: replace(base, problem=problem) for name, problem in blanket.items()}
    found["balanced-sampling"] = replace(
        base, problem=oversampling(n, balance, "held")(plain), multipliers=tuple(float(s) for s in balance)
    )
    found["decoupled"] = replace(base, retrain_head=HEAD_EPOCHS)
    if setting.adamw is not None:
        sweep = {"sweep:0": replace(base, weight_decay=0.0)}
    elif setting.penalised:
        sweep = {f"sweep:{f:g}": with_price(base, f * plain.lambda_z) for f in SWEEP["penalised"]}
    else:
        sweep = {f"sweep:{wd:g}": replace(base, weight_decay=wd) for wd in SWEEP["ordinary"]}
    return found | sweep


def _advised(setting: Setting, base: Recipe) -> dict[str, Recipe]:
    """The cheapest mitigation, then one per family, then with twice the room, to see what each is worth."""
    if setting.adamw is not None:
        safe = standard_advice(setting).largest_decay
        return {"advice": base if safe is None else replace(base, weight_decay=safe)}
    if not setting.penalised:
        advice = advise_weight_decay(setting.class_counts, base.weight_decay, layers=2)
        decay = base.weight_decay if advice.verdict == "separated" else advice.largest_safe
        return {"advice": replace(base, weight_decay=decay)}
    wanted = {
        "advice": (0.1, POSSIBLE),
        "advice-weights": (0.1, ("weights",)),
        "advice-oversampling": (0.1, ("oversampling-held",)),
        "advice-double": (1.0, POSSIBLE),
    }
    found = {}
    for name, (margin, families) in wanted.items():
        advice = given_advice(setting, margin, families)
        works = [s for s in advice.suggestions if s.verified]
        if not advice.penalties_are_the_cause:
            found[name] = base
        elif works:
            found[name] = carried_out(base, works[0].treatment)
    return found


def carried_out(base: Recipe, treatment: Treatment) -> Recipe:
    """A suggested mitigation, as training applies it.

    Raises:
        ValueError: the mitigation needs new samples, or a feature penalty that grows with the copies.
    """
    assert base.penalties is not None
    if treatment.family not in POSSIBLE:
        raise ValueError(f"`treatment` must be one of {', '.join(POSSIBLE)}, got {FAMILIES[treatment.family].name}")
    if treatment.family == "penalty":
        factor = sqrt(float(treatment.factors[0]))
        return replace(base, problem=treatment.problem, penalties=scaled(base.penalties, factor))
    multipliers = tuple(float(s) for s in treatment.factors) if treatment.family == "oversampling-held" else None
    return replace(base, problem=treatment.problem, multipliers=multipliers)
