from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Generator
from types import SimpleNamespace

import pytest
from numpy.typing import NDArray

import collapsar as cs
from problems import PROBLEMS, naive_objective

# What is imported here stays until the end: looking through it again and again takes a third of collecting.
gc.disable()


def pytest_collection_finish() -> None:
    memory = sys.modules.get("accelerate.utils.memory")
    if (
        memory
    ):  # a trainer looks through all of memory at the end of each training, which takes longer than the training
        vars(memory)["gc"] = SimpleNamespace(collect=lambda: 0)
    gc.freeze()
    # after every 700 objects, and through all of memory every hundredth time, looking is a twentieth of all tests
    gc.set_threshold(20_000, 10, 100)
    gc.enable()


@pytest.fixture(params=PROBLEMS, ids=list(PROBLEMS))
def problem(request: pytest.FixtureRequest) -> cs.Problem:
    return PROBLEMS[request.param]


@pytest.fixture
def objective() -> Callable[[cs.Problem, NDArray, NDArray], float]:
    return naive_objective


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages name their pictures and draw none, which is most of a page's time: for tests of the words."""
    from markupsafe import Markup

    def blank(_draw: object, _size: object, _name: str, label: str) -> Markup:
        return Markup('<svg aria-label="{}"></svg>').format(label)

    for module in ("advice_page", "audit", "demonstration", "network_axis", "network_page", "page", "solution_page"):
        monkeypatch.setattr(f"collapsar.report.{module}.drawn", blank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """A test that leaves torch with another number of threads changes the last bits of those after it."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    result = yield
    if torch:
        assert torch.get_num_threads() == threads
    return result
