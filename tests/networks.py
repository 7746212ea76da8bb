"""Networks built by hand from closed forms, which share no code with the solver: heads, features, labels."""

from __future__ import annotations

import numpy as np

from collapsar.diagnose.measurement import Measurement, measure
from collapsar.theory.two_cluster import two_cluster

RNG = np.random.default_rng


def signed_network(k_a=5, k_b=5, n_a=500, n_b=100, lambda_z=0.0027, lambda_b=0.02, lambda_w=0.01, dim=16):
    """The paper's optimum (closed form) as a head and one feature per class: W'H = Z by the SVD of Z M^(1/2)."""
    closed = two_cluster(k_a, k_b, n_a, n_b, lambda_z, lambda_b)
    counts = np.repeat([n_a, n_b], (k_a, k_b))
    U, sigma, Vt = np.linalg.svd(closed.Z() * np.sqrt(counts))
    scale = (lambda_z**2 / lambda_w / lambda_w) ** 0.25  # (lambda_h / lambda_w)^(1/4)
    turn = np.linalg.qr(RNG(0).normal(size=(dim, dim)))[0][:, : k_a + k_b]
    W = (U * np.sqrt(sigma)) @ turn.T * scale
    H = ((np.sqrt(sigma)[:, None] * Vt).T / np.sqrt(counts)[:, None]) @ turn.T / scale
    return counts, W, H, closed.bias()


def nonnegative_network(counts, lambda_z, lambda_w=0.1, dim=None):
    """Without bias (Dang et al., ICML 2024): z_k = M_k (e_k - 1/K), features orthogonal and >= 0."""
    counts = np.asarray(counts)
    K, N = len(counts), counts.sum()
    t = N * lambda_z * np.sqrt((K - 1) / (K * counts))
    M = np.log(np.maximum((K - 1) * (1 / t - 1), 1.0))
    lambda_h = lambda_z**2 / lambda_w
    H = np.zeros((K, dim or K))
    H[:, :K] = np.diag(np.sqrt(np.sqrt((K - 1) * lambda_w / (K * lambda_h * counts)) * M))
    W = np.zeros_like(H)
    alive = M > 0
    Z = M * (np.eye(K) - 1 / K)
    W[:, :K][:, alive] = Z[:, alive] / np.diag(H)[alive]
    return counts, W, H


def samples(counts, H, noise=0.0):
    labels = np.repeat(np.arange(len(counts)), counts)
    return H[labels] + noise * RNG(1).normal(size=(len(labels), H.shape[1])), labels


def measured(counts, W, H, b=None, noise=0.0) -> Measurement:
    return measure(*samples(counts, H, noise), W, b)
