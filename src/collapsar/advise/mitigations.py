"""Remedies against imbalance, side by side: what each does to thresholds, margins and geometry of the optimum.

A remedy changes the loss, how often the penalty counts a class's features, or the head's weight decay. All are cases of
one convex program, so that each has an exact optimum and exact thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.advise.outlook import inference_margins
from collapsar.core.counts import class_counts
from collapsar.core.normalization import own_penalties, strengthened
from collapsar.core.problem import FeatureModel, Loss, Problem
from collapsar.core.states import ClassState
from collapsar.core.types import Matrix, Record, Vector
from collapsar.solver import Status, solve
from collapsar.solver.normalized_transitions import transitions
from collapsar.theory import thresholds
from collapsar.theory.thresholds import Thresholds

__all__ = [
    "Remedy",
    "balanced_softmax",
    "cdt",
    "combined",
    "compare_remedies",
    "effective_number_weights",
    "head_decay",
    "inference_margins",
    "inverse_weights",
    "label_smoothing",
    "ldt",
    "logit_adjustment",
    "oversampling",
    "plain_training",
    "standard_remedies",
    "vs_loss",
]

Penalty = Literal["repeated", "held"]


@dataclass(frozen=True)
class Remedy:
    """A change to training, as the factors it brings to the program.

    Attributes:
        name: short and unique, for records.
        words: a label for people.
        loss: its part of the loss.
        mass_factor: shape (K,), how many times more often the penalty counts a feature of class k; None: as before.
        head_decay: factor c of the head's weight decay; lambda_z grows by sqrt(c).

    With normalised features ``lambda_w`` grows by c; per sample ``mass_factor`` has nothing to act on.
    """

    name: str
    words: str
    loss: Loss = field(default_factory=Loss)
    mass_factor: Vector | None = None
    head_decay: float = 1.0

    def __call__(self, problem: Problem) -> Problem:
        """The problem under this remedy, on top of whatever it has already.

        Raises:
            ValueError: lengths disagree, or the problem and the remedy both smooth labels.

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
        return strengthened(treated, self.head_decay**0.5 if how is None else self.head_decay)


def _joined(first: Loss, second: Loss) -> Loss:
    """Factors multiply, offsets add."""
    values: dict[str, Any] = {}
    for f in fields(Loss):
        a, b = getattr(first, f.name), getattr(second, f.name)
        if f.name == "smoothing":
            if a and b:
                raise ValueError("`smoothing` can be given once only; leave one of the two remedies out")
            values[f.name] = a or b
        elif a is None or b is None:
            values[f.name] = b if a is None else a
        else:
            values[f.name] = a + b if f.name == "offsets" else a * b
    return Loss(**values)


def combined(*remedies: Remedy) -> Remedy:
    """Several remedies at once: factors multiply, offsets add.

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
        mass = r.mass_factor if mass is None else mass if r.mass_factor is None else mass * r.mass_factor
    return Remedy("+".join(r.name for r in remedies), " + ".join(r.words for r in remedies), loss, mass, decay)


# --- the remedies


def plain_training() -> Remedy:
    """No remedy."""
    return Remedy("plain", "plain training")


def inverse_weights(counts: ArrayLike, power: float = 1.0) -> Remedy:
    """Class weights n^-power. At power 1/2 all classes merge at the same lambda_z, 1 / sum sqrt(n).

    The same program as oversampling whose copies do not pay the feature penalty again.
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


