"""The JSON that passes between rooms, key by key: code that writes a record and code that reads it share one type.

A number that is not defined is None, and NaN until :func:`~collapsar.core.records.to_json` has written it; infinity is
"inf". ``NotRequired`` keys are added by a caller, or missing from records of earlier versions. A part that is the
JSON of a dataclass may hold more of its fields than the keys listed here, which are those that other rooms read.
"""
# ruff: noqa: UP013 - the class syntax needs a line for each key
# No `annotations` from __future__: strings hide NotRequired from `__required_keys__`, which the report room reads.

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict, TypeGuard, TypeVar, get_args

from collapsar.core.states import ClassState

Number = float | None
Features = Literal["signed", "nonnegative"]
Points = list[list[float]]
Table = Any  # shape (K, K): an array until it is written, lists of numbers after
R = TypeVar("R", bound=Mapping[str, Any])


def is_a(record: object, kind: type[R]) -> TypeGuard[R]:
    """Whether a record says that it is of this kind."""
    return isinstance(record, Mapping) and record.get("kind") in get_args(kind.__annotations__["kind"])


# --- problems: ``Loss``, ``Problem.to_dict()``
LossRecord = TypedDict("LossRecord", {"offsets": list[float] | None})
ProblemRecord = TypedDict("ProblemRecord", {
    "class_counts": list[int], "lambda_z": NotRequired[float], "lambda_b": float | str, "loss": LossRecord,
    "feature_mass": list[float] | None, "features": Features,
    "normalization": NotRequired[dict[str, Any] | None]})  # fmt: skip

# --- advice: ``Outlook``, ``Price``, ``Suggestion``, ``DecayPrediction``, ``DecayAdvice``, ``Advice``
OutlookRecord = TypedDict("OutlookRecord", {
    "classes": list[int], "samples": int, "state": ClassState, "apart": bool, "threshold": Number, "safety": Number,
    "margin": float, "corrected_margin": float, "contrast": Number, "norm": float})  # fmt: skip
PriceRecord = TypedDict("PriceRecord", {
    "new_samples": int, "extra_samples": int, "calibration_shift": float, "majority_margin_change": float})  # fmt: skip
SuggestionRecord = TypedDict("SuggestionRecord", {
    "remedy": str, "words": str, "level": float, "factors": list[float], "problem": ProblemRecord,
    "groups": list[OutlookRecord], "price": PriceRecord, "verified": bool, "relative_gap": float,
    "prior_share": NotRequired[float], "caveats": list[str]})  # fmt: skip
DecayPredictionRecord = TypedDict("DecayPredictionRecord", {
    "layers": int, "weight_decay": float, "measured_ratio": list[Number], "switches": int, "predicts": bool,
    "verdict": str, "interval": list[float] | None})  # fmt: skip
DecayRecord = TypedDict("DecayRecord", {
    "kind": Literal["advice-weight-decay"], "class_counts": list[int], "weight_decay": float, "margin": float,
    "model": str, "predictions": list[DecayPredictionRecord], "networks": list[str], "beyond": bool, "verdict": str,
    "largest_safe": Number, "data": str, "source": str})  # fmt: skip
AdviceRecord = TypedDict("AdviceRecord", {
    "kind": Literal["advice"], "problem": ProblemRecord, "class_names": list[str], "margin": float, "verdict": str,
    "penalties_are_the_cause": bool | None, "calibration_shift": float, "prior_share": NotRequired[float],
    "groups": list[OutlookRecord], "suggestions": list[SuggestionRecord], "without_effect": list[str],
    "roomy_penalty": Number, "safe_factor": NotRequired[Number],
    # of a diagnosis, or of a command
    "measured": NotRequired[str | None], "decay": NotRequired[DecayRecord | None], "cautions": NotRequired[list[str]],
    "from_diagnosis": NotRequired[bool], "num_samples": NotRequired[int]})  # fmt: skip

# --- diagnoses: ``Prediction``, ``ClassSeparation``, ``Standings``, ..., ``Diagnosis``
PredictionRecord = TypedDict("PredictionRecord", {
    "problem": NotRequired[ProblemRecord], "features": Features, "lambda_z": float, "lambda_b": float | str,
    "source": str, "states": list[ClassState], "seen": list[str], "groups": NotRequired[list[list[int]]],
    "lengths": NotRequired[list[float]], "merge": list[Number], "vanish": list[Number], "complete": Number,
    "edge": NotRequired[list[Number]], "Z": Table | None, "b": list[float], "gap": float, "unit": NotRequired[str],
    "price": NotRequired[float]})  # fmt: skip
SeparationRecord = TypedDict("SeparationRecord", {
    "states": list[str], "groups": list[list[int]], "relative_norms": list[Number], "nearest": list[int],
    "nearest_separation": list[Number], "vanish_threshold": float})  # fmt: skip
