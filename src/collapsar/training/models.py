"""Networks that return their features: ``forward(x) -> (logits, features)``, with a linear ``head``.

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

from collapsar.core.normalization import COSINE_SCALE, norm_length

Shape = tuple[int, int, int]

_MLP_WIDTHS = (256, 256, 256)
_PLAIN = ("mlp", "cnn", "vit")  # no batch normalisation of their own
_SIDE = 32  # pixels per side of the images that the paper's networks see


@dataclass(frozen=True)
class ModelSpec:
    """Which network, as a value that can be recorded.

    Attributes:
        name: A key of ``BODIES``: "mlp" (perceptron), "cnn" (small convolutional), "vit" (small vision transformer,
            pre-norm), and the paper's "resnet18", "vgg11" and "vgg13" (JMLR Sec. 4), which see every image at 32x32,
            resized if it has another size.
        widths: "mlp": units of the hidden layers. "cnn": channels of the convolutions (each followed by a 2x2
            pooling), then units of the feature layer. "vit": side of a patch, then one width per block, all equal.
            "resnet18": channels of the four stages. "vgg11", "vgg13": units of the two fully connected layers. The
            last entry is the number of features d. Empty: the network's own default.
        feature_relu: Whether the features pass a last ReLU (nonnegative) or not (signed). In "resnet18" that ReLU
            stands before the average pooling, which leaves nonnegative features nonnegative.
        batch_norm: Batch normalisation before every ReLU except the last; the features themselves stay
            unnormalised, because a normalised feature could not respond to its penalty. The paper's networks always
            have theirs: "resnet18" after every convolution, the VGGs as described here.
        layers_above_norm: "mlp" only. L >= 1 puts a batch normalisation right before the ReLU of that hidden
            layer which leaves exactly L linear layers, the head included, above the normalised features; with
            D hidden layers L is in 1..D, and L = 1 normalises the head's own features. 0: none. Independent of
            ``batch_norm``; if both concern the same layer it is normalised once. Decay on the scale of such a
            normalisation acts as a feature penalty (training with weight decay alone has no other).
        feature_norm: "mlp", "cnn" and "vit" only. A key of ``FEATURE_NORMS``: what normalises the features, without a
            gain or shift of its own, in place of their last ReLU: "layernorm", "rmsnorm" and "cosine" every feature,
            to the length √d (cosine: 16), "batchnorm" each coordinate over the batch. "": nothing.

    Raises:
        ValueError: The name is unknown, a width is not a positive whole number, ``layers_above_norm`` is out of
            range, or ``feature_norm`` is unknown or combined with a last ReLU.

    Example:
        >>> ModelSpec("mlp", widths=(64, 32)).feature_relu
        True
    """

    name: str = "mlp"
    widths: tuple[int, ...] = ()
    feature_relu: bool = True
    batch_norm: bool = False
    layers_above_norm: int = 0
    feature_norm: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.name not in BODIES:
            raise ValueError(f"`name` must be one of {', '.join(sorted(BODIES))}, got {self.name!r}")
        if not all(isinstance(width, int) and width >= 1 for width in self.widths):
            raise ValueError(f"`widths` must be whole numbers >= 1, got {self.widths!r}")
        highest = len(self.widths or _MLP_WIDTHS) if self.name == "mlp" else 0
        if not (isinstance(self.layers_above_norm, int) and 0 <= self.layers_above_norm <= highest):
            raise ValueError(
                f"`layers_above_norm` must be a whole number in 0..{highest} for {self.name!r} with "
                f"{highest} hidden layers, got {self.layers_above_norm!r}; 0 puts no normalisation"
                if self.name == "mlp"
                else f'`layers_above_norm` is for "mlp" alone, got {self.layers_above_norm!r} for {self.name!r}; '
                "leave it at 0"
            )
        if self.feature_norm not in ("", *FEATURE_NORMS):
            raise ValueError(f"`feature_norm` must be one of {', '.join(FEATURE_NORMS)}, got {self.feature_norm!r}")
        if self.feature_norm and (self.name not in _PLAIN or self.feature_relu or self.layers_above_norm == 1):
            raise ValueError(
                f"`feature_norm` {self.feature_norm!r} replaces the last ReLU of {', '.join(_PLAIN)} and "
                f"`layers_above_norm` 1; got {self.name!r} with feature_relu={self.feature_relu} and "
                f"layers_above_norm={self.layers_above_norm}"
            )

    @property
    def normalises(self) -> bool:
        """Whether there is a batch normalisation anywhere: a batch of one image is then undefined."""
        in_body = self.batch_norm or self.layers_above_norm > 0 or self.name not in _PLAIN
        return in_body or self.feature_norm == "batchnorm"

    def feature_length(self, num_features: int) -> float | None:
        """The length of the features (per batch: the root of their mean square) that ``feature_norm`` gives them."""
        if not self.feature_norm:
            return None
        return norm_length(self.feature_norm, num_features)


class _Cosine(nn.Module):
    """Features of one length, as for cosine heads."""

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.normalize(features) * COSINE_SCALE


FEATURE_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": lambda d: nn.LayerNorm(d, elementwise_affine=False),
    "rmsnorm": lambda d: nn.RMSNorm(d, elementwise_affine=False),
    "cosine": lambda d: _Cosine(),
    "batchnorm": lambda d: nn.BatchNorm1d(d, affine=False),
}


class FeatureNetwork(nn.Module):
    """A body and a linear head; calling it gives ``(logits, features)``.

    Attributes:
        body: Maps images (B, C, H, W) to features (B, d).
        head: ``nn.Linear(d, K)``; its weight is Wᵀ of the theory, shape (K, d), its bias b, absent when λ_b =
            ∞.
        body_dtype: The type in which the body multiplies in training mode; the weights, the head and every product in
            evaluation mode are always float32, because features near collapse differ by less than bfloat16 resolves.
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.body_dtype = torch.float32

    @property
    def num_features(self) -> int:
        """The feature dimension d."""
        return self.head.in_features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of shape (B, K) and features of shape (B, d)."""
        if self.training and self.body_dtype != torch.float32:
            with torch.autocast(images.device.type, self.body_dtype):
                features = self.body(images).float()
        else:
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
        generator: Source of the initial weights; None: the global one, which is not advanced otherwise.

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
    # The layout in which convolutions are fastest: a quarter of the step of "cnn" on a CPU, tensor cores on a GPU.
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


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
    widths = spec.widths or _MLP_WIDTHS
    layers: list[nn.Module] = [nn.Flatten()]
    fan_in = math.prod(image_shape)
    for depth, width in enumerate(widths):
        last = depth == len(widths) - 1
        normed = (spec.batch_norm and not last) or spec.layers_above_norm == len(widths) - depth
        layers.append(nn.Linear(fan_in, width, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(width))
        if not last:
            layers.append(nn.ReLU())
        fan_in = width
    return nn.Sequential(*layers, *_feature_end(spec, fan_in)), fan_in


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
    return nn.Sequential(*layers, *_feature_end(spec, num_features)), num_features


def _feature_end(spec: ModelSpec, num_features: int) -> list[nn.Module]:
    """The features' last layer: a ReLU, a normalisation, or nothing."""
    if spec.feature_relu:
        return [nn.ReLU()]
    return [FEATURE_NORMS[spec.feature_norm](num_features)] if spec.feature_norm else []


