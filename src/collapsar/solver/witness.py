"""What proves a lower bound for features >= 0: columns S and pairs N of the dual.

The price of nonnegative features is a minimum over completely positive matrices, C = H'H with H >= 0,

    gauge(X) = min_C ( tr C + tr X C^-1 X' ) / 2.

Relaxed to C doubly nonnegative (positive semidefinite and entrywise >= 0, the same thing for up to four classes), the
program of :mod:`collapsar.core.problem` has the dual

    max D(S)   over S with columns in the simplex and N >= 0, symmetric, zero on the diagonal: R'R + N <= lambda_Z^2 I,

R the residual at S. Any such (S, N) gives a lower bound, as h'R'R h <= h'(R'R + N)h for h >= 0; N = [-R'R]_+ gives the
bound of :func:`collapsar.solver.certificate.dual_norm`. At the optimum C is complementary to both constraints: N_ij = 0
where two classes share a direction (C_ij > 0), and (lambda_Z^2 I - R'R - N) C = 0, so that N_ij = -(R'R)_ij where class
i has a direction of its own. Hence the residual's columns are orthogonal where directions are shared, as for signed
features, and at obtuse angles where they are not, as in the column form.

With five classes or more the relaxation may lie below the program. A cut of the cone of features along a pair,

    h_i >= c h_j   or   h_i <= c h_j,

mends that: either half is y >= 0 in coordinates y = A h, with h_i - c h_j for h_i or h_j - h_i / c for h_j, and C
becomes a sum of two, each with A C A' doubly nonnegative. The dual has an N for every part,

    R'R + A'N A <= lambda_Z^2 I,

and proves as much as before: every h >= 0 lies in a part, and h'A'N A h >= 0 there. A further cut halves every part in
its own y.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.certificate import dual_on_ray
from collapsar.solver.objective import Columns, residual
from collapsar.solver.symmetry import Quotient


class Cut(NamedTuple):
    """Halves h_i >= c h_j and h_i <= c h_j, c > 0, in the coordinates u_i and u_j of two clusters."""

    i: int
    j: int
    c: float


@dataclass(frozen=True)
class Witness:
    """A point of the dual: :func:`lower_bound` checks what it proves.

    Attributes:
        S: stochastic columns.
        between: N between clusters times sqrt(k_i k_j), shape (J, J), symmetric, >= 0, zero diagonal.
        within: nu >= 0, N between two classes of one cluster, shape (J,), 0 for single classes.
        cuts: of the cone of features; with m of them ``between`` and ``within`` begin with m axes of length two, for
            the two sides of each, the first that of h_i >= c h_j.
    """

    S: Columns
    between: Matrix
    within: Vector
    cuts: tuple[Cut, ...] = ()


def coordinates(cuts: Sequence[Cut], side: Sequence[int], num_clusters: int) -> Matrix:
    """The matrix A of a part of the cone, shape (J, J): A h >= 0 for the h >= 0 that are in it."""
    A = np.eye(num_clusters)
    for half, (i, j, c) in zip(side, cuts, strict=True):
        if half == 0:
            A[i] -= c * A[j]
        else:
            A[j] -= A[i] / c
    return A


def sides(cuts: Sequence[Cut]) -> Iterator[tuple[int, ...]]:
    """Which half of every cut each part is in."""
    return product((0, 1), repeat=len(cuts))


def lower_bound(q: Quotient, witness: Witness, *, search: bool = True) -> float:
    """The lower bound of the optimum that a witness proves, in nats; -inf if none.

    R'R + A'N A need not be below lambda_Z^2: the bound is taken on the ray from the targets through S, where it is.

    Args:
        q: J clusters.
        witness: a point of the dual, feasible or nearly so.
        search: as for :func:`collapsar.solver.certificate.dual_on_ray`.
    """
    J, parts = q.num_clusters, (2,) * len(witness.cuts)
    cut = all(i != j and 0 < c < np.inf for i, j, c in witness.cuts)
    if not (cut and witness.between.shape == (*parts, J, J) and witness.within.shape == (*parts, J)):
        return -np.inf
    if not min(witness.between.min(), witness.within.min()) >= 0:
        return -np.inf
    R = residual(q, witness.S)
    gram, largest = R.between.T @ R.between, max(float(np.max(R.within**2 - witness.within)), 0.0)
    for side in sides(witness.cuts):
        A, N, nu = coordinates(witness.cuts, side, J), witness.between[side], witness.within[side]
        largest = max(largest, float(np.linalg.eigvalsh(gram + A.T @ N @ A + np.diag((q.sizes - 1) * nu))[-1]))
    return dual_on_ray(q, witness.S, R, float(np.sqrt(largest)), search=search)


def witness_of(q: Quotient, S: Columns, C: Matrix, gamma: Vector) -> Witness:
    """The witness that a primal point suggests: N = -R'R where that is positive and the classes share no direction.

    Of two complementary numbers without units, a correlation of C and N_ij / lambda_Z^2, the smaller one is taken to
    be the one that is zero at the optimum.

    Args:
        q: J clusters.
        S: the softmax at the point.
        C: H'H of the point between clusters, shape (J, J); zero where nothing is known of directions.
        gamma: H'H on the contrasts within each cluster, shape (J,), 0 for single classes.
    """
    R, k, several = residual(q, S), q.sizes, q.sizes > 1
    gram, on = R.between.T @ R.between, np.diag_indices(q.num_clusters)
    between = np.maximum(-gram, 0.0)
    between[on] = 0.0
    within = np.where(several, np.maximum((R.within**2 - gram[on]) / k, 0.0), 0.0)
    pair = np.where(several, np.maximum(C[on] - gamma, 0.0) / k, C[on])  # of two classes of one cluster
    own = np.maximum(np.where(several, pair + gamma, pair), np.finfo(np.float64).tiny)
    scale, lam2 = np.sqrt(k * own), q.lambda_z**2
    between[C / np.outer(scale, scale) > between / np.sqrt(np.outer(k, k)) / lam2] = 0.0
    return Witness(S, between, np.where(pair / own > within / lam2, 0.0, within))
