"""Settings of the demonstration runs, found by trial on one CPU core.

The paper's recipe (JMLR Sec. 4, Figs 5-8) needs one more thing on a network without normalisation: clipping. At
learning rate 0.1 the first steps, and those after the end of the warm start, are too steep for it; on FashionMNIST they
pushed every ReLU into its dead half or diverged. A clip at norm 1 affects only those steps: later gradients stay below
0.4. With it the mean predictions ended within relative distance 0.025 of the nonnegative feature model's optimum
(penalties below and between the thresholds, seeds 0 to 2; 0.035 close to a threshold). On FashionMNIST a ramp of the
learning rate instead ended at 0.01 to 0.05, lower rates at 0.03 to 0.19 or dead. Epochs matter: with 500 and 100
images of a class, 100 epochs ended at 0.07 to 0.13. The digits, with the first stage half of the epochs, ended within
0.013 after 210 (seeds 0 to 2, below and between).

A network with a LayerNorm before its head and no feature penalty (``standard_config``) ended within 0.015 of its own
optimum at half and at 1.4 times the merge threshold (digits, seeds 0 to 2). Near rest its features are pulled only by
the head, which strong decay keeps short: without a higher rate for longer, small classes would end half apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from collapsar.core.penalties import Penalties
from collapsar.training.config import TrainConfig
from collapsar.training.models import ModelSpec
from collapsar.training.penalties import penalties_for

DEMO_RECIPES: Mapping[str, TrainConfig] = {
    "digits": TrainConfig(
        dataset="digits",
        class_counts=(100,) * 5 + (20,) * 5,
        penalties=penalties_for(0.0045, 0.02),
        epochs=210,
        model=ModelSpec("mlp", widths=(128, 128, 128)),
        learning_rate_steps=((0.0, 1.0), (0.5, 0.1), (0.8, 0.01)),
        clip_norm=1.0,
    ),
    "fashion-mnist": TrainConfig(
        dataset="fashion-mnist",
        class_counts=(200,) * 5 + (40,) * 5,
        penalties=penalties_for(0.0032, 0.02),
        epochs=250,
        model=ModelSpec("mlp", widths=(256, 256, 256)),
        clip_norm=1.0,
    ),
}


def demo_config(dataset: str, lambda_z: float, seed: int = 0) -> TrainConfig:
    """The demonstration run on a data set, at a given penalty.

    Args:
        dataset: A key of ``DEMO_RECIPES``.
        lambda_z: λ_Z > 0.
        seed: Of weights and order.

    Raises:
        ValueError: The data set has no recipe, or ``lambda_z`` is not positive.

    Example:
        >>> demo_config("digits", 0.0105, seed=1).class_counts
        (100, 100, 100, 100, 100, 20, 20, 20, 20, 20)
    """
    if dataset not in DEMO_RECIPES:
        raise ValueError(f"`dataset` must be one of {', '.join(sorted(DEMO_RECIPES))}, got {dataset!r}")
    recipe = DEMO_RECIPES[dataset]
    return replace(recipe, penalties=penalties_for(lambda_z, recipe.penalties.lambda_b), seed=seed)


def standard_config(dataset: str, lambda_w: float, seed: int = 0) -> TrainConfig:
    """A standard training run: LayerNorm before the head, decay only on the head's weight, a free bias.

    Args:
        dataset: A key of ``DEMO_RECIPES``, whose images it takes.
        lambda_w: λ_W >= 0, SGD's weight decay of the head's weight.
        seed: Of weights and order.

    Raises:
        ValueError: The data set has no recipe, or ``lambda_w`` is out of range.

    Example:
        >>> config = standard_config("digits", 1.0)
        >>> config.model.feature_norm, config.penalties.lambda_h
        ('layernorm', 0.0)
    """
    return replace(
        demo_config(dataset, 1.0, seed),
        penalties=Penalties(lambda_w, 0.0, 0.0),
        epochs=300,
        model=ModelSpec("mlp", widths=(128, 128, 32), feature_relu=False, feature_norm="layernorm"),
        learning_rate=0.25,
        learning_rate_steps=((0.0, 1.0), (0.7, 0.1), (0.9, 0.01)),
        warm_fraction=0.0,
    )
