"""The penalties that act on a trained head, estimated in independent ways, and whether the estimates agree.

At a stationary point the loss pulls the head exactly as hard as its penalty holds it: the pull gives lambda_w. The
norms of head and features then give lambda_h and lambda_z (``balance_penalties``); the mean predictions, which do not
depend on norms, give lambda_z once more, class by class (``lambda_z_from_predictions``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.types import Mask, Vector
from collapsar.diagnose.measurement import Measurement
from collapsar.diagnose.readings import lambda_z_from_predictions, lambda_z_from_residual
from collapsar.metrics.balance import balance_penalties
from collapsar.metrics.separation import ClassSeparation

AT_REST = 0.1
"""Relative gradient of the head below which it counts as being at rest. Distances to an optimum cannot be more accurate
than this gradient is small."""

# Two estimates of lambda_z agree if they differ by less than this factor, as in a network that ends a few per cent from
# the optimum.
_AGREE = 1.15

# A fitted penalty of the bias below this share of the head's is noise: nothing penalises the bias.
_FREE = 0.02


@dataclass(frozen=True)
class HeadForces:
    """The forces on the head, (W, b), with the features fixed.

    Attributes:
        fitted_w: the lambda_w that balances the loss best, -<g_W, W>/||W||^2; NaN for a zero head. At a stationary
            point it is the head's penalty whatever the optimizer calls it; if not positive, nothing holds the head.
        fitted_b: the same for the bias; 0 if below 2 % of the head's, which is noise; inf for a head without bias.
        relative_gradient: norm of loss gradient plus penalty force over the norm of the penalty force, for the
            penalties used; near 0 the head is at rest; NaN if no penalty acts.
    """

    fitted_w: float
    fitted_b: float
    relative_gradient: float


UNREAD = HeadForces(float("nan"), float("nan"), float("nan"))
"""For a head that does not compute W h + b, or is not trained."""


@dataclass(frozen=True, eq=False)
class EffectivePenalties:
    """Penalties estimated from a trained network alone.

    Attributes:
        lambda_w: of the head: as given, or ``HeadForces.fitted_w``.
        lambda_h: of the features, from the balance of norms.
        lambda_b: of the bias: as given, or ``HeadForces.fitted_b``; inf for a head without bias.
        lambda_z: sqrt(lambda_w lambda_h).
        by_class: shape (K,), lambda_z from the predictions of each class; NaN if a class cannot tell.
        tells: shape (K,), the classes for which that is an estimate; for the others it is a lower bound.
        by_residual: lambda_z from all predictions at once; an estimate if any class is separated. NaN for too many
            classes for a K x K table.
    """

    lambda_w: float
    lambda_h: float
    lambda_b: float
    lambda_z: float
    by_class: Vector
    tells: Mask
    by_residual: float

    @property
    def from_predictions(self) -> float:
        """The median over the classes that tell; without any, the residual's; NaN if nothing is separated."""
        values = self.by_class[self.tells & np.isfinite(self.by_class)]
        return float(np.median(values)) if values.size else self.by_residual

    @property
    def ratio(self) -> float:
        """lambda_z from predictions over lambda_z from the balance of norms: 1 at an optimum."""
        return self.from_predictions / self.lambda_z if self.lambda_z > 0 else float("nan")

    @property
    def spread(self) -> float:
        """Largest over smallest estimate of the classes that tell: 1 at an optimum; NaN for fewer than two."""
        values = self.by_class[self.tells & np.isfinite(self.by_class)]
        return float(values.max() / values.min()) if values.size > 1 and values.min() > 0 else float("nan")

    @property
    def stuck(self) -> tuple[int, ...]:
        """Classes not separated whose bound exceeds lambda_z by more than 15 %: no optimum holds them there.

        At an optimum the dual norm of the residual is lambda_z, and it bounds every column and every difference of
        sibling columns (JMLR Lemma 8; its nonnegative form likewise).
        """
        above = ~self.tells & (self.by_class > _AGREE * self.lambda_z)
        return tuple(np.flatnonzero(above).tolist())

    @property
    def agree(self) -> bool | None:
        """Whether both estimates and all classes agree within 15 %; None if one of them is missing."""
        if not (np.isfinite(self.ratio) and self.ratio > 0):
            return None
        spread = self.spread if np.isfinite(self.spread) else 1.0
        return max(self.ratio, 1 / self.ratio) < _AGREE and spread < _AGREE**2