class _Attention(nn.Module):
    """Self-attention with four heads and a perceptron, each on normalised tokens and added to them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        b, t, width = tokens.shape
        mixed = self.queries_keys_values(self.before(tokens)).view(b, t, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(mixed[0], mixed[1], mixed[2])
        tokens = tokens + self.out(seen.transpose(1, 2).reshape(b, t, width))
        return tokens + self.mlp(tokens)


class _Patches(nn.Module):
    """Square patches as tokens, each with a learned position."""

    def __init__(self, channels: int, patch: int, width: int, count: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.places = nn.Parameter(torch.zeros(count, width))

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images).flatten(2).transpose(1, 2) + self.places


class _MeanToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


def _vision_transformer(spec: ModelSpec, image_shape: Shape) -> tuple[nn.Module, int]:
    """Patches, pre-norm blocks, the mean over patches (Dosovitskiy et al., ICLR 2021, small)."""
    patch, *widths = spec.widths or (4, 32, 32)
    channels, height, width = image_shape
    if not widths or len(set(widths)) > 1 or widths[0] % 4 or height % patch or width % patch:
        raise ValueError(
            f'`widths` of "vit" must be the side of a patch that divides {height}x{width} pixels, then equal widths '
            f"divisible by 4, got {spec.widths}; (4, 32, 32) has two blocks of width 32"
        )
    count = (height // patch) * (width // patch)
    layers = [_Patches(channels, patch, widths[0], count), *map(_Attention, widths), _MeanToken()]
    return nn.Sequential(*layers, *_feature_end(spec, widths[0])), widths[0]


class _Resized(nn.Module):
    """Images resized to 32x32 pixels: bilinear, and antialiased if they shrink."""

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == (_SIDE, _SIDE):
            return images
        return nn.functional.interpolate(images, size=(_SIDE, _SIDE), mode="bilinear", antialias=True)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., CVPR 2016, Fig. 2), each followed by a normalisation."""

    def __init__(self, fan_in: int, channels: int, stride: int, *, relu: bool = True) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(fan_in, channels, stride), nn.ReLU(), *_convolution(channels, channels)
        )
        same = stride == 1 and fan_in == channels
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(fan_in, channels, kernel=1))
        self.stride = stride
        self.end = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # The shortcut's stride is taken here: oneDNN's backward pass of a strided 1x1 convolution writes past its
        # memory (channels last, several threads, channels no multiple of 16, uneven batches; torch 2.13).
        return self.end(self.residual(x) + self.shortcut(x[..., :: self.stride, :: self.stride]))