LostRecord = TypedDict("LostRecord", {"index": int, "reason": str, "rival": int, "nats": Number})
StandingsRecord = TypedDict("StandingsRecord", {"lost": list[LostRecord], "carried": list[int]})
KnownRecord = TypedDict("KnownRecord", {
    "lambda_w": NotRequired[float | list[float] | None], "lambda_z": Number, "loss": LossRecord,
    "cautions": list[str]})  # fmt: skip
ForcesRecord = TypedDict("ForcesRecord", {"fitted_w": Number})
EffectiveRecord = TypedDict("EffectiveRecord", {"lambda_z": Number, "by_class": list[Number], "tells": list[bool]})
DistanceRecord = TypedDict("DistanceRecord", {
    "Z": Number, "Z_max": Number, "b": Number, "Z_signed": NotRequired[Number],
    "b_signed": NotRequired[Number]})  # fmt: skip
ModelRecord = TypedDict("ModelRecord", {
    "name": str, "sentence": str, "problem": ProblemRecord | None, "distance": DistanceRecord | None,
    # beside an optimum of normalised features
    "away": NotRequired[Number], "norm": NotRequired[float], "gap": NotRequired[float],
    "merge": NotRequired[list[Number] | None]})  # fmt: skip
ModelFitRecord = TypedDict("ModelFitRecord", {
    "distance": DistanceRecord, "classifier_gram": Number, "feature_gram": Number, "excess": Number})  # fmt: skip
FitRecord = TypedDict("FitRecord", {"models": dict[str, ModelFitRecord], "source": str})
MetricRecord = TypedDict("MetricRecord", {"name": str, "value": float | str, "meaning": str})
DiagnosisRecord = TypedDict("DiagnosisRecord", {
    "kind": Literal["diagnosis"], "headline": str, "words": list[str], "reason": str, "source": str,
    "class_names": list[str], "class_counts": list[int], "accuracies": list[Number], "loss": NotRequired[Number],
    "features_nonnegative": NotRequired[bool], "within_share": NotRequired[Number], "Z": Table | None,
    "b": list[Number], "separation": SeparationRecord, "standings": NotRequired[StandingsRecord],
    "shared_rows": NotRequired[list[list[int]]], "dead": NotRequired[list[int]], "num_dead": NotRequired[int],
    "num_collapsed": NotRequired[int], "num_lost": NotRequired[int], "num_gone": NotRequired[int],
    "metrics": list[MetricRecord], "known": KnownRecord, "forces": ForcesRecord, "at_rest": bool,
    "effective": EffectiveRecord | None, "model": NotRequired[ModelRecord], "fit": FitRecord | None,
    "frozen": NotRequired[dict[str, Any] | None], "prediction": PredictionRecord | None,
    "notes": list[str]})  # fmt: skip
GeometryRecord = TypedDict("GeometryRecord", {"network": Points, "theory": Points | None})
"""Class means of a network and of the optimum at its penalties, each in axes of its own: (K, r) coordinates."""

# --- optima
GroupRecord = TypedDict("GroupRecord", {
    "classes": list[int], "samples": int, "state": ClassState, "own": float, "sibling": Number, "bias": float,
    "length": float})  # fmt: skip
DirectionsRecord = TypedDict("DirectionsRecord", {"lengths": list[float], "cosines": Table | None})
PathRecord = TypedDict("PathRecord", {
    "prices": list[float], "clusters": list[list[int]], "apart": list[list[Number]],
    "length": list[list[Number]]})  # fmt: skip
SolutionRecord = TypedDict("SolutionRecord", {
    "kind": Literal["solution"], "problem": ProblemRecord, "class_names": list[str], "status": str, "num_steps": int,
    "primal": float, "dual": float, "gap": float, "relative_gap": float, "rank": int, "class_states": list[ClassState],
    "clusters": list[int], "Z": Table | None, "b": list[float]})  # fmt: skip
"""What ``collapsar solve --json`` prints."""


class OptimumRecord(SolutionRecord):
    """What a page shows of an optimum."""

    groups: list[GroupRecord]  # a row for each cluster, the largest classes first
    name: str
    class_counts: list[int]
    setting: str  # the problem in a line
    prediction: PredictionRecord
    reason: NotRequired[str]  # the first threshold in words
    norm: Number  # of normalised features
    heads: DirectionsRecord  # the head's rows
    features: DirectionsRecord  # the class means
    geometry: dict[str, Points] | None  # of both, each in axes of its own
    path: PathRecord | None  # over the penalty; None beyond 16 sizes, and where each class has a penalty of its own


# --- trained networks, and the demonstration
SideRecord = TypedDict("SideRecord", {
    "states": list[str], "Z": Table, "b": list[float], "cosines": NotRequired[dict[str, Number]],
    # as predicted, as measured
    "gap": NotRequired[float], "status": NotRequired[str], "primal": NotRequired[float], "dual": NotRequired[float],
    "relative_gap": NotRequired[float], "nc1_uniform": NotRequired[Number], "nc1_weighted": NotRequired[Number],
    "relative_norm": NotRequired[list[Number]], "minority_separation": NotRequired[Number]})  # fmt: skip
