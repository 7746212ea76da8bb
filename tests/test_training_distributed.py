"""Several processes on one batch: the same gradients, the same weights, the same way to stop and go on."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from collapsar.core.penalties import Penalties
from collapsar.training import loop
from collapsar.training.config import TrainConfig
from collapsar.training.data import imbalanced, load_data
from collapsar.training.distributed import Team
from collapsar.training.loop import DivergedError, TrainingInterrupted, train
from collapsar.training.models import ModelSpec, build_model
from collapsar.training.penalties import penalised_backward, penalised_loss
from collapsar.training.state import TrainResult, load_run

DATA = load_data("digits")
ONE = TrainConfig(
    dataset="digits",
    class_counts=(9,) * 5 + (4,) * 5,  # 65 images: the last batch of 16 is one image, and one process gets none of it
    penalties=Penalties(0.02, 0.0002, 0.02),
    epochs=12,
    model=ModelSpec("mlp", widths=(16, 12)),
    batch_size=16,
    clip_norm=2.0,
    weight_decay=0.001,
    eval_every=3,
    device="cpu",
)
TWO = replace(ONE, devices=2)


@pytest.mark.parametrize(("size", "length"), [(1, 7), (2, 7), (2, 1), (3, 8), (4, 3)])
def test_shares_make_the_batch_and_their_average_gradient_is_the_losses(size: int, length: int) -> None:
    data = imbalanced(DATA, ONE.class_counts)
    model = build_model(ONE.model, (1, 8, 8), 10, generator=torch.Generator().manual_seed(0)).double()
    images, labels = data.normalised(data.train_images).double(), data.train_labels
    batch = torch.randperm(65, generator=torch.Generator().manual_seed(1))[:length]
    penalties = Penalties(0.3, 0.02, 0.4)
    logits, features = model(images[batch])
    loss = penalised_loss(logits, features, labels[batch], model.head, penalties, 65)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    average = [torch.zeros_like(gradient) for gradient in expected]
    seen = []
    for rank in range(size):
        share = Team(torch.device("cpu"), rank, size).share(batch)
        seen.append(share)
        model.zero_grad()
        penalised_backward(model(images[share]), labels[share], model.head, penalties, 65, size / length)
        for total, parameter in zip(average, model.parameters(), strict=True):
            assert parameter.grad is not None
            total.add_(parameter.grad, alpha=1 / size)
    assert torch.equal(torch.cat(seen), batch)
    for got, gradient in zip(average, expected, strict=True):
        assert torch.allclose(got, gradient, rtol=1e-6, atol=1e-9)  # the one-hot rows are float32


def _close(one: TrainResult, two: TrainResult) -> bool:
    pairs = zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def _bits(result: TrainResult) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in result.model.state_dict().values()]


@pytest.mark.slow  # each start of a process imports torch
def test_two_processes_train_what_one_does_and_resume_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, threads = train(ONE, DATA), torch.get_num_threads()

    def press(epoch: int, *_: object) -> None:
        if epoch == 5:
            os.kill(os.getpid(), signal.SIGINT)

    whole = train(TWO, DATA, tmp_path / "whole")
    assert _close(one, whole)
    assert _bits(one) != _bits(train(replace(ONE, seed=1), DATA))
    for key in ("train_loss", "stationarity", "effective_lambda_z"):
        assert [r[key] for r in whole.records] == pytest.approx([r[key] for r in one.records], rel=1e-4)
    assert _bits(load_run(tmp_path / "whole")) == _bits(whole)
    with pytest.raises(TrainingInterrupted, match="stopped after epoch"):
        train(TWO, DATA, tmp_path / "cut", progress=press)
    assert load_run(tmp_path / "cut").finished == ""
    resumed = train(TWO, DATA, tmp_path / "cut")
    assert _bits(resumed) == _bits(whole)
    assert [r["train_loss"] for r in resumed.records] == [r["train_loss"] for r in whole.records]
    assert not torch.distributed.is_initialized()
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(loop, "leading", lambda *_: pytest.fail("a finished run needs no processes"))
    assert _bits(train(TWO, DATA, tmp_path / "whole")) == _bits(whole)


@pytest.mark.slow
def test_two_processes_end_together_when_training_diverges() -> None:
    wild = replace(TWO, learning_rate=1e9, clip_norm=math.inf, weight_decay=0.0)
    with pytest.raises(DivergedError, match="lower `learning_rate`"):
        train(wild, DATA)
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_a_script_that_does_not_guard_its_work_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom collapsar.training import TrainConfig, load_data, train\n"
        "train(TrainConfig.from_json(sys.argv[1]), load_data('digits'))\n"
    )
    command = [sys.executable, str(script), TWO.to_json()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert 'must keep its own work behind `if __name__ == "__main__":`' in ended.stderr.splitlines()[-1]


def test_what_several_processes_cannot_do_is_refused() -> None:
    with pytest.raises(
        ValueError, match="`devices` must be 1 on the CPU for a network with batch normalisation, got 2"
    ):
        train(replace(TWO, model=ModelSpec("mlp", widths=(16,), layers_above_norm=1), batch_size=20), DATA)
