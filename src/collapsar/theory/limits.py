"""Limits of the optimum: simplex ETF, SELI, the CDT and LDT geometries, the large-sample expansion.

Two limits must be kept apart. As the penalty tends to zero at fixed counts (Thrampoulidis et al., NeurIPS 2022): SELI.
With more samples at fixed N lambda_z and fixed imbalance (Hong & Ling, JMLR 25(192), 2024, Thm 5: corrections O(1/log
N)) the columns of Z turn towards the simplex ETF. All classes are then separated, R tends to lambda_z Q with Q the
polar factor of Z D^(1/2), and the margins of column k are log(sqrt(n_k)/(N lambda_z |Q_lk|)) up to O(N^-1/2): half a
log N for every pair, plus constants. The constants turn the columns; divided by the common half log N they are what is
left of the imbalance. In both limits W and H tend to the factors of SELI, not to the ETF, unless the counts are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.checks import must_be_positive
from collapsar.core.loss import class_vector
from collapsar.core.types import Matrix, Vector

MAX_STEPS = 500  # half steps towards the fixed point; if they do not suffice, there is none, and an error says so


@dataclass(frozen=True)
class Geometry:
    """A limit, each part up to a positive factor (that of Z; its root for both Gram matrices).

    Attributes:
        Z: shape (K, K), [logit, class].
        classifier_gram: W'W, shape (K, K).
        feature_gram: H'H of the class means, shape (K, K).
        margins_tight: whether all margins are equal at the limit, the condition for it to be the limit. Always true in
            the published cases; for other feature masses the sign of U V' off the diagonal decides.
    """

    Z: Matrix
    classifier_gram: Matrix
    feature_gram: Matrix
    margins_tight: bool


def simplex_etf(num_classes: int) -> Matrix:
    """I - J/K, the Gram of the simplex equiangular tight frame.

    Raises:
        ValueError: fewer than two classes.

    Example:
        >>> simplex_etf(2)
        array([[ 0.5, -0.5],
               [-0.5,  0.5]])
    """
    if not num_classes >= 2:
        raise ValueError(f"`num_classes` must be >= 2, got {num_classes!r}")
    return np.eye(num_classes) - 1 / num_classes


def seli(
    feature_mass: ArrayLike,
    scales: ArrayLike | None = None,
    temperatures: ArrayLike | None = None,
    *,
    free_bias: bool = False,
) -> Geometry:
    """The geometry as lambda_z tends to 0 at fixed counts: simplex-encoded labels, interpolation.

    Z makes every margin tau_k (delta_k z_kk - delta_l z_lk) equal. Plain loss: Z = I - J/K (Thrampoulidis et al.,
    2022). CDT: Z[c, j] = (1[c = j] - delta_j^-2 / sum delta^-2) / delta_c, LDT: columns divided by tau
    (Behnia et al., AISTATS 2023). Offsets and class weights do not change the limit. With Z M^(1/2) = U S
    V', W'W = U S U' and H'H = M^(-1/2) V S V' M^(-1/2).

    Args:
        feature_mass: m, shape (K,), > 0; the counts n without a mitigation.
        scales: delta > 0, shape (K,).
        temperatures: tau > 0, shape (K,).
        free_bias: lambda_b = 0. The bias then absorbs what all columns share, Z = I - (m/sum m) 1' (without scales
            or temperatures only).

    Returns:
        The geometry.

    Raises:
        ValueError: an entry is not positive and finite, lengths disagree, or a free bias is combined with scales.

    Example:
        >>> seli([100, 100, 10]).Z.round(2)
        array([[ 0.67, -0.33, -0.33],
               [-0.33,  0.67, -0.33],
               [-0.33, -0.33,  0.67]])
    """
    m = _positive("feature_mass", feature_mass)
    delta = np.ones_like(m) if scales is None else class_vector("scales", scales, positive=True)
    tau = np.ones_like(m) if temperatures is None else class_vector("temperatures", temperatures, positive=True)
    for name, value in (("scales", delta), ("temperatures", tau)):
        if value.shape != m.shape:
            raise ValueError(f"`{name}` must have one entry per class: got {value.size} for {m.size} classes")
    if free_bias and (scales is not None or temperatures is not None):
        raise ValueError("`free_bias` has a closed form only without `scales` and `temperatures`; leave them out")
    if free_bias:
        Z = np.eye(m.size) - (m / m.sum())[:, None]
    else:
        Z = (np.eye(m.size) - delta**-2 / np.sum(delta**-2)) / delta[:, None] / tau
    root = np.sqrt(m)
    U, s, Vt = np.linalg.svd(Z * root)
    rank = m.size - 1
    U, s, Vt = U[:, :rank], s[:rank], Vt[:rank]
    features = Vt / root
    off = ~np.eye(m.size, dtype=bool)
    tight = bool(np.all((U @ Vt)[off] <= 1e-12))
    return Geometry(Z, (U * s) @ U.T, (features.T * s) @ features, tight)


def seli_two_cluster_grams(k_a: int, k_b: int, n_a: float, n_b: float) -> tuple[Matrix, Matrix]:
    """SELI's Gram matrices for two clusters without a decomposition (no mitigation), A first.

    With n = (k_B n_A + k_A n_B)/K: W'W has the blocks sqrt(n_A)(I - J/k_A) + sqrt(n) k_B/(k_A K) J, the same
    with A and B exchanged, and -(sqrt(n)/K) J between; H'H has n^(-1/2) in place of n^(1/2).

    Returns:
        W'W and H'H, each (K, K), for Z = I - J/K exactly.

    Raises:
        ValueError: an argument is not positive.

    Example:
        >>> W, H = seli_two_cluster_grams(1, 1, 4, 4)
        >>> W
        array([[ 1., -1.],
               [-1.,  1.]])
    """
    must_be_positive(k_a=k_a, k_b=k_b, n_a=n_a, n_b=n_b)
    K = k_a + k_b
    mean = (k_b * n_a + k_a * n_b) / K

    def gram(power: float) -> Matrix:
        shared = mean**power
        G = np.full((K, K), -shared / K)
        for part, k, n, other in (
            (slice(None, k_a), k_a, n_a, k_b),
            (slice(k_a, None), k_b, n_b, k_a),
        ):
            G[part, part] = n**power * (np.eye(k) - 1 / k) + shared * other / (k * K)
        return G

    return gram(0.5), gram(-0.5)


def large_sample_margins(class_counts: ArrayLike, lambda_z: float, *, free_bias: bool = False) -> Matrix:
    """The margins z_kk - z_lk + b_k - b_l for many samples: log(sqrt(n_k) / (N lambda_z |Q_lk|)).

    Q is the orthogonal polar factor of (I - J/K) D^(1/2), or of (I - (n/N) 1') D^(1/2) with a free bias. The error is
    o(1) as N grows with N lambda_z and the ratios of counts fixed, whatever finite or infinite lambda_b > 0.

    Args:
        class_counts: n, shape (K,), > 0.
        lambda_z: > 0.
        free_bias: lambda_b = 0.

    Returns:
        Shape (K, K), [l, k]; 0 on the diagonal.

    Raises:
        ValueError: an argument is not positive and finite.

    Example:
        >>> large_sample_margins([1e6, 1e6], 1e-6).round(2)
        array([[0.  , 6.91],
               [6.91, 0.  ]])
    """
    n = _positive("class_counts", class_counts)
    must_be_positive(lambda_z=lambda_z)
    centre = n / n.sum() if free_bias else np.full(n.size, 1 / n.size)
    return _polar_margins(np.eye(n.size) - centre[:, None], n, n.sum() * lambda_z)


def _polar_margins(Z: Matrix, n: Vector, level: float) -> Matrix:
    """log(sqrt(n_k) / (level |Q_lk|)), Q the orthogonal polar factor of Z D^(1/2) of rank K - 1; 0 on the diagonal."""
    U, _, Vt = np.linalg.svd(Z * np.sqrt(n))
    Q = U[:, :-1] @ Vt[:-1]
    np.fill_diagonal(Q, 1.0)
    margins = np.log(np.sqrt(n) / (level * np.abs(Q)))
    np.fill_diagonal(margins, 0.0)
    return margins


def etf_slope(shares: ArrayLike, level: float) -> Matrix:
    """The constant of Theorem 5: the limit of (cosine of two columns of Z + 1/(K - 1)) log N as N grows.

    First order in the margins' constants c_lk = log(sqrt(n_k/N)/(level |Q_lk|)), Q the polar factor of (I - J/K)
    D^(1/2): with v_k = e_k - 1/K and w_k = mean(c_k) - c_k, the cosine moves by 2/log N times (<v_i, w_j> + <w_i,
    v_j>)/|v|^2 + (<v_i, w_i> + <v_j, w_j>)/((K - 1)|v|^2). The penalty of the bias does not enter as long as it is > 0.

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
    n = _positive("shares", shares)
    K = n.size
    c = large_sample_margins(n / n.sum(), level)
    v, w = np.eye(K) - 1 / K, c.mean(axis=0) - c
    square = (K - 1) / K
    cross = v.T @ w
    own = np.diag(cross)
    slope = 2 * ((cross + cross.T) / square + np.add.outer(own, own) / ((K - 1) * square))
    np.fill_diagonal(slope, 0.0)
    return slope


def self_consistent_cosines(shares: ArrayLike, level: float, num_samples: float) -> Matrix:
    """Cosines of the columns of Z at N samples, from margins whose polar factor is that of Z itself.

    It has all orders in 1/log N; only O(N^-1/2) and the bias are left out.

    Args:
        shares: n_k/N up to a factor, shape (K,), > 0.
        level: N lambda_z > 0.
        num_samples: N.

    Returns:
        Shape (K, K).

    Raises:
        ValueError: a share is not positive and finite.
        ArithmeticError: the margins did not converge; N is too small for the expansion.

    Example:
        >>> print(self_consistent_cosines([2, 2, 1, 1], 0.1, 1e12)[0, 1].round(4))
        -0.363
    """
    n = _positive("shares", shares)
    n = n / n.sum()
    Z = np.eye(n.size) - 1 / n.size
    half_log = 0.5 * np.log(num_samples) * (1 - np.eye(n.size))
    for _ in range(MAX_STEPS):
        margins = _polar_margins(Z, n, level) + half_log
        change = margins.mean(axis=0) - margins - Z
        Z = Z + 0.5 * change  # half steps: the full map overshoots for small N
        if np.max(np.abs(change)) <= 1e-13 * np.max(np.abs(Z)):
            return column_cosines(Z)
    raise ArithmeticError(f"`num_samples` = {num_samples:g} is too small for the expansion in 1/log N")


def etf_cosine(num_classes: int) -> float:
    """The cosine between two columns of the simplex ETF, -1/(K - 1): where Fig. 9 of the paper ends.

    Raises:
        ValueError: fewer than two classes.

    Example:
        >>> round(etf_cosine(10), 6)
        -0.111111
    """
    etf = simplex_etf(num_classes)
    return float(etf[0, 1] / etf[0, 0])


def column_cosines(Z: ArrayLike) -> Matrix:
    """Cosines between the columns of Z, shape (K, K); NaN where a column is zero.

    Example:
        >>> column_cosines([[1.0, 0.0], [-1.0, 0.0]])
        array([[ 1., nan],
               [nan, nan]])
    """
    z = np.asarray(Z, dtype=np.float64)
    norms = np.linalg.norm(z, axis=0)
    with np.errstate(invalid="ignore"):
        unit = z / np.where(norms > 0, norms, np.nan)
    return unit.T @ unit


def _positive(name: str, values: ArrayLike) -> Vector:
    array = class_vector(name, values, positive=True)
    if array.size < 2:
        raise ValueError(f"`{name}` must have one entry for each of at least two classes, got shape {array.shape}")
    return array
