"""Nonnegative features whose classes share directions: the optimum as a sum of atoms, with a dual witness.

The price of X = Z M^(1/2) is the minimum of sum_i ||w_i|| ||h_i|| over X = sum_i w_i h_i' with h_i >= 0. By convexity
the optimum may be taken symmetric over the classes of each cluster, so an atom stands for its orbit: the average of
w h' over all permutations inside clusters. Only two numbers per cluster of h matter, its mean and the length of its
contrast, and at the optimum w has its contrasts along those of h (w = R h / lambda_Z). The pairs that vectors h >= 0
reach are those of

    h = sum_j ( x_j sqrt(k_j) e_j + y_j u_j ),   x, y >= 0,   u_j = 1_j / sqrt(k_j),   e_j one class of cluster j,

own directions, cluster-constant ones *and their mixtures*: merged minorities use y alone, the column form has one atom
x_j per cluster, and a class that leans on another cluster's direction while keeping its own mixes the two in one atom.

The algorithm is convex first, factored last. The interior point of :mod:`collapsar.solver.doubly_nonnegative` yields
the dual witness and C = H'H; H >= 0 with that Gram and W = H R' / lambda_Z follow, and a short descent on
(W, H >= 0, b) removes what rounding left. Descent alone, from random factors, stops at points where atoms have died.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from collapsar.solver.barrier import Witness
from collapsar.solver.certificate import GAP_FLOOR, Certificate, as_free, balance_bias, certify_blocks
from collapsar.solver.doubly_nonnegative import Centre, central_path, lower_bound
from collapsar.solver.objective import cross_entropy, predict, residual
from collapsar.solver.status import Progress, Result, Status
from collapsar.solver.symmetry import Blocks, Quotient, centred

__all__ = ["Atoms", "SharedResult", "certify_atoms", "factors", "minimise_shared"]

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

MAX_CLUSTERS = 32  # the interior point is dense in 1.5 J^2 unknowns: about ten seconds at J = 30 on one core


@dataclass(frozen=True)
class Atoms:
    """r orbits w h'; every array has shape (r, J), in the coordinates of Z M^(1/2).

    Attributes:
        between: components of w along u_j.
        within: contrasts of w in cluster j, over sqrt(k_j - 1).
        own: x >= 0: h has x_j sqrt(k_j) on one class of cluster j; 0 for single classes.
        common: y >= 0: h has y_j / sqrt(k_j) on all classes of cluster j.
    """

    between: Matrix
    within: Matrix
    own: Matrix
    common: Matrix

    @property
    def mean(self) -> Matrix:
        """Components of h along u_j."""
        return self.own + self.common

    def blocks(self, q: Quotient, b: Vector) -> Blocks:
        """The point sum_i w_i h_i' with bias b."""
        S, x = self.between.T @ self.mean, np.sum(self.within * self.own, axis=0)
        return Blocks(x / np.sqrt(q.mass), S / q.weight, b)

    def norms(self, q: Quotient) -> tuple[Vector, Vector]:
        """||w_i|| and ||h_i||, shape (r,)."""
        contrasts = q.sizes - 1
        w = np.sum(self.between**2, axis=1) + self.within**2 @ contrasts
        return np.sqrt(w), np.sqrt(np.sum(self.mean**2, axis=1) + self.own**2 @ contrasts)

    def price(self, q: Quotient) -> float:
        """sum_i ||w_i|| ||h_i||, an upper bound of the gauge."""
        w, h = self.norms(q)
        return float(w @ h)


@dataclass(frozen=True, kw_only=True)
class SharedResult(Result):
    """A result with what proves it: ``certify_atoms(q, atoms, blocks.b, witness)`` is its certificate.

    (Where the column form is returned as it came, the certificate's bound may be a rounding better.)

    Attributes:
        atoms: the factors of the point, one row per orbit.
        witness: the point of the dual behind the lower bound.
    """

    atoms: Atoms
    witness: Witness


