"""Training on imbalanced image data with penalties on head, features and bias. Knows no theory.

Example:
    >>> from collapsar.training import demo_config, load_data, train
    >>> config = demo_config("digits", lambda_z=0.0045)
    >>> data = load_data(config.dataset)
    >>> config.penalties
    Penalties(lambda_w=0.045, lambda_h=0.00045, lambda_b=0.02)

    ``train(config, data, "runs/digits")`` trains, records and can be resumed.
"""

from collapsar.training.checkpoint import load_records
from collapsar.training.config import TrainConfig
from collapsar.training.criteria import MatchedCrossEntropy
from collapsar.training.data import DATASETS, ImageData, imbalanced, load_data
from collapsar.training.groups import param_groups
from collapsar.training.idx import read_idx
from collapsar.training.loop import DivergedError, TrainingInterrupted, train
from collapsar.training.measure import HeadGradient, evaluate, features_and_logits, head_gradient
from collapsar.training.models import FeatureNetwork, ModelSpec, build_model
from collapsar.training.penalties import (
    Penalties,
    penalised_loss,
    penalties_for,
    scaled,
    with_weight_decay,
)
from collapsar.training.prior import fold_into_bias, prior_correction
from collapsar.training.provenance import choose_device
from collapsar.training.recipes import DEMO_RECIPES, demo_config, standard_config
from collapsar.training.sampler import ClassAwareSampler
from collapsar.training.state import TrainResult, load_run

__all__ = [
    "DATASETS",
    "DEMO_RECIPES",
    "ClassAwareSampler",
    "DivergedError",
    "FeatureNetwork",
    "HeadGradient",
    "ImageData",
    "MatchedCrossEntropy",
    "ModelSpec",
    "Penalties",
    "TrainConfig",
    "TrainResult",
    "TrainingInterrupted",
    "build_model",
    "choose_device",
    "demo_config",
    "evaluate",
    "features_and_logits",
    "fold_into_bias",
    "head_gradient",
    "imbalanced",
    "load_data",
    "load_records",
    "load_run",
    "param_groups",
    "penalised_loss",
    "penalties_for",
    "prior_correction",
    "read_idx",
    "scaled",
    "standard_config",
    "train",
    "with_weight_decay",
]
