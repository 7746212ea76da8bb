"""The solution of a problem with normalised features: what it says of the classes, and factors of the right length."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from collapsar.core.normalization import Normalization, normalization_of
from collapsar.core.problem import Problem
from collapsar.core.types import Matrix, Record, Vector
from collapsar.solver.nonnegative_spheres import fewest
from collapsar.solver.normalized import NormalizedResult, Solver, minimise_normalized
from collapsar.solver.normalized_certificate import (
    NonnegativeSpheres,
    certify_batch,
    certify_nonnegative,
    certify_spheres,
    in_row_units,
    normalized_quotient,
    row_scales,
    scaled_quotient,
)
from collapsar.solver.objective import predict, residual
from collapsar.solver.shared import factors
from collapsar.solver.solution import SharedProof, Solution
from collapsar.solver.spheres import Spheres
from collapsar.solver.status import Settings
from collapsar.solver.symmetry import Blocks, Quotient

_MERGED = 1e-10  # of a feature's square: its part inside the cluster counts as zero
_ZERO = 1e-8  # relative size below which a part counts as zero where the dual leaves it open


@dataclass(frozen=True)
class NormalizedSolution(Solution):
    """A certified point of a problem with normalised features.

    ``classifier_gram``, ``feature_gram`` and ``factors`` are in the problem's own units, ||h|| = norm.

    Attributes:
        spheres: factors with features of unit length on the clusters, rows of W in units in which all cost the same;
            for features >= 0, together with their proof; None per batch.
        price: lambda_w / norm^2 at the optimal length per sample; per batch the lambda_z of the program with a feature
            penalty that has the same optimum.
    """

    spheres: Spheres | NonnegativeSpheres | None = None
    price: float = np.nan

    @property
    def _how(self) -> Normalization:
        return normalization_of(self.problem)

    @property
    def norm(self) -> float:
        """The length of the features, on average per batch: given, or where the decayed gain comes to rest."""
        how = self._how
        if how.norm is not None:
            return how.norm
        if self.spheres is not None:
            return float(np.sqrt(how.level / self.price))
        plain = self._plain
        weight = float(np.trace(plain.classifier_gram())) * self.price / how.level
        return float(np.sqrt(how.level * weight / (how.lambda_gain or np.nan)))

    @cached_property
    def _rows(self) -> Vector:
        return row_scales(self.problem, self.quotient)

    @cached_property
    def _plain(self) -> Solution:
        """Per batch: the same point as the optimum of the program with a feature penalty."""
        blocks = in_row_units(self.problem, self.quotient, self.blocks)
        q = replace(scaled_quotient(self.problem, self.quotient), lambda_z=self.price)
        return Solution(self.problem, blocks, self.certificate, self.status, self.num_steps, q, self.proof)

    @cached_property
    def _live(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
        """Per cluster: whether the within-block is alive and the column non-zero; and the rank of the cluster part."""
        if self.spheres is None:
            return self._plain._live
        if isinstance(self.spheres, NonnegativeSpheres):
            contrast = self.spheres.atoms.gram()[1] > _MERGED
            size = np.linalg.svd(self.quotient.weight * self.blocks.C, compute_uv=False)
            return contrast, np.ones_like(contrast), int(np.sum(size > _ZERO * float(size[0])))
        x, n = self.spheres, normalized_quotient(self.problem, self.quotient, self.price)
        norms = np.sqrt(self.quotient.sizes @ self.blocks.C**2 + self.blocks.alpha**2)
        if not float(norms.max()) > 0:
            dead = np.zeros(norms.size, dtype=bool)
            return dead, dead, 0
        within = (self.quotient.sizes > 1) & (self.blocks.alpha > _ZERO * float(norms.max()))
        R = residual(n.q, predict(n.q, x.blocks(n.q))[0])
        nu = (np.sum(x.F * (x.E @ R.between), axis=0) + x.u * R.within * x.v) / n.q.sizes
        sigma = np.linalg.svd(R.between / np.sqrt(np.maximum(nu * self.price, 1e-300)), compute_uv=False)
        gamma = np.linalg.svd(n.q.weight * x.blocks(n.q).C, compute_uv=False)
        edge = 1 - np.sqrt(max(self.certificate.relative_gap, 1e-14))
        rank = min(int(np.sum(sigma >= edge)), int(np.sum(gamma > _ZERO * float(norms.max()))))
        return within, np.ones_like(within), rank

    def classifier_gram(self) -> Matrix:
        """W'W, shape (K, K), for the problem's ``lambda_w`` and ``norm``."""
        rows = self._rows[self.quotient.labels]
        if self.spheres is None:
            return self._plain.classifier_gram() * (self.price / self._how.level) * np.outer(rows, rows)
        x = self._symmetric
        length = self.norm if self.norm > 0 else 1.0
        return self._gram(x.E, x.v) / length**2 * np.outer(rows, rows)

    @property
    def _symmetric(self) -> Spheres:
        """Factors whose Grams are those of the point, whatever their signs."""
        x, width = self.spheres, np.sqrt(self.quotient.sizes - 1)
        assert x is not None
        if isinstance(x, Spheres):
            return x
        v, u = (width * np.linalg.norm(part, axis=0) for part in (x.atoms.within, x.atoms.own))
        return Spheres(x.atoms.between, x.atoms.mean, v, u, x.b)

    def feature_gram(self) -> Matrix:
        """H'H of the class means, shape (K, K); per sample its diagonal is norm^2."""
        if self.spheres is None:
            return self._plain.feature_gram() * (self._how.level / self.price)
        return self._gram(self._symmetric.F, self._symmetric.u) * self.norm**2

    def _gram(self, between: Matrix, contrast: Vector) -> Matrix:
        return self._lift_gram(contrast**2 / np.maximum(self.quotient.sizes - 1, 1.0), between.T @ between)

    def factors(
        self, dim: int, lambda_w: float | None = None, lambda_h: float | None = None
    ) -> tuple[Matrix, Matrix, Vector]:
        """A head and class means that attain the optimum: Z = W'H, ||h_k|| = norm (on average per batch).

        Args:
            dim: d, number of features, at least the rank.
            lambda_w: the problem's own, or None.
            lambda_h: None: normalised features have no penalty.

        Returns:
            W of shape (d, K), class means H of shape (d, K), b of shape (K,).

        Raises:
            ValueError: ``dim`` is too small, or a penalty is not the problem's own.
        """
        how = self._how
        if lambda_h is not None or not (lambda_w is None or np.isclose(lambda_w, how.level)):
            raise ValueError(
                "`lambda_w` and `lambda_h` follow from the problem: normalised features have no penalty; leave them out"
            )
        W, H = self._batch_factors() if self.spheres is None else self._sphere_factors(self.spheres)
        nonnegative = self.problem.features == "nonnegative"
        least = W.shape[0] if nonnegative else self.rank
        if not dim >= least:
            raise ValueError(f"`dim` must be at least {least}, the directions this optimum uses, got {dim}")
        W = W * self._rows[self.quotient.labels]
        if not nonnegative:
            basis = np.linalg.svd(H)[0][:, : min(dim, H.shape[0])]  # the directions that H uses come first
            W, H = basis.T @ W, basis.T @ H
        if self.spheres is not None and self.norm > 0:
            H = H * (self.norm / np.linalg.norm(H, axis=0))
        padding = ((0, dim - W.shape[0]), (0, 0))
        return np.pad(W, padding), np.pad(H, padding), self.b

    def _batch_factors(self) -> tuple[Matrix, Matrix]:
        W, H = self._plain._own_factors()
        ratio = np.sqrt(self.price / self._how.level)
        return W * ratio, H / ratio

    def _sphere_factors(self, x: Spheres | NonnegativeSpheres) -> tuple[Matrix, Matrix]:
        if isinstance(x, NonnegativeSpheres):
            W, H = factors(replace(self.quotient, mass=np.ones_like(x.y)), x.atoms, balanced=False)
            return W / self.norm, H * self.norm
        q, K = self.quotient, self.problem.num_classes
        own = np.eye(K) - (q.labels[:, None] == q.labels) / q.sizes[q.labels]  # e_k - 1/k on the own cluster
        length = self.norm if self.norm > 0 else 1.0

        def lifted(between: Matrix, contrast: Vector) -> Matrix:
            size = contrast / np.sqrt(np.maximum(q.sizes - 1, 1.0))
            return np.vstack([(between / np.sqrt(q.sizes))[:, q.labels], own * size[q.labels]])

        return lifted(x.E, x.v) / length, lifted(x.F, x.u) * self.norm

    def _saved(self) -> tuple[Record, dict[str, Matrix]]:
        x = self.spheres
        if isinstance(x, NonnegativeSpheres):
            header, arrays = Solution._saved(replace(self, proof=SharedProof(x.atoms, x.witness)))
            return {**header, "price": repr(self.price)}, arrays | {"spheres_y": x.y}
        header, arrays = super()._saved()
        if self.spheres is not None:
            arrays |= {f"spheres_{f.name}": getattr(self.spheres, f.name) for f in fields(Spheres)}
        return {**header, "price": repr(self.price)}, arrays