def certify_atoms(q: Quotient, atoms: Atoms, b: Vector, witness: Witness) -> Certificate:
    """The certificate of factors with features >= 0 and a dual witness. Shares no step with the algorithm.

    Args:
        q: J clusters.
        atoms: the factors.
        b: the bias, shape (J,).
        witness: a point of the dual.

    Returns:
        The objective of the factors, and what the witness proves.
    """
    price = 0.0 if q.lambda_b == np.inf else 0.5 * q.lambda_b * float(q.sizes @ b**2)
    primal = cross_entropy(q, atoms.blocks(q, b)) + q.lambda_z * atoms.price(q) + price
    return Certificate(primal, lower_bound(as_free(q), witness))


def factors(q: Quotient, atoms: Atoms, max_rows: int = 100_000) -> tuple[Matrix, Matrix]:
    """W and H >= 0, both (d, K), with Z = W'H and (||W||^2 + ||H M^(1/2)||^2) / 2 the price of the atoms.

    An orbit with own directions in several clusters takes one row for every choice of one class in each.

    Args:
        q: J clusters.
        atoms: the orbits.
        max_rows: d at most.

    Returns:
        One row per feature direction, d in all.

    Raises:
        ValueError: More than ``max_rows`` rows would be needed.
    """
    several = [np.flatnonzero((x > 0) & (q.sizes > 1)) for x in atoms.own]
    count = sum(int(np.prod(q.sizes[js])) for js in several)
    if count > max_rows:
        raise ValueError(f"`max_rows` must be at least {count} for these atoms, got {max_rows}")
    members = [np.flatnonzero(q.labels == j) for j in range(q.num_clusters)]
    root_k, root_m = np.sqrt(q.sizes)[q.labels], np.sqrt(q.mass)[q.labels]
    w_norm, h_norm = atoms.norms(q)
    rows: list[tuple[Vector, Vector]] = []
    for i in np.flatnonzero((w_norm > 0) & (h_norm > 0)):
        choices = list(product(*(members[j] for j in several[i])))
        level = np.sqrt(h_norm[i] / w_norm[i])  # both halves of the price alike
        for choice in choices:
            w, h = atoms.between[i][q.labels] / root_k, atoms.common[i][q.labels] / root_k
            for j, k in zip(several[i], choice, strict=True):
                single = np.where(np.arange(q.num_classes) == k, root_k[k], 0.0)
                w = w + atoms.within[i, j] * (single - (q.labels == j) / root_k[k])
                h = h + atoms.own[i, j] * single
            rows.append((level * w / np.sqrt(len(choices)), h / (level * root_m * np.sqrt(len(choices)))))
    if not rows:
        return np.zeros((0, q.num_classes)), np.zeros((0, q.num_classes))
    W, H = zip(*rows, strict=True)
    return np.array(W), np.array(H)


def minimise_shared(
    q: Quotient,
    start: Blocks,
    *,
    tol: float = 1e-9,
    max_steps: int = 400,
    progress: Progress | None = None,
) -> SharedResult:
    """The optimum for features >= 0, whether classes share directions or not.

    Args:
        q: J clusters, nonnegative features.
        start: the best column form, from :func:`collapsar.solver.nonnegative.minimise_nonnegative`.
        tol: relative duality gap to reach.
        max_steps: Newton steps of the interior point at most; 25 to 100 are usual.
        progress: called at every centre with the start's objective and the bound so far.

    Returns:
        The point with its atoms and witness. The status is ``SHARED_DIRECTIONS`` where the gap stays above ``tol``:
        there are too many clusters for the interior point, or the relaxation behind the bound is not tight.

    Example:
        >>> from collapsar.core.problem import Problem
        >>> from collapsar.solver.nonnegative import minimise_nonnegative
        >>> from collapsar.solver.symmetry import quotient
        >>> q = quotient(Problem("500x5,20x5", lambda_z=0.0018, lambda_b=0.001, features="nonnegative"))
        >>> column = minimise_nonnegative(q)
        >>> result = minimise_shared(q, column.blocks)
        >>> column.status.name, f"{column.certificate.primal:.6f}"
        ('SHARED_DIRECTIONS', '0.906397')
        >>> result.status.name, f"{result.certificate.primal:.6f}"
        ('OPTIMAL', '0.903299')
        >>> W, H = factors(q, result.atoms)  # five directions for the majority, one for all of the minority
        >>> W.shape, bool((H >= 0).all())
        ((6, 10), True)
    """
    best = _column_result(q, start, tol)
    if best.status is Status.OPTIMAL or q.num_clusters > MAX_CLUSTERS:
        return best
    scale = max(abs(best.certificate.primal), GAP_FLOOR)
    centre = None
    for centre in central_path(q, best.witness.S, best.certificate.primal, 0.3 * tol * scale):
        if progress is not None:
            progress(centre.num_steps, Certificate(best.certificate.primal, lower_bound(q, centre.witness)))
        if centre.num_steps >= max_steps:
            break
    return best if centre is None else _finish(q, best, centre, tol, max_steps)


