"""Steps fit to be recorded on a GPU, threads that take turns at one, and where a run says its code is from."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from collapsar import Penalties
from collapsar.training import ImageData, ModelSpec, TrainConfig, graphs, loop, provenance
from collapsar.training.distributed import Team
from collapsar.training.models import BODIES, FeatureNetwork
from collapsar.training.state import RunState


def test_threads_take_turns_but_for_their_waits() -> None:
    both, inside = threading.Barrier(2, timeout=20), []

    def both_wait() -> None:
        both.wait()

    def work() -> None:
        with graphs.taking_turns():
            for _ in range(3):
                inside.append(threading.get_ident())
                time.sleep(0.002)
                assert inside[-1] == threading.get_ident()  # nobody else came in
                graphs._without_turn(both_wait)  # pyright: ignore[reportPrivateUsage]

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work) for _ in range(2)]:
            future.result()
    assert len(inside) == 6


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18", "vgg11"])
def test_no_step_looks_at_a_value(name: str) -> None:
    """What waits for the device cannot be recorded: with tensors that have no values a look at one is an error."""
    widths = {"mlp": (16, 12), "cnn": (4, 8, 12), "resnet18": (3, 4, 5, 12), "vgg11": (12, 12)}[name]
    config = TrainConfig(
        dataset="digits",
        class_counts=(20,) * 5 + (5,) * 5,
        penalties=Penalties(0.05, 0.0005, 0.02),
        epochs=8,
        model=ModelSpec(name, widths),
        precision="bf16",
        clip_norm=math.inf,
        device="cpu",
        cuda_graphs=True,
    )
    with FakeTensorMode():
        body, num_features = BODIES[name](config.model, (1, 8, 8))
        model = FeatureNetwork(body, torch.nn.Linear(num_features, 10))
        model.body_dtype = torch.bfloat16
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        images = {f"{split}_images": torch.zeros(125, 1, 8, 8, dtype=torch.uint8) for split in ("train", "test")}
        labels = {f"{split}_labels": torch.zeros(125, dtype=torch.int64) for split in ("train", "test")}
        data = object.__new__(ImageData)  # its checks do look
        vars(data).update(images | labels | {"mean": (0.5,), "std": (0.3,)})
        state = RunState(model, optimizer, torch.Generator())
        step = loop._step(state, loop._Job(config, data, Team(torch.device("cpu"))))  # pyright: ignore[reportPrivateUsage]
        for _ in range(2):
            step(torch.zeros(20, dtype=torch.int64), (0.1, config.penalties))
        assert isinstance(model.head.weight.grad, FakeTensor)
        with pytest.raises(DataDependentOutputException):
            bool(model.head.weight.grad.sum() > 0)


def test_a_copy_without_its_repository_is_told_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "src" / "collapsar" / "training" / "provenance.py"))
    commit = provenance.checkout_commit
    monkeypatch.delenv("COLLAPSAR_COMMIT", raising=False)
    assert commit() is None
    monkeypatch.setenv("COLLAPSAR_COMMIT", "0123abc")
    assert commit() == "0123abc"
