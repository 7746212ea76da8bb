"""Heads for the tests of the audit: healthy ones, and ones with dead rows of every kind planted in them."""

from __future__ import annotations

import numpy as np
import pytest

from collapsar.diagnose.reach import Reach

KINDS: tuple[str, ...] = ("identical", "near", "shrunk", "initial", "inside")


def healthy(rng: np.random.Generator, K: int, d: int, decay: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows like those of trained heads: a spectrum that falls off, lengths and biases that follow class frequency."""
    spectrum = np.arange(1, d + 1) ** (-0.5 * decay)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    frequency = np.log(1 / np.arange(1, K + 1))[rng.permutation(K)]
    lengths = 3 * np.exp(0.03 * frequency + 0.1 * rng.standard_normal(K))
    rows = rng.standard_normal((K, d)) * spectrum
    rows *= (lengths / np.linalg.norm(rows, axis=1))[:, None]
    return rows @ rotation, 0.1 * frequency + 0.1 * rng.standard_normal(K)


def check_proof(W: np.ndarray, b: np.ndarray, found: Reach, k: int, scale: float) -> None:
    """The weights of the rivals prove that class k cannot win: plain arithmetic on the rows as they were given."""
    p = np.zeros(len(W))
    p[found.rivals[k]] = found.multipliers[k]
    assert p.min() >= 0
    assert p[k] == 0
    assert p.sum() == pytest.approx(1, abs=1e-12)
    mismatch, ahead = W[k] - p @ W, b[k] - p @ b
    if found.space == "free":
        assert np.linalg.norm(mismatch) <= 1.001e-6 * scale
    elif found.space == "nonnegative":
        assert np.linalg.norm(mismatch.clip(0)) <= 1.001e-6 * scale
    else:
        ahead += float(found.space) * np.linalg.norm(mismatch) - 1e-6 * float(found.space) * scale
    assert ahead <= 1.001e-6


def planted(
    rng: np.random.Generator, K: int, d: int, each: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """A healthy head with ``each`` rows of every kind of death, and where they are."""
    W, b = healthy(rng, K, d)
    places = rng.permutation(K)[: 5 * each].reshape(5, each)
    where: dict[str, np.ndarray] = dict(zip(KINDS, places, strict=True))
    rest = np.setdiff1d(np.arange(K), places)
    W[where["identical"]] = W[where["identical"][0]] * (1 + 1e-8 * rng.standard_normal((each, 1)))
    near = rng.standard_normal((each, d))
    near *= 0.004 * np.linalg.norm(W, axis=1).max() / np.linalg.norm(near, axis=1, keepdims=True)
    W[where["near"]] = W[where["near"][0]] + near
    W[where["initial"]] = rng.uniform(-1, 1, (each, d)) / np.sqrt(d)
    W[where["shrunk"]] = 0
    for k in where["inside"]:  # inside the hull of five others, with a smaller bias than theirs
        others = rng.choice(rest, 5, replace=False)
        p = rng.dirichlet(np.ones(5))
        W[k], b[k] = p @ W[others], p @ b[others] - 0.01
    W[where["shrunk"]] = W.mean(axis=0) * K / (K - each) + 1e-4 * rng.standard_normal((each, d))
    return W, b, where
