"""The finder of heads, which lives with the metrics: parameter groups use it as well."""

from collapsar.metrics.head import find_head, unwrapped

__all__ = ["find_head", "unwrapped"]
