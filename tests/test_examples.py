"""The scripts of ``examples/`` run, and print what the documentation says they print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


# Downloads three packages, and takes minutes.
LONG = {"audit_wheels"}


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, marks=[pytest.mark.slow] if path.stem in LONG else [], id=path.stem)
        for path in sorted(EXAMPLES.glob("*.py"))
    ],
)
def test_example(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=900 if script.stem in LONG else 120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = script.with_suffix(".txt")
    if said.exists():
        assert done.stdout == said.read_text(encoding="utf-8")
    else:
        assert done.stdout.strip()
