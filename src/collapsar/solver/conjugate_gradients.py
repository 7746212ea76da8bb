"""Conjugate gradients inside a trust region (Steihaug 1983), and how large the next region is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from collapsar.core.types import Vector

_FLAT = 1e-6  # curvature, relative to the preconditioner's, that counts as none
_FEW = 4  # products: half of so few says nothing of what is to come


@dataclass(frozen=True)
class ModelStep:
    """A step v; slope = <g, v>, curvature = <v, Hv>, and its norm in the preconditioner's metric."""

    v: Vector
    slope: float
    curvature: float
    norm: float


def truncated_newton(
    apply: Callable[[Vector], Vector],
    precondition: Callable[[Vector], Vector],
    gradient: Vector,
    *,
    radius: float,
    forcing: float,
    enough: float = 0.0,
    max_iterations: int = 500,
    indefinite: bool = False,
) -> ModelStep:
    """Minimise <g, v> + <v, Hv>/2 within ``radius`` in the preconditioner's norm.

    Args:
        apply: v -> Hv, symmetric, positive semidefinite unless ``indefinite``.
        precondition: an approximation of the inverse of H.
        gradient: g.
        radius: bound of the step's norm, may be inf.
        forcing: stop once the residual has fallen to this fraction, in the preconditioner's norm.
        enough: stop once the second half of the products gained no more than this, which is about what is left to
            gain. The residual says less, since what is left is flat.
        max_iterations: stop after this many products.
        indefinite: H may curve downwards: follow such a direction to the boundary, which must be finite.

    Returns:
        The step; the boundary point where the path leaves the region or meets a direction without curvature.
    """
    v, Hv = np.zeros_like(gradient), np.zeros_like(gradient)
    r = -gradient
    z = precondition(r)
    p, rz = z, float(r.dot(z))
    goal = forcing**2 * rz
    vv = vp = 0.0  # <v, Pv>, <v, Pp> in the norm of the preconditioner, by recurrence
    pp = rz
    gained = [0.0]
    for _ in range(max_iterations):
        if rz <= goal or not pp > 0:
            break
        if len(gained) > _FEW and gained[-1] - gained[len(gained) // 2] < enough:
            break
        Hp = apply(p)
        curvature = float(p.dot(Hp))
        if indefinite and curvature < -_FLAT * pp:
            a = (-vp + math.sqrt(vp * vp + pp * max(radius * radius - vv, 0.0))) / pp
            v, Hv, vv = v + a * p, Hv + a * Hp, radius * radius
            break
        if not curvature > 0:  # flat to rounding: nothing to gain along p
            break
        a = rz / curvature
        if vv + 2 * a * vp + a * a * pp >= radius * radius:
            a = (-vp + math.sqrt(vp * vp + pp * max(radius * radius - vv, 0.0))) / pp
            v, Hv, vv = v + a * p, Hv + a * Hp, radius * radius
            break
        step, Hstep = a * p, a * Hp
        v, Hv, r = v + step, Hv + Hstep, r - Hstep
        vv += 2 * a * vp + a * a * pp
        gained.append(gained[-1] + 0.5 * a * rz)
        z = precondition(r)
        rz, old = float(r.dot(z)), rz
        b = rz / old
        vp, pp = b * (vp + a * pp), rz + b * b * pp
        p = z + b * p
    return ModelStep(v, float(gradient.dot(v)), float(v.dot(Hv)), math.sqrt(max(vv, 0.0)))


def next_radius(radius: float, norm: float, length: float, agreement: float) -> float:
    """The radius after a step.

    Args:
        radius: that of the region that the step was made for.
        norm: that of the whole step.
        length: the share of it that was taken.
        agreement: what it gained over what the model predicted.
    """
    if length < 1:
        return norm * length * (4 if agreement > 0.5 else 1)
    if agreement < 0.25:
        return 0.5 * norm
    return 5 * radius if agreement > 0.75 and norm > 0.99 * radius else radius