def _column_result(q: Quotient, start: Blocks, tol: float) -> SharedResult:
    """The start as atoms, one own direction per class, with the simple witness N = [-R'R]_+."""
    several = q.sizes > 1
    own, root = np.diag(several.astype(np.float64)), np.sqrt(q.mass)
    within = np.diag(np.where(several, start.alpha * root, 0.0))
    atoms = Atoms((q.weight * start.C).T, within, own, np.eye(q.num_clusters) - own)
    P = predict(q, start if q.lambda_b == np.inf else balance_bias(q, start))[0]
    R = residual(q, P)
    gram = R.between.T @ R.between
    siblings = np.where(several, (np.diag(gram) - R.within**2) / q.sizes, 0.0)
    between = np.maximum(-gram, 0.0)
    between[np.diag_indices_from(between)] = 0.0
    witness = Witness(P, between, np.maximum(-siblings, 0.0))
    certificate = certify_blocks(q, start)
    status = Status.OPTIMAL if certificate.relative_gap <= tol else Status.SHARED_DIRECTIONS
    return SharedResult(start, certificate, 0, status, atoms=atoms, witness=witness)


def _finish(q: Quotient, best: SharedResult, centre: Centre, tol: float, max_steps: int) -> SharedResult:
    """Factors from the last centre; the better of them and the column form; the better bound."""
    atoms, b = _descend(q, _factorise(q, centre), centre.b)
    b = centred(q, atoms.blocks(q, b)).b
    blocks, certificate = atoms.blocks(q, b), certify_atoms(q, atoms, b, centre.witness)
    dual = max(certificate.dual, best.certificate.dual)
    if not certificate.primal < best.certificate.primal:
        blocks, atoms = best.blocks, best.atoms
    primal = min(certificate.primal, best.certificate.primal)
    found = Certificate(primal, dual)
    status = Status.OPTIMAL if found.relative_gap <= tol else Status.SHARED_DIRECTIONS
    if status is not Status.OPTIMAL and not centre.gap <= tol * max(abs(primal), GAP_FLOOR):
        status = Status.MAX_STEPS if centre.num_steps >= max_steps else Status.STALLED
    price = atoms.price(q)
    return SharedResult(blocks, found, centre.num_steps, status, price, atoms=atoms, witness=centre.witness)


