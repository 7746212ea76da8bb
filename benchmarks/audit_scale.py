"""How long an audit takes, and how much memory, beside a comparison of all pairs with numpy, in one run.

    python benchmarks/audit_scale.py             # K = 20 000, d = 512, and the ratio to all pairs on a part of it
    python benchmarks/audit_scale.py --large     # K = 200 000, d = 4096 in bfloat16 from disk (1.6 GB)
    python benchmarks/audit_scale.py --reach     # whether features make each class the answer, to K = 50 000, d = 768

Each part runs in a process of its own; memory is the growth of its peak over what it held before.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GROUPS, MEMBERS = 12, 15


def head(K: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows with a spectrum that falls off and lengths that follow frequency; twelve groups of fifteen coincide."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((K, d), dtype=np.float32)
    W *= (np.arange(1, d + 1) ** -0.25).astype(np.float32)
    W *= (np.exp(0.2 * rng.standard_normal(K)) / np.linalg.norm(W, axis=1))[:, None].astype(np.float32)
    places = rng.permutation(K)[: GROUPS * MEMBERS].reshape(GROUPS, MEMBERS)
    for members in places:
        W[members] = W[members[0]]
    return W


def measured(work) -> dict:
    """Its result with wall and processor time in seconds and memory in MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {
        "result": result,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def near(W: np.ndarray, tolerance: float) -> list:
    from collapsar.metrics.near_rows import groups_of, near_labels

    return groups_of(near_labels(W, tolerance))


def all_pairs(W: np.ndarray, tolerance: float) -> list:
    """The table of all distances by numpy, row by row, then the components of the near ones."""
    K = len(W)
    distances = np.empty((K, K), dtype=np.float32)
    for k in range(K):
        distances[k] = np.sqrt(np.square(W - W[k]).sum(axis=1))
    return components(distances, tolerance)


def one_product(W: np.ndarray, tolerance: float) -> list:
    """The same by one product of matrices: faster, and short of digits where rows are near."""
    squares = np.square(W).sum(axis=1)
    return components(np.sqrt(np.maximum(squares[:, None] + squares - 2 * W @ W.T, 0)), tolerance)


def components(distances: np.ndarray, tolerance: float) -> list:
    """Sets of rows joined by near pairs."""
    from scipy.sparse.csgraph import connected_components

    labels = connected_components(distances <= tolerance, directed=False)[1]
    groups = [tuple(np.flatnonzero(labels == g).tolist()) for g in np.flatnonzero(np.bincount(labels) > 1)]
    return sorted(groups, key=lambda group: (-len(group), group))


def part(name: str, K: int, d: int, path: str) -> dict:
    """One measurement, in this process."""
    if name == "audit":
        import collapsar as cs

        W = head(K, d)
        return measured(lambda: [list(g) for g in cs.audit(W).groups])
    if name == "audit a file":
        import collapsar as cs
        from collapsar.diagnose.head_files import read_head

        return measured(lambda: [list(g) for g in cs.audit(read_head(path).weight).groups])
    if name.startswith("reach"):
        return measured(lambda: reached(K, d, hard=name == "reach, hard"))
    W = head(K, d)
    tolerance = 0.01 * float(np.linalg.norm(W - W.mean(axis=0), axis=1).max())
    ways = {"near": near, "all pairs": all_pairs, "one product": one_product}
    return measured(lambda: ways[name](W, tolerance))


def reached(K: int, d: int, *, hard: bool) -> list:
    """How many classes were searched for, cannot be the answer, and are not decided.

    Where it is hard, rows are as short as exp(-|normal|) of the longest: many lie inside the hull or near its surface.
    """
    from collapsar.diagnose.reach import reach

    W = head(K, d).astype(np.float64)
    rng = np.random.default_rng(1)
    if hard:
        W *= (np.exp(-np.abs(rng.standard_normal(K))) / np.linalg.norm(W, axis=1))[:, None]
    found = reach(W, 0.3 * rng.standard_normal(K), largest=2e13)
    return [found.num_searched, int(found.unreachable.sum()), int(found.undecided.sum())]


def run(*arguments: object) -> dict:
    """One part in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--part", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def write_bf16(path: Path, K: int, d: int) -> None:
    """A head in bfloat16 as a .safetensors file, written in blocks."""
    header = json.dumps({"lm_head.weight": {"dtype": "BF16", "shape": [K, d], "data_offsets": [0, 2 * K * d]}}).encode()
    rng = np.random.default_rng(0)
    first = None
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, K, 2000):
            block = rng.standard_normal((min(2000, K - start), d), dtype=np.float32)
            block *= (np.exp(0.2 * rng.standard_normal(len(block))) / np.sqrt(d)).astype(np.float32)[:, None]
            first = block[0].copy() if first is None else first
            if start % 10000 == 0:
                block[7:10] = first  # one group, three of every ten thousand rows
            (block.view(np.uint32) >> 16).astype(np.uint16).tofile(file)


def told(name: str, found: dict) -> str:
    """A line of the table."""
    sizes = [len(group) for group in found["result"]]
    return (
        f"{name}: {found['cpu']:.2f} s of processor, {found['wall']:.1f} s, {found['mib']:.0f} MiB; groups of {sizes}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--reach", action="store_true")
    parser.add_argument("--part", nargs=4)
    given = parser.parse_args()
    if given.part:
        name, K, d, path = given.part
        print(json.dumps(part(name, int(K), int(d), path)))
        return
    if given.large:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            write_bf16(path, 200_000, 4096)
            print(told("audit, K = 200 000, d = 4096, bfloat16 from disk", run("audit a file", 0, 0, path)))
        return
    if given.reach:
        for name, K, d in (("reach", 20_000, 120), ("reach, hard", 20_000, 120), ("reach", 50_000, 768)):
            found = run(name, K, d, "-")
            print(f"{name}, K = {K}, d = {d}: {found['cpu']:.1f} s of processor, {found['mib']:.0f} MiB; "
                  "searched for {}, unreachable {}, not decided {}".format(*found["result"]), flush=True)  # fmt: skip
        return
    K, d = 10_000, 512
    ours = run("near", K, d, "-")
    print(told(f"near rows, K = {K}, d = {d}", ours))
    for way in ("all pairs", "one product"):
        theirs = run(way, K, d, "-")
        assert ours["result"] == theirs["result"], "the groups differ"
        print(told(f"{way} with numpy", theirs))
        print(f"ratio: {theirs['cpu'] / ours['cpu']:.0f} in time, {theirs['mib'] / ours['mib']:.0f} in memory")
    print(told("audit, K = 20 000, d = 512", run("audit", 20_000, 512, "-")))


if __name__ == "__main__":
    main()
