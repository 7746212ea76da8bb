"""Mitigations of imbalance as changes of the program.

A mitigation changes the loss, how often the penalty counts a class's features, or the head's weight decay. All are
cases of one convex program, so that each has an exact optimum and exact thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from collapsar._lazy import lazy_names
from collapsar.advise.outlook import inference_margins  # noqa: F401 - public here as well
from collapsar.core.checks import must_be_positive
from collapsar.core.counts import CheckedCounts, class_counts
from collapsar.core.loss import Loss
from collapsar.core.normalization import strengthened
from collapsar.core.problem import Problem
from collapsar.core.types import Vector

__getattr__, _ = lazy_names(
    __name__, {}, left={"collapsar_studies.remedies_compared": "compare_remedies standard_remedies"}
)

Penalty = Literal["repeated", "held"]


@dataclass(frozen=True)
class Remedy:
    """A change to training, as factors of the program.

    Attributes:
        name: short and unique, for records.
        words: a label for users.
        loss: its part of the loss.
        mass_factor: shape (K,), how many times more often the penalty counts a feature of class k; None: as before.
        head_decay: factor c of the head's weight decay; lambda_z grows by sqrt(c).

    With normalised features ``lambda_w`` grows by c; per sample ``mass_factor`` has no effect.
    """

    name: str
    words: str
    loss: Loss = field(default_factory=Loss)
    mass_factor: Vector | None = None
    head_decay: float = 1.0

    def __call__(self, problem: Problem) -> Problem:
        """The problem under this mitigation, on top of whatever it has already.

        Raises:
            ValueError: lengths disagree, or the problem and the mitigation both smooth labels.

        Example:
            >>> ldt([500, 500, 100])(Problem([500, 500, 100], 0.01)).loss.temperatures.round(2)
            array([1.  , 1.  , 2.24])
        """
        mass = problem.feature_mass
        how = problem.normalization
        if self.mass_factor is not None and (
            how is None or how.over == "batch"
        ):  # features of a given length have none
            mass = problem.mass * self.mass_factor
        treated = problem.replace(loss=_joined(problem.loss, self.loss), feature_mass=mass)
        if self.head_decay == 1:
            return treated
        return strengthened(treated, self.head_decay**0.5 if how is None else self.head_decay)


def _joined(first: Loss, second: Loss) -> Loss:
    if first.smoothing and second.smoothing:
        raise ValueError("`smoothing` can be given only once; leave out one of the two mitigations")
    return Loss(
        _either(first.class_weights, second.class_weights),
        _either(first.offsets, second.offsets, np.add),
        _either(first.scales, second.scales),
        _either(first.temperatures, second.temperatures),
        first.smoothing or second.smoothing,
    )


def _either(
    first: Vector | None, second: Vector | None, join: Callable[[Vector, Vector], Vector] = np.multiply
) -> Vector | None:
    """Both joined, or the only one given."""
    return second if first is None else first if second is None else join(first, second)


def combined(*remedies: Remedy) -> Remedy:
    """Several mitigations at once: factors multiply, offsets add.

    Raises:
        ValueError: none is given, or two of them smooth labels.

    Example:
        >>> n = [500, 500, 100]
        >>> combined(inverse_weights(n, 0.5), balanced_softmax(n)).words
        'weights 1/√n + balanced softmax'
    """
    if not remedies:
        raise ValueError("`remedies` must hold at least one remedy")
    loss, mass, decay = remedies[0].loss, remedies[0].mass_factor, remedies[0].head_decay
    for r in remedies[1:]:
        loss, decay = _joined(loss, r.loss), decay * r.head_decay
        mass = _either(mass, r.mass_factor)
    return Remedy("+".join(r.name for r in remedies), " + ".join(r.words for r in remedies), loss, mass, decay)


# --- the mitigations


def plain_training() -> Remedy:
    """No mitigation."""
    return Remedy("plain", "plain training")


def inverse_weights(counts: ArrayLike, power: float = 1.0) -> Remedy:
    """Class weights n^-power. At power 1/2 all classes merge at the same lambda_z, 1 / sum sqrt(n).

    This is the same program as oversampling whose copies do not pay the feature penalty again.
    """
    n = _counts(counts)
    words = {1.0: "weights 1/n", 0.5: "weights 1/√n"}.get(power, f"weights n^-{power:g}")
    return Remedy(f"weights-{power:g}", words, Loss(class_weights=(n / n.max()) ** -power))


def effective_number_weights(counts: ArrayLike, beta: float = 0.999) -> Remedy:
    """Class weights (1 - beta) / (1 - beta^n) (Cui et al., CVPR 2019).

    Raises:
        ValueError: ``beta`` is outside (0, 1).
    """
    if not 0 < beta < 1:
        raise ValueError(f"`beta` must be in (0, 1), got {beta!r}")
    weights = np.log1p(-beta) - np.log(-np.expm1(_counts(counts) * np.log(beta)))
    return Remedy(f"effective-number-{beta:g}", f"effective number, β={beta:g}", Loss(class_weights=np.exp(weights)))


def oversampling(
    counts: ArrayLike | CheckedCounts, factors: ArrayLike | None = None, penalty: Penalty = "repeated"
) -> Remedy:
    """Every sample of class k is shown s_k times: loss share q ∝ s n.

    Args:
        counts: n, shape (K,).
        factors: s > 0, shape (K,); n_max / n by default, which balances the loss.
        penalty: "repeated": copies pay the feature penalty too, m = s n. "held": the penalty stays that of N samples
            in all, m = N q, as when it is a mean over the batch with an unchanged factor.

    Raises:
        ValueError: a factor is not positive and finite, lengths disagree, or ``penalty`` is unknown.
    """
    n = _counts(counts)
    s = n.max() / n if factors is None else np.asarray(factors, dtype=np.float64)
    if s.shape != n.shape or not (np.isfinite(s) & (s > 0)).all():
        raise ValueError(f"`factors` must be {n.size} finite numbers > 0, got {factors!r}")
    if penalty not in get_args(Penalty):
        raise ValueError(f'`penalty` must be "repeated" or "held", got {penalty!r}')
    mass = s if penalty == "repeated" else s * (n.sum() / (s @ n))
    return Remedy(f"oversampling-{penalty}", f"oversampling, penalty {penalty}", Loss(class_weights=s), mass)


def logit_adjustment(counts: ArrayLike, tau: float = 1.0) -> Remedy:
    """Offsets tau log prior in the training loss (Menon et al., ICLR 2021)."""
    n = _counts(counts)
    return Remedy(f"logit-adjustment-{tau:g}", f"logit adjustment, τ={tau:g}", Loss(offsets=tau * np.log(n / n.sum())))


def balanced_softmax(counts: ArrayLike) -> Remedy:
    """Offsets log n (Ren et al., NeurIPS 2020): logit adjustment with tau = 1 up to a constant."""
    return Remedy("balanced-softmax", "balanced softmax", Loss(offsets=np.log(_counts(counts))))


def cdt(counts: ArrayLike, gamma: float = 0.2) -> Remedy:
    """Scales (n / n_max)^gamma, one per logit (class-dependent temperatures, Ye et al., 2020)."""
    return Remedy(f"cdt-{gamma:g}", f"CDT, γ={gamma:g}", Loss(scales=_relative(counts) ** gamma))


def vs_loss(counts: ArrayLike, gamma: float = 0.2, tau: float = 1.0) -> Remedy:
    """Scales as in CDT and offsets as in logit adjustment (Kini et al., NeurIPS 2021)."""
    offsets = logit_adjustment(counts, tau).loss.offsets
    loss = Loss(offsets=offsets, scales=_relative(counts) ** gamma)
    return Remedy(f"vs-{gamma:g}-{tau:g}", f"VS loss, γ={gamma:g}, τ={tau:g}", loss)


def ldt(counts: ArrayLike, gamma: float = 0.5) -> Remedy:
    """Temperatures (n_max / n)^gamma, one per class of the sample (label-dependent; at 1/2 all classes merge at once).

    Positive ``gamma`` makes the loss of small classes steeper, which keeps them apart; a negative one enforces larger
    margins for small classes, as in Behnia et al. (AISTATS 2023), and merges them earlier.
    """
    return Remedy(f"ldt-{gamma:g}", f"LDT, γ={gamma:g}", Loss(temperatures=_relative(counts) ** -gamma))


def label_smoothing(smoothing: float = 0.1) -> Remedy:
    """Targets (1 - eps) e_k + eps / K."""
    return Remedy(f"smoothing-{smoothing:g}", f"label smoothing, ε={smoothing:g}", Loss(smoothing=smoothing))


def head_decay(factor: float = 0.25) -> Remedy:
    """The head's weight decay times a factor.

    Raises:
        ValueError: ``factor`` is not positive and finite.
    """
    must_be_positive(factor=factor)
    return Remedy(f"head-decay-{factor:g}", f"head decay × {factor:g}", head_decay=float(factor))


def _counts(counts: ArrayLike | CheckedCounts) -> Vector:
    return class_counts(counts).astype(np.float64)


def _relative(counts: ArrayLike) -> Vector:
    n = _counts(counts)
    return n / n.max()
