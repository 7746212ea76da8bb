"""Features >= 0 by how much classes overlap: the residual's columns are orthonormal where directions are shared.

With C = H'H, the overlaps of the classes' features, the program is the minimum over C of

    phi(C) = max over residuals lambda_Z Q of  dual objective(Q) + (lambda_Z / 2) tr C(I - Q'Q),    C >= 0,

convex and smooth. Where C is positive definite, nothing but its zeros binds: (Q'Q)_ij = 0 where i and j overlap, <= 0
where they do not, and every live column has length one. The other half says what C is: the logits of Q are
X = QC, up to the bias. Together they are one system in (Q, C), solved by Newton's method with a primal-dual active
set for the zeros of C. The curvature W of the dual is diagonal in the entries of Q (:mod:`.dual_model`), so that, given
the step of C, that of Q is one solve with diag(W_i) + C for each row i, and a multiplier for columns of P that sum to
one. What is left is an equation for the overlaps alone, symmetric and positive semidefinite, for conjugate gradients.

Clusters bring one more number each: a row r below Q, the residual between siblings, and a row gamma below the
overlaps S, their features' contrasts; C = S + diag(gamma), with what siblings share on the diagonal of S.
Where a class loses its own direction, C turns singular. Its features are then some mixture V of the others', its
overlaps with itself and its like V'AV, A the overlaps of the others: it is left out of the unknowns, and its column
may be shorter than one by a slack that makes the others' longer (:class:`.overlap_model.Leaning`).

Nothing guards the iteration but the positivity of the probabilities. If it does not end, Q and C are followed from a
stronger penalty, on which they hardly depend as it grows small: logits and features keep their proportions.
If the certificate does not close, descent on the factors (:mod:`.shared`) takes over.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.atoms import Atoms, with_overlaps
from collapsar.solver.certificate import balance_bias, certify_blocks
from collapsar.solver.conjugate_gradients import truncated_newton
from collapsar.solver.dual_model import DualModel, dual_model
from collapsar.solver.objective import Columns, predict
from collapsar.solver.overlap_model import OverlapPoint, Places, diagonal, response
from collapsar.solver.shared import SharedResult, certify_atoms
from collapsar.solver.status import Result, Status
from collapsar.solver.symmetry import Quotient, centred
from collapsar.solver.witness import Witness

_SOME = 200  # clusters up to which this is tried: J^3 numbers are kept
_FOLLOWED = 100  # clusters up to which paths are followed: with 200, one that broke off took 9 s of 25

_STEPS = 12  # of Newton's method: five to seven are usual
_BALANCING = 20  # rounds of the start's scaling
_WRONG = 0.95  # of a class's samples at the start, at most
_FALL = 0.9  # a probability may lose this share in a step
_LAST = 2e-5  # relative: Newton's method squares the error
_FORCING = 0.1
_ROUNDING = 1e-8
_PAYS = 1e-9  # relative: by how much a column is longer than one
_SMALL = 1e-3  # a new direction, relative to the feature that a logit of one nat asks for
_STRONGER = (1, 2, 3)  # decades: with fewer features and larger errors the start is nearer
_STRIDE = 0.5  # decades; a shorter one is no cure for a set of lost classes that Newton's method does not find
_CALM = 0.5  # relative change of the probabilities beyond which an indefinite C means nothing


def minimise_overlaps(q: Quotient, *, tol: float = 1e-9, max_steps: int = _STEPS) -> Result | None:
    """The optimum for features >= 0, whether classes share directions or not.

    Args:
        q: J clusters, nonnegative features.
        tol: relative duality gap to reach.
        max_steps: at most this many Newton steps; five or six are usual.

    Returns:
        The point, a :class:`SharedResult` where classes share directions; None if its certificate stays open.

    Example:
        >>> from collapsar.core.problem import Problem
        >>> from collapsar.solver.symmetry import quotient
        >>> result = minimise_overlaps(quotient(Problem("500x5,20x5", 0.0018, 0.001, features="nonnegative")))
        >>> result.status.name, f"{result.certificate.primal:.6f}"
        ('OPTIMAL', '0.903299')
    """
    if q.num_clusters > _SOME:
        return None
    return _certified(q, *_optimum(q, max_steps), tol)


def follow_overlaps(q: Quotient, *, tol: float = 1e-9, max_steps: int = 100) -> Result | None:
    """The same, followed from the optimum at a penalty ten, a hundred or a thousand times as strong, in half-decades.

    Args:
        q: J clusters, nonnegative features.
        tol: relative duality gap to reach.
        max_steps: at most this many Newton steps in all.

    Returns:
        As for :func:`minimise_overlaps`, whose start it does not share.
    """
    if q.num_clusters > _FOLLOWED:
        return None
    for decades in _STRONGER:
        at, total = _optimum(replace(q, lambda_z=q.lambda_z * 10.0**decades), min(_STEPS, max_steps))
        if at is None:
            continue
        for left in np.arange(decades - _STRIDE, -_STRIDE / 2, -_STRIDE):
            problem = replace(q, lambda_z=q.lambda_z * 10.0**left)
            at, num_steps = _optimum(problem, min(_STEPS, max_steps - total), at)
            total += num_steps
            if at is None:  # from farther off it breaks off at the same event
                return None
        return _certified(q, at, total, tol)
    return None


def _certified(q: Quotient, at: OverlapPoint | None, num_steps: int, tol: float) -> Result | None:
    """The features of a point with their certificate; None if these are not found or it stays open."""
    parts = None if at is None else with_overlaps(q, at.D[:-1], at.D[-1])
    if at is None or parts is None:
        return None
    atoms = Atoms.along(*parts, at.Q).alive(q)
    blocks = centred(q, balance_bias(q, atoms.blocks(q, at.bias())))
    if np.count_nonzero(at.D) <= q.num_clusters and not diagonal(at.D)[q.sizes > 1].any():  # the column form
        certificate, found = certify_blocks(q, blocks), None
    else:
        witness = _witness(q, at, predict(q, blocks)[0])
        certificate = certify_atoms(q, atoms, blocks.b, witness, search=False)
        found = atoms, witness
    if not certificate.relative_gap <= tol:
        return None
    if found is None:
        return Result(blocks, certificate, num_steps, Status.OPTIMAL)
    atoms, witness = found
    return SharedResult(blocks, certificate, num_steps, Status.OPTIMAL, atoms.price(q), atoms=atoms, witness=witness)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what is not finite is left to the general algorithm
def _optimum(q: Quotient, max_steps: int, near: OverlapPoint | None = None) -> tuple[OverlapPoint | None, int]:
    """Newton's method, from the optimum at a nearby penalty if known, and its number of steps; None if it got stuck."""
    model = dual_model(q)
    at = _start(q, model) if near is None else OverlapPoint(q, model, near.Q, near.D, near.lost)
    if not bool((at.p > 0).all()):
        return None, 0
    with suppress(np.linalg.LinAlgError):
        for step in range(1, max_steps + 1):
            moves = _newton_step(at)
            if moves is None:
                break
            dQ, dD = moves
            if not (np.isfinite(dQ).all() and np.isfinite(dD).all()):
                break
            new = _moved(at, dQ, dD)
            rise = new.p / at.p - 1
            fall, most = -float(rise.min()), float(np.abs(rise).max())
            if fall > _FALL:
                new = _moved(at, _FALL / fall * dQ, _FALL / fall * dD)
            elif most <= _LAST and np.abs(dD).max() <= _LAST * np.abs(at.D).max() and np.array_equal(new.lost, at.lost):
                return new, step
            at = new
    return None, max_steps


