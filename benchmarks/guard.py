"""Whether anything became slower: short rows, each the processor time of one piece of work over that of a reference.

    make bench-guard                                  # fails where a row exceeds its recorded ratio by a factor of 1.3
    python benchmarks/guard.py --record               # write benchmarks/guard.json anew
    python benchmarks/guard.py --against OTHER        # every row in this tree and in another one, in turns

References do the same kind of thing as the work, in numpy or torch alone and in the same process: singular value
decompositions, small array operations called from Python, or the bare products. One thread, the best of interleaved
repeats, every row in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
RECORD = HERE.with_name("guard.json")
LIMIT = 1.3
REPEATS = 5
ATTEMPTS = 3  # a busy machine can spoil a measurement, but no slow program passes by chance

Work = Callable[[], object]


def svds(K: int, count: int = 1) -> Work:
    A = np.random.default_rng(0).normal(size=(K, K))
    return lambda: [np.linalg.svd(A) for _ in range(count)]


def small_operations() -> None:
    x = np.linspace(-1, 1, 100).reshape(10, 10)
    for _ in range(3000):
        x = np.exp(np.minimum(x @ x, 0.0)) - x.sum(axis=0)
        x /= np.sqrt(np.sum(x**2))


def solve(text: str, lambda_z: float, features: str, tol: float = 1e-9) -> Work:
    import collapsar as cs

    problem = cs.Problem(text, lambda_z, 0.02, features=features)
    return lambda: cs.solve(problem, tol)


def solve_behind_norm(gain: bool) -> Work:
    """Eight sizes at four strengths of decay, with and without a bias; the features' length is given, or priced."""
    import collapsar as cs

    problems = [
        cs.Problem.from_gain_decay(EIGHT, lambda_w=0.1 * c, lambda_gain=0.01, lambda_b=lambda_b)
        if gain
        else cs.Problem.from_normalized(EIGHT, lambda_w=c, norm=1.0, lambda_b=lambda_b)
        for c in (0.001, 0.01, 0.1, 1.0)
        for lambda_b in (0.0, np.inf)
    ]
    return lambda: [cs.solve(p) for p in problems]


def thresholds_behind_norm(text: str) -> Work:
    import collapsar as cs

    problem = cs.Problem.from_normalized(text, lambda_w=1.0, norm=1.0, lambda_b=0.0)
    return lambda: cs.thresholds(problem)


def thresholds(text: str, features: str, lambda_b: float = 0.02) -> Work:
    import collapsar as cs

    problem = cs.Problem(text, 1.0, lambda_b, features=features)
    return lambda: cs.thresholds(problem)


def advise(text: str, lambda_z: float, features: str, lambda_b: float = 1e-3) -> Work:
    import collapsar as cs

    return lambda: cs.advise(cs.Problem(text, lambda_z, lambda_b, features=features))


def phase(x: str, y: str) -> Work:
    import collapsar as cs

    return lambda: cs.phase_diagram(x, y)


def pairs(K: int, d: int) -> tuple[Work, Work]:
    """Metrics over all pairs of classes, and the product of all pairs of their means."""
    import torch

    from collapsar.metrics import NeuralCollapse

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2 * K, d, generator=generator) + 10
    metric = NeuralCollapse(num_classes=K, num_features=d, within_scatter=False)
    metric.update(features, torch.arange(K).repeat(2))
    means = features[:K].double()
    return metric.compute, lambda: [means[i : i + 500] @ means.T for i in range(0, K, 500)]


def one_pass(n: int, d: int, K: int) -> tuple[Work, Work]:
    """One pass over features in batches, and its bare products in the precision of the moments."""
    import torch

    from collapsar.metrics import NeuralCollapse

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batches = (torch.randn(n, d, generator=generator) + 10).split(1024)
    labels = torch.randint(K, (n,), generator=generator).split(1024)
    metric = NeuralCollapse(num_classes=K, num_features=d)

    def run() -> None:
        metric.reset()
        for batch, its in zip(batches, labels, strict=True):
            metric.update(batch, its)

    def bare() -> None:
        gram, sums = torch.zeros(d, d, dtype=torch.float64), torch.zeros(K, d, dtype=torch.float64)
        for batch, its in zip(batches, labels, strict=True):
            rows = batch.double()
            gram.addmm_(rows.T, rows)
            sums.index_add_(0, its, rows)

    return run, bare