def _convolution(fan_in: int, channels: int, stride: int = 1, kernel: int = 3) -> tuple[nn.Module, nn.Module]:
    """A convolution and its normalisation, which makes a bias of its own superfluous."""
    convolution = nn.Conv2d(fan_in, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(channels)


def _resnet18(spec: ModelSpec, image_shape: Shape) -> tuple[nn.Module, int]:
    """ResNet18 for 32x32 pixels: a 3x3 stem without pooling, four stages of two blocks, 4x4 average pooling."""
    stages = _as_many(spec, (64, 128, 256, 512))
    layers: list[nn.Module] = [_Resized(), *_convolution(image_shape[0], stages[0]), nn.ReLU()]
    fan_in = stages[0]
    for number, channels in enumerate(stages):
        layers.append(_Block(fan_in, channels, stride=1 if number == 0 else 2))
        layers.append(_Block(channels, channels, stride=1, relu=number < 3 or spec.feature_relu))
        fan_in = channels
    layers += [nn.AvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*layers), fan_in


def _vgg(spec: ModelSpec, image_shape: Shape) -> tuple[nn.Module, int]:
    """VGG11 or VGG13 (Simonyan and Zisserman, ICLR 2015, columns A and B), five poolings, 512 to d1 to d."""
    per_stage = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2)}[spec.name]
    units, num_features = _as_many(spec, (4096, 4096))
    layers: list[nn.Module] = [_Resized()]
    fan_in = image_shape[0]
    for channels, convolutions in zip((64, 128, 256, 512, 512), per_stage, strict=True):
        for _ in range(convolutions):
            layers += [*_convolution(fan_in, channels), nn.ReLU()]
            fan_in = channels
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512, units, bias=False), nn.BatchNorm1d(units), nn.ReLU()]
    layers.append(nn.Linear(units, num_features))
    return nn.Sequential(*layers, *_feature_end(spec, num_features)), num_features


def _as_many(spec: ModelSpec, default: tuple[int, ...]) -> tuple[int, ...]:
    if len(spec.widths) not in (0, len(default)):
        raise ValueError(
            f"`widths` of {spec.name!r} must be empty or have {len(default)} entries, got {spec.widths!r}; "
            f"empty means {default}"
        )
    return spec.widths or default


# A further network is one more entry: a function from (spec, image shape) to a body and its number of
# features d.
BODIES: dict[str, Callable[[ModelSpec, Shape], tuple[nn.Module, int]]] = {
    "mlp": _perceptron,
    "cnn": _small_convolutional,
    "vit": _vision_transformer,
    "resnet18": _resnet18,
    "vgg11": _vgg,
    "vgg13": _vgg,
}
