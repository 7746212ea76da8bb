"""Records behind two pictures: the collapse thresholds of all models side by side, and descent past the saddles."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

import collapsar as cs
from collapsar.core.types import Record
from collapsar.theory import landscape
from collapsar_studies.deep import deep_column
from collapsar_studies.siblings import layer_peeled_ratio, mse_deep_linear

Row = dict[str, Any]
INF = float("inf")

COUNTS = (5, 5, 500, 100)


def models_record() -> Record:
    """When each model merges, drops and collapses, for one set of counts, on the axis of one penalty.

    The penalty is that of every factor, lambda_w = lambda_h, which is lambda_z where there are two factors. "merge":
    the minority's columns become equal; "vanish": zero; "complete": everything is; for models that jump these are
    switches of the global optimum, and "spinodal" is where the separated state of the minority ceases to exist even
    locally.
    """
    k_a, k_b, n_a, n_b = COUNTS
    n = np.repeat([n_a, n_b], (k_a, k_b))
    signed = cs.Problem(n, 1.0, 0.02)
    equal = np.full(n.size, n.sum() / n.size)
    rows = [
        _cross_entropy("signed features, λ_b = 0.02", signed),
        _cross_entropy("signed features, no bias", signed.replace(lambda_b=INF)),
        _cross_entropy("nonnegative features, λ_b = 0.02", signed.replace(features="nonnegative")),
        _cross_entropy("nonnegative features, no bias", signed.replace(lambda_b=INF, features="nonnegative")),
        _cross_entropy("layer-peeled: penalty per class", signed.replace(lambda_b=INF, feature_mass=equal)),
        *(_deep_cross_entropy(n, depth) for depth in (3, 4)),
        _squared_error_free_bias(n),
        *(_deep_squared_error(n, depth) for depth in (1, 2, 3)),
    ]
    return {
        "setting": list(COUNTS),
        "rows": rows,
        "layer_peeled_ratio": {"e_w": 1.0, "e_h": 5.0, "ratio": layer_peeled_ratio(k_a, k_b, 1.0, 5.0)},
    }


def _row(group: str, words: str, **values: float) -> Row:
    return {"group": group, "words": words, **dict.fromkeys(("merge", "vanish", "complete", "spinodal")), **values}


def _cross_entropy(words: str, problem: cs.Problem) -> Row:
    t = cs.thresholds(problem)
    return _row("cross-entropy", words, merge=t.merge[-1], vanish=t.vanish[-1], complete=t.complete)


def _deep_cross_entropy(n: np.ndarray, depth: int) -> Row:
    """L factors, nonnegative features in column form, no bias: every class by itself."""

    def penalties(k: int) -> tuple[float, float]:
        state = deep_column(float(n[k] / n.sum()), 1.0, depth, np.zeros(n.size), k)
        per_price = 2 / depth / float(n[k]) ** (1 / depth)  # price = (L/2) lambda n^(1/L)
        return state.switch * per_price, state.spinodal * per_price

    small, large = penalties(-1), penalties(0)
    words = f"{depth} factors, nonnegative, no bias"
    return _row("cross-entropy", words, vanish=small[0], spinodal=small[1], complete=max(small[0], large[0]))


def _deep_squared_error(n: np.ndarray, depth: int) -> Row:
    """M layers on free features, no bias: classes decouple."""
    limits = mse_deep_linear(n, 1.0, 1.0, depth)

    def penalty(level: float, k: int) -> float:  # level = M N (N lambda^(M + 1))^(1/M) / n_k
        return float(((level * n[k] / (depth * n.sum())) ** depth / n.sum()) ** (1 / (depth + 1)))

    values = {"vanish": penalty(limits.limit, -1), "complete": penalty(limits.limit, 0)}
    if depth > 1:
        values["spinodal"] = penalty(limits.spinodal, -1)
    return _row("squared error", f"{depth + 1} factors, no bias", **values)


def _squared_error_free_bias(n: np.ndarray) -> Row:
    """Soft thresholding of (I - (n/N) 1') D^(1/2): contrasts within clusters, and one direction between them."""
    k_a, k_b, n_a, n_b = COUNTS
    X = (np.eye(n.size) - (n / n.sum())[:, None]) * np.sqrt(n)
    u = np.repeat(np.eye(2), (k_a, k_b), axis=0) / np.sqrt([k_a, k_b])
    between = float(np.linalg.norm(u.T @ X @ u, 2))
    small, large = np.sqrt(n_b), np.sqrt(n_a)
    return _row(
        "squared error",
        "2 factors, free bias",
        merge=small / n.sum(),
        vanish=max(small, between) / n.sum(),
        complete=max(large, between) / n.sum(),
    )


# --- the landscape


def landscape_record(lambda_z: float = 0.0029, steps: int = 1501) -> Record:
    """Gradient descent on (W, H, b) from near zero: it rests at saddles, which the spectral norm names, and leaves."""
    k_a, k_b, n_a, n_b = COUNTS
    problem = cs.Problem([n_a] * k_a + [n_b] * k_b, lambda_z, 0.02)
    n, q, K, d = problem.mass, problem.loss_share, problem.num_classes, 12
    generator = np.random.default_rng(0)
    W, G = 1e-9 * generator.standard_normal((2, d, K))  # G = H D^(1/2), so that both factors have one penalty
    b = np.zeros(K)
    optimum = cs.solve(problem).certificate.dual
    trace = []
    for step in range(steps):
        H = G / np.sqrt(n)
        if step % 10 == 0:
            found = landscape(problem, W, H, b, lambda_w=lambda_z, tol=5e-5)
            certificate = cs.certify(problem, W.T @ H, b)
            price = 0.5 * lambda_z * float(np.sum(W**2) + np.sum(G**2))
            logits = W.T @ H + b[:, None]
            loss = float(q @ (np.logaddexp.reduce(logits, axis=0) - np.diag(logits))) + 0.01 * float(b @ b)
            trace.append(
                {
                    "step": step,
                    "excess": loss + price - optimum,
                    "gap": certificate.gap,
                    "rank": int(np.sum(np.linalg.svd(W.T @ G, compute_uv=False) > 1e-3)),
                    "spectral_norm": found.spectral_norm,
                    "verdict": found.verdict.name.lower(),
                    "curvature": found.curvature,
                }
            )
        logits = W.T @ H + b[:, None]
        P = np.exp(logits - np.logaddexp.reduce(logits, axis=0))
        R = (np.eye(K) - P) * q
        W, G = W + 50 * (H @ R.T - lambda_z * W), G + 50 * (W @ R / np.sqrt(n) - lambda_z * G)
        b = b + 4 * (R.sum(axis=1) - 0.02 * b)
    t = cs.thresholds(problem)
    return {
        "setting": list(COUNTS),
        "lambda_z": lambda_z,
        "lambda_b": 0.02,
        "merge": t.merge[-1],
        "complete": t.complete,
        "trace": trace,
        "rests": _rests(trace, 1.01 * lambda_z),
    }


def _rests(trace: list[Record], norm: float) -> list[Record]:
    """Where descent stays at one saddle. Spectral norms up to ``norm`` are the approach to the optimum, not a rest."""
    runs = [(key, list(group)) for key, group in groupby(trace, lambda row: (row["verdict"], row["rank"]))]
    return [
        {
            "first_step": group[0]["step"],
            "last_step": group[-1]["step"],
            "rank": rank,
            **{name: group[-1][name] for name in ("excess", "spectral_norm", "curvature")},
        }
        for (verdict, rank), group in runs
        if verdict == "saddle" and len(group) > 1 and group[-1]["spectral_norm"] > norm
    ]
