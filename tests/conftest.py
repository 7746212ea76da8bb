from __future__ import annotations

from collections.abc import Callable

import pytest
from numpy.typing import NDArray

import collapsar as cs
from problems import PROBLEMS, naive_objective


@pytest.fixture(params=PROBLEMS, ids=list(PROBLEMS))
def problem(request: pytest.FixtureRequest) -> cs.Problem:
    return PROBLEMS[request.param]


@pytest.fixture
def objective() -> Callable[[cs.Problem, NDArray, NDArray], float]:
    return naive_objective
