"""The README: short, its snippet runs on a network of the reader's, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_at_most_500_words_and_ten_lines_of_code() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 500
    (snippet,) = blocks("python")
    assert len(snippet.splitlines()) <= 10


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_the_snippet_measures_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    """A head in which two of three classes have the same row: the printed headline says so."""
    torch = pytest.importorskip("torch")
    head = torch.nn.Linear(3, 3, bias=False)
    head.weight.data = torch.tensor([[4.0, 0.0, 0.0], [0.0, 2.0, 2.0], [0.0, 2.0, 2.0]])
    model = torch.nn.Sequential(torch.nn.Identity(), head)
    labels = torch.arange(30) % 3
    (snippet,) = blocks("python")
    exec(snippet, {"model": model, "train_loader": [(torch.eye(3)[labels], labels)]})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "2 of 3 classes have collapsed: 1 and 2 are merged into one."
    assert said[1] == "('separated', 'merged', 'merged')"
    assert len(said) > 4
