"""Monitors for any training loop.

``CollapseMonitor`` is for a loop of your own; ``collapsar.monitor.lightning`` and ``collapsar.monitor.transformers``
have the callbacks for Lightning and Hugging Face. Each needs its framework.
"""

from collapsar._lazy import lazy_names
from collapsar.core.json_lines import read_json_lines
from collapsar.monitor.advising import Loop, advise_training
from collapsar.monitor.bare_loop import CollapseMonitor, MonitorOptions
from collapsar.monitor.known import known_training, penalty_warnings
from collapsar.monitor.watch import MergeRule

__all__ = [
    "CollapseMonitor",
    "Loop",
    "MergeRule",
    "MonitorOptions",
    "advise_training",
    "known_training",
    "penalty_warnings",
    "read_json_lines",
]

__getattr__, _ = lazy_names(
    __name__,
    {},
    left={
        "collapsar.monitor.advising": "TrainingAdvice",
        "collapsar.monitor.differences": "PenaltyWarning",
        "collapsar.monitor.evaluation": "MonitorRecord",
        "collapsar.monitor.watch": "Event MergeWatch",
    },
)
