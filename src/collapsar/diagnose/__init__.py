"""A trained network compared with theory: what is measured, which penalties act on it, and what has collapsed."""

from typing import TYPE_CHECKING

from collapsar._lazy import lazy_names

if TYPE_CHECKING:
    from collapsar.core.known import KnownTraining
    from collapsar.diagnose.diagnosis import diagnose_measurement
    from collapsar.diagnose.fit import distance, fit_to_theory
    from collapsar.diagnose.measurement import measure

__all__ = ["KnownTraining", "diagnose_measurement", "distance", "fit_to_theory", "measure"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "collapsar.core.known": "KnownTraining",
        "collapsar.diagnose.diagnosis": "diagnose_measurement",
        "collapsar.diagnose.fit": "distance fit_to_theory",
        "collapsar.diagnose.measurement": "measure",
    },
    left={
        "collapsar.diagnose.agreement": "effective_penalties",
        "collapsar.diagnose.record": "Diagnosis",
        "collapsar.diagnose.fit": "Distance Fit",
        "collapsar.diagnose.measurement": "Measurement",
        "collapsar.diagnose.readings": "lambda_z_from_predictions",
        "collapsar.metrics.balance": "balance_penalties",
    },
)
