"""Monitors for any training loop.

``CollapseMonitor`` serves a loop of your own; ``collapsar.monitor.lightning`` and
``collapsar.monitor.transformers`` hold the callbacks for Lightning and Hugging Face. Each needs its framework.
"""

from collapsar.monitor.advising import Loop, TrainingAdvice, advise_training
from collapsar.monitor.bare_loop import CollapseMonitor, MonitorOptions, MonitorRecord
from collapsar.monitor.known import PenaltyWarning, known_training, penalty_warnings
from collapsar.monitor.records import read_json_lines
from collapsar.monitor.watch import Event, MergeRule, MergeWatch

__all__ = [
    "CollapseMonitor",
    "Event",
    "Loop",
    "MergeRule",
    "MergeWatch",
    "MonitorOptions",
    "MonitorRecord",
    "PenaltyWarning",
    "TrainingAdvice",
    "advise_training",
    "known_training",
    "penalty_warnings",
    "read_json_lines",
]
