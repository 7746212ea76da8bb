"""How fast the columns of Z turn to the simplex ETF as samples are added: Theorem 5 with its constant.

N lambda_z and the ratios of counts are fixed (Hong & Ling, JMLR 25(192), 2024, Thm 5: corrections O(1/log N)). All
classes are alive then, the residual is lambda_z Q with Q the polar factor of Z D^(1/2), and the margins of column k are
log(sqrt(n_k)/(N lambda_z |Q_lk|)) up to O(N^-1/2): half a log N for every pair, plus constants. The constants turn the
columns; divided by the common half log N they are what is left of the imbalance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.types import Matrix
from collapsar.theory import large_sample_margins
from collapsar.theory.limits import column_cosines

__all__ = ["etf_slope", "self_consistent_cosines"]


MAX_STEPS = 500  # half steps towards the fixed point; where these do not arrive, there is none and an error says so


def etf_slope(shares: ArrayLike, level: float) -> Matrix:
    """The constant of Theorem 5: the limit of (cosine of two columns of Z + 1/(K - 1)) log N as N grows.

    First order in the margins' constants c_lk = log(sqrt(n_k/N)/(level |Q_lk|)), Q the polar factor of (I - J/K)
    D^(1/2): with v_k = e_k - 1/K and w_k = mean(c_k) - c_k, the cosine moves by 2/log N times (<v_i, w_j> + <w_i,
    v_j>)/|v|^2 + (<v_i, w_i> + <v_j, w_j>)/((K - 1)|v|^2). The price of the bias does not enter as long as it is > 0.

    Args:
        shares: n_k/N up to a factor, shape (K,), > 0.
        level: N lambda_z > 0.

    Returns:
        Shape (K, K), zeros on the diagonal.

    Raises:
        ValueError: an argument is not positive and finite.

    Example:
        >>> slope = etf_slope([2, 2, 2, 2, 2, 1, 1, 1, 1, 1], 0.1)
        >>> print(slope[[0, 9, 0], [1, 8, 9]].round(3))
        [-0.77   0.917 -0.059]
    """
    n = np.asarray(shares, dtype=np.float64)
    n = n / n.sum()
    K = n.size
    c = large_sample_margins(n, level)
    v, w = np.eye(K) - 1 / K, c.mean(axis=0) - c
    square = (K - 1) / K
    cross = v.T @ w
    own = np.diag(cross)
    slope = 2 * ((cross + cross.T) / square + np.add.outer(own, own) / ((K - 1) * square))
    np.fill_diagonal(slope, 0.0)
    return slope


def self_consistent_cosines(shares: ArrayLike, level: float, num_samples: float) -> Matrix:
    """Cosines of the columns of Z at N samples, from margins whose polar factor is that of Z itself.

    All orders in 1/log N; what is missing is O(N^-1/2) and the bias.

    Args:
        shares: n_k/N up to a factor, shape (K,), > 0.
        level: N lambda_z > 0.
        num_samples: N.

    Returns:
        Shape (K, K).

    Raises:
        ArithmeticError: the margins did not settle; N is too small for the expansion.

    Example:
        >>> print(self_consistent_cosines([2, 2, 1, 1], 0.1, 1e12)[0, 1].round(4))
        -0.363
    """
    n = np.asarray(shares, dtype=np.float64)
    n = n / n.sum()
    Z = np.eye(n.size) - 1 / n.size
    for _ in range(MAX_STEPS):
        U, _, Vt = np.linalg.svd(Z * np.sqrt(n))
        Q = U[:, :-1] @ Vt[:-1]
        np.fill_diagonal(Q, 1.0)
        margins = np.log(np.sqrt(n) / (level * np.abs(Q))) + 0.5 * np.log(num_samples)
        np.fill_diagonal(margins, 0.0)
        change = margins.mean(axis=0) - margins - Z
        Z = Z + 0.5 * change  # half steps: the full map overshoots for small N
        if np.max(np.abs(change)) <= 1e-13 * np.max(np.abs(Z)):
            return column_cosines(Z)
    raise ArithmeticError(f"`num_samples` = {num_samples:g} is too small for the expansion in 1/log N")
