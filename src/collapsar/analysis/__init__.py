"""Measurements against theory."""

from collapsar.analysis.fit import Distance, balance_penalties, distance, lambda_z_from_predictions

__all__ = ["Distance", "balance_penalties", "distance", "lambda_z_from_predictions"]
