"""Which model of the theory a family of networks has: small instances, made from a config, looked at.

    python docs/which_model.py            # prints the table of docs/which-model.md for the libraries that are installed

Each network gets the parameter groups of its library's usual recipe, sees random inputs, and is handed to
``known_training`` and ``choose_model``. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from collapsar.core.known import HeadNorm
from collapsar.diagnose import measure
from collapsar.diagnose.model_choice import Choice, choose_model
from collapsar.metrics.head import find_head
from collapsar.monitor import known_training

CLASSES, SAMPLES = 3, 24


class Family(NamedTuple):
    """A row of the table: how a small instance is made, and what it is given."""

    library: str
    name: str
    make: Callable[[], nn.Module]
    inputs: str  # "images 32", "images 224", "tokens"
    gain_decayed: bool


class Row(NamedTuple):
    """What was found of a family."""

    library: str
    name: str
    feeds: str
    gain: str
    model: str

    def __str__(self) -> str:
        return "| " + " | ".join(self) + " |"


def _timm(name: str, inputs: str = "images 32", **settings: Any) -> Family:
    def make() -> nn.Module:
        return importlib.import_module("timm").create_model(name, num_classes=CLASSES, **settings)

    return Family("timm", name, make, inputs, gain_decayed=False)


def _torchvision(name: str, *, decayed: bool, inputs: str = "images 32", **settings: Any) -> Family:
    def make() -> nn.Module:
        models = importlib.import_module("torchvision.models")
        return getattr(models, name)(num_classes=CLASSES, **settings)

    return Family("torchvision", name, make, inputs, decayed)


def _transformers(name: str, task: str, inputs: str, **config: Any) -> Family:
    def make() -> nn.Module:
        library = importlib.import_module("transformers")
        settings = getattr(library, f"{name}Config")(num_labels=CLASSES, **config)
        return getattr(library, f"{name}For{task}Classification")(settings)

    return Family("transformers", f"{name}For{task}Classification", make, inputs, gain_decayed=False)


_TEXT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50,
    "pad_token_id": 0,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_SWIN: dict[str, Any] = {"image_size": 32, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
_STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}

FAMILIES: tuple[Family, ...] = (
    _timm("vit_tiny_patch16_224", **_VIT),
    _timm("vit_tiny_patch16_224", **_VIT, global_pool="avg"),
    _timm("deit_tiny_patch16_224", **_VIT),
    _timm("beit_base_patch16_224", **_VIT),
    _timm("convnext_atto", **_STAGES),
    _timm("swin_tiny_patch4_window7_224", "images 224", embed_dim=16, depths=(1, 1, 1, 1)),
    _timm("mixer_s32_224", "images 224"),
    _timm("resnet18"),
    _timm("efficientnet_b0"),
    _timm("regnety_002"),
    _timm("nfnet_l0", "images 64"),
    _torchvision("vit_b_16", decayed=False, inputs="images 224"),
    _torchvision("swin_t", decayed=False, inputs="images 64"),
    _torchvision("convnext_tiny", decayed=False, inputs="images 64"),
    _torchvision("maxvit_t", decayed=False, inputs="images 224"),
    _torchvision("resnet18", decayed=True, inputs="images 64"),
    _torchvision("densenet121", decayed=True, inputs="images 64"),
    _torchvision("vgg11_bn", decayed=True, inputs="images 64"),
    _torchvision("mobilenet_v3_small", decayed=True, inputs="images 64"),
    _torchvision("efficientnet_b0", decayed=True, inputs="images 64"),
    _transformers("ViT", "Image", "images 32", **_VISION),
    _transformers("DeiT", "Image", "images 32", **_VISION),
    _transformers("Beit", "Image", "images 32", **_VISION),
    _transformers("Dinov2", "Image", "images 32", **_VISION),
    _transformers("Swin", "Image", "images 32", **_SWIN),
    _transformers("ConvNext", "Image", "images 32", hidden_sizes=(8, 8, 16, 16), depths=(1, 1, 1, 1)),
    _transformers("ResNet", "Image", "images 32", embedding_size=8, hidden_sizes=(8, 8, 16, 16), depths=(1, 1, 1, 1)),
    _transformers("MobileNetV2", "Image", "images 32"),
    _transformers("Bert", "Sequence", "tokens", **_TEXT),
    _transformers("Roberta", "Sequence", "tokens", **_TEXT),
    _transformers("Electra", "Sequence", "tokens", **_TEXT),
    _transformers("DebertaV2", "Sequence", "tokens", **_TEXT),
    _transformers("DistilBert", "Sequence", "tokens", dim=16, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=50),
    _transformers("GPT2", "Sequence", "tokens", n_embd=16, n_layer=1, n_head=2, vocab_size=50, pad_token_id=0),
    _transformers("Llama", "Sequence", "tokens", **_TEXT),
    _transformers("Qwen2", "Sequence", "tokens", **_TEXT, num_key_value_heads=2),
)  # fmt: skip


def looked_at(family: Family) -> Row:
    """Build a family's instance and see which model it has."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = family.make().eval()
        head = find_head(model, None, CLASSES)[1]
        optimizer = torch.optim.SGD(_groups(model, gain_decayed=family.gain_decayed), lr=0.1)
        known = known_training(model, head, optimizer)
    features = _features(model, head, family.inputs)
    labels = np.repeat(np.arange(CLASSES), SAMPLES // CLASSES)
    weight = head.weight.detach().flatten(1).double().numpy()
    found = choose_model(measure(features, labels, weight, np.zeros(CLASSES)), known)
    nonnegative = bool((features >= 0).all())
    return Row(
        family.library, _titled(family), _feeds(known.norm, known.bounded_by, found, nonnegative=nonnegative),
        _gain(known.norm, found), _named(found, known.norm),
    )  # fmt: skip


def _titled(family: Family) -> str:
    pooled = family.make.__closure__ is not None and "avg" in repr([c.cell_contents for c in family.make.__closure__])
    return f"`{family.name}`{', averaged' if pooled else ''}"


def _groups(model: nn.Module, *, gain_decayed: bool) -> list[dict[str, Any]]:
    """Decay on matrices; on vectors (gains, shifts, biases) only where the recipe has it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    vectors = [p for p in trained if p.ndim < 2]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.05 if gain_decayed else 0.0},
    ]


def _features(model: nn.Module, head: nn.Module, inputs: str) -> np.ndarray:
    """What the head receives, (N, d)."""
    caught: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda _, given, __: caught.append(given[0]))
    with torch.no_grad(), hook:
        if inputs == "tokens":
            tokens = torch.randint(1, 50, (SAMPLES, 6))
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        else:
            side = int(inputs.split()[1])
            model(torch.randn(SAMPLES, 3, side, side))
    found = caught[-1]
    found = found[:, -1] if found.ndim == 3 else found  # one score per token: the last one's are taken
    return found.flatten(1).double().numpy()


def _feeds(norm: HeadNorm | None, bounded: str | None, found: Choice, *, nonnegative: bool) -> str:
    if norm is not None and found.name in ("sample", "batch", "none") and norm.layer in found.sentence:
        averaged = norm.pooled is not None or "makes them shorter" in found.sentence
        return f"{norm.layer}, {'averaged' if averaged else 'per ' + norm.over}"
    if bounded is not None:
        return bounded
    return "features after a ReLU" if nonnegative else "no norm"


def _gain(norm: HeadNorm | None, found: Choice) -> str:
    if norm is None or norm.layer not in found.sentence:
        return "—"
    return "none" if not norm.trained_gain else "not decayed" if norm.free_gain else "decayed"


def _named(found: Choice, norm: HeadNorm | None) -> str:
    if found.name == "penalty":
        return "penalised features"
    if found.name == "none":
        return "no optimum: the length may grow" if norm is not None and norm.free_gain else "none here"
    return f"normalised per {found.name}"


def table(libraries: tuple[str, ...]) -> Iterator[Row]:
    """The rows of the libraries named that are installed."""
    for family in FAMILIES:
        if family.library in libraries:
            yield looked_at(family)


def _installed(library: str) -> bool:
    try:
        importlib.import_module(library)
    except Exception:  # a build for another version of torch
        return False
    return True


if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or ("timm", "torchvision", "transformers")
    for row in table(tuple(library for library in wanted if _installed(library))):
        print(row, flush=True)