def oversampling(counts: ArrayLike, factors: ArrayLike | None = None, penalty: Penalty = "repeated") -> Remedy:
    """Every sample of class k s_k times: loss share q ∝ s n.

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

    Positive ``gamma`` makes the loss of small classes steeper, which keeps them apart; a negative one asks for larger
    margins of small classes, as Behnia et al. (AISTATS 2023) do, and merges them earlier.
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
    if not 0 < factor < np.inf:
        raise ValueError(f"`factor` must be finite and > 0, got {factor!r}")
    return Remedy(f"head-decay-{factor:g}", f"head decay × {factor:g}", head_decay=float(factor))


def standard_remedies(counts: ArrayLike) -> tuple[Remedy, ...]:
    """Plain training, every remedy at a usual setting, and combinations.

    Example:
        >>> len(standard_remedies([500, 500, 100]))
        17
    """
    root = inverse_weights(counts, 0.5)
    softmax = balanced_softmax(counts)
    return (
        plain_training(),
        inverse_weights(counts),
        root,
        effective_number_weights(counts),
        oversampling(counts),
        oversampling(counts, penalty="held"),
        softmax,
        logit_adjustment(counts),
        logit_adjustment(counts, 2.0),
        cdt(counts),
        vs_loss(counts),
        ldt(counts),
        label_smoothing(),
        head_decay(),
        combined(root, softmax),
        combined(ldt(counts), softmax),
        combined(root, head_decay()),
    )


# --- the comparison


def compare_remedies(problem: Problem, remedies: Sequence[Remedy] | None = None, tol: float = 1e-9) -> Record:
    """Optima, thresholds and geometry of one problem under several remedies, for both feature models where both exist.

    Args:
        problem: counts and penalties; usually plain. Its feature model is ignored.
        remedies: :func:`standard_remedies` by default.
        tol: relative gap of the optima.

    Returns:
        A JSON-able record; NaN is what does not exist. Vectors have one entry per group of classes with equal counts,
        largest first. Thresholds are in units of the problem's own lambda_z (lambda_w where features are normalised),
        before the remedy.

    Raises:
        ValueError: two remedies share a name.

    Example:
        >>> record = compare_remedies(Problem("500x5,100x5", 0.0036, 0.02))
        >>> [r["signed"]["states"][1] for r in record["remedies"][:3]]
        ['merged', 'separated', 'separated']
    """
    chosen = standard_remedies(problem.class_counts) if remedies is None else tuple(remedies)
    names = [r.name for r in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"`remedies` must have different names, got {names}")
    counts = np.unique(problem.class_counts)[::-1]
    groups = [np.flatnonzero(problem.class_counts == n) for n in counts]
    models: tuple[FeatureModel, ...] = get_args(FeatureModel)
    if problem.normalization is not None and problem.normalization.over == "sample":
        models = ("signed",)
    return {
        "problem": {k: v for k, v in problem.to_dict().items() if k != "features"},
        "groups": [{"samples": int(n), "classes": g.size} for n, g in zip(counts, groups, strict=True)],
        "remedies": [
            {
                "name": remedy.name,
                "words": remedy.words,
                "loss": remedy.loss.to_dict(),
                "mass_factor": None if remedy.mass_factor is None else remedy.mass_factor.tolist(),
                "head_decay": remedy.head_decay,
                **{model: asdict(_outcome(remedy, problem.replace(features=model), groups, tol)) for model in models},
            }
            for remedy in chosen
        ],
    }


def _transitions(problem: Problem) -> Thresholds:
    """As :func:`collapsar.thresholds`."""
    if problem.normalization is None:
        return thresholds(problem)
    return Thresholds(**transitions(problem, thresholds))


@dataclass(frozen=True)
class _Outcome:
    """What one remedy makes of one problem; lists have one entry per group of classes with equal counts."""

    lambda_z: float
    status: str
    converged: bool
    relative_gap: float
    thresholds: dict[str, list[float] | list[bool] | float]
    states: list[ClassState]
    margins: list[float]
    contrasts: list[float]
    bias: list[float]
    norms: dict[str, list[float]]
    cosines: dict[str, list[list[float]]]


def _outcome(remedy: Remedy, problem: Problem, groups: list[NDArray[np.intp]], tol: float) -> _Outcome:
    treated = remedy(problem)
    nominal = float(own_penalties(problem)[0] / own_penalties(treated)[0])
    t = _transitions(treated)
    s = solve(treated, tol, throw=False)
    first = [int(g[0]) for g in groups]
    Z = s.Z
    grams = {"Z": Z.T @ Z, "W": s.classifier_gram(), "H": s.feature_gram()}
    return _Outcome(
        lambda_z=treated.lambda_z,
        status=s.status.name.lower(),
        converged=s.status is Status.OPTIMAL,
        relative_gap=s.certificate.relative_gap,
        thresholds={
            "merge": (nominal * t.merge[first]).tolist(),
            "vanish": (nominal * t.vanish[first]).tolist(),
            "complete": nominal * t.complete,
            "complete_bound": nominal * t.complete_bound,
            "exact": t.exact[first].tolist(),
        },
        states=[s.class_states[k] for k in first],
        margins=inference_margins(s)[first].tolist(),
        contrasts=[float(Z[g[0], g[0]] - Z[g[1], g[0]]) if g.size > 1 else float("nan") for g in groups],
        bias=s.b[first].tolist(),
        norms={name: np.sqrt(np.maximum(np.diag(G)[first], 0.0)).tolist() for name, G in grams.items()},
        cosines={name: _mean_cosines(G, groups).tolist() for name, G in grams.items()},
    )


def _mean_cosines(gram: Matrix, groups: list[NDArray[np.intp]]) -> Matrix:
    """Mean cosine between different classes, per pair of groups; NaN where a vector is zero or there is no pair."""
    norm = np.sqrt(np.maximum(np.diag(gram), 0.0))
    # a vector this much shorter than the longest is zero to rounding
    unit = np.where(norm > 1e-9 * norm.max(), norm, np.nan) if norm.max() > 0 else np.full_like(norm, np.nan)
    cosines = gram / np.outer(unit, unit)
    np.fill_diagonal(cosines, 0.0)
    result = np.empty((len(groups), len(groups)))
    for i, a in enumerate(groups):
        for j, b in enumerate(groups):
            pairs = a.size * (b.size - (i == j))
            result[i, j] = cosines[np.ix_(a, b)].sum() / pairs if pairs else np.nan
    return result


def _counts(counts: ArrayLike) -> Vector:
    return class_counts(counts).astype(np.float64)


def _relative(counts: ArrayLike) -> Vector:
    n = _counts(counts)
    return n / n.max()
