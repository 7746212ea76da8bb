"""Measurements against theory, and what to change: fit, diagnosis, advice, phase diagrams, remedies."""

from collapsar.analysis.agreement import effective_penalties
from collapsar.analysis.diagnosis import Diagnosis, KnownTraining, diagnose_measurement
from collapsar.analysis.fit import Distance, Fit, balance_penalties, distance, fit_to_theory, lambda_z_from_predictions
from collapsar.analysis.measurement import Measurement, measure

__all__ = [
    "Diagnosis",
    "Distance",
    "Fit",
    "KnownTraining",
    "Measurement",
    "balance_penalties",
    "diagnose_measurement",
    "distance",
    "effective_penalties",
    "fit_to_theory",
    "lambda_z_from_predictions",
    "measure",
]