EIGHT = "5000,2600,1400,700,400,200,100,50"
OTHERS = "400,300,150,80,40,20,10,5"
ROWS: dict[str, Callable[[], tuple[Work, Work]]] = {
    "solve exp:5000:50:20, signed": lambda: (solve("exp:5000:50:20", 3e-4, "signed"), small_operations),
    "solve exp:50000:50:100, signed": lambda: (solve("exp:50000:50:100", 3e-6, "signed"), svds(100, 20)),
    "solve 8 sizes, shared directions": lambda: (solve(EIGHT, 1.2e-3, "nonnegative"), small_operations),
    "thresholds 500x5,100x5, signed": lambda: (thresholds("500x5,100x5", "signed"), small_operations),
    "thresholds exp:500:5:100, nonnegative": lambda: (thresholds("exp:500:5:100", "nonnegative"), svds(100, 50)),
    "the same, free bias": lambda: (thresholds("exp:500:5:100", "nonnegative", 0.0), svds(100, 50)),
    "solve 8 sizes behind a norm": lambda: (solve_behind_norm(gain=False), small_operations),
    "solve 8 sizes, decayed gain": lambda: (solve_behind_norm(gain=True), small_operations),
    "thresholds 500x5,300x4,100x5,20x3 behind a norm": lambda: (
        thresholds_behind_norm("500x5,300x4,100x5,20x3"),
        small_operations,
    ),
    "advise exp:5000:50:10, signed": lambda: (advise("exp:5000:50:10", 1e-3, "signed"), small_operations),
    "advise 8 sizes, nonnegative": lambda: (advise(EIGHT, 1.2e-3, "nonnegative"), small_operations),
    "advise 8 other sizes, nonnegative": lambda: (advise(OTHERS, 0.005, "nonnegative", 0.02), small_operations),
    "phase diagram, 100 x 100, lambda_z and r": lambda: (
        phase("lambda_z:1e-3:1e-2:100:log", "r:1:20:100"),
        small_operations,
    ),
    "phase diagram, 30 x 30, lambda_b and r": lambda: (phase("lambda_b:1e-3:1:30:log", "r:1:20:30"), small_operations),
    "pairs of 4000 classes, d = 256": lambda: pairs(4000, 256),
    "one pass over (10 000, 512), 100 classes": lambda: one_pass(10_000, 512, 100),
}
# Minutes in an older build: run once there.
ONCE = 5.0


def measured(name: str) -> dict[str, float]:
    """Best processor seconds of a row's work and of its reference, and the peak memory of this process.

    Empty where an older tree lacks what the row calls.
    """
    try:
        work, reference = ROWS[name]()
    except AttributeError:
        return {}
    best = [np.inf, np.inf]
    for n in range(REPEATS + 1):
        if n > 1 and best[0] > ONCE:
            break
        for i, call in enumerate((work, reference)):
            begin = time.process_time()
            call()
            if n or i == 0:  # the first calls also import, and count only where there is no second
                best[i] = min(best[i], time.process_time() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"seconds": best[0], "reference": best[1], "mib": peak}


def in_own_process(name: str, tree: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE), "--row", name], env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def verdict(ratio: float, recorded: float) -> bool:
    """Whether a row is as fast as it was, within the limit."""
    return ratio <= LIMIT * recorded


def guard(names: list[str]) -> int:
    """Exit code: 1 where a row is slower than recorded, however often it is measured."""
    recorded, slow = json.loads(RECORD.read_text(encoding="utf-8")), 0
    for name in names:
        ratio = np.inf
        for _ in range(ATTEMPTS):
            found = in_own_process(name, HERE.parents[1])
            ratio = min(ratio, found["seconds"] / found["reference"])
            if verdict(ratio, recorded[name]):
                break
        fine = verdict(ratio, recorded[name])
        slow += not fine
        print(f"{'ok  ' if fine else 'SLOW'} {name}: {ratio:.3g}, recorded {recorded[name]:.3g}", flush=True)
    return int(slow > 0)


def record(names: list[str]) -> None:
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for name in names:
        found = [in_own_process(name, HERE.parents[1]) for _ in range(2)]
        known[name] = float(f"{min(f['seconds'] / f['reference'] for f in found):.4g}")
        print(f"{name}: {known[name]:.4g}", flush=True)
    ordered = {name: known[name] for name in ROWS if name in known}
    RECORD.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def against(names: list[str], other: Path) -> None:
    """Rows of a table: seconds there and here, their ratio, and the memory of both processes."""
    print("| work | before | now | ratio | memory before | now |\n|---|---|---|---|---|---|")
    for name in names:
        there, here = in_own_process(name, other), in_own_process(name, HERE.parents[1])
        if not there:
            print(f"| {name} | not there | {here['seconds']:.3g} s | | | {here['mib']:.0f} MiB |", flush=True)
            continue
        cells = f"{there['seconds']:.3g} s | {here['seconds']:.3g} s | {there['seconds'] / here['seconds']:.3g}"
        print(f"| {name} | {cells} | {there['mib']:.0f} MiB | {here['mib']:.0f} MiB |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="rows whose names hold this text")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--against", type=Path)
    given = parser.parse_args()
    chosen = [name for name in ROWS if given.only in name]
    if given.row:
        print(json.dumps(measured(given.row)))
    elif given.record:
        record(chosen)
    elif given.against:
        against(chosen, given.against.resolve())
    else:
        sys.exit(guard(chosen))
