"""Where AdamW rests, entry by entry: the fixed point behind "one penalty per row".

At rest every weight of the head has dL/dW_kj = -lambda_kj W_kj with lambda_kj = wd (sqrt(v_kj) + eps), and features of
given length have no pull along the sphere. With collapsed features and batches of B random samples,

    v_kj = (1/B) Σ_c q_c r_kc^2 h_jc^2 + (1 - 1/B) (Σ_c q_c r_kc h_jc)^2,      r = P - I,

which depends on how the features lie to the axes. So this is the rest of a map, no minimum, and there are many such
points. With one penalty per row, the mean of lambda_kj over j, the problem is convex and has one optimum; what v varies
within a row is how the two differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from collapsar.core.types import Matrix

# (share of the steps, factor on the rate): the last stages settle what the first leaves swinging.
_STAGES = ((0.0, 1.0), (0.7, 0.1), (0.9, 0.01))
_RATE, _FEATURE_RATE = 1e-3, 0.5


@dataclass(frozen=True)
class AdamWHead:
    """A head under AdamW's decoupled decay on collapsed features of one length.

    Attributes:
        class_counts: n_k.
        weight_decay: of the head's weight; its bias is free.
        batch_size: samples per step, B.
        eps: AdamW's.
    """

    class_counts: tuple[int, ...]
    weight_decay: float
    batch_size: int
    eps: float = 1e-8

    @cached_property
    def share(self) -> Matrix:
        """q_k."""
        n = np.array(self.class_counts, dtype=float)
        return n / n.sum()


@dataclass(frozen=True, eq=False)
class RestPoint:
    """A point that AdamW does not leave.

    Attributes:
        W: (K, d).
        H: (K, d), a feature per class, each with mean zero (LayerNorm) and of the length it was given.
        b: (K,).
        penalties: lambda_kj, (K, d).
        residual: |dL/dW + lambda W| / |lambda W|, and the pull on the features along their spheres relative to all of
            it: how far from rest.
    """

    W: Matrix
    H: Matrix
    b: Matrix
    penalties: Matrix
    residual: tuple[float, float]

    @property
    def Z(self) -> Matrix:  # noqa: N802 - the paper's letter
        """(K, K) [logit, class]."""
        return self.W @ self.H.T


def rest_of_adamw(head: AdamWHead, W: Matrix, H: Matrix, b: Matrix, steps: int = 6000) -> RestPoint:
    """Follow AdamW's mean step of the head, and the features' own pull, until both stand still.

    Args:
        head: The training.
        W: (K, d), where to begin.
        H: (K, d); their length is kept, their mean over the coordinates taken out.
        b: (K,).
        steps: Of the rate 1e-3, which falls to a tenth and a hundredth at the end.
    """
    length = np.linalg.norm(H, axis=1, keepdims=True)
    for step in range(steps):
        rate = next(factor for begin, factor in reversed(_STAGES) if step >= begin * steps)
        G, v, pull, of_b, noise_b = _gradients(head, W, H, b)
        W = W - rate * _RATE * (G / (np.sqrt(v) + head.eps) + head.weight_decay * W)
        b = b - rate * _RATE * of_b / (np.sqrt(noise_b) + head.eps)
        H = _on_spheres(H - rate * _FEATURE_RATE * pull / np.abs(W).max(), length)
    G, v, pull, _, _ = _gradients(head, W, H, b)
    penalties = head.weight_decay * (np.sqrt(v) + head.eps)
    along = pull - np.sum(pull * H, axis=1, keepdims=True) * H / length**2
    residual = _relative(G + penalties * W, penalties * W), _relative(along, pull)
    return RestPoint(W, H, b, penalties, residual)


def random_point(head: AdamWHead, width: int, generator: np.random.Generator) -> tuple[Matrix, Matrix, Matrix]:
    """W, H and b to begin from, features of the length of a LayerNorm."""
    shape = len(head.class_counts), width
    H = _on_spheres(generator.normal(size=shape), np.full((shape[0], 1), np.sqrt(width)))
    return 0.1 * generator.normal(size=shape), H, np.zeros(shape[0])


def averaged(Z: Matrix, num_large: int) -> Matrix:
    """Z with its columns centred, averaged over all exchanges of classes of one size: classes 0..num_large - 1, others.

    Example:
        >>> averaged(np.array([[2.0, 0.0], [0.0, 4.0]]), 2)
        array([[ 1.5, -1.5],
               [-1.5,  1.5]])
    """
    Z = Z - Z.mean(axis=0)
    out, groups = np.empty_like(Z), (slice(0, num_large), slice(num_large, len(Z)))
    for rows in groups:
        for columns in groups:
            block = Z[rows, columns]
            own = np.eye(*block.shape, dtype=bool) & (rows == columns)
            for entries in (own, ~own):
                if entries.any():
                    out[rows, columns][entries] = block[entries].mean()
    return out


def _gradients(head: AdamWHead, W: Matrix, H: Matrix, b: Matrix) -> tuple[Matrix, Matrix, Matrix, Matrix, Matrix]:
    """Of the mean loss: dL/dW, its mean square over batches v, the features' pull; dL/db and its mean square."""
    q, B = head.share[:, None], head.batch_size
    scores = H @ W.T + b
    r = np.exp(scores - np.maximum.reduce(scores, axis=1, keepdims=True))
    r /= np.add.reduce(r, axis=1, keepdims=True)
    r.reshape(-1)[:: len(r) + 1] -= 1  # row c: of class c's samples
    shares = q * r
    squares = shares * r
    G, of_b = shares.T.dot(H), np.add.reduce(shares, axis=0)
    v = squares.T.dot(H**2)
    v /= B
    v += (1 - 1 / B) * G**2
    pull = r.dot(W)
    pull -= np.add.reduce(pull, axis=1, keepdims=True) / pull.shape[1]
    return G, v, pull, of_b, np.add.reduce(squares, axis=0) / B + (1 - 1 / B) * of_b**2


def _on_spheres(H: Matrix, length: Matrix) -> Matrix:
    H = H - np.add.reduce(H, axis=1, keepdims=True) / H.shape[1]
    H *= length / np.sqrt(np.add.reduce(H**2, axis=1, keepdims=True))
    return H


def _relative(part: Matrix, whole: Matrix) -> float:
    return float(np.linalg.norm(part) / np.linalg.norm(whole))