def _witness(q: Quotient, at: OverlapPoint, S: Columns) -> Witness:
    """What binds where classes do not overlap, with the softmax at the point."""
    N = np.where(at.D[:-1] > 0, 0.0, np.maximum(-at.pull[:-1], 0.0))
    diagonal(N)[:] = 0.0
    within = np.where(diagonal(at.D) > 0, 0.0, np.maximum(at.Q[-1] ** 2 - 1, 0.0)) * (q.sizes > 1)
    return Witness(S, N * q.lambda_z**2, within * q.lambda_z**2)


def _newton_step(at: OverlapPoint) -> tuple[Matrix, Matrix] | None:
    """By how much Q and the overlaps should move; None if the equations cannot be solved."""
    model, X, leaning, free = at.model, at.logits, at.leaning, at.free
    if model.bias is not None:
        X = X.copy()
        X[:-1] -= at.Q[:-1].dot(model.bias)
    follow = response(at)
    if follow is None:
        return None

    def pulled(dQ: Matrix) -> Matrix:
        return at.bent(dQ) if leaning is None else leaning.reduced(at.bent(dQ))

    def spread(D: Matrix) -> Matrix:
        return at.times(D if leaning is None else leaning.spread(D))

    def product(v: Vector) -> Vector:
        D = v.reshape(free.shape)
        out = pulled(follow(spread(D)))
        if leaning is not None:
            out += leaning.bend(D)
        return np.where(free, out, 0.0).ravel()

    dD = np.where(free, 0.0, -at.D)
    if leaning is not None:
        dD.reshape(-1)[leaning.places.lone] = 0.0
    dQ = follow(X - at.times(at.D) - spread(dD))
    error = at.pull + pulled(dQ)
    scale = follow.scale(at)
    if leaning is not None:
        error -= leaning.bend(dD)
        scale += leaning.scale()
    error = np.where(free, error, 0.0)
    inverse = np.where(free, 1 / scale, 0.0).ravel()
    forcing = min(_FORCING, max(float(np.abs(error).max()), _ROUNDING))
    found = truncated_newton(product, lambda v: inverse * v, -error.ravel(), radius=math.inf, forcing=forcing)
    step = found.v.reshape(dD.shape)
    return dQ - follow(spread(step)), dD + step