def _factorise(q: Quotient, centre: Centre) -> Atoms:
    """H >= 0 with the Gram C of the centre; W = H R' / lambda_Z."""
    C, gamma = _clean(q, centre)
    root = np.sqrt(np.maximum(np.diag(C), np.finfo(np.float64).tiny))
    C, gamma = C / np.outer(root, root), gamma / root**2
    values, vectors = np.linalg.eigh(C)
    begin = np.maximum((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T, 0.01 * (C > 0))
    own, common, misfit = _gram_descent(q, C, gamma, begin)
    if misfit > 1e-10:  # J atoms do not do, or got stuck: twice as many, none like another
        begin = np.vstack([begin, begin]) * (1 + 0.3 * np.cos(np.arange(2 * begin.size))).reshape(-1, C.shape[1])
        own, common, _ = _gram_descent(q, C, gamma, begin / np.sqrt(2))
    own, common, R = own * root, common * root, centre.R
    return Atoms((own + common) @ R.between.T / q.lambda_z, own * R.within / q.lambda_z, own, common)


def _gram_descent(q: Quotient, C: Matrix, gamma: Vector, begin: Matrix) -> tuple[Matrix, Matrix, float]:
    """Mixtures with the Gram C whose own parts have the Gram's diagonal gamma, and the misfit; from means ``begin``."""
    several = q.sizes > 1
    own = np.zeros_like(begin)
    largest = np.argmax(begin, axis=0), np.arange(begin.shape[1])
    own[largest] = np.minimum(np.sqrt(gamma), begin[largest])

    def misfit(x: Vector) -> tuple[float, Vector]:
        own, common = x[: begin.size].reshape(begin.shape), x[begin.size :].reshape(begin.shape)
        mean = own + common
        error = mean.T @ mean - C
        inner = np.where(several, np.sum(own**2, axis=0) - gamma, 0.0)
        slope = 2 * mean @ error
        value = 0.5 * float(np.sum(error**2)) + 5 * float(np.sum(inner**2))
        return value, np.stack([np.where(several, slope + 20 * own * inner, 0.0), slope]).ravel()

    found = minimize(
        misfit,
        np.stack([own, begin - own]).ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * (2 * begin.size),
        options={"maxiter": 5000, "maxfun": 10_000, "ftol": 0.0, "gtol": 1e-10, "maxcor": 40},
    )
    own, common = (part.reshape(begin.shape) for part in np.split(found.x, 2))
    return np.where(several, own, 0.0), common + np.where(several, 0.0, own), float(found.fun)


def _clean(q: Quotient, centre: Centre) -> tuple[Matrix, Vector]:
    """C and gamma with zeros where the barrier leaves a trace.

    Of two complementary numbers without units, like a correlation and N_ij / lambda_Z^2, the smaller one is zero at the
    optimum. A class or a contrast is dropped where it is no larger than 30 times the trace of a clearly dead one.
    """
    C, gamma, size = centre.C.copy(), centre.gamma.copy(), np.diag(centre.C)
    trace, lam2 = 2 * centre.mu / q.lambda_z, q.lambda_z**2
    root = np.sqrt(size)
    dead = size < 30 * trace
    C[(C / np.outer(root, root) < centre.witness.between / lam2) | dead | dead[:, None]] = 0.0
    gamma = np.where((size - gamma) / size < centre.witness.within / lam2, size, np.minimum(gamma, size))
    return C, np.where(dead | ((q.sizes - 1) * gamma < 30 * trace), 0.0, gamma)


def _descend(q: Quotient, atoms: Atoms, b: Vector) -> tuple[Atoms, Vector]:
    """Descent on (W, H >= 0, b) from good factors, with the price (||W||^2 + ||H||^2) / 2."""
    J, contrasts = q.num_clusters, q.sizes - 1
    biased = q.lambda_b < np.inf

    def unpack(x: Vector) -> Atoms:
        return Atoms(*(part.reshape(atoms.own.shape) for part in np.split(x[: x.size - J], 4)))

    def objective(x: Vector) -> tuple[float, Vector]:
        at, bias = unpack(x), x[x.size - J :]
        between, within, own = at.between, at.within, at.own
        P, loss = predict(q, at.blocks(q, bias))
        R = residual(q, P)
        w, h = at.norms(q)
        value = loss + 0.5 * q.lambda_z * float(w @ w + h @ h)
        mean_slope = q.lambda_z * at.mean - between @ R.between
        inner = contrasts * R.within
        slopes = [
            q.lambda_z * between - at.mean @ R.between.T,
            q.lambda_z * contrasts * within - own * inner,
            np.where(contrasts > 0, mean_slope + q.lambda_z * contrasts * own - within * inner, 0.0),
            mean_slope,
        ]
        if biased:
            value += 0.5 * q.lambda_b * float(q.sizes @ bias**2)
        bias_slope = q.sizes * (q.lambda_b * bias - R.bias) if biased else np.zeros(J)
        return value, np.concatenate([np.stack(slopes).ravel(), bias_slope])

    x = np.concatenate([np.stack([atoms.between, atoms.within, atoms.own, atoms.common]).ravel(), b])
    scale = objective(x)[0]
    size = atoms.own.size
    found = minimize(
        lambda x: tuple(part / scale for part in objective(x)),
        x,
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] * (2 * size) + [(0, None)] * (2 * size) + [(None, None)] * J,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 0.0, "gtol": 1e-13, "maxcor": 40},
    )
    return unpack(found.x), found.x[x.size - J :]
