"""Writes tests/data/explorer_cases.json: problems of the explorer and what ``collapsar`` says of them.

    python tests/make_explorer_cases.py

The page solves the same problems in JavaScript, and tests compare. Random, the same for the same seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import collapsar as cs

DATA = Path(__file__).parent / "data" / "explorer_cases.json"
NUM_CASES, SEED = 320, 20240925
FIGURES = [
    *[((5, 5), (500, 100), z, 0.02) for z in (0.0027, 0.003, 0.0033, 0.0039, 0.0045, 0.0051, 0.0063, 0.0069, 0.0075)],
    *[((3, 7), (500, 100), z, 0.02) for z in (0.0037, 0.0045, 0.0062, 0.0086, 0.0102)],
    *[((5, 5), (n, 100), 0.005, 0.02) for n in (100, 300, 600, 1100, 1400)],
    *[((3, 7), (n, 100), 0.005, 0.02) for n in (400, 450, 1000, 2500)],
    *[((5, 5), (n, n / 2), 0.1 / (7.5 * n), 0.02) for n in (500, 2500, 5500)],
    ((4, 3, 3), (5000, 4000, 3000), 6.3e-5, 0.02),
    ((4, 2, 4), (5000, 3000, 1000), 6.3e-5, 0.02),
]


def problem_of(case: dict[str, Any]) -> cs.Problem:
    """The problem of a case, in the form of the page, as a value of the package."""
    groups = case["groups"]
    vectors = {name: np.concatenate([[g[name]] * g["k"] for g in groups]) for name in groups[0] if name != "k"}
    n = vectors["n"].astype(int)
    loss = cs.Loss(
        vectors["share"] / n, vectors["iota"], vectors["delta"], vectors["tau"], smoothing=case["eps"]
    )  # share is q: weights q / n give it back
    return cs.Problem(n, case["lambdaZ"], float(case["lambdaB"]), loss, vectors["mass"], case["features"])


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """What the package says: entries of Z and b per group, states, objective, thresholds."""
    problem = problem_of(case)
    s, t = cs.solve(problem, 1e-12, throw=False), cs.thresholds(problem)  # Z errs by more than the gap
    first = np.cumsum([0] + [g["k"] for g in case["groups"]])[:-1]
    Z, b = s.Z, s.b
    if problem.lambda_b == 0:  # unique up to a shift along 1 / delta: the one with sum_k b_k / delta_k = 0
        b = b - np.sum(b / problem.scales) / np.sum(problem.scales**-2.0) / problem.scales
    last = first + [g["k"] - 1 for g in case["groups"]]
    return {
        "status": s.status.name,
        "own": Z[first, first].tolist(),
        "other": Z[np.ix_(last, first)].tolist(),  # a sibling on the diagonal, or the class itself if alone
        "b": b[first].tolist(),
        "primal": s.certificate.primal,
        "states": [s.class_states[k] for k in first],
        "merge": _defined(t.merge[first]),
        "vanish": _defined(t.vanish[first]),
        "exact": t.exact[first].tolist(),
        "complete": t.complete,
    }


def _defined(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(x) else float(x) for x in values]


def _case(k: Any, n: Any, lambda_z: float, lambda_b: float, features: str, **remedy: Any) -> dict[str, Any]:
    k, n = np.asarray(k), np.asarray(n, dtype=float)
    one = np.ones(k.size)
    s, w = remedy.get("s", one), remedy.get("w", one)
    share = s * w * n / np.sum(k * s * w * n)
    mass = s * n * (np.sum(k * n) / np.sum(k * s * n) if remedy.get("held") else 1.0)
    columns = {
        "n": n,
        "share": share,
        "mass": mass,
        "delta": remedy.get("delta", one),
        "tau": remedy.get("tau", one),
        "iota": remedy.get("iota", 0 * one),
    }
    groups = [{"k": int(k[j]), **{name: float(v[j]) for name, v in columns.items()}} for j in range(k.size)]
    price = "inf" if lambda_b == np.inf else float(lambda_b)
    return {
        "groups": groups,
        "eps": float(remedy.get("eps", 0.0)),
        "lambdaZ": float(lambda_z),
        "lambdaB": price,
        "features": features,
    }


def _random_case(rng: np.random.Generator, features: str) -> dict[str, Any]:
    J = int(rng.choice([1, 2, 2, 2, 3, 3]))
    k = rng.integers(1, 13, J)
    k[0] = max(k[0], 2)
    n = np.round(10 ** rng.uniform(1, 3.7, J))
    lambda_b = float(rng.choice([0.0, 0.001, 0.02, 0.02, 0.3, np.inf, np.inf]))
    small = np.where(n == n.min(), 1.0, 0.0)
    remedy: dict[str, Any] = {}
    if rng.random() < 0.6:
        kind = rng.integers(6)
        if kind == 0:
            remedy = {"s": 1 + small * rng.uniform(0, 9), "held": bool(rng.random() < 0.5)}
        elif kind == 1:
            remedy = {"w": 1 + small * rng.uniform(0, 9)}
        elif kind == 2:
            remedy = {"iota": rng.uniform(0, 2) * np.log(n / np.sum(k * n))}
        elif kind == 3:
            remedy = {"delta": 1 - small * rng.uniform(0, 0.6)}
        elif kind == 4:
            remedy = {"eps": rng.uniform(0, 0.3)}
        else:
            remedy = {"tau": 1 + small * rng.uniform(0, 1.5), "w": 1 + small * rng.uniform(0, 3)}
    complete = cs.thresholds(problem_of(_case(k, n, 1.0, lambda_b, features, **remedy))).complete
    return _case(k, n, complete * 10 ** rng.uniform(-2, 0.05), lambda_b, features, **remedy)


def cases() -> list[dict[str, Any]]:
    """The problems: panels of the paper's figures in both models, then random ones."""
    rng = np.random.default_rng(SEED)
    models = ("signed", "nonnegative")
    panels = [_case(k, n, z, b, features) for k, n, z, b in FIGURES for features in models]
    return panels + [_random_case(rng, models[i % 2]) for i in range(NUM_CASES - len(panels))]


def main() -> None:
    DATA.parent.mkdir(exist_ok=True)
    rows = [json.dumps({"problem": case, "answer": answer(case)}, separators=(",", ":")) for case in cases()]
    DATA.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    print(f"{DATA.name}: {len(rows)} cases, {DATA.stat().st_size} bytes")


if __name__ == "__main__":
    main()
