"""The columns of the program for features >= 0, all at once: min over z of q l(z + b) + a ||z||, for a given b.

l is the cross-entropy of one class and a = lambda_Z sqrt(m). A column is dead, z = 0, iff ||g|| <= a at z = 0, with
g = q tau delta o (y - p), minus the gradient of q l; otherwise z = s g with s = ||z|| / a and ||g|| = a. The Hessian
of the whole is H + (I - zz'/||z||^2) / s, and H, that of q l, is diagonal minus rank one: Newton's step is Woodbury's
formula applied twice, O(J) per column, and every array operation serves all columns.

One array per quantity: row i < J is a logit of cluster i, the last row the own logit of the sample's class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Matrix, Vector
from collapsar.solver.objective import target
from collapsar.solver.symmetry import Blocks, Quotient

MAX_STEPS = 100  # of the damped Newton method: a guard; a column stopped early leaves its certificate open


@dataclass(frozen=True)
class Stack:
    """What the columns of J sample clusters are made of; shape (J + 1, n) unless stated.

    Attributes:
        mult: how many logits a row stands for, k_i - [i=j]; 1 in the last row.
        scale: delta.
        offset: iota, -inf for the siblings of a single class, which do not exist.
        goal_miss: 1 - y_own, shape (n,).
        goal: y.
        share: q, shape (n,).
        tau: shape (n,).
        radius: a = lambda_Z sqrt(m), shape (n,).
        index: the sample clusters, shape (n,).
    """

    mult: Matrix
    scale: Matrix
    offset: Matrix
    goal_miss: Vector
    goal: Matrix
    share: Vector
    tau: Vector
    radius: Vector
    index: NDArray[np.intp]

    def take(self, keep: NDArray[np.intp]) -> Stack:
        """Some of the columns."""
        if keep.size == self.index.size:
            return self
        return Stack(**{name: value[..., keep] for name, value in vars(self).items()})

    def dot(self, x: Matrix, y: Matrix) -> Vector:
        """<x_k, y_k> over all K logits, shape (n,)."""
        return np.einsum("ij,ij,ij->j", self.mult, x, y)

    def expand(self, b: Vector) -> Matrix:
        """The bias, one entry per logit, as rows."""
        return np.vstack([np.broadcast_to(b[:, None], (b.size, self.index.size)), b[self.index]])


@dataclass(frozen=True)
class Softmax:
    """p, shape (J + 1, n); loss q l, shape (n,); g = q tau delta o (y - p), minus the gradient in z."""

    p: Matrix
    loss: Vector
    g: Matrix


def stack(q: Quotient) -> Stack:
    """The columns of every cluster."""
    J, Y = q.num_clusters, target(q)
    present = q.others > 0
    return Stack(
        mult=np.vstack([q.others, np.ones(J)]),
        scale=np.vstack([np.tile(q.scales[:, None], (1, J)), q.scales]),
        offset=np.vstack([np.where(present, q.offsets[:, None], -np.inf), q.offsets]),
        goal_miss=Y.miss,
        goal=np.vstack([np.where(present, Y.other, 0.0), 1 - Y.miss]),
        share=q.share,
        tau=q.temperatures,
        radius=q.lambda_z * np.sqrt(q.mass),
        index=np.arange(J),
    )


def softmax(c: Stack, w: Matrix) -> Softmax:
    """Loss and gradient at z + b = w, from differences to the own logit, so that small losses keep their accuracy."""
    d = c.tau * c.scale * w + c.offset
    d -= d[-1].copy()
    top = d.max(axis=0)  # >= 0: the own difference is 0
    e = np.exp(d - top)
    own = e[-1]
    miss = np.einsum("ij,ij->j", c.mult[:-1], e[:-1])
    total = own + miss
    lse = top + np.log1p(np.where(top == 0, miss, total - 1))
    aim = np.einsum("ij,ij->j", c.mult * c.goal, np.where(c.goal > 0, d, 0.0)) if c.goal_miss.any() else 0.0
    g = c.goal - e / total
    g[-1] = miss / total - c.goal_miss
    g *= c.share * c.tau * c.scale
    return Softmax(e / total, c.share * (lse - aim), g)


def best_columns(c: Stack, w: Matrix, x: Matrix) -> Matrix:
    """The z that minimises q l(z + w) + a ||z||, for every column.

    Args:
        c: n columns.
        w: the bias as rows, shape (J + 1, n).
        x: a guess of z, zeros where there is none; other starts are tried beside it.

    Returns:
        z, shape (J + 1, n), exactly 0 in dead columns.
    """
    still = softmax(c, w)
    alive = np.flatnonzero(np.sqrt(c.dot(still.g, still.g)) > c.radius)
    z = np.zeros_like(x)
    if alive.size:
        some = c.take(alive)
        at_zero = Softmax(still.p[:, alive], still.loss[alive], still.g[:, alive])
        z[:, alive] = _newton(some, w[:, alive], _best_start(some, w[:, alive], x[:, alive], at_zero))
    return z


def _best_start(c: Stack, w: Matrix, x: Matrix, at_zero: Softmax) -> Matrix:
    """The best start for each column: the given one, short steps along g at z = 0, or the balanced closed form.

    The last is what the optimum tends to for small lambda_Z, where Newton from 0 would take one step per nat.
    """
    norm = np.sqrt(c.dot(at_zero.g, at_zero.g))
    unit = at_zero.g / norm
    kept = np.maximum(norm - c.radius, 1e-16 * c.radius) / _curvature(c, at_zero.p, unit)
    num_logits = c.mult[:, 0].sum()
    t = c.radius / (c.share * c.tau * c.scale[-1]) * np.sqrt(1 - 1 / num_logits)
    margin = np.log((num_logits - 1) * (1 / np.minimum(t, 0.5) - 1)) / (c.tau * c.scale[-1])
    simplex = np.vstack([np.tile(-margin / num_logits, (c.mult.shape[0] - 1, 1)), margin * (1 - 1 / num_logits)])
    best, lowest = x, np.where(c.dot(x, x) > 0, _value(c, w, x), np.inf)
    for trial in (kept * unit, kept / 16 * unit, kept / 256 * unit, simplex, simplex - w):
        # at its threshold a column is nothing but rounding, and the best may be 0, where Newton has no direction
        value = np.where(c.dot(trial, trial) > 0, _value(c, w, trial), np.inf)
        best, lowest = np.where(value < lowest, trial, best), np.minimum(value, lowest)
    return best


def _value(c: Stack, w: Matrix, z: Matrix) -> Vector:
    """The objective of every column, q l(z + w) + a ||z||."""
    return softmax(c, w + z).loss + c.radius * np.sqrt(c.dot(z, z))


def _curvature(c: Stack, p: Matrix, x: Matrix) -> Vector:
    """The second derivative of q l along x at probabilities p, a variance: no cancellation. Kept above 0."""
    slope = c.scale * x
    return np.maximum(c.share * c.tau**2 * c.dot(p, (slope - c.dot(p, slope)) ** 2), 1e-100)


@dataclass(frozen=True)
class Tilt:
    """E = (H^-1 + s I)^-1 = q tau^2 mass * delta (diag(p) - p p') delta: the Hessian of q l at tilted probabilities p.

    Attributes:
        damp: 1 / (1 + s diag H), shape (J + 1, n).
        mass: shape (n,).
        p: shape (J + 1, n).
    """

    damp: Matrix
    mass: Vector
    p: Matrix


def tilt(c: Stack, p: Matrix, s: Vector) -> Tilt:
    """E for every column, from the softmax p and s = ||z|| / a."""
    damp = 1 / (1 + (s * c.share * c.tau**2) * c.scale**2 * p)
    mass = np.einsum("ij,ij,ij->j", c.mult, p, damp)
    return Tilt(damp, mass, p * damp / mass)


def _newton(c: Stack, w: Matrix, z: Matrix) -> Matrix:
    """The minimum over z of q l(z + b) + a ||z|| for columns known to be alive, started at z != 0: damped Newton."""
    z = z.copy()
    left = np.arange(z.shape[1])
    for _ in range(MAX_STEPS):
        some, wl, zl = c.take(left), w[:, left], z[:, left]
        soft = softmax(some, wl + zl)
        length = np.sqrt(some.dot(zl, zl))
        value = soft.loss + some.radius * length
        gradient = some.radius * (zl / length) - soft.g
        step = _column_step(some, soft.p, zl / length, length / some.radius, gradient)
        decrement = -some.dot(gradient, step)
        # where all but the own probability has underflowed the model is flat, and the step back shoots past 0
        back = 0.9 * length / np.maximum(np.sqrt(some.dot(step, step)), 0.9 * length)
        size = np.where(some.dot(step, zl) < 0, back, 1.0)
        trying, shortest = np.arange(left.size), 1e-9 * size
        while trying.size:
            new = zl[:, trying] + size[trying] * step[:, trying]
            enough = value[trying] - (1e-4 * size * decrement)[trying] + 1e-15 * value[trying]
            # below 1e-12 rounding hides the decrease, and the quadratic model is right
            good = (_value(some.take(trying), wl[:, trying], new) <= enough) | (decrement < 1e-12 * value)[trying]
            z[:, left[trying[good]]] = new[:, good]
            trying = trying[~good & (size > shortest)[trying]]
            size[trying] *= 0.3
        left = left[decrement > 1e-16 * value]  # the next step would be below rounding
        if not left.size:
            break
    return z


def _column_step(c: Stack, p: Matrix, unit: Matrix, s: Vector, gradient: Matrix) -> Matrix:
    """-[H + (I - unit unit') / s]^-1 gradient: Woodbury twice."""
    tilted = tilt(c, p, s)
    lean = c.scale * tilted.p

    def inverse(x: Matrix) -> Matrix:  # (I + s H)^-1
        return tilted.damp * x + (s * c.share * c.tau**2 * tilted.mass * c.dot(lean, x)) * lean

    across, along = inverse(gradient), inverse(unit)
    return -s * across - along * (c.dot(unit, across) / (tilted.mass * _curvature(c, tilted.p, unit)))


def to_columns(q: Quotient, blocks: Blocks) -> Matrix:
    """The columns of a point, one per cluster."""
    alpha = np.where(q.sizes > 1, blocks.alpha, 0.0)
    other = blocks.C - np.diag(alpha / q.sizes)
    return np.vstack([np.where(q.others > 0, other, 0.0), np.diag(other) + alpha])


def to_blocks(q: Quotient, x: Matrix, b: Vector) -> Blocks:
    """The point with these columns."""
    other, own = x[:-1], x[-1]
    alpha = np.where(q.sizes > 1, own - np.diag(other), 0.0)
    C = other.copy()
    C[np.diag_indices_from(C)] = own - alpha * (1 - 1 / q.sizes)
    return Blocks(alpha, C, b)
