"""Exact optima of the neighbouring models: layer-peeled, squared error, no bias, other balanced losses.

Each is a closed form or a scalar root, so that the thresholds of all models can be put beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log1p, sqrt

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.types import Matrix, Vector
from collapsar.theory.two_cluster import Side, TwoCluster, optimum_of_sides
from collapsar_studies.roots import root_between

# --- layer-peeled model (Fang et al., PNAS 2021)


def layer_peeled(k_a: int, k_b: int, ratio: float, e_w: float, e_h: float) -> tuple[TwoCluster, float]:
    """The layer-peeled optimum for two clusters: cross-entropy under (1/K)||W||^2 <= E_W, (1/K) sum ||h_k||^2 <= E_H.

    It is the program with ||Z||_* <= K sqrt(E_W E_H), feature mass 1 and no bias; the price is the
    multiplier.

    Args:
        k_a: classes in A.
        k_b: classes in B.
        ratio: n_A / n_B.
        e_w: E_W > 0.
        e_h: E_H > 0.

    Returns:
        The optimum and the multiplier lambda_z of the nuclear norm.

    Raises:
        ValueError: an argument is not positive and finite.

    Example:
        >>> layer_peeled(5, 5, 20.0, 1.0, 5.0)[0].state, layer_peeled(5, 5, 10.0, 1.0, 5.0)[0].state
        ('merged', 'apart')
    """
    _positive(k_a=k_a, k_b=k_b, ratio=ratio, e_w=e_w, e_h=e_h)
    budget = (k_a + k_b) * sqrt(e_w * e_h)

    def excess(log_lambda: float) -> float:
        return _peeled_norm(_peeled(k_a, k_b, ratio, exp(log_lambda))) - budget

    # no class has a loss share above 1, so that at lambda_z = 1 nothing is left
    high, low = 0.0, -1.0
    while not excess(low) > 0:
        low *= 2
    lambda_z = exp(root_between(excess, low, high))
    return _peeled(k_a, k_b, ratio, lambda_z), lambda_z


def layer_peeled_ratio(k_a: int, k_b: int, e_w: float, e_h: float) -> float:
    """The sharp imbalance n_A / n_B from which on the layer-peeled model merges B's classes.

    At the edge the multiplier equals B's loss share, lambda_z = q_B, and the nuclear norm there equals the
    budget.

    Args:
        k_a: classes in A.
        k_b: classes in B, >= 2.
        e_w: E_W > 0.
        e_h: E_H > 0.

    Returns:
        The ratio R*.

    Raises:
        ValueError: an argument is not positive and finite.

    Example:
        >>> round(layer_peeled_ratio(5, 5, 1.0, 5.0), 2)
        12.19
    """
    _positive(k_a=k_a, k_b=k_b, e_w=e_w, e_h=e_h)
    budget = (k_a + k_b) * sqrt(e_w * e_h)

    def excess(log_ratio: float) -> float:
        ratio = exp(log_ratio)
        return _peeled_norm(_peeled(k_a, k_b, ratio, 1 / (k_a * ratio + k_b))) - budget

    high = 1.0
    while not excess(high) > 0:
        high *= 2
    return exp(root_between(excess, 1e-9, high))


def _peeled(k_a: int, k_b: int, ratio: float, lambda_z: float) -> TwoCluster:
    total = k_a * ratio + k_b
    return optimum_of_sides(
        Side(k_a, 1.0, ratio / total, k_b, 1.0, lambda_z), Side(k_b, 1.0, 1 / total, k_a, 1.0, lambda_z), inf
    )


def _peeled_norm(s: TwoCluster) -> float:
    return float(np.linalg.svd(s.Z(), compute_uv=False).sum())


# --- squared error


@dataclass(frozen=True)
class DeepLinear:
    """Optimum of the deep linear model with squared error: Z = diag(amplitude).

    Attributes:
        amplitude: shape (K,), the prediction of a class for itself (1 is perfect); 0 where collapsed.
        level: shape (K,), b / n_k of the source; the class collapses where it exceeds ``limit``.
        limit: (M - 1)^((M - 1)/M) / M.
        spinodal: beyond this level the separated state is not even a local minimum; ``limit`` for M = 1.
    """

    amplitude: Vector
    level: Vector
    limit: float
    spinodal: float


def mse_deep_linear(class_counts: ArrayLike, lambda_w: float, lambda_h: float, depth: int = 1) -> DeepLinear:
    """Squared error, ``depth`` linear layers on free features, no bias (Dang et al., ICML 2023).

    The objective is (1/2N)||W_M ... W_1 H - Y||^2 + (lambda_w/2) sum ||W_l||^2 + (lambda_h/2)||H||^2.
    Classes decouple. With b = M N (N lambda_w^M lambda_h)^(1/M), x the largest root of b/n_k = M
    x^(M-1)/(x^M + 1)^2, the amplitude is x^M/(x^M + 1); for M >= 2 it jumps to zero, for M = 1 it is (1 - N
    lambda_z/sqrt(n_k))_+.

    Args:
        class_counts: n, shape (K,), > 0.
        lambda_w: > 0, of every layer.
        lambda_h: > 0.
        depth: M >= 1.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> mse_deep_linear([100, 25], 0.002, 0.002).amplitude
        array([0.975, 0.95 ])
    """
    n = _counts(class_counts)
    _positive(lambda_w=lambda_w, lambda_h=lambda_h, depth=depth)
    M, N = int(depth), float(n.sum())
    if depth != M:
        raise ValueError(f"`depth` must be a whole number, got {depth!r}")
    level = M * N * (N * lambda_w**M * lambda_h) ** (1 / M) / n
    limit = (M - 1) ** ((M - 1) / M) / M
    peak = ((M - 1) / (M + 1)) ** (1 / M)

    def response(x: float) -> float:
        return M * x ** (M - 1) / (x**M + 1) ** 2

    def amplitude(value: float) -> float:
        if value > limit or (M == 1 and value >= 1):
            return 0.0
        high = max(2 * peak, 1.0)
        while response(high) > value:
            high *= 2
        power = root_between(lambda x: response(x) - value, peak, high) ** M
        return power / (power + 1)

    return DeepLinear(np.array([amplitude(float(v)) for v in level]), level, limit, response(peak))


@dataclass(frozen=True)
class FreeBias:
    """Optimum of squared error with a free bias.

    Attributes:
        Z: shape (K, K), without the bias.
        b: shape (K,).
        rank: of Z, from the singular values before shrinkage.
    """

    Z: Matrix
    b: Vector
    rank: int


def mse_free_bias(class_counts: ArrayLike, lambda_z: float) -> FreeBias:
    """Squared error with a free bias: Z D^(1/2) = SVT((I - (n/N) 1') D^(1/2)) at N lambda_z (Liu, 2024).

    The objective is (1/2N) sum_k n_k ||z_k + b - e_k||^2 + lambda_z ||Z D^(1/2)||_*; SVT shrinks singular
    values.

    Args:
        class_counts: n, shape (K,), > 0.
        lambda_z: > 0.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> mse_free_bias([10, 10], 0.5).rank
        0
    """
    n = _counts(class_counts)
    _positive(lambda_z=lambda_z)
    share, root = n / n.sum(), np.sqrt(n)
    U, s, Vt = np.linalg.svd((np.eye(n.size) - share[:, None]) * root)
    left = np.maximum(s - n.sum() * lambda_z, 0.0)
    left[-1] = 0.0  # the column space misses one dimension exactly
    Z = (U * left) @ Vt / root
    return FreeBias(Z, share - Z @ share, int(np.count_nonzero(left)))


# --- nonnegative features without bias (Dang et al., ICML 2024)


@dataclass(frozen=True)
class ReluWithoutBias:
    """z_k = amplitude_k (e_k - 1/K), features orthogonal.

    Attributes:
        amplitude: shape (K,).
        feature_norm: shape (K,), ||h_k||.
        vanish: shape (K,), lambda_z from which on the class is zero.
    """

    amplitude: Vector
    feature_norm: Vector
    vanish: Vector


def relu_without_bias(class_counts: ArrayLike, lambda_w: float, lambda_h: float) -> ReluWithoutBias:
    """Cross-entropy, nonnegative features, no bias: every class by itself (Dang et al., ICML 2024).

    With t_k = N lambda_z sqrt((K - 1)/(K n_k)): amplitude log((K - 1)(1/t_k - 1))_+, ||h_k||^2 =
    sqrt((K - 1) lambda_w/(K lambda_h n_k)) times it, zero iff lambda_z >= sqrt(n_k (K - 1)/K)/N.

    Args:
        class_counts: n, shape (K,), > 0.
        lambda_w: > 0.
        lambda_h: > 0.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> relu_without_bias([100, 100, 4], 1e-2, 1e-4).amplitude.round(2)
        array([4.77, 4.77, 3.09])
    """
    n = _counts(class_counts)
    _positive(lambda_w=lambda_w, lambda_h=lambda_h)
    K = n.size
    vanish = np.sqrt(n * (K - 1) / K) / n.sum()
    t = sqrt(lambda_w * lambda_h) / vanish * (K - 1) / K  # N lambda_z sqrt((K - 1)/(K n))
    odds = (K - 1) * (1 / np.minimum(t, 1.0) - 1)
    amplitude = np.log(np.maximum(odds, 1.0))
    norm = np.sqrt(np.sqrt((K - 1) * lambda_w / (K * lambda_h * n)) * amplitude)
    return ReluWithoutBias(amplitude, norm, vanish)


# --- balanced amplitudes of other losses (Zhou et al., NeurIPS 2022)


def balanced_smoothing(num_classes: int, samples: float, lambda_z: float, smoothing: float) -> float:
    """The alpha of the balanced optimum under label smoothing, signed features.

    It solves (1 - eps) - (p_own - p_other) = N lambda_z/sqrt(n).

    Returns:
        alpha of Z = alpha (I - J/K); 0 from lambda_z = (1 - eps) sqrt(n)/N on.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> round(balanced_smoothing(10, 50, 1e-9, 0.1), 3)
        4.511
    """
    _positive(samples=samples, lambda_z=lambda_z)
    K = _classes(num_classes)
    if not 0 <= smoothing < 1:
        raise ValueError(f"`smoothing` must be in [0, 1), got {smoothing!r}")
    apart = 1 - smoothing - K * sqrt(samples) * lambda_z
    return log1p(K * apart / (1 - apart)) if apart > 0 else 0.0


def balanced_focal(num_classes: int, samples: float, lambda_z: float, gamma: float) -> float:
    """The alpha of the balanced optimum under the focal loss -(1 - p)^gamma log p, signed, Z = alpha (I - J/K).

    Stationarity: (1 - p)^(gamma + 1) - gamma p (1 - p)^gamma log p = (K - 1) sqrt(n) lambda_z. For gamma > 0
    the left side may rise before it falls, so that collapse can be a jump; the better of the two states is
    returned.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> round(balanced_focal(10, 50, 0.002, 0.0), 6) == round(balanced_smoothing(10, 50, 0.002, 0.0), 6)
        True
    """
    _positive(samples=samples, lambda_z=lambda_z)
    K = _classes(num_classes)
    if not 0 <= gamma < inf:
        raise ValueError(f"`gamma` must be finite and >= 0, got {gamma!r}")
    price = (K - 1) * sqrt(samples) * lambda_z

    def pull(alpha: float) -> float:
        miss = (K - 1) / (exp(alpha) + K - 1)
        p = 1 - miss
        return miss ** (gamma + 1) - gamma * p * miss**gamma * log1p(-miss) - price

    def objective(alpha: float) -> float:
        miss = (K - 1) / (exp(alpha) + K - 1)
        return -(miss**gamma) * log1p(-miss) + price * alpha

    grid = np.linspace(0, 60, 6001)
    pulls = np.array([pull(float(a)) for a in grid])
    falls = np.flatnonzero((pulls[:-1] > 0) & (pulls[1:] <= 0))  # minima of the objective
    candidates = [0.0, *(root_between(pull, float(grid[i]), float(grid[i + 1])) for i in falls)]
    return min(candidates, key=objective)


def _positive(**arguments: float) -> None:
    for name, value in arguments.items():
        if not 0 < value < inf:
            raise ValueError(f"`{name}` must be finite and > 0, got {value!r}")


def _classes(num_classes: int) -> int:
    if not num_classes >= 2:
        raise ValueError(f"`num_classes` must be >= 2, got {num_classes!r}")
    return num_classes


def _counts(values: ArrayLike) -> Vector:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < 2 or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"`class_counts` must be at least two finite numbers > 0, got {values!r}")
    return array
