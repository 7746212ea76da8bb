"""How many threads matrix products may use: one, if they are so small that threads would only wait for each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# Number of rows from which a second thread pays; below it, two threads that share busy cores wait up to fifty times
# longer than they compute.
LARGE = 200


@contextmanager
def one_thread_below(size: int, large: int = LARGE) -> Iterator[None]:
    """Within the block, products use one thread if matrices of ``size`` rows are not ``large``.

    The limit holds for the whole process while the block runs, and is lifted afterwards.

    Example:
        >>> with one_thread_below(10):
        ...     pass
    """
    libraries = None if size >= large else _libraries("scipy.linalg" in sys.modules)
    if libraries is None or all(library.num_threads == 1 for library in libraries.lib_controllers):
        yield
        return
    with libraries.limit(limits=1):
        yield


@cache
def _libraries(with_scipy: bool) -> Any:  # once more when scipy is imported, which brings a library of its own
    from threadpoolctl import ThreadpoolController

    del with_scipy
    return ThreadpoolController().select(user_api="blas")
