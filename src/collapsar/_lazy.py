"""Names that are imported when they are first used, and old import paths that still work for one release."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str], left: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose public names live in modules that are imported on first use.

    Args:
        package: the package's ``__name__``.
        homes: for each module, by its absolute name, its public names, separated by spaces.
        left: the same for names that are no longer public there; for one release they are still found, with a
            DeprecationWarning that names the module.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}
    gone = {name: module for module, names in (left or {}).items() for name in names.split()}

    def find(name: str) -> Any:
        if name in gone:
            warnings.warn(f"{package}.{name}: import it from {gone[name]}", DeprecationWarning, stacklevel=2)
            return getattr(_imported(gone[name]), name)
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted(home)


class _Moved(MetaPathFinder, Loader):
    """Imports the new module for an old name, with a DeprecationWarning that names it."""

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = moved

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname in self.moved else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = self.moved[old]
        warnings.warn(f"{old} has moved: import from {new}", DeprecationWarning, stacklevel=2)
        real = _imported(new)
        vars(module).update(__getattr__=lambda name: getattr(real, name), __doc__=real.__doc__)


def _imported(module: str) -> ModuleType:
    """The module; if it has moved to the studies, the error says how to install them."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "collapsar_studies":
            raise
        how = f"{module} comes with the studies: in a clone of the repository, pip install ./studies"
        raise ModuleNotFoundError(how, name=error.name) from None


def forward_moved_modules(moved: Mapping[str, str]) -> None:
    """Let the old names of modules, the keys, be imported as the new ones for one release."""
    sys.meta_path.insert(
        0, _Moved(moved)
    )  # before the path, on which an old folder that holds only caches would be found first
