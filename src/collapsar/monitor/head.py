"""The finder of a model's head, which lives with the metrics."""

from __future__ import annotations

from collapsar.metrics.head import compiled_part, find_head, unwrapped

__all__ = ["compiled_part", "find_head", "unwrapped"]
