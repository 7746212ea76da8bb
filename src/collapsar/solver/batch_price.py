"""The two prices of Z in the coordinates of :mod:`collapsar.solver.batch_model`: what lives, and how the price bends.

Both are weighted sums of norms of groups of coordinates, but for the nuclear norm of three or more clusters. A group
(or a singular value) lives or is exactly zero; the proximal step decides which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Array, Mask
from collapsar.solver.batch_model import BatchModel, spectral_norm

_ROUNDING = 1e-13  # relative: nothing less brings a part to life, and a smaller singular value counts as zero


@dataclass(frozen=True)
class Frame:
    """The quadratic model of smooth part plus price on what lives, in a frame of its own.

    Attributes:
        gradient: shape (n, B); only living coordinates count.
        hessian: shape (n, n, B).
        alive: which coordinates of v may move, (n, B).
        turn: shape (B, n, n), whose columns are the axes of the frame; None where they are those of (v, beta).
    """

    gradient: Array
    hessian: Array
    alive: Mask
    turn: Array | None = None

    def unrotated(self, step: Array) -> Array:
        """A step of shape (n, B) in the coordinates of (v, beta)."""
        return step if self.turn is None else (self.turn @ step.T[:, :, None])[:, :, 0].T


class Price(Protocol):
    """What the algorithm needs to know about a price; every array has the problems on its last axis."""

    def value(self, model: BatchModel, v: Array) -> Array:
        """The price times lambda_Z, shape (B,)."""
        ...

    def proximal(self, model: BatchModel, v: Array, slope: Array, bend: Array) -> tuple[Array, Mask]:
        """The proximal-gradient step from v, and where it changes what lives. ``bend`` (J^2, B): curvature or more."""
        ...

    def frame(self, model: BatchModel, v: Array, gradient: Array, hessian: Array) -> Frame:
        """The quadratic model at v, from the derivatives of the smooth part, which it may change in place."""
        ...

    def retract(self, v: Array, step: Array) -> Array:
        """The living part of v + step; what would pass through zero stops there, where the price has its kink."""
        ...


@dataclass(frozen=True)
class GroupPrice:
    """A weighted sum of Euclidean norms of disjoint groups of coordinates.

    Attributes:
        groups: coordinates of each group, numbers c J + j.
        kind: "columns": lambda_Z sqrt(k_j) for column j; "parts": lambda_Z for a group of its first row, and
            lambda_Z sqrt(k_j - 1) for every within-cluster part.
    """

    groups: tuple[NDArray[np.intp], ...]
    kind: Literal["columns", "parts"]

    def _weights(self, model: BatchModel) -> list[Array]:
        if self.kind == "columns":
            return [model.lambda_z * np.sqrt(k) for k in model.sizes]
        row = [model.lambda_z] * (len(self.groups) - model.num_clusters)
        return row + [model.lambda_z * np.sqrt(k - 1) for k in model.sizes]

    def value(self, model: BatchModel, v: Array) -> Array:
        """See :class:`Price`."""
        flat, total = v.reshape(-1, v.shape[-1]), np.zeros(v.shape[-1])
        for group, weight in zip(self.groups, self._weights(model), strict=True):
            total += weight * _length(flat[group])
        return total

    def proximal(self, model: BatchModel, v: Array, slope: Array, bend: Array) -> tuple[Array, Mask]:
        """See :class:`Price`."""
        flat, down = v.reshape(-1, v.shape[-1]), slope.reshape(-1, v.shape[-1])
        new, changed = flat.copy(), np.zeros(v.shape[-1], dtype=bool)
        for group, weight in zip(self.groups, self._weights(model), strict=True):
            steepest = bend[group].sum(axis=0)
            size = 1 / np.where(steepest > 0, steepest, 1.0)
            trial = flat[group] - size * down[group]
            length = _length(trial)
            lives = (length > size * weight * (1 + _ROUNDING)) & (weight > 0)
            new[group] = np.where(lives, (1 - size * weight / np.where(length > 0, length, 1.0)) * trial, 0.0)
            changed |= lives != np.any(flat[group] != 0, axis=0)
        return new.reshape(v.shape), changed

    def frame(self, model: BatchModel, v: Array, gradient: Array, hessian: Array) -> Frame:
        """See :class:`Price`. A living norm bends by (I - x x' / ||x||^2) / ||x||."""
        flat = v.reshape(-1, v.shape[-1])
        alive = np.ones(flat.shape, dtype=bool)
        for group, weight in zip(self.groups, self._weights(model), strict=True):
            length = _length(flat[group])
            lives = length > 0
            safe = np.where(lives, length, 1.0)
            unit = flat[group] / safe
            gradient[group] += weight * unit
            alive[group] = lives
            if group.size > 1:
                across = np.eye(group.size)[:, :, None] - unit[:, None] * unit
                hessian[np.ix_(group, group)] += weight / safe * across
        return Frame(gradient, hessian, alive)

    def retract(self, v: Array, step: Array) -> Array:
        """See :class:`Price`."""
        flat = v.reshape(-1, v.shape[-1])
        new = flat + step.reshape(flat.shape)
        for group in self.groups:
            through = np.sum(flat[group] * new[group], axis=0) < 0
            if through.any():
                new[group] = np.where(through, 0.0, new[group])
        return new.reshape(v.shape)


@dataclass(frozen=True)
class NuclearPrice:
    """The nuclear norm of v[:-1] for three or more clusters, and the within-cluster parts beside it."""

    within: GroupPrice

    def value(self, model: BatchModel, v: Array) -> Array:
        """See :class:`Price`."""
        sigma = np.linalg.svd(np.moveaxis(v[:-1], -1, 0), compute_uv=False)
        return model.lambda_z * sigma.sum(axis=1) + self.within.value(model, v)

    def proximal(self, model: BatchModel, v: Array, slope: Array, bend: Array) -> tuple[Array, Mask]:
        """See :class:`Price`."""
        new, changed = self.within.proximal(model, v, slope, bend)
        J = model.num_clusters
        steepest = bend[: J * (J - 1)].max(axis=0) * J
        size = 1 / np.where(steepest > 0, steepest, 1.0)
        A, sigma, Bt = np.linalg.svd(np.moveaxis(v[:-1] - size * slope[:-1], -1, 0), full_matrices=False)
        edge = (size * model.lambda_z)[:, None]
        kept = np.where(sigma > edge * (1 + _ROUNDING), sigma - edge, 0.0)
        new[:-1] = np.moveaxis((A * kept[:, None]) @ Bt, 0, -1)
        before = np.linalg.svd(np.moveaxis(v[:-1], -1, 0), compute_uv=False)
        return new, changed | (np.sum(kept > 0, axis=1) != np.sum(_living(before), axis=1))

    def frame(self, model: BatchModel, v: Array, gradient: Array, hessian: Array) -> Frame:
        """See :class:`Price`; in the frame of the singular vectors of v[:-1], on the matrices of its rank."""
        inner = self.within.frame(model, v, gradient, hessian)
        J, n, B = model.num_clusters, gradient.shape[0], v.shape[-1]
        p, block = J - 1, (J - 1) * J
        A, sigma, Bt = np.linalg.svd(np.moveaxis(v[:-1], -1, 0))
        turn = np.broadcast_to(np.eye(n), (B, n, n)).copy()
        pairs = A[:, :, None, :, None] * Bt.swapaxes(1, 2)[:, None, :, None, :]
        turn[:, :block, :block] = pairs.reshape(B, block, block)
        back = turn.swapaxes(1, 2)
        H = np.ascontiguousarray(np.moveaxis(back @ np.moveaxis(inner.hessian, -1, 0) @ turn, 0, -1))
        turned = (back @ inner.gradient.T[:, :, None])[:, :, 0].T.copy()
        slope = turned[:block].reshape(p, J, B)  # a view: what is added to it is added to the gradient
        lives = np.zeros((J, B), dtype=bool)
        lives[:p] = _living(sigma).T
        dead = np.where(lives[:p, None] | lives, 0.0, slope)
        # beyond lambda_Z it should live, which is for the proximal step to find: here it would only spoil convexity
        dead *= np.minimum(1.0, model.lambda_z / np.maximum(spectral_norm(dead), 1e-300))
        _add_bend(H, sigma.T, lives, dead, model.lambda_z)
        on = np.arange(p)
        slope[on, on] += np.where(lives[:p], model.lambda_z, 0.0)
        inner.alive[:block] = (lives[:p, None] | lives).reshape(block, B)
        return Frame(turned, H, inner.alive, turn)

    def retract(self, v: Array, step: Array) -> Array:
        """See :class:`Price`; the nearest matrix of the same rank, less what would pass through zero."""
        new = self.within.retract(v, step)
        old, moved = (np.moveaxis(x[:-1], -1, 0) for x in (v, new))
        A, sigma, Bt = np.linalg.svd(old, full_matrices=False)
        rank = np.sum(_living(sigma) & (np.einsum("bcp,bcj,bpj->bp", A, moved, Bt) > 0), axis=1)
        A, sigma, Bt = np.linalg.svd(moved, full_matrices=False)
        sigma = np.where(np.arange(sigma.shape[1]) < rank[:, None], sigma, 0.0)
        new[:-1] = np.moveaxis((A * sigma[:, None]) @ Bt, 0, -1)
        return new


def _add_bend(H: Array, sigma: Array, lives: Mask, dead: Array, lambda_z: Array) -> None:
    """Second derivative of the nuclear norm along matrices of the same rank, times lambda_Z, in the singular frame.

    Between two living directions i, j only their rotation costs, (D_ij - D_ji)^2 / (sigma_i + sigma_j); towards a dead
    one it is (D_ij^2 + D_ji^2) / sigma_i; and turning both sides at once moves the dead part by the product of the
    two, against its slope.
    """
    p, J = dead.shape[:2]
    for i in range(p):
        share = np.where(lives[i], lambda_z / np.where(lives[i], sigma[i], 1.0), 0.0)
        for j in range(J):
            ij, ji = i * J + j, j * J + i
            if i < j < p:
                both = lives[i] & lives[j]
                twist = np.where(both, lambda_z / np.where(both, sigma[i] + sigma[j], 1.0), 0.0)
                for a, b, sign in ((ij, ij, 1), (ji, ji, 1), (ij, ji, -1), (ji, ij, -1)):
                    H[a, b] += sign * twist
            H[ij, ij] += np.where(lives[j], 0.0, share)
            if j < p:
                H[ji, ji] += np.where(lives[j], 0.0, share)
                for q in range(J):
                    pull = dead[j, q] * share / lambda_z
                    H[ji, i * J + q] += pull
                    H[i * J + q, ji] += pull


def _living(sigma: NDArray[np.floating]) -> Mask:
    """Which singular values, (B, p) in descending order, are more than rounding."""
    return sigma > _ROUNDING * np.maximum(sigma[:, :1], 1e-300)


def _length(x: Array) -> Array:
    return np.sqrt(np.sum(x**2, axis=0))


def price_of(model: BatchModel) -> Price:
    """The price that the problems put on Z."""
    J = model.num_clusters
    number = np.arange(J * J).reshape(J, J)
    if model.features == "nonnegative":
        return GroupPrice(tuple(number[:, j] for j in range(J)), "columns")
    within = tuple(number[-1, j : j + 1] for j in range(J))
    if J <= 2:  # a matrix of one row: its nuclear norm is its length
        return GroupPrice((*number[: J - 1], *within), "parts")
    return NuclearPrice(GroupPrice(within, "parts"))
