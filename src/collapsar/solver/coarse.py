"""A first guess for many clusters: the optimum of a problem with few, interpolated.

With many different counts the clusters are a smooth family: the contrast alpha, the logits between two classes and the
bias depend smoothly on where the two classes stand in the family, and hardly on how many neighbours each has. So
each group of neighbours becomes one cluster, the small problem is solved, and its blocks are interpolated back. The one
place where the optimum bends is the threshold, where classes die: groups are smaller there. The guess needs no proof,
since the optimum found from it is certified anyway.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.symmetry import Blocks, Quotient

_WIDTH = 0.1  # groups are finest within this many nats of the threshold
_SMOOTH = 0.05  # nats: how well a family's own parameters must be interpolated for it to be called smooth


def coarsened(q: Quotient, num_groups: int) -> Quotient | None:
    """The problem with neighbouring clusters merged into at most ``num_groups``; None if that would be of no use.

    It is of no use if the clusters do not form a smooth family in one variable, or if hardly any two are neighbours.
    """
    if q.bias_rows is not None:
        return None
    t = _position(q)
    low, high = float(t.min()), float(t.max())
    if not high > low:
        return None
    # half by position, to resolve the family evenly, half by rank, to resolve it where its clusters are
    rank = np.argsort(np.argsort(t, kind="stable"), kind="stable") / (t.size - 1)
    where = 0.5 * ((t - low) / (high - low) + rank)
    group = np.minimum((where * num_groups).astype(np.intp), num_groups - 1)
    group = np.unique(group, return_inverse=True)[1].ravel()
    sizes = np.bincount(group, weights=q.sizes)
    if not 4 <= sizes.size <= 0.6 * q.num_clusters:
        return None

    def mean(value: Vector) -> Vector:
        return np.bincount(group, weights=q.sizes * value) / sizes

    coarse = replace(
        q,
        labels=group[q.labels],
        sizes=sizes,
        share=mean(q.share),
        mass=mean(q.mass),
        scales=mean(q.scales),
        temperatures=mean(q.temperatures),
        offsets=mean(q.offsets),
    )
    nodes = _position(coarse)
    if not np.all(np.diff(nodes) > 0):
        return None
    own = (_parameters(coarse), _parameters(q))
    from scipy.interpolate import PchipInterpolator  # slow to import (a fifth of a second): for many clusters only

    return coarse if np.max(np.abs(PchipInterpolator(nodes, own[0])(t) - own[1])) <= _SMOOTH else None


def interpolated(q: Quotient, coarse: Quotient, blocks: Blocks) -> Blocks:
    """A point of ``q`` from a point of the problem :func:`coarsened` made of it."""
    nodes, t = _position(coarse), _position(q)
    several = coarse.sizes > 1
    alpha = np.where(several, blocks.alpha, 0.0)
    between = blocks.C - np.diag(alpha / coarse.sizes)  # logits of other classes, of the same group on the diagonal
    for j in np.flatnonzero(~several):  # a class alone has no such logit on the diagonal: take its neighbour's
        beside = between[j, j - 1 if j else 1]
        alpha[j], between[j, j] = between[j, j] - beside, beside
    from scipy.interpolate import PchipInterpolator

    columns = PchipInterpolator(nodes, np.column_stack([between, alpha, blocks.b]))(t)
    C = PchipInterpolator(nodes, columns[:, :-2].T)(t).T
    alpha, b = np.maximum(columns[:, -2], 0.0), columns[:, -1]
    C[np.diag_indices_from(C)] += alpha / q.sizes
    weight = q.sizes / q.scales
    C -= np.outer(1 / q.scales, (weight @ C) / (weight @ (1 / q.scales)))  # columns of Z sum to zero against 1/delta
    b -= (weight @ b) / (weight @ (1 / q.scales)) / q.scales
    return Blocks(alpha, C, b)


def _position(q: Quotient) -> Vector:
    """Where a cluster stands in the family: its distance to the threshold, tau delta q / sqrt(m) against lambda_Z."""
    distance = np.log(q.temperatures * q.scales * q.share / np.sqrt(q.mass) / q.lambda_z)
    return np.arcsinh(distance / _WIDTH)


def _parameters(q: Quotient) -> Matrix:
    """What distinguishes clusters, in nats, shape (J, 5)."""
    logs = [np.log(value) for value in (q.share, q.mass, q.scales, q.temperatures)]
    return np.column_stack([*logs, q.offsets])
