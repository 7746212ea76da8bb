"""The value that ``solve`` returns: a certified point, what it says about the classes, its factors, its file."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.core.files import write_atomically
from collapsar.core.problem import Problem
from collapsar.core.sentences import names_of
from collapsar.core.states import ClassState, past
from collapsar.core.types import Matrix, Record, Vector
from collapsar.solver.atoms import Atoms
from collapsar.solver.certificate import Certificate, certify_blocks
from collapsar.solver.objective import Columns, Residual, predict, residual
from collapsar.solver.shared import SharedResult, certify_atoms, factors
from collapsar.solver.status import Result, Status
from collapsar.solver.symmetry import Blocks, Quotient, lift, quotient
from collapsar.solver.witness import Cut, Witness

_FORMAT = 1  # of saved files
_TIE = 1e-6  # entries of a column this close, relatively, are equal to the accuracy of a solution
_ZERO = 1e-8  # relative size below which a part of the optimum that the dual leaves undecided counts as zero


class NotConvergedError(RuntimeError):
    """The gap did not reach ``tol``. ``solution`` is the best certified point, with the reported gap."""

    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        certificate = solution.certificate
        super().__init__(
            f"not converged after {solution.num_steps} steps: {solution.status.value} "
            f"(relative gap {certificate.relative_gap:.2g})"
        )


@dataclass(frozen=True)
class SharedProof:
    """What certifies a point whose classes share feature directions: its atoms, and a witness of the dual."""

    atoms: Atoms
    witness: Witness

    def certificate(self, q: Quotient, b: Vector) -> Certificate:
        """Primal from the atoms, dual from the witness."""
        return certify_atoms(q, self.atoms, b, self.witness)


def shared_proof(result: Result) -> SharedProof | None:
    """What certifies nonnegative features that share directions; None if the column form is its own proof."""
    # where the column form came back as it was, its own certificate is as good and its directions are its own
    if isinstance(result, SharedResult) and result.penalty is not None:
        return SharedProof(result.atoms, result.witness)
    return None


@dataclass(frozen=True)
class Solution:
    """A certified point of a problem, block-structured over its clusters.

    Attributes:
        problem: what was solved.
        blocks: the point, per cluster.
        certificate: primal, dual and gap at exactly this point.
        status: how the solve ended.
        num_steps: steps taken.
        quotient: the clusters; ``quotient.labels`` has the cluster of each class.
        proof: for nonnegative features whose classes share directions, the factors and the dual point behind the
            certificate; None otherwise. ``certify(problem, s.Z, s.b)`` prices column by column and cannot see it.
    """

    problem: Problem
    blocks: Blocks
    certificate: Certificate
    status: Status
    num_steps: int
    quotient: Quotient
    proof: SharedProof | None = None

    @property
    def Z(self) -> Matrix:  # noqa: N802 - the paper's letter
        """Mean predictions, shape (K, K) [logit, class], bias not included. Built on request."""
        return lift(self.quotient, self.blocks)[0]

    @property
    def b(self) -> Vector:
        """Bias, shape (K,)."""
        return self.blocks.b[self.quotient.labels]

    @property
    def column_norms(self) -> Vector:
        """||z_k||_2, shape (K,), without building Z."""
        q, blocks = self.quotient, self.blocks
        squared = q.sizes @ blocks.C**2 + blocks.alpha**2 * (1 - 1 / q.sizes)
        return np.sqrt(squared)[q.labels]

    @cached_property
    def residual(self) -> Residual:
        """R at the point, per cluster."""
        return residual(self.quotient, predict(self.quotient, self.blocks)[0])

    @cached_property
    def _live(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
        """Per cluster: whether the within-block is alive and the column non-zero; and the rank of the cluster part.

        Signed within-blocks are alive below tau delta (1 - eps) q / sqrt(m) exactly (JMLR Cor. 4, any mitigation). The
        cluster part is decided from the dual. Around the optimal residual R* the gap G leaves a ball: the dual is
        strongly concave (Pinsker), sum_k q_k ||s_k - s*_k||_1^2 <= 2G, so singular values of R below lambda_Z by
        more than sqrt(2 G max_k(q_k tau_k^2 delta^2 / m_k)) belong to parts that are zero at the optimum. What the
        ball leaves open is taken as it stands at the point.
        """
        q, blocks = self.quotient, self.blocks
        R = self.residual
        ball = np.max(q.share * q.temperatures**2 / q.mass) * np.max(q.scales) ** 2
        gap = max(
            self.certificate.gap, np.finfo(np.float64).eps * abs(self.certificate.primal)
        )  # a gap of 0 is rounding
        edge = q.lambda_z - np.sqrt(2 * gap * ball)
        size = np.sqrt(q.mass) * np.sqrt(q.sizes @ blocks.C**2 + blocks.alpha**2)
        zero = _ZERO * max(float(size.max()), float(np.sqrt(q.mass.max())))  # logits below 1e-8 nats are rounding
        if q.features == "nonnegative":
            # the algorithm sets dead columns to zero; contrasts of shared atoms are zero only up to its rounding
            gamma = np.linalg.svd(q.weight * blocks.C, compute_uv=False)
            within = (q.sizes > 1) & (np.sqrt(q.mass) * blocks.alpha > (zero if self.proof is None else 1e3 * zero))
            return within, size > zero, int(np.sum(gamma > zero))
        merge = q.temperatures * q.scales * (1 - q.smoothing) * q.share / np.sqrt(q.mass)
        within = (q.sizes > 1) & ~past(q.lambda_z, merge)
        _, gamma, Bt = np.linalg.svd(q.weight * blocks.C)
        sigma = np.linalg.svd(R.between, compute_uv=False)
        rank = min(int(np.sum(sigma >= edge)), int(np.sum(gamma > zero)))
        reached = np.linalg.norm(gamma[:rank, None] * Bt[:rank], axis=0) > zero
        return within, within | reached, rank

    @property
    def _own_most(self) -> NDArray[np.bool_]:
        """Per cluster: whether a class's features raise its own logit more than any other cluster's."""
        q, blocks = self.quotient, self.blocks
        own = np.diag(blocks.C) + np.where(q.sizes > 1, blocks.alpha * (1 - 1 / q.sizes), 0.0)
        most = np.where(np.eye(q.num_clusters, dtype=bool), -np.inf, blocks.C).max(axis=0)
        return own > most + _TIE * np.abs(blocks.C).max(axis=0)

    @property
    def rank(self) -> int:
        """Rank of Z, decided from the dual."""
        within, _, rank = self._live
        return rank + int(np.sum((self.quotient.sizes - 1)[within]))

    @cached_property
    def class_states(self) -> tuple[ClassState, ...]:
        """Per class: "separated"; "merged": its prediction equals that of its whole cluster; "vanished": it is zero.

        A class alone in its cluster is separated where its features raise its own logit more than any other, merged
        where they raise another class's at least as much: it then has no direction of its own. The same holds for all
        classes with nonnegative features that share directions.
        """
        within, column, _ = self._live
        alone, own = self.quotient.sizes == 1, self._own_most
        shared = np.full(alone.size, self.proof is not None)
        separated = np.where(alone | shared, (alone | within) & own, within)
        names: list[ClassState] = [
            "vanished" if not c else "separated" if s else "merged" for s, c in zip(separated, column, strict=True)
        ]
        return tuple(names[j] for j in self.quotient.labels)

    def classifier_gram(self) -> Matrix:
        """W'W for lambda_w = lambda_h, shape (K, K): with Z M^(1/2) = U Sigma V' it is U Sigma U' (JMLR Thm 2d).

        For other penalties, multiply by sqrt(lambda_h / lambda_w). With nonnegative features, if every class owns a
        direction, it is sum_k sqrt(m_k) z_k z_k' / ||z_k||.
        """
        q, blocks = self.quotient, self.blocks
        if q.features == "nonnegative":
            W, _ = self._nonnegative_factors()
            return W.T @ W
        U, sigma, _ = np.linalg.svd(q.weight * blocks.C)
        return self._lift_gram(np.sqrt(q.mass) * blocks.alpha, (U * sigma) @ U.T)

    def feature_gram(self) -> Matrix:
        """H'H of the class means for lambda_w = lambda_h, shape (K, K): M^(-1/2) V Sigma V' M^(-1/2) (JMLR Thm 2d).

        For other penalties, multiply by sqrt(lambda_w / lambda_h).
        """
        q, blocks = self.quotient, self.blocks
        if q.features == "nonnegative":
            _, H = self._nonnegative_factors()
            return H.T @ H
        _, sigma, Vt = np.linalg.svd(q.weight * blocks.C)
        root = np.sqrt(q.mass)
        return self._lift_gram(blocks.alpha / root, (Vt.T * sigma) @ Vt / np.outer(root, root))

    def _lift_gram(self, within: Vector, between: Matrix) -> Matrix:
        q = self.quotient
        return lift(q, Blocks(within, between / np.sqrt(np.outer(q.sizes, q.sizes)), np.zeros(q.num_clusters)))[0]

    def _own_factors(self) -> tuple[Matrix, Matrix]:
        """W and H for lambda_w = lambda_h, both (directions in use, K)."""
        if self.quotient.features == "nonnegative":
            return self._nonnegative_factors()
        root, rank = np.sqrt(self.problem.mass), self.rank
        U, sigma, Vt = np.linalg.svd(self.Z * root)
        half = np.sqrt(sigma[:rank])[:, None]
        return half * U[:, :rank].T, half * Vt[:rank] / root

    def _nonnegative_factors(self) -> tuple[Matrix, Matrix]:
        """W, H >= 0, both (d, K): class k's feature along axis k, or the atoms where classes share directions."""
        if self.proof is not None:
            return factors(self.quotient, self.proof.atoms)
        Z, root = self.Z, np.sqrt(self.problem.mass)
        norm = np.linalg.norm(Z, axis=0)
        split = np.sqrt(root * norm)  # ||w_k|| = ||h_k|| sqrt(m_k)
        return (Z * (np.where(norm > 0, split / np.where(norm > 0, norm, 1.0), 0.0))).T, np.diag(split / root)

    def factors(
        self, dim: int, lambda_w: float | None = None, lambda_h: float | None = None
    ) -> tuple[Matrix, Matrix, Vector]:
        """A head and class means that attain the optimum: Z = W'H.

        Args:
            dim: d, number of features; at least the rank (signed) or the number of classes (nonnegative).
            lambda_w: penalty of W; default lambda_z^2 / lambda_h, or lambda_z.
            lambda_h: penalty of the features; default lambda_z^2 / lambda_w.

        Returns:
            W of shape (d, K), class means H of shape (d, K), b of shape (K,).

        Raises:
            ValueError: ``dim`` is too small, or the penalties do not multiply to lambda_z^2.

        Example:
            >>> import collapsar as cs
            >>> s = cs.solve(cs.Problem([10, 10, 10], lambda_z=0.02))
            >>> W, H, b = s.factors(3)
            >>> bool(np.allclose(W.T @ H, s.Z))
            True
        """
        ratio = _penalty_ratio(self.problem.lambda_z, lambda_w, lambda_h)  # (lambda_h / lambda_w)^(1/4)
        W, H = self._own_factors()
        if not dim >= W.shape[0]:
            raise ValueError(f"`dim` must be at least {W.shape[0]}, the directions this optimum uses, got {dim}")
        padding = ((0, dim - W.shape[0]), (0, 0))
        return np.pad(ratio * W, padding), np.pad(H / ratio, padding), self.b

    def save(self, path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> Path:
        """Write problem and point to one .npz file (arrays and JSON, no pickle), atomically.

        Args:
            path: the file.
            class_names: K names, to show the optimum with (:func:`saved_class_names`).

        Raises:
            ValueError: ``class_names`` does not name every class.
            OSError: the folder does not exist or cannot be written.
        """
        header, arrays = self._saved()
        if class_names is not None:
            header["class_names"] = list(names_of(class_names, self.problem.num_classes))
        buffer = io.BytesIO()
        named: dict[str, Any] = dict(arrays)
        np.savez(buffer, header=np.array(json.dumps(header)), **named)
        return write_atomically(path, buffer.getvalue())

    def _saved(self) -> tuple[Record, dict[str, Matrix]]:
        """Header and arrays of the file."""
        header = {
            "format": _FORMAT,
            "problem": self.problem.to_dict(),
            "status": self.status.name,
            "num_steps": self.num_steps,
            "primal": self.certificate.primal,
            "dual": self.certificate.dual,
        }
        blocks = self.blocks
        return header, {"alpha": blocks.alpha, "C": blocks.C, "b": blocks.b, **_proof_arrays(self.proof)}


def _proof_arrays(proof: SharedProof | None) -> dict[str, Matrix]:
    if proof is None:
        return {}
    atoms, witness = proof.atoms, proof.witness
    cuts = {"witness_cuts": np.array(witness.cuts)} if witness.cuts else {}
    return {
        **cuts,
        **{f"atoms_{f.name}": getattr(atoms, f.name) for f in fields(atoms)},
        "witness_miss": witness.S.miss,
        "witness_other": witness.S.other,
        "witness_between": witness.between,
        "witness_within": witness.within,
    }


def _proof_from(arrays: Mapping[str, Matrix]) -> SharedProof | None:
    if "witness_miss" not in arrays:
        return None
    atoms = Atoms(**{f.name: arrays[f"atoms_{f.name}"] for f in fields(Atoms)})
    S = Columns(arrays["witness_miss"], arrays["witness_other"])
    rows = arrays.get("witness_cuts", ())  # files of version 0.1 have none
    cuts = tuple(Cut(int(i), int(j), float(c)) for i, j, c in rows)
    return SharedProof(atoms, Witness(S, arrays["witness_between"], arrays["witness_within"], cuts))


def _penalty_ratio(lambda_z: float, lambda_w: float | None, lambda_h: float | None) -> float:
    if lambda_w is None:
        lambda_w = lambda_z if lambda_h is None else lambda_z**2 / lambda_h
    if lambda_h is None:
        lambda_h = lambda_z**2 / lambda_w
    if not (lambda_w > 0 and lambda_h > 0 and abs(np.sqrt(lambda_w * lambda_h) / lambda_z - 1) <= 1e-6):
        raise ValueError(
            f"`lambda_w` and `lambda_h` must be > 0 and multiply to lambda_z^2 = {lambda_z**2:.6g}, "
            f"got {lambda_w!r} and {lambda_h!r}; give one of them and the other follows"
        )
    return float((lambda_h / lambda_w) ** 0.25)


def is_solution(path: str | os.PathLike[str]) -> bool:
    """Whether an .npz file is one that :meth:`Solution.save` wrote, rather than features of a network."""
    try:
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {"header", "alpha", "C", "b"} <= set(file.files)
    except Exception:  # zipfile and numpy raise a dozen kinds on a damaged file: whoever reads it says what is wrong
        return False


def saved_class_names(path: str | os.PathLike[str]) -> list[str] | None:
    """The names of the classes in what :meth:`Solution.save` wrote; None if it was given none."""
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file["header"])).get("class_names")


