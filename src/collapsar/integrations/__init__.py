"""Monitors for any training loop.

``CollapseMonitor`` serves a loop of your own; ``collapsar.integrations.lightning`` and
``collapsar.integrations.transformers`` hold the callbacks for Lightning and Hugging Face. Each needs its framework.
"""

from collapsar.integrations.advising import Loop, TrainingAdvice, advise_training
from collapsar.integrations.effective import PenaltyWarning, known_training, penalty_warnings
from collapsar.integrations.monitor import CollapseMonitor, MonitorOptions, MonitorRecord
from collapsar.integrations.records import read_json_lines
from collapsar.integrations.watch import Event, MergeRule, MergeWatch

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