def _moved(at: OverlapPoint, dQ: Matrix, dD: Matrix) -> OverlapPoint:
    """The point after a step: classes lose their direction where C would not stay positive, or find one that pays."""
    q, Q, D, lost = at.q, at.Q + dQ, at.D + dD, at.lost.copy()
    calm = np.abs(OverlapPoint(q, at.model, Q, D, lost).p / at.p - 1).max() < _CALM
    D[-1, lost] = 0.0
    C = D[:-1] + np.diag(D[-1])
    lost |= C.diagonal() <= 0
    has = np.flatnonzero(~lost)
    while calm and has.size:
        A = C[np.ix_(has, has)]
        own = 1 / (np.linalg.inv(A).diagonal() * A.diagonal())  # the part of each that is no other's
        if own.min() > 0:
            break
        lost[has[np.argmin(own)]] = True
        has = np.flatnonzero(~lost)
    D[-1, lost] = 0.0
    gone = np.flatnonzero(lost)
    if gone.size:
        flat, places = C.reshape(-1), Places.of(has, gone)
        B = flat[places.mixed]
        D.reshape(-1)[places.lone] = B.T @ np.linalg.solve(flat[places.own], B)
    new = OverlapPoint(q, at.model, Q, D, lost)
    if gone.size:
        several = lost & (q.sizes > 1) & (new.excess[-1] > _PAYS)
        found = several | (lost & (diagonal(new.excess) > _PAYS))
        if found.any():
            small, D = _SMALL * at.model.u * at.model.g / q.temperatures, D.copy()
            diagonal(D)[found & ~several] += small[found & ~several]
            D[-1, several] += small[several]
            new = OverlapPoint(q, at.model, Q, D, lost & ~found)
    return new


def _start(q: Quotient, model: DualModel) -> OverlapPoint:
    """Errors in detailed balance, which no bias would change, just enough of them for columns of length one.

    Samples of class j taken for class i number x_i x_j; without a bias, for all classes alike. A class that
    would have to be wrong more often than without features gets none.
    """
    k, J, share = q.sizes, q.num_clusters, q.share * q.temperatures
    biased = q.lambda_b < math.inf
    total = float(k @ share)
    x = want = most = share / math.sqrt(total)
    taken = np.ones(J)
    for _ in range(_BALANCING if biased else 1):
        taken = x if biased else taken
        rest = k @ taken - taken
        felt = q.scales * taken
        want = q.lambda_z * np.sqrt(q.mass / (k @ felt**2 - felt**2 + (q.scales * rest) ** 2))
        most = share * (1 - share / total) / rest if biased else share / q.num_classes
        x = np.sqrt(x * np.minimum(want, most)) if biased else np.minimum(want, most)
    taken = x if biased else taken
    worst = float(np.max(x / share * (k @ taken - taken)))
    most_wrong = _WRONG * (1 - q.smoothing)
    if biased and worst > most_wrong:
        x = taken = x * math.sqrt(most_wrong / worst)
    wrong = np.vstack([-np.multiply.outer(taken, x / share), x / share * (k @ taken - taken)])
    slope = model.slope.reshape(wrong.shape)
    spread = wrong / np.where(slope > 0, slope, 1.0)
    sibling = np.where(k > 1, diagonal(spread), spread[-1])
    Q = spread.copy()
    Q[-1] = (spread[-1] - sibling) / k
    diagonal(Q)[:] = sibling + Q[-1]
    D = np.zeros_like(Q)
    X = OverlapPoint(q, model, Q, D, D[-1] > 0).logits
    if biased:
        b = (np.log(x) - q.offsets) / (q.scales * q.temperatures.mean())
        b -= (k / q.scales) @ b / ((k / q.scales) @ (1 / q.scales)) / q.scales
        X[:-1] -= np.multiply.outer(model.root * b, model.g)
    square = np.maximum(np.sum(Q * X, axis=0), 0.0) / k * (want <= most)
    diagonal(D)[:] = np.where(k > 1, 0.0, square)
    D[-1] = np.where(k > 1, square, 0.0)
    return OverlapPoint(q, model, Q, D, ~(square > 0))
