"""Training on imbalanced image data with penalties on head, features and bias. Knows no theory.

Example:
    >>> from collapsar.training import demo_config, load_data, train
    >>> config = demo_config("digits", lambda_z=0.0045)
    >>> data = load_data(config.dataset)
    >>> config.penalties
    Penalties(lambda_w=0.045, lambda_h=0.00045, lambda_b=0.02)

    ``train(config, data, "runs/digits")`` trains, records and can be resumed.
"""

from collapsar._lazy import lazy_names
from collapsar.training.config import TrainConfig
from collapsar.training.criteria import MatchedCrossEntropy
from collapsar.training.data import ImageData, imbalanced, load_data
from collapsar.training.groups import param_groups
from collapsar.training.loop import DivergedError, TrainingInterrupted, train
from collapsar.training.models import ModelSpec, build_model
from collapsar.training.penalties import penalties_for
from collapsar.training.prior import fold_into_bias, prior_correction
from collapsar.training.recipes import demo_config, standard_config
from collapsar.training.sampler import ClassAwareSampler
from collapsar.training.state import TrainResult, load_run

__all__ = [
    "ClassAwareSampler",
    "DivergedError",
    "ImageData",
    "MatchedCrossEntropy",
    "ModelSpec",
    "TrainConfig",
    "TrainResult",
    "TrainingInterrupted",
    "build_model",
    "demo_config",
    "fold_into_bias",
    "imbalanced",
    "load_data",
    "load_run",
    "param_groups",
    "penalties_for",
    "prior_correction",
    "standard_config",
    "train",
]

__getattr__, _ = lazy_names(
    __name__,
    {},
    left={
        "collapsar.core.penalties": "Penalties",
        "collapsar.training.checkpoint": "load_records",
        "collapsar.training.data": "DATASETS",
        "collapsar.training.idx": "read_idx",
        "collapsar.training.measure": "HeadGradient evaluate features_and_logits head_gradient",
        "collapsar.training.models": "FeatureNetwork",
        "collapsar.training.penalties": "penalised_loss scaled with_weight_decay",
        "collapsar.training.provenance": "choose_device",
        "collapsar.training.recipes": "DEMO_RECIPES",
    },
)
