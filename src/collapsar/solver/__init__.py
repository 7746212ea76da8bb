"""The certified solver: any point has a computable duality gap, and ``solve`` returns one whose gap is small."""

from collapsar.core.states import ClassState
from collapsar.solver.certificate import Certificate, certify
from collapsar.solver.path import path
from collapsar.solver.solution import NotConvergedError, Solution, load_solution
from collapsar.solver.solve import solve
from collapsar.solver.status import Status

__all__ = [
    "Certificate",
    "ClassState",
    "NotConvergedError",
    "Solution",
    "Status",
    "certify",
    "load_solution",
    "path",
    "solve",
]
