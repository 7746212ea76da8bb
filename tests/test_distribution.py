"""What is published: a wheel that works in an empty environment, and a source archive that holds its tests."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="runs in the repository"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment that holds the wheel and what it depends on, nothing else."""
    home = tmp_path_factory.mktemp("empty")
    venv.create(home / "env", with_pip=True)
    (wheel,) = built.glob("*.whl")
    pip = [str(home / "env" / "bin" / "python"), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, str(wheel)], check=True, cwd=home)
    return home


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(home / "env" / "bin" / "collapsar"), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home)}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)


def test_the_archives_pass_the_check_of_the_index(built: Path) -> None:
    files = [str(path) for path in built.iterdir()]
    assert len(files) == 2
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True, capture_output=True)


def test_the_wheel_answers_without_the_extras(installed: Path) -> None:
    states = {}
    for command in ("solve", "thresholds"):
        done = run(installed, command, "500x5,100x5", "--lambda-z", "0.0036", "--lambda-b", "0.02", "--json")
        assert done.returncode == 0, done.stderr
        states[command] = json.loads(done.stdout)["class_states"]
    assert states["solve"] == states["thresholds"] == ["separated"] * 5 + ["merged"] * 5
    advice = run(installed, "advise", "500x5,100x5", "--lambda-z", "0.0036", "--lambda-b", "0.02", "--json")
    assert [group["state"] for group in json.loads(advice.stdout)["groups"]] == ["separated", "merged"]
    labels = np.repeat(np.arange(4), 20)
    weight = 3 * np.eye(4, 6)
    np.savez(installed / "f.npz", features=weight[labels], labels=labels, weight=weight, bias=np.zeros(4))
    diagnosed = run(installed, "diagnose", "f.npz", "--json")
    assert diagnosed.returncode == 0, diagnosed.stderr
    assert json.loads(diagnosed.stdout)["separation"]["states"] == ["separated"] * 4
    explored = run(installed, "explore", "--out", "e.html", "--no-open")
    assert explored.returncode == 0, explored.stderr
    assert (installed / "e.html").read_text().startswith("<!")


def test_the_studies_say_where_they_come_from(installed: Path) -> None:
    done = run(installed, "reproduce", "fig5")
    assert done.returncode == 2
    assert "pip install ./studies" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_source_archive_holds_what_its_tests_read(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"pyproject.toml", "README.md", "src/collapsar/__init__.py", "tests/conftest.py"} <= names
    assert not any(name.startswith(("results/", "studies/")) for name in names)
