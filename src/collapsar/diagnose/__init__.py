"""A trained network beside theory: what is measured, which penalties it acts as if it had, and what collapsed."""

from typing import TYPE_CHECKING

from collapsar._lazy import lazy_names

if TYPE_CHECKING:
    from collapsar.core.known import KnownTraining
    from collapsar.diagnose.agreement import effective_penalties
    from collapsar.diagnose.diagnosis import Diagnosis, diagnose_measurement
    from collapsar.diagnose.fit import Distance, Fit, distance, fit_to_theory
    from collapsar.diagnose.measurement import Measurement, measure
    from collapsar.diagnose.readings import lambda_z_from_predictions
    from collapsar.metrics.balance import balance_penalties

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "collapsar.core.known": "KnownTraining",
        "collapsar.diagnose.agreement": "effective_penalties",
        "collapsar.diagnose.diagnosis": "Diagnosis diagnose_measurement",
        "collapsar.diagnose.fit": "Distance Fit distance fit_to_theory",
        "collapsar.diagnose.measurement": "Measurement measure",
        "collapsar.diagnose.readings": "lambda_z_from_predictions",
        "collapsar.metrics.balance": "balance_penalties",
    },
)
