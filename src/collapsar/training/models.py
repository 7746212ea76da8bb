"""Networks that hand out their features: ``forward(x) -> (logits, features)``, with a linear ``head``.

Each is a body that ends in d features, and the head on top. The switch ``feature_relu`` keeps or drops the
body's last ReLU: with it the features are nonnegative, without it signed, and the two obey different feature
models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["BODIES", "FeatureNetwork", "ModelSpec", "build_model"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ModelSpec:
    """Which network, as a value that can be recorded.

    Attributes:
        name: A key of ``BODIES``: "mlp" or "cnn".
        widths: "mlp": units of the hidden layers. "cnn": channels of the convolutions (each followed by a 2x2
            pooling), then units of the feature layer. The last entry is the number of features d. Empty: the
            network's own default.
        feature_relu: Whether the features pass a last ReLU (nonnegative) or not (signed).
        batch_norm: Batch normalisation before every ReLU except the last; the features themselves stay
            unnormalised, because a normalised feature could not answer to its penalty.

    Raises:
        ValueError: The name is unknown or a width is not a positive whole number.

    Example:
        >>> ModelSpec("mlp", widths=(64, 32)).feature_relu
        True
    """

    name: str = "mlp"
    widths: tuple[int, ...] = ()
    feature_relu: bool = True
    batch_norm: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.name not in BODIES:
            raise ValueError(f"`name` must be one of {', '.join(sorted(BODIES))}, got {self.name!r}")
        if not all(isinstance(width, int) and width >= 1 for width in self.widths):
            raise ValueError(f"`widths` must be whole numbers >= 1, got {self.widths!r}")


class FeatureNetwork(nn.Module):
    """A body and a linear head; calling it gives ``(logits, features)``.

    Attributes:
        body: Maps images (B, C, H, W) to features (B, d).
        head: ``nn.Linear(d, K)``; its weight is Wᵀ of the theory, shape (K, d), its bias b, absent when λ_b =
            ∞.
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    @property
    def num_features(self) -> int:
        """The feature dimension d."""
        return self.head.in_features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of shape (B, K) and features of shape (B, d)."""
        features = self.body(images)
        return self.head(features), features


def build_model(
    spec: ModelSpec | str,
    image_shape: Shape,
    num_classes: int,
    *,
    head_bias: bool = True,
    generator: torch.Generator | None = None,
) -> FeatureNetwork:
    """A freshly initialised network.

    Weights follow He et al. (ICCV 2015): variance 2/fan_in before a ReLU, 1/fan_in elsewhere; biases start at
    0.

    Args:
        spec: The network, or just its name.
        image_shape: (C, H, W).
        num_classes: K >= 2.
        head_bias: False for λ_b = ∞.
        generator: Source of the initial weights; the global one where None. The global one is never advanced
            otherwise.

    Returns:
        A network on the CPU, in training mode.

    Raises:
        ValueError: The spec is unknown, there are fewer features than classes (the theory needs d >= K), or
            the image is too small for the network.

    Example:
        >>> model = build_model("mlp", (1, 8, 8), 10)
        >>> logits, features = model(torch.zeros(4, 1, 8, 8))
        >>> logits.shape, features.shape
        (torch.Size([4, 10]), torch.Size([4, 256]))
    """
    spec = ModelSpec(spec) if isinstance(spec, str) else spec
    if not num_classes >= 2:
        raise ValueError(f"`num_classes` must be at least 2, got {num_classes!r}")
    with torch.random.fork_rng(devices=[]):  # the layers' own initialisation would advance the global generator
        body, num_features = BODIES[spec.name](spec, image_shape)
        if num_features < num_classes:
            raise ValueError(
                f"`widths` must end in at least as many features as there are classes, got {num_features} "
                f"features for {num_classes} classes; widen the last layer"
            )
        model = FeatureNetwork(body, nn.Linear(num_features, num_classes, bias=head_bias))
    _initialise(model, spec.feature_relu, generator)
    return model


def _initialise(model: FeatureNetwork, feature_relu: bool, generator: torch.Generator | None) -> None:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    linear_ends = {model.head} if feature_relu else set(layers[-2:])
    for layer in layers:
        gain = "linear" if layer in linear_ends else "relu"
        nn.init.kaiming_normal_(layer.weight, nonlinearity=gain, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _perceptron(spec: ModelSpec, image_shape: Shape) -> tuple[nn.Module, int]:
    """Flatten, then linear layers with ReLUs."""
    widths = spec.widths or (256, 256, 256)
    layers: list[nn.Module] = [nn.Flatten()]
    fan_in = math.prod(image_shape)
    for depth, width in enumerate(widths):
        last = depth == len(widths) - 1
        normed = spec.batch_norm and not last
        layers.append(nn.Linear(fan_in, width, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(width))
        if not last or spec.feature_relu:
            layers.append(nn.ReLU())
        fan_in = width
    return nn.Sequential(*layers), fan_in


def _small_convolutional(spec: ModelSpec, image_shape: Shape) -> tuple[nn.Module, int]:
    """3x3 convolutions, each with a ReLU and a 2x2 maximum, then one linear feature layer."""
    *channels, num_features = spec.widths or (32, 64, 256)
    fan_in, height, width = image_shape
    if not min(height, width) >> len(channels):
        raise ValueError(
            f"`widths` has {len(channels)} convolutions, each halving the image, too many for "
            f"{height}x{width} pixels; give fewer"
        )
    layers: list[nn.Module] = []
    for channel in channels:
        layers.append(nn.Conv2d(fan_in, channel, kernel_size=3, padding=1, bias=not spec.batch_norm))
        if spec.batch_norm:
            layers.append(nn.BatchNorm2d(channel))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        fan_in, height, width = channel, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(fan_in * height * width, num_features)]
    if spec.feature_relu:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers), num_features


# A further network is one more entry: a function from (spec, image shape) to a body and its number of
# features d.
BODIES: dict[str, Callable[[ModelSpec, Shape], tuple[nn.Module, int]]] = {
    "mlp": _perceptron,
    "cnn": _small_convolutional,
}
