"""Runs of a small text transformer on source text of Python's own library, a class per package."""

from __future__ import annotations

import hashlib
import json
import math
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from collapsar.core.types import Record
from collapsar.metrics import NeuralCollapse
from collapsar_studies.run_record import rounded
from collapsar_studies.standard_runs import STAGES

# Every Python since 3.11 has these; the five with the most text are the large classes.
PACKAGES = (
    "asyncio", "email", "unittest", "xml", "multiprocessing", "ctypes", "http", "importlib", "json", "logging",
)  # fmt: skip
BYTES, LAYERS, HEADS = 24, 2, 2
# SGD's of the head. No gradient is clipped: one without the decay in it is long at rest, and would be cut there.
MOMENTUM, HEAD_RATE = 0.9, 0.05


@dataclass(frozen=True)
class TextRun:
    """One run.

    Attributes:
        class_counts: Pieces of text per package, in the order of ``PACKAGES``.
        width: Features d, and of every block.
        optimizer: Of the head, "sgd" or "adamw"; the body has AdamW without decay, as SGD alone left it at chance.
        decay: Of the head's weight alone; AdamW's is decoupled.
        rate: The body's learning rate at first, and AdamW's of the head.
        batch_size: Pieces per step.
        epochs: Passes over the pieces.
        gentle: For this share of them the decay is a tenth: classes that a strong decay merges at the start come apart
            late, if at all.
        seed: Of weights, order and choice of pieces.
    """

    class_counts: tuple[int, ...]
    width: int
    optimizer: str
    decay: float
    rate: float
    batch_size: int
    epochs: int
    gentle: float
    seed: int

    @property
    def key(self) -> str:
        """A hash of everything that decides the run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=4)
def classes_of_text(class_counts: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Pieces of 24 bytes of each package's source, at random places, and their labels.

    Raises:
        ValueError: A package of the library has no source here.
    """
    generator, pieces, labels = np.random.default_rng((seed, 24)), [], []
    for k, (package, count) in enumerate(zip(PACKAGES, class_counts, strict=True)):
        folder = Path(sysconfig.get_paths()["stdlib"]) / package
        whole = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")) if "test" not in path.parts)
        text = np.frombuffer(b" ".join(whole.split()), dtype=np.uint8)
        if text.size < BYTES * count:
            raise ValueError(f"{folder} has {text.size} bytes of source, {BYTES * count} were asked for")
        places = generator.choice(text.size // BYTES, count, replace=False)
        pieces += [text[BYTES * place : BYTES * (place + 1)] for place in places]
        labels += [k] * count
    # 0 is left for padding, which there is none of; bytes beyond ASCII are one token
    return torch.from_numpy(np.clip(np.stack(pieces), 1, 127).astype(np.int64)), torch.tensor(labels)


def text_network(width: int, num_classes: int, seed: int) -> nn.Module:
    """GPT-2 from a config: two blocks, features of the last byte, a LayerNorm without gain, a head with a bias.

    GPT-2's own head has none, and without a bias nothing merges.
    """
    from transformers import GPT2Config, GPT2ForSequenceClassification

    settings: dict[str, Any] = {"num_labels": num_classes}  # of every configuration's base class
    config = GPT2Config(
        vocab_size=128, n_positions=BYTES, n_embd=width, n_layer=LAYERS, n_head=HEADS, **settings,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = GPT2ForSequenceClassification(config)
    model.score = nn.Linear(width, num_classes)
    # an undecayed gain would grow without end: there would be no optimum to compare with
    model.transformer.ln_f.requires_grad_(requires_grad=False)
    return model


def train_text(run: TextRun) -> Record:
    """Train one network, and return what is kept of it as JSON values.

    Returns:
        "Z" (K, K) [logit, class]; "b" (K,); "square_length" of the features; "accuracy" and "loss" of the training
        pieces; "rows" (K,) of AdamW's decay, None for SGD; "residual", how far the head is from balance with its decay;
        "digest" of the text and "cpu_seconds".
    """
    begun = time.process_time()
    texts, labels = classes_of_text(run.class_counts, run.seed)
    model = text_network(run.width, len(run.class_counts), run.seed)
    optimizers, loss = _optimizers(model, run), torch.zeros(())
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(run.seed)
    for epoch in range(run.epochs):
        factor = next(x for begin, x in reversed(STAGES) if epoch >= begin * run.epochs)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = factor * rate
        optimizers[1].param_groups[0]["weight_decay"] = run.decay * (0.1 if epoch < run.gentle * run.epochs else 1.0)
        for rows in torch.randperm(len(labels), generator=generator).split(run.batch_size):
            model.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(model(input_ids=texts[rows]).logits, labels[rows])
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        if not math.isfinite(loss.item()):
            raise ArithmeticError(f"the loss of {run} is {loss.item()} after epoch {epoch + 1}: lower its `rate`")
    return rounded({**_measured(model, optimizers[1], run), "cpu_seconds": time.process_time() - begun})


def _optimizers(model: nn.Module, run: TextRun) -> list[torch.optim.Optimizer]:
    """The body's, the head's weight's, and the head's bias's: one group each."""
    head: Any = model.score
    body = [p for p in model.parameters() if p.requires_grad and p is not head.weight and p is not head.bias]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(body, lr=run.rate, weight_decay=0.0)]
    for parameter, decay in ((head.weight, run.decay), (head.bias, 0.0)):
        optimizers.append(
            torch.optim.AdamW([parameter], lr=run.rate, weight_decay=decay)
            if run.optimizer == "adamw"
            else torch.optim.SGD([parameter], lr=HEAD_RATE, momentum=MOMENTUM, weight_decay=decay)
        )
    return optimizers


@torch.no_grad()
def _measured(model: nn.Module, optimizer: torch.optim.Optimizer, run: TextRun) -> Mapping[str, Any]:
    texts, labels = classes_of_text(run.class_counts, run.seed)
    model.eval()
    head: Any = model.score
    body: Any = model.transformer
    features = body(input_ids=texts).last_hidden_state[:, -1]
    metric = NeuralCollapse(head=head, sync_on_compute=False)
    metric.update(features, labels)
    report = metric.compute()
    logits = head(features)
    missed = logits.softmax(1) - nn.functional.one_hot(labels, logits.shape[1])
    gradient, weight = missed.T @ features / len(labels), head.weight
    penalties: Any = run.decay
    if run.optimizer == "adamw":
        state = optimizer.state[weight]
        v = state["exp_avg_sq"] / (1 - optimizer.param_groups[0]["betas"][1] ** float(state["step"]))
        penalties = run.decay * (v.sqrt() + optimizer.param_groups[0]["eps"])
    held = penalties * weight
    return {
        "Z": report.Z,
        "b": report.b,
        "square_length": float(features.square().sum(1).mean()),
        "accuracy": float((logits.argmax(1) == labels).float().mean()),
        "loss": float(nn.functional.cross_entropy(logits, labels)),
        "rows": penalties.mean(1) if run.optimizer == "adamw" else None,
        "residual": float((gradient + held).norm() / held.norm()) if run.decay else None,
        "digest": hashlib.sha256(texts.numpy().tobytes()).hexdigest()[:16],
    }


def counted(class_counts: Sequence[int]) -> str:
    """How a record names the classes.

    Example:
        >>> counted((50, 10, 10, 10, 10, 10, 10, 10, 10, 10))[:24]
        'asyncio 50, email 10, un'
    """
    return ", ".join(f"{name} {n}" for name, n in zip(PACKAGES, class_counts, strict=True))
