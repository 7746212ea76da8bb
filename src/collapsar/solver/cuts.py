"""Where to cut the cone of features in two, when its relaxation leaves a gap (:mod:`.witness`).

At the residual of the best point the relaxation asks for the largest <R'R, X> over doubly nonnegative X of trace one.
Where that is above lambda_Z^2, but no direction h >= 0 is, X is no sum of hh'. What was met are pentagons: of five
groups of classes each overlaps with two others, and X has rank three. A cut along two that overlap takes it apart.
"""

from __future__ import annotations

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.atoms import Atoms
from collapsar.solver.objective import Residual
from collapsar.solver.relaxed import ROUNDED, Relaxed, Round, turned
from collapsar.solver.symmetry import Quotient
from collapsar.solver.witness import Cut, diagonal, forms, quadratic

_ROUNDS = 6  # of multipliers
_STEPS = 1000  # quasi-Newton, in a round
_NEAR = 1e-3  # of one: eigenvalues whose directions may take part
_PRICE = 0.1  # of a trace other than one
_SCALE = 1e4  # what is looked for is a millionth of the value
_OVER = 1e-12  # relative: on the edge of a half


def pentagon_cut(q: Quotient, R: Residual, at: Relaxed) -> Cut:
    """The cut along the pair of clusters that overlaps most where R is too long for the relaxation.

    Args:
        q: J clusters.
        R: the residual at the best point.
        at: the relaxation without cuts, whose multipliers are near.
    """
    X = _longest(q, R, at)
    size = np.sqrt(X.diagonal())
    correlation = X / np.maximum(np.outer(size, size), np.finfo(np.float64).tiny)
    i, j = np.unravel_index(np.argmax(np.triu(X * (1 - correlation), 1)), X.shape)
    return Cut(int(i), int(j), float(size[i] / size[j]))


def _longest(q: Quotient, R: Residual, at: Relaxed) -> Matrix:
    """X between clusters: the largest <R'R, X> over doubly nonnegative X of trace one, by the method of multipliers."""
    from scipy.optimize import minimize

    J, c, N, nu, sigma = q.num_clusters, q.sizes - 1, at.N, at.nu, 1.0
    gram = R.between.T @ R.between / q.lambda_z**2 - np.eye(J)
    inner = c * (R.within**2 / q.lambda_z**2 - 1)
    values, vectors = np.linalg.eigh(gram + N + np.diag(c * nu))
    rows = vectors[:, values > -_NEAR].T
    rng = np.random.default_rng(0)
    V = rng.normal(size=(len(rows), len(rows))) @ rows
    v = np.where((c > 0) & (inner > c * (nu - _NEAR)), rng.normal(size=J), 0.0)
    x = np.append(V, v) / np.sqrt(np.sum(V**2) + c @ v**2)

    def objective(x: Vector) -> tuple[float, Vector]:
        V, v = x[:-J].reshape(-1, J), x[-J:]
        M, inside = held.multipliers(V, v)
        excess = float(np.sum(V**2) + c @ v**2) - 1
        pulled = V @ gram
        value = _PRICE * excess**2 - float(np.sum(pulled * V) + inner @ v**2)
        value += 0.5 / sigma * float(np.sum(M**2) + (c * q.sizes) @ inside**2)
        slope = 2 * _PRICE * excess * V - pulled - V @ (M + np.diag(c * inside))
        slope_v = v * (c * (2 * _PRICE * excess + inside) - inner)
        return _SCALE * value, 2 * _SCALE * np.append(slope, slope_v)

    for _ in range(_ROUNDS):
        held = Round(q, N, nu, np.ones(J), sigma, ())
        found = minimize(
            objective,
            x,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _STEPS, "maxfun": 2 * _STEPS, "ftol": 0.0, "gtol": 1e-9, "maxcor": 30},
        )
        x = found.x
        V, v = x[:-J].reshape(-1, J), x[-J:]
        N, nu = held.multipliers(V, v)
        sigma *= 2
    return V.T @ V


def split(q: Quotient, at: Relaxed, atoms: Atoms, cut: Cut) -> Relaxed:
    """The relaxation of the cut cone, at features >= 0: each direction in the part that it lies in.

    Args:
        q: J clusters.
        at: the relaxation without cuts.
        atoms: features >= 0.
        cut: the cut.
    """
    least = -_OVER * np.linalg.norm(atoms.mean, axis=1, keepdims=True)
    inside = np.all(forms(np.array([atoms.mean, atoms.mean]), [cut]) >= least, axis=-1)
    # what lies in both parts is shared out
    part = (inside / np.sqrt(inside.sum(axis=0)))[..., None]
    own, V, W = part * atoms.own, part * atoms.mean, part * atoms.between
    v = np.sqrt(np.sum(own**2, axis=-2))
    w = np.sum(part * atoms.within * own, axis=-2) / np.where(v > 0, v, 1.0)
    # N in the coordinates of either part; what it has on the diagonal there is of no use
    N = quadratic(np.array([at.N, at.N]), [cut.inverse])
    N = np.maximum(N - diagonal(np.diagonal(N, axis1=-2, axis2=-1)), 0.0)
    return Relaxed(*turned(W, V), w, v, at.b, N, np.array([at.nu, at.nu]), (cut,), ROUNDED)
