"""Collapsar predicts, measures and prevents the collapse of classes in classifiers trained on imbalanced data.

    import collapsar as cs
    p = cs.Problem("500x5,100x5", lambda_z=0.0036, lambda_b=0.02)
    s = cs.solve(p)            # the exact optimum, with a duality gap anyone can re-check
    t = cs.thresholds(p)       # the penalties at which classes merge, vanish, and everything collapses

Names are imported when they are first used: the theory needs only numpy and scipy, while ``collapsar.metrics``,
``collapsar.monitor`` and ``collapsar.training`` import torch.
"""

from typing import TYPE_CHECKING

# The rooms `advise` and `diagnose` share their names with functions. They are imported first, which costs nothing,
# so that their import cannot put the room in the function's place later.
import collapsar.advise
import collapsar.diagnose
from collapsar._lazy import forward_moved_modules, lazy_names

if TYPE_CHECKING:
    from collapsar.advise.advice import advise
    from collapsar.core.counts import class_counts, counts_from_labels, label_counts
    from collapsar.core.loss import Loss
    from collapsar.core.penalties import Penalties, penalties_without_halves
    from collapsar.core.problem import Problem
    from collapsar.diagnose.head_audit import Audit, AuditOptions, audit
    from collapsar.diagnose.readers import diagnose
    from collapsar.phase.diagram import phase_diagram
    from collapsar.phase.transitions import thresholds
    from collapsar.solver import Certificate, NotConvergedError, Solution, Status, certify, load_solution, path, solve
else:
    del collapsar.advise, collapsar.diagnose

__version__ = "0.2.0"

__all__ = [
    "Audit",
    "AuditOptions",
    "Certificate",
    "Loss",
    "NotConvergedError",
    "Penalties",
    "Problem",
    "Solution",
    "Status",
    "__version__",
    "advise",
    "audit",
    "certify",
    "class_counts",
    "counts_from_labels",
    "diagnose",
    "label_counts",
    "load_solution",
    "path",
    "penalties_without_halves",
    "phase_diagram",
    "solve",
    "thresholds",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "collapsar.advise.advice": "advise",
        "collapsar.core.counts": "class_counts counts_from_labels label_counts",
        "collapsar.core.loss": "Loss",
        "collapsar.core.penalties": "Penalties penalties_without_halves",
        "collapsar.core.problem": "Problem",
        "collapsar.diagnose.head_audit": "Audit AuditOptions audit",
        "collapsar.diagnose.readers": "diagnose",
        "collapsar.phase.diagram": "phase_diagram",
        "collapsar.solver": "Certificate NotConvergedError Solution Status certify load_solution path solve",
        "collapsar.phase.transitions": "thresholds",
    },
    left={
        "collapsar.advise.advice": "Advice",
        "collapsar.core.counts": "LabelCounts",
        "collapsar.diagnose.record": "Diagnosis",
        "collapsar.phase.diagram": "PhaseDiagram",
        "collapsar.core.thresholds": "Thresholds",
    },
)

# Until 0.3: the names of 0.1 that the documentation used, and of 0.2 that have moved since.
forward_moved_modules(
    {
        "collapsar.analysis": "collapsar.diagnose",
        "collapsar.analysis.advice": "collapsar.advise.advice",
        "collapsar.analysis.diagnosis": "collapsar.diagnose.diagnosis",
        "collapsar.analysis.fit": "collapsar.diagnose.fit",
        "collapsar.analysis.measurement": "collapsar.diagnose.measurement",
        "collapsar.analysis.phase": "collapsar.phase.diagram",
        "collapsar.analysis.remedies": "collapsar.advise.mitigations",
        "collapsar.counts": "collapsar.core.counts",
        "collapsar.experiments": "collapsar.diagnose",
        "collapsar.experiments.diagnose": "collapsar.diagnose.readers",
        "collapsar.integrations": "collapsar.monitor",
        "collapsar.integrations.advising": "collapsar.monitor.advising",
        "collapsar.integrations.effective": "collapsar.monitor.known",
        "collapsar.integrations.head": "collapsar.metrics.head",
        "collapsar.integrations.lightning": "collapsar.monitor.lightning",
        "collapsar.integrations.transformers": "collapsar.monitor.transformers",
        "collapsar.monitor.records": "collapsar.core.json_lines",
        "collapsar.problem": "collapsar.core.problem",
        "collapsar.theory.deep": "collapsar_studies.deep",
        "collapsar.theory.deep_body": "collapsar_studies.deep_body",
        "collapsar.theory.large_samples": "collapsar.theory.limits",
        "collapsar.theory.siblings": "collapsar_studies.siblings",
    }
)
