"""Processor time of commands that should answer at once, this tree against another: python benchmarks/startup.py OTHER.

Alternating in one run, the best of five each; OTHER is a checkout of the build to compare with.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "import collapsar": "import collapsar",
    "--version": "from collapsar.cli import main; main()",
    "--help": "from collapsar.cli import main; main()",
    "thresholds 500x5,100x5": "from collapsar.cli import main; main()",
}


def seconds(tree: Path, code: str, arguments: list[str]) -> float:
    """Processor seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    trees = Path(__file__).resolve().parents[1], Path(sys.argv[1]).resolve()
    for words, code in COMMANDS.items():
        arguments = [] if words.startswith("import") else words.split()
        runs = [[seconds(tree, code, arguments) for tree in trees] for _ in range(5)]
        here, there = (min(times) for times in zip(*runs, strict=True))
        print(f"{words:24s} {here:6.3f} s against {there:6.3f} s: {here / there:.2f}")
