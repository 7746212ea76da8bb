"""Nonnegative features whose classes share directions: the optimum as a sum of atoms, with a dual witness.

The price of X = Z M^(1/2) is the minimum of sum_i ||w_i|| ||h_i|| over X = sum_i w_i h_i' with h_i >= 0. By convexity
the optimum may be taken symmetric over the classes of each cluster, so an atom stands for its orbit: the average of
w h' over all permutations inside clusters. Only two numbers per cluster of h matter, its mean and the length of its
contrast, and at the optimum w has its contrasts along those of h (w = R h / lambda_Z). The pairs that vectors h >= 0
reach are those of

    h = sum_j ( x_j sqrt(k_j) e_j + y_j u_j ),   x, y >= 0,   u_j = 1_j / sqrt(k_j),   e_j one class of cluster j,

own directions, cluster-constant ones *and their mixtures*: merged minorities use y alone, the column form has one atom
x_j per cluster, and a class that leans on another cluster's direction while keeping its own mixes the two in one atom.

The algorithm descends on the factors (:mod:`.factored`) from the column form's, each leaning a little on every class:
what classes share grows from there, while random factors stop at points where atoms have died. The dual witness
follows from the factors (:mod:`.witness`) where these are exact, and from the relaxation (:mod:`.relaxed`), whose
optimum is near, where they are not: the gap left then is the primal point's, and says which direction is missing, or
the relaxation's, and then the cone of features is cut (:mod:`.copositive_bound`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.atoms import Atoms, combined, near_overlaps, own_directions, pruned
from collapsar.solver.certificate import GAP_FLOOR, Certificate, as_free, balance_bias, certify_blocks
from collapsar.solver.copositive_bound import copositive_witness
from collapsar.solver.factored import approach, descend, newton
from collapsar.solver.interior_bounds import best_weights, relaxation
from collapsar.solver.objective import Columns, cross_entropy, predict, residual
from collapsar.solver.relaxed import Relaxed, beginning, relaxed
from collapsar.solver.shared_directions import ascent, missing_directions, near_directions, with_directions
from collapsar.solver.status import Progress, Result, Status
from collapsar.solver.symmetry import Blocks, Quotient, centred
from collapsar.solver.witness import Witness, lower_bound, witness_of

_ROUNDS = 10  # of descent, Newton's method and the bound: one or two are usual
_LEAN = 1e-3  # of a typical feature: what each begins with along every other class
_ROUNDING = 1e-10  # relative: a gap of this size is what float64 leaves of the residual
_FINE = 1e-8  # a tolerance of at least this needs no digits that Newton's method on the gradient would add
_FINER = 0.03  # of the gap that stays open: how far the next descent goes
_UNDER_WAY = 0.25  # of the gap, gained in a round: descent goes on
_STALE = 2  # rounds of the relaxation in a row that gain nothing: what is open is the primal point's
_CUT_CLUSTERS = 60  # at most: a step of a cut's program factors a matrix of order J^2 / 2
_CUT_SHARE = 0.8  # of the gap, allowed for what the residual is too long by; the rest is the point's
_CUT_ROUNDS = 3  # one more cut in each
_INTERIOR_CLUSTERS = 50  # at most: an interior-point step of the relaxation factors a matrix of that order
_CUT_ORDER = 2600  # that order summed over the parts of the cone, at most
_NEARLY = 5e-6  # relative: directions shorter by no more than this are looked at
_TRACE = 1e-6  # of the largest weight: a direction that need not be looked at again
_DIRECTION_ROUNDS = 30  # ten are usual
_SEARCHES = 5  # from other starts, when none that pays is found
_PACE = 4  # rounds over which the pace is measured: single ones gain unevenly
_SKETCH = 60  # steps of the ascent that only says where descent begins


@dataclass(frozen=True, kw_only=True)
class SharedResult(Result):
    """A result with what proves it: ``certify_atoms(q, atoms, blocks.b, witness)`` is its certificate.

    (If the column form is returned as it came, the certificate's bound may be better by a rounding error.)

    Attributes:
        atoms: the factors of the point, one row per orbit.
        witness: the point of the dual behind the lower bound.
    """

    atoms: Atoms
    witness: Witness


def certify_atoms(q: Quotient, atoms: Atoms, b: Vector, witness: Witness, *, search: bool = True) -> Certificate:
    """The certificate of factors with features >= 0 and a dual witness. Shares no step with the algorithm.

    Args:
        q: J clusters.
        atoms: the factors.
        b: the bias, shape (J,).
        witness: a point of the dual.
        search: as for :func:`collapsar.solver.certificate.dual_on_ray`.

    Returns:
        The objective of the factors, infinite for a negative feature, and what the witness proves.
    """
    if min(atoms.own.min(initial=0.0), atoms.common.min(initial=0.0)) < 0:
        return Certificate(np.inf, lower_bound(as_free(q), witness, search=search))
    primal = cross_entropy(q, atoms.blocks(q, b)) + q.lambda_z * atoms.price(q) + q.bias_cost(b)
    return Certificate(primal, lower_bound(as_free(q), witness, search=search))


def factors(q: Quotient, atoms: Atoms, max_rows: int = 100_000, *, balanced: bool = True) -> tuple[Matrix, Matrix]:
    """W and H >= 0, both (d, K), with Z = W'H and (||W||^2 + ||H M^(1/2)||^2) / 2 the price of the atoms.

    An orbit with own directions in several clusters takes one row for every choice of one class in each.

    Args:
        q: J clusters.
        atoms: the orbits.
        max_rows: the largest d allowed.
        balanced: give both halves of every atom's price the same size; otherwise H'H is that of the atoms.

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
        level = np.sqrt(h_norm[i] / w_norm[i]) if balanced else 1.0
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
        max_steps: rounds of descent, Newton's method and the bound, at most; one or two are usual.
        progress: called after every round with the best point and bound so far.

    Returns:
        The point with its atoms and witness. The status is ``SHARED_DIRECTIONS`` if the gap stays above ``tol``:
        the relaxation behind the bound is not tight, or float64 allows no better.

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
    if best.status is Status.OPTIMAL:
        return best
    (atoms, b), fine, beyond, added, anew = leaning(q, start, best.witness.S), tol, None, False, False
    for num_steps in range(1, min(_ROUNDS, max_steps) + 1):
        report = None if progress is None else _reporting(progress, num_steps, best.certificate.dual)
        atoms, b = descend(q, atoms, b, report, fine)
        if tol < _FINE:
            atoms, b = newton(q, atoms, b)
        before, (found, beyond) = best.certificate, _certified(q, atoms, b, num_steps, tol, beyond)
        best = _better(q, best, found, tol, last=num_steps == max_steps)
        if progress is not None:
            progress(num_steps, best.certificate)
        if best.status is Status.OPTIMAL:
            break
        under_way = before.primal - best.certificate.primal > _UNDER_WAY * best.certificate.gap
        missing = missing_directions(q, _softmax(q, found.blocks))
        if missing is not None and (under_way or not added):
            atoms, b, added = with_directions(found.atoms, missing), found.blocks.b, True
        elif under_way:
            atoms, b = found.atoms, found.blocks.b
        elif beyond is not None and not anew:  # a minimum that is not global, perhaps, or too few directions
            atoms, b, added, anew = _nearest(q, beyond), beyond.b, False, True
        else:
            break
        fine = _FINER * best.certificate.relative_gap
    return _closer(q, best, tol) if best.status is Status.SHARED_DIRECTIONS else best


def _closer(q: Quotient, best: SharedResult, tol: float) -> SharedResult:
    """The best point and its bound brought to their last digits, if descent ended short of them.

    First the features: along all directions that nearly pay at the relaxation's residual, their weights are a convex
    program. Then the bound: if the relaxation is not tight, the cone is cut, first at the residual as it is; if a
    direction that is still missing makes that too long, in a relaxation of its own.
    """
    if q.num_clusters > _CUT_CLUSTERS or not best.atoms.price(q) > 0:
        return best
    interior = q.num_clusters <= _INTERIOR_CLUSTERS
    if not interior and missing_directions(q, _softmax(q, best.blocks)) is not None:
        return best
    witness = best.witness
    for _ in range(_CUT_ROUNDS):
        if interior and 2 ** len(witness.cuts) * q.num_clusters**2 <= 2 * _CUT_ORDER:
            best = _along(q, best, witness, tol)
            if best.status is Status.OPTIMAL:
                break
        elif witness.cuts:
            break
        # a residual that is too long by t, relatively and squared, costs t/2 of the price of Z
        excess = _CUT_SHARE * 2 * tol * best.certificate.primal / (q.lambda_z * best.atoms.price(q))
        before, witness = len(witness.cuts), copositive_witness(q, _softmax(q, best.blocks), excess)
        best = _proved(q, best, witness, tol)
        if best.status is Status.OPTIMAL or len(witness.cuts) <= before:
            break
    return best


def _proved(q: Quotient, best: SharedResult, witness: Witness, tol: float) -> SharedResult:
    """The point with another witness if that proves more."""
    certificate = certify_atoms(q, best.atoms, best.blocks.b, witness)
    return _better(q, best, replace(best, certificate=certificate, witness=witness), tol, last=False)


def _along(q: Quotient, best: SharedResult, witness: Witness, tol: float) -> SharedResult:
    """The relaxation in the parts of a witness, and the best features along directions that nearly pay there.

    Directions that pay are added as long as the remaining rounds would close the gap at the pace of the last ones.
    """
    rng, most = np.random.default_rng(0), tol * max(best.certificate.primal, GAP_FLOOR)
    enough, values = _FINER * most, [np.inf] * _PACE
    near = relaxation(q, best.atoms, _softmax(q, best.blocks), witness, enough)
    if near is None:
        return best
    best = _proved(q, best, near.witness, tol)
    atoms, Q, more = best.atoms, near.Q, near_directions(q, near.witness.S, best.atoms, -_NEARLY, rng)
    for left in range(_DIRECTION_ROUNDS, 0, -1):
        weight = atoms.weights(q)
        kept = weight > _TRACE * np.max(weight)
        own, common = np.vstack([atoms.own[kept], more.own]), np.vstack([atoms.common[kept], more.common])
        weight = np.append(weight[kept], np.zeros(len(more.own)))
        atoms, b, Q = best_weights(q, own, common, weight, Q, enough)
        blocks, certificate = atoms.blocks(q, b), certify_atoms(q, atoms, b, best.witness)
        found = replace(best, blocks=blocks, certificate=certificate, penalty=atoms.price(q), atoms=atoms)
        best = _better(q, best, found, tol, last=False)
        values.append(certificate.primal)
        pace = (values[-1 - _PACE] - values[-1]) / _PACE
        if best.status is Status.OPTIMAL or pace * left < best.certificate.gap - most:
            break
        S = _softmax(q, blocks)
        searches = (near_directions(q, S, atoms, _ROUNDING, rng) for _ in range(_SEARCHES))
        more = next((found for found in searches if len(found.own)), None)
        if more is None:
            break
    return best


def continued(q: Quotient, atoms: Atoms, b: Vector, tol: float) -> SharedResult | None:
    """The optimum from the factors of a nearby problem's; None if the gap stays open.

    It takes a quarter of the work of :func:`minimise_shared`, since the directions are there already; those born
    between the two problems are added once.
    """
    b = np.zeros_like(b) if q.lambda_b == np.inf else b
    for _ in range(2):
        atoms, b = approach(q, atoms, b, tol)
        if tol < _FINE:
            atoms, b = newton(q, atoms, b)
        found, _ = _certified(q, atoms, b, 1, tol)
        if found.certificate.relative_gap <= tol:
            return replace(found, status=Status.OPTIMAL)
        missing = missing_directions(q, _softmax(q, found.blocks))
        if missing is None:
            break
        atoms, b = with_directions(found.atoms, missing), found.blocks.b
    return None


def _nearest(q: Quotient, at: Relaxed) -> Atoms:
    """Features >= 0 whose overlaps are near the relaxation's, and W = H R' / lambda_Z."""
    features = near_overlaps(q, at.V.T @ at.V - np.diag(at.v**2), at.v**2)
    return Atoms.along(*features, residual(q, _softmax(q, at.blocks(q))).over(q.lambda_z))


def _reporting(progress: Progress, num_steps: int, dual: float) -> Callable[[float], None]:
    return lambda value: progress(num_steps, Certificate(value, dual))


def _column_result(q: Quotient, start: Blocks, tol: float) -> SharedResult:
    """The start as atoms, one own direction per class, with the simple witness N = [-R'R]_+."""
    atoms = own_directions(q, start)
    witness = witness_of(q, _softmax(q, start), np.zeros_like(atoms.own), np.zeros(q.num_clusters))
    certificate = certify_blocks(q, start)
    status = Status.OPTIMAL if certificate.relative_gap <= tol else Status.SHARED_DIRECTIONS
    return SharedResult(start, certificate, 0, status, atoms=atoms, witness=witness)


def _softmax(q: Quotient, blocks: Blocks) -> Columns:
    """P, with the best bias for Z, so that a free one is balanced."""
    return predict(q, balance_bias(q, blocks))[0]


def leaning(q: Quotient, start: Blocks, S: Columns) -> tuple[Atoms, Vector]:
    """The column form's features, each with a small part along every class, and W = H R' / lambda_Z.

    A class without a feature begins with a small one of its own, and one more atom with what all would share.
    """
    J, several, Q = q.num_clusters, q.sizes > 1, residual(q, S).over(q.lambda_z)
    X = q.weight * start.C
    size = np.sqrt(np.sqrt(np.sum(X**2, axis=0) + (q.sizes - 1) * q.mass * start.alpha**2))
    typical = float(np.sqrt(np.mean(size**2))) or 1.0
    lean = _LEAN * typical * (1 - np.eye(J))
    size = np.maximum(size, _LEAN * typical)
    own = np.diag(np.where(several, size, 0.0))
    common = np.diag(np.where(several, _LEAN * typical, size)) + lean
    _, h = ascent(q, Q, np.zeros((1, J)), np.ones((1, J)), _SKETCH)
    own, common = np.vstack([own, np.zeros(J)]), np.vstack([common, 0.1 * typical * h])
    return Atoms.along(own, common, Q), start.b


def _certified(
    q: Quotient, atoms: Atoms, b: Vector, num_steps: int, tol: float, beyond: Relaxed | None = None
) -> tuple[SharedResult, Relaxed | None]:
    """Factors with their price and their witness; if that is not enough, the relaxation's, and its last point.

    ``beyond``: an earlier point of the relaxation, from which it goes on.
    """
    atoms = combined(q, atoms)
    b = centred(q, atoms.blocks(q, b)).b
    witness = witness_of(q, _softmax(q, atoms.blocks(q, b)), *atoms.gram())
    certificate, stale = certify_atoms(q, atoms, b, witness), 0
    if not certificate.relative_gap <= tol:
        start = beyond or beginning(q, atoms, b, witness)
        for beyond in relaxed(q, start, tol):
            other = beyond.witness(q, _softmax(q, beyond.blocks(q)))
            tighter = certify_atoms(q, atoms, b, other)
            stale = stale + 1 if tighter.gap > 0.9 * certificate.gap else 0
            if tighter.dual > certificate.dual:
                witness, certificate = other, tighter
            if certificate.relative_gap <= tol or stale == _STALE:
                break
    simple = pruned(atoms)  # as few directions as will do
    simpler = certify_atoms(q, simple, b, witness)
    if simpler.relative_gap <= min(tol, _ROUNDING):
        atoms, certificate = simple, simpler
    found = SharedResult(
        atoms.blocks(q, b),
        certificate,
        num_steps,
        Status.SHARED_DIRECTIONS,
        atoms.price(q),
        atoms=atoms,
        witness=witness,
    )
    return found, beyond


def _better(q: Quotient, one: SharedResult, other: SharedResult, tol: float, *, last: bool) -> SharedResult:
    """The lower of two points with the better of two bounds."""
    # of points that are equal up to rounding, the first, which is the column form's: one direction per class
    low = one if one.certificate.primal <= other.certificate.primal * (1 + 1e-13) else other
    tight = one if one.certificate.dual >= other.certificate.dual else other
    if tight is not low and low.penalty is None:  # its certificate is the witness's: it goes with its atoms
        low = replace(low, penalty=low.atoms.price(q))
    certificate = Certificate(low.certificate.primal, tight.certificate.dual)
    status = Status.MAX_STEPS if last else Status.SHARED_DIRECTIONS
    if certificate.relative_gap <= _ROUNDING:
        status = Status.STALLED
    if certificate.relative_gap <= tol:
        status = Status.OPTIMAL
    return replace(low, certificate=certificate, status=status, num_steps=other.num_steps, witness=tight.witness)