def normalized_solution(
    problem: Problem, q: Quotient, start: Solution | None, how: Settings, plain: Solver
) -> NormalizedSolution:
    """Solve a problem with normalised features; ``plain`` solves the program with a feature penalty."""
    first: Spheres | NonnegativeSpheres | Blocks | None = None
    if isinstance(start, NormalizedSolution):
        x = start.spheres
        first = start._plain.blocks if x is None else x
        if isinstance(x, NonnegativeSpheres):
            first = fewest(normalized_quotient(start.problem, start.quotient), x)
    result = minimise_normalized(problem, q, first, how, plain)
    return _solution(problem, q, result)


def _solution(problem: Problem, q: Quotient, result: NormalizedResult) -> NormalizedSolution:
    rows, x = row_scales(problem, q), result.blocks
    blocks = Blocks(x.alpha * rows, x.C * rows[:, None], x.b * rows)
    return NormalizedSolution(
        problem,
        blocks,
        result.certificate,
        result.status,
        result.num_steps,
        q,
        _shared(q, result),
        spheres=result.spheres,
        price=result.price,
    )


def _shared(q: Quotient, result: NormalizedResult) -> SharedProof | None:
    """The proof, where classes share directions."""
    x = result.spheres
    if not isinstance(x, NonnegativeSpheres):
        return result.proof
    own = np.all(np.sum(x.atoms.mean > 0, axis=1) == 1) and not np.any(x.atoms.common[:, q.sizes > 1] > 0)
    return None if own else SharedProof(x.atoms, x.witness)


def certified_again(solution: Solution, header: Record, arrays: dict[str, Matrix]) -> NormalizedSolution:
    """A point read from a file, with its factors and a certificate of its own."""
    problem, q, proof, price = solution.problem, solution.quotient, solution.proof, float(header["price"])
    blocks, x = in_row_units(problem, q, solution.blocks), None
    if normalization_of(problem).over == "batch":
        certificate = certify_batch(problem, replace(scaled_quotient(problem, q), lambda_z=price), blocks, proof)
    else:
        n = normalized_quotient(problem, q)
        if proof is not None:
            x = NonnegativeSpheres(proof.atoms, blocks.b, arrays["spheres_y"], proof.witness)
            certificate = certify_nonnegative(n, x)
        else:
            x = Spheres(**{f.name: arrays[f"spheres_{f.name}"] for f in fields(Spheres)})
            certificate = certify_spheres(n, x)
        blocks = x.blocks(n.q)
    ended = solution.num_steps, solution.status
    return _solution(problem, q, NormalizedResult(blocks, certificate, *ended, spheres=x, price=price, proof=proof))
