"""The scripts of ``examples/`` run, and print what the documentation says they print."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

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
def test_example(script: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(script)])
    threads = torch.get_num_threads()
    runpy.run_path(str(script), run_name="__main__")  # warnings are errors here, as in every test
    torch.set_num_threads(threads)  # two examples set theirs
    said, printed = script.with_suffix(".txt"), capsys.readouterr().out
    if said.exists():
        assert printed == said.read_text(encoding="utf-8")
    else:
        assert printed.strip()
