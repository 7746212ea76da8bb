"""Collapsar predicts, measures and prevents the collapse of classes in classifiers trained on imbalanced data.

    import collapsar as cs
    p = cs.Problem("500x5,100x5", lambda_z=0.0036, lambda_b=0.02)
    s = cs.solve(p)            # the exact optimum, with a duality gap anyone can re-check
    t = cs.thresholds(p)       # the penalties at which classes merge, vanish, and everything collapses

``import collapsar`` needs numpy and scipy only; ``collapsar.metrics`` and ``collapsar.training`` bring torch.
"""

from typing import TYPE_CHECKING, Any

from collapsar.analysis.advice import Advice, advise
from collapsar.analysis.diagnosis import Diagnosis
from collapsar.analysis.phase import PhaseDiagram, phase_diagram
from collapsar.counts import class_counts, counts_from_labels
from collapsar.problem import Loss, Penalties, Problem, penalties_without_halves
from collapsar.solver import (
    Certificate,
    NotConvergedError,
    Solution,
    Status,
    certify,
    load_solution,
    path,
    solve,
)
from collapsar.theory import Thresholds, thresholds

if TYPE_CHECKING:
    from collapsar.experiments.diagnose import diagnose

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Certificate",
    "Diagnosis",
    "Loss",
    "NotConvergedError",
    "Penalties",
    "PhaseDiagram",
    "Problem",
    "Solution",
    "Status",
    "Thresholds",
    "__version__",
    "advise",
    "certify",
    "class_counts",
    "counts_from_labels",
    "diagnose",
    "load_solution",
    "path",
    "penalties_without_halves",
    "phase_diagram",
    "solve",
    "thresholds",
]


def __getattr__(name: str) -> Any:
    if name == "diagnose":  # reads runs and networks where asked to, so it sits above the rooms that need torch
        from collapsar.experiments.diagnose import diagnose

        return diagnose
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
