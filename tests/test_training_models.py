"""Shapes, the switch of the last ReLU, initialisation, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from collapsar.training.models import FEATURE_NORMS, ModelSpec, build_model

SHAPES = {"mlp": (1, 8, 8), "cnn": (3, 12, 16)}


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("feature_relu", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_forward_gives_logits_of_the_features(name: str, feature_relu: bool, batch_norm: bool) -> None:
    spec = ModelSpec(name, widths=(8, 12, 20), feature_relu=feature_relu, batch_norm=batch_norm)
    generator = torch.Generator().manual_seed(0)
    model = build_model(spec, SHAPES[name], 5, generator=generator)
    logits, features = model(torch.randn(7, *SHAPES[name], generator=generator))
    assert logits.shape == (7, 5)
    assert features.shape == (7, 20)
    assert model.num_features == 20
    assert torch.allclose(logits, features @ model.head.weight.T + model.head.bias, atol=1e-5)
    assert bool((features >= 0).all()) == feature_relu
    assert bool((features == 0).any()) == feature_relu
    normed = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(normed) == (2 if batch_norm else 0)
    loss = logits.sum() + features.sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_head_bias_is_absent_for_an_infinite_penalty() -> None:
    assert build_model("mlp", (1, 8, 8), 10, head_bias=False).head.bias is None
    assert build_model("mlp", (1, 8, 8), 10).head.bias is not None


def test_generator_decides_the_weights_and_the_global_one_stays() -> None:
    before = torch.get_rng_state()
    one, two, three = (
        build_model("cnn", (1, 8, 8), 10, generator=torch.Generator().manual_seed(seed)).state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.weight"], three["head.weight"])


@pytest.mark.parametrize(("feature_relu", "last_gain"), [(True, 2.0), (False, 1.0)])
def test_initial_variances_keep_the_scale(feature_relu: bool, last_gain: float) -> None:
    """Variance 2/fan_in before a ReLU, 1/fan_in elsewhere; 5% is 14 standard errors of 400x400 draws."""
    spec = ModelSpec("mlp", widths=(400, 400), feature_relu=feature_relu)
    model = build_model(spec, (1, 20, 20), 400, generator=torch.Generator().manual_seed(0))
    first, last = (layer for layer in model.body.modules() if isinstance(layer, nn.Linear))
    for layer, gain in ((first, 2.0), (last, last_gain), (model.head, 1.0)):
        assert layer.weight.var().item() * 400 == pytest.approx(gain, rel=0.05)
        assert not layer.bias.any()


def test_bad_models_are_refused() -> None:
    for make, named in (
        (lambda: ModelSpec("resnet999"), "`name` must be one of cnn, mlp, resnet18, vgg11, vgg13"),
        (lambda: ModelSpec(widths=(0,)), "`widths` must be"),
        (lambda: ModelSpec(widths=(2.5,)), "`widths` must be"),  # pyright: ignore[reportArgumentType]
        (lambda: build_model(ModelSpec(widths=(64, 9)), (1, 8, 8), 10), "got 9 features for 10 classes"),
        (lambda: build_model(ModelSpec("cnn", (8, 8, 8, 8, 16)), (1, 8, 8), 10), "too many for 8x8"),
        (lambda: build_model("mlp", (1, 8, 8), 1), "`num_classes` must be at least 2"),
        (
            lambda: build_model(ModelSpec("vgg11", (64,)), (1, 8, 8), 10),
            r"`widths` of 'vgg11' .* 2 entries, got \(64,\)",
        ),
        (lambda: ModelSpec(widths=(16, 16), layers_above_norm=3), r"`layers_above_norm` .* in 0..2 .* got 3"),
        (lambda: ModelSpec(widths=(16, 16), layers_above_norm=-1), "`layers_above_norm`"),
        (lambda: ModelSpec(feature_relu=False, feature_norm="layer"), "`feature_norm` must be one of .*, got 'layer'"),
        (lambda: ModelSpec(feature_norm="layernorm"), "replaces the last ReLU .* feature_relu=True"),
        (lambda: ModelSpec("cnn", layers_above_norm=1), '`layers_above_norm` is for "mlp" alone'),
    ):
        with pytest.raises(ValueError, match=named):
            make()


@pytest.mark.parametrize("layers_above", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_norm_stands_where_that_many_linear_layers_remain(layers_above: int, batch_norm: bool) -> None:
    """Counted on the module list: the linear layers behind the last norm asked for, and the ReLU right after it."""
    widths = (20, 19, 18, 17)
    plain = build_model(ModelSpec("mlp", widths, batch_norm=batch_norm), (1, 4, 4), 10)
    spec = ModelSpec("mlp", widths, batch_norm=batch_norm, layers_above_norm=layers_above)
    layers = [*build_model(spec, (1, 4, 4), 10).body, build_model(spec, (1, 4, 4), 10).head]  # pyright: ignore[reportGeneralTypeIssues]
    kinds = [type(layer).__name__ for layer in layers]
    normed = [i for i, kind in enumerate(kinds) if kind == "BatchNorm1d"]
    at = [i for i in normed if kinds[i:].count("Linear") == layers_above]
    assert len(at) == 1
    assert kinds[at[0] - 1 : at[0] + 2] == ["Linear", "BatchNorm1d", "ReLU"]
    assert layers[at[0] - 1].bias is None
    before = sum(isinstance(module, nn.BatchNorm1d) for module in plain.modules())
    assert len(normed) == (1 if not batch_norm else before + (layers_above == 1))


@pytest.mark.parametrize("norm", sorted(FEATURE_NORMS))
def test_a_feature_norm_gives_the_length_it_names(norm: str) -> None:
    """Per sample where it is one of that kind, and over the batch for the batch norm, in training mode."""
    spec = ModelSpec("mlp", (32, 20), feature_relu=False, feature_norm=norm)
    model = build_model(spec, (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    features = model(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)))[1].detach()
    length = {"cosine": 16.0}.get(norm, 20**0.5)
    assert spec.feature_length(20) == length
    squares = features.square().sum(dim=1)
    measured = squares.mean() if norm == "batchnorm" else squares
    assert torch.allclose(measured, torch.tensor(length**2), rtol=1e-2)
    assert not list(model.body[-1].parameters())  # pyright: ignore[reportIndexIssue]
    assert spec.normalises == (norm == "batchnorm")


def test_bfloat16_is_for_the_body_in_training_alone() -> None:
    model = build_model(ModelSpec("mlp", (64, 64)), (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    exact, exact_h = model(images)
    model.body_dtype = torch.bfloat16
    logits, h = model(images)
    assert logits.dtype == h.dtype == torch.float32
    assert torch.equal(h, h.bfloat16().float())  # the body's numbers are bfloat16 ones
    assert not torch.equal(h, exact_h)
    assert torch.allclose(logits, torch.nn.functional.linear(h, model.head.weight, model.head.bias))  # the head's not
    assert torch.allclose(h, exact_h, rtol=0.05, atol=0.05)
    model.eval()
    assert torch.equal(model(images)[0], exact)


# Parameters with 10 classes and 3 channels. ResNet18: the widely quoted 11.17 M of its 32x32 form. VGG: torchvision's
# published totals, 132 863 336 and 133 047 848, less its classifier for 7x7 maps and 1000 classes
# (25088*4096 + 4096, 4096*4096 + 4096, 4096*1000 + 1000) leave the convolutions with biases; ours have a scale and a
# shift for each of 2752 and 2944 channels in place of a bias, and 512-4096-4096-10 on top.
_TOP = 512 * 4096 + 2 * 4096 + 4096 * 4096 + 4096 + 4096 * 10 + 10
_SEVENS = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000


@pytest.mark.parametrize(
    ("name", "num_features", "parameters"),
    [
        ("resnet18", 512, 11_173_962),
        ("vgg11", 4096, 132_863_336 - _SEVENS + 2752 + _TOP),
        ("vgg13", 4096, 133_047_848 - _SEVENS + 2944 + _TOP),
    ],
)
def test_the_papers_networks_have_the_published_size(name: str, num_features: int, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(name, (3, 32, 32), 10)
        logits, features = model(torch.empty(2, 3, 32, 32))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert (tuple(logits.shape), tuple(features.shape)) == ((2, 10), (2, num_features))


def test_resnet_maps_have_the_published_shapes() -> None:
    """JMLR Sec. 4 and He et al. (2016): 64 to 512 channels at 32, 16, 8 and 4 pixels, then one pooling of 4x4."""
    shapes = []
    with torch.device("meta"):
        body = build_model("resnet18", (3, 32, 32), 10).body
        for layer in body.children():
            layer.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
        body(torch.empty(2, 3, 32, 32))
    assert shapes[3:] == [
        *((64, 32, 32),) * 3,
        *((128, 16, 16),) * 2,
        *((256, 8, 8),) * 2,
        *((512, 4, 4),) * 2,
        (512, 1, 1),
        (512,),
    ]


@pytest.mark.parametrize("feature_relu", [False, True])
@pytest.mark.parametrize(("name", "widths"), [("resnet18", (4, 6, 8, 12)), ("vgg11", (24, 16)), ("vgg13", (24, 16))])
def test_the_papers_networks_take_any_image_and_sign_their_features(
    name: str, widths: tuple[int, ...], feature_relu: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    model = build_model(ModelSpec(name, widths, feature_relu=feature_relu), (1, 28, 28), 10, generator=generator)
    images = torch.randn(2, 1, 28, 28, generator=generator)
    logits, features = model(images)
    assert features.shape == (2, widths[-1])
    assert bool((features >= 0).all()) == feature_relu
    (logits.sum() + features.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    resized = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear")
    assert torch.allclose(model(resized)[1], model(images)[1], atol=1e-5)
    last = [layer for layer in model.body.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(last) == {"resnet18": 20, "vgg11": 9, "vgg13": 11}[name]


@pytest.mark.parametrize(("number", "stride"), [(4, 1), (6, 2)])
def test_a_residual_block_is_the_sum_of_its_parts(number: int, stride: int) -> None:
    """relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut), written with functions; shortcut a convolution."""
    model = build_model(ModelSpec("resnet18", (3, 4, 5, 6)), (1, 32, 32), 3, generator=torch.Generator().manual_seed(0))
    block = list(model.body.children())[number].eval()
    state = dict(block.named_parameters())
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    scale = (1 + 1e-5) ** 0.5  # fresh statistics: 0 and 1
    y = torch.nn.functional.conv2d(x, state["residual.0.weight"], stride=stride, padding=1) / scale
    y = torch.nn.functional.conv2d(y.clamp(min=0), state["residual.3.weight"], padding=1) / scale
    short = x if stride == 1 else torch.nn.functional.conv2d(x, state["shortcut.0.weight"], stride=stride) / scale
    assert torch.allclose(block(x), (short + y).clamp(min=0), atol=1e-5)
    # A strided 1x1 convolution crashes oneDNN's backward pass: see the block.
    assert all(layer.stride == (1, 1) for layer in block.modules() if getattr(layer, "kernel_size", 0) == (1, 1))