def head_forces(
    m: Measurement, lambda_w: float | NDArray[np.float64] | None = None, lambda_b: float | None = None
) -> HeadForces:
    """Balance of the forces at the head.

    Args:
        m: the network.
        lambda_w: the head's penalty, with its half, one number or one for each row; None uses the fitted one, which
            shows only whether the loss pulls along W at all.
        lambda_b: the bias's penalty; None uses the fitted one.
    """
    W, g = m.weight, m.weight_gradient
    size = float(np.sum(W * W))
    fitted_w = -float(np.sum(g * W)) / size if size > 0 else float("nan")
    held = (fitted_w if lambda_w is None else np.reshape(lambda_w, (-1, 1))) * W
    square, force = float(np.sum((g + held) ** 2)), float(np.sum(held * held))
    fitted_b = float("inf")
    if m.bias is not None:
        weight = float(m.bias @ m.bias)
        fitted_b = -float(m.bias_gradient @ m.bias) / weight if weight > 0 else 0.0
        used_w = fitted_w if lambda_w is None else float(np.mean(lambda_w))
        fitted_b = fitted_b if fitted_b > _FREE * max(used_w, 0.0) else 0.0
        used_b = fitted_b if lambda_b is None or lambda_b == np.inf else lambda_b
        square += float(np.sum((m.bias_gradient + used_b * m.bias) ** 2))
        force += used_b**2 * weight
    relative = float(np.sqrt(square / force)) if force > 0 and float(np.sum(held * W)) > 0 else float("nan")
    return HeadForces(fitted_w, fitted_b, relative)


def bias_price(m: Measurement, given: float | None, fitted: float = 0.0) -> float:
    """The penalty of the bias in the theory: inf without a bias; the given one, otherwise the fitted one."""
    return np.inf if m.bias is None else fitted if given is None else given


def effective_penalties(
    m: Measurement,
    features: FeatureModel,
    lambda_w: float | None = None,
    lambda_b: float | None = None,
    found: ClassSeparation | None = None,
) -> EffectivePenalties:
    """Estimate the penalties from a trained network. Meaningful once its head is at rest.

    Args:
        m: the network, with samples of every class.
        features: the model by which predictions are read.
        lambda_w: the head's penalty, if known.
        lambda_b: the bias's penalty, if known.
        found: the states of the classes; those of ``m`` by default.

    Returns:
        The penalties; NaN where a zero head or zero features cannot tell.
    """
    forces = head_forces(m, lambda_w, lambda_b)
    used_w = forces.fitted_w if lambda_w is None else lambda_w
    used_b = bias_price(m, lambda_b, forces.fitted_b)
    lambda_h = lambda_z = float("nan")
    if used_w > 0 and np.any(m.weight):
        lambda_h, lambda_z = balance_penalties(m.weight, m.class_means, m.mass, used_w)
    problem = Problem(m.class_counts, 1.0, used_b, m.loss_form, m.feature_mass, features)
    found = m.separation if found is None else found
    tells = np.array([state == "separated" for state in found.states])
    alive = any(state != "vanished" for state in found.states)
    return EffectivePenalties(
        lambda_w=used_w,
        lambda_h=lambda_h,
        lambda_b=used_b,
        lambda_z=lambda_z,
        by_class=lambda_z_from_predictions(problem, m.predictions, m.b, features),
        tells=tells,
        by_residual=lambda_z_from_residual(problem, m.Z, m.b) if alive and m.small else float("nan"),
    )


def agreement_words(effective: EffectivePenalties, at_rest: bool, *, as_predicted: bool = True) -> str:
    """How well the two estimates of lambda_z agree, and what a disagreement means.

    Args:
        effective: the estimates.
        at_rest: whether the head is stationary.
        as_predicted: whether every class has the state that it has at the optimum.
    """
    balance, predicted = effective.lambda_z, effective.from_predictions
    ratio, spread = effective.ratio, effective.spread
    if not np.isfinite(balance):
        return (
            "The penalty cannot be read from the norms of head and features: one of them is zero, or the loss does not "
            "pull the head outwards."
        )
    if not np.isfinite(ratio):
        return f"The norms of head and features say lambda_z = {balance:.4g}; no separated class could confirm it."
    both = f"lambda_z is {balance:.4g} by the norms of head and features and {predicted:.4g} by the predictions"
    if not at_rest:
        return f"{both}; the head is not at rest, so neither is reliable yet."
    if effective.agree and (effective.stuck or not as_predicted):
        elsewhere = "" if as_predicted else ", but the network is not at the optimum, which has other states"
        return f"{both}: they agree for the separated classes{elsewhere}."
    if effective.agree:
        return f"{both}: they agree, so the network is at an optimum of the model at that penalty."
    if np.isfinite(spread) and spread >= _AGREE**2 and max(ratio, 1 / ratio) < _AGREE:
        return (
            f"{both}, but single classes differ by a factor of {spread:.2g}: no single penalty describes them. Some "
            "classes may be easy or hard to separate whatever their counts, or the loss is not the one named."
        )
    if ratio > 1:
        return (
            f"{both}, {ratio:.2g} times as much: the predictions are less confident than head and features' penalties "
            "explain. Something else holds them back: decay of layers below the features, augmentation, mixup, label "
            "smoothing, or training that ended early. By the norms alone, classes look safer than they are."
        )
    return (
        f"{both}, {ratio:.2g} times as much: the predictions are more confident than head and features' penalties "
        "explain. The features are not free to respond to a penalty (batch norm, a frozen backbone), or the loss has "
        "other terms. By the norms alone, classes look more at risk than they are."
    )