AccuracyRecord = TypedDict("AccuracyRecord", {
    "train": Number, "train_minority": Number, "train_majority": Number, "test_minority": Number,
    "test_majority": Number, "test_balanced": Number})  # fmt: skip
BesideRecord = TypedDict("BesideRecord", {
    "predicted": SideRecord, "measured": SideRecord, "distance": DistanceRecord, "accuracy": AccuracyRecord,
    "stationarity": Number, "seconds": float, "epochs": int})  # fmt: skip
"""A trained network beside an optimum."""


class StandardRunRecord(BesideRecord):
    """A network trained the usual way."""

    lambda_w: float
    position: NotRequired[str]
    seed: NotRequired[int]


class TrainedRecord(BesideRecord):
    """A network trained with penalised features; ``history``: the numbers of each evaluation that pages draw."""

    lambda_z: float
    seed: int
    history: list[dict[str, Any]]
    diagnosis: NotRequired[DiagnosisRecord]
    geometry: NotRequired[GeometryRecord]


class DemoRunRecord(TrainedRecord):
    """The same in a demonstration."""

    position: str
    advice: NotRequired[AdviceRecord | None]


LevelsRecord = TypedDict(
    "LevelsRecord", {"merge": NotRequired[list[Number]], "vanish": list[Number], "complete": Number}
)
StandardRecord = TypedDict("StandardRecord", {
    "norm": str, "width": NotRequired[int], "lambda_b": NotRequired[float], "merge": Number,
    "runs": list[StandardRunRecord]})  # fmt: skip
DemoRecord = TypedDict("DemoRecord", {
    "kind": Literal["demo"], "data": str, "class_names": list[str], "class_counts": list[int], "features": Features,
    "lambda_b": float | str, "clusters": list[list[int]], "thresholds": dict[str, LevelsRecord],
    "environment": dict[str, Any], "runs": list[DemoRunRecord],
    "standard": NotRequired[StandardRecord | None]})  # fmt: skip
RunRecord = TypedDict("RunRecord", {
    "name": str, "training": dict[str, Any] | None, "diagnosis": DiagnosisRecord, "history": list[dict[str, Any]],
    "geometry": GeometryRecord | None, "advice": AdviceRecord | None})  # fmt: skip
"""A network on a page; ``training``: its configuration, and where it ran."""
ReportRecord = TypedDict("ReportRecord", {
    "kind": Literal["report"], "collapsar": NotRequired[str], "runs": list[RunRecord],
    "solutions": NotRequired[list[OptimumRecord]]})  # fmt: skip

# --- audits: ``Group`` and ``Audit.to_dict()``
DeadRecord = TypedDict("DeadRecord", {"index": int, "name": str, "length": float, "samples": int | None})
SharedRecord = TypedDict("SharedRecord", {"classes": list[int]})
CountEffectRecord = TypedDict("CountEffectRecord", {"dies_below": int})
AuditRecord = TypedDict("AuditRecord", {
    "kind": Literal["audit"], "summary": str, "words": list[str], "notes": list[str], "num_classes": int,
    "num_features": int, "class_names": list[str] | None, "class_counts": list[int] | None, "tolerance": float,
    "groups": list[SharedRecord], "dead": list[int], "dead_classes": list[DeadRecord], "unreachable": list[int] | None,
    "undecided": list[int] | None, "feature_space": str | float | None, "at_initialisation": list[int], "scheme": str,
    "shrunk": list[int], "lengths": list[float] | None, "scale": float, "rank": int, "effective_rank": float,
    "most_rank": int, "counts": CountEffectRecord | None, "predicted": dict[str, list[int]],
    "recalls": dict[str, Any] | None,
    # of the file it came from
    "source": NotRequired[str], "tensor": NotRequired[str], "why": NotRequired[str]})  # fmt: skip

# --- phase diagrams: ``Axis``, ``PhaseConfig``, ``Curve``, ``ModelPhase``, ``PhaseDiagram.to_dict()``
AxisRecord = TypedDict("AxisRecord", {"name": str, "low": float, "high": float, "num": int, "scale": str})
PhaseConfigRecord = TypedDict("PhaseConfigRecord", {"x": AxisRecord, "y": AxisRecord, "settings": dict[str, Any]})
CurveRecord = TypedDict("CurveRecord", {"transition": str, "cluster": str, "exact": bool, "lines": list[Points]})
ModelPhaseRecord = TypedDict("ModelPhaseRecord", {
    "features": Features, "states": list[list[list[int]]], "status": list[list[str]],
    "curves": list[CurveRecord]})  # fmt: skip
PhaseRecord = TypedDict("PhaseRecord", {
    "kind": Literal["phase"], "format": int, "config": PhaseConfigRecord, "config_digest": str, "x_values": list[float],
    "y_values": list[float], "state_names": list[str], "models": list[ModelPhaseRecord]})  # fmt: skip
