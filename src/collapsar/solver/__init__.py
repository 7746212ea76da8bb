"""The certified solver: any point has a computable duality gap, and ``solve`` returns one whose gap is small."""

from collapsar._lazy import lazy_names
from collapsar.solver.certificate import Certificate, certify
from collapsar.solver.path import path
from collapsar.solver.solution import NotConvergedError, Solution, load_solution
from collapsar.solver.solve import solve
from collapsar.solver.status import Status

__all__ = [
    "Certificate",
    "NotConvergedError",
    "Solution",
    "Status",
    "certify",
    "load_solution",
    "path",
    "solve",
]

__getattr__, _ = lazy_names(__name__, {}, left={"collapsar.core.states": "ClassState"})