def load_solution(path: str | os.PathLike[str]) -> Solution:
    """Read what :meth:`Solution.save` wrote, and certify it again.

    Raises:
        ValueError: the file is not a saved solution, or its point does not have the objective it claims.
        OSError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            blocks = Blocks(file["alpha"], file["C"], file["b"])
            proof = _proof_from(file)
            own = {name: file[name] for name in file.files if name.startswith("spheres_")}
        problem = Problem.from_dict(header["problem"])
        status, num_steps, claimed = (
            Status[header["status"]],
            int(header["num_steps"]),
            float(header["primal"]),
        )
        version = header["format"]
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{os.fspath(path)} is not a saved solution ({error}); solve the problem again") from error
    if version != _FORMAT:
        raise ValueError(f"{os.fspath(path)} has format {version}, this version reads {_FORMAT}; solve again")
    q = quotient(problem)
    J = q.num_clusters
    if blocks.alpha.shape != (J,) or blocks.C.shape != (J, J) or blocks.b.shape != (J,):
        raise ValueError(f"{os.fspath(path)} holds a point of another problem; solve the problem again")
    if problem.normalization is not None:
        from collapsar.solver.normalized_solution import certified_again

        claim = Certificate(claimed, -np.inf)
        solution = certified_again(Solution(problem, blocks, claim, status, num_steps, q, proof), header, own)
    elif proof is None:
        solution = Solution(problem, blocks, certify_blocks(q, blocks), status, num_steps, q)
    else:
        certificate, blocks = proof.certificate(q, blocks.b), proof.atoms.blocks(q, blocks.b)
        solution = Solution(problem, blocks, certificate, status, num_steps, q, proof)
    primal = solution.certificate.primal
    if not abs(primal - claimed) <= 1e-12 * max(abs(claimed), 1.0):
        raise ValueError(f"{os.fspath(path)} was altered: its point has objective {primal:.12g}, not {claimed:.12g}")
    return solution
