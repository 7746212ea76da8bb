"""The loop: what it computes, what it records, and that no interruption of any kind changes either."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from collapsar.core.penalties import Penalties
from collapsar.training import loop
from collapsar.training.checkpoint import RunFolder, load_records
from collapsar.training.config import TrainConfig
from collapsar.training.data import imbalanced, load_data
from collapsar.training.loop import DivergedError, TrainingInterrupted, train
from collapsar.training.measure import EvaluationRecord, features_and_logits
from collapsar.training.models import ModelSpec, build_model
from collapsar.training.penalties import penalised_backward
from collapsar.training.provenance import RunHeader, choose_device
from collapsar.training.state import TrainResult, load_run
from ranks import forked, trained
from record_fit import misfits

DATA = load_data("digits")
CONFIG = TrainConfig(
    dataset="digits",
    class_counts=(9,) * 5 + (4,) * 5,
    penalties=Penalties(0.02, 0.0002, 0.02),
    epochs=12,
    model=ModelSpec("mlp", widths=(16, 12), batch_norm=True),
    batch_size=20,
    clip_norm=2.0,
    eval_every=3,
    device="cpu",
)


def _bits(result: TrainResult) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in result.model.state_dict().values()]


def _timeless(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def _same(one: TrainResult, two: TrainResult) -> bool:
    return _bits(one) == _bits(two) and _timeless(one.records) == _timeless(two.records)


def _on_disk(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "records.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted() -> TrainResult:
    return train(CONFIG, DATA)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every epoch."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "_CHECKPOINT_SHARE", math.inf)


@pytest.mark.parametrize("clip_norm", [math.inf, 1.5])
def test_loop_is_momentum_sgd_on_the_papers_loss(clip_norm: float) -> None:
    """Three epochs by hand: v = .9 v + g, θ = θ − lr v, the loss written with explicit squares."""
    config = replace(CONFIG, model=ModelSpec("mlp", widths=(12,)), epochs=3, warm_fraction=0.5, clip_norm=clip_norm)
    config = replace(config, weight_decay=0.01, learning_rate=0.05)
    got = train(config, DATA)
    data = imbalanced(DATA, config.class_counts)
    generator = torch.Generator().manual_seed(config.seed)
    model = build_model(config.model, data.image_shape, 10, generator=generator)
    images, labels = data.normalised(data.train_images), data.train_labels
    norms = []
    velocities = [torch.zeros_like(p) for p in model.parameters()]
    for rate, warm in ((0.05, 0.1), (0.005, 0.1), (0.0005, 1.0)):
        order = torch.randperm(65, generator=generator)
        for batch in (order[:20], order[20:40], order[40:60], order[60:]):
            logits, h = model(images[batch])
            loss = functional.cross_entropy(logits, labels[batch]) + 0.01 * (model.head.bias**2).sum()
            loss = loss + warm * (0.01 * (model.head.weight**2).sum() + 0.0001 * (65 / len(batch)) * (h**2).sum())
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            norms.append(math.sqrt(sum(float((g**2).sum()) for g in gradients)))
            for p, v, g in zip(model.parameters(), velocities, gradients, strict=True):
                v.mul_(0.9).add_(g * min(1, clip_norm / norms[-1]) + 0.01 * p.detach())
                p.data.sub_(rate * v)
    assert min(norms) < 1.5 < max(norms)  # some steps are clipped, some are not
    for name, tensor in model.state_dict().items():
        assert torch.allclose(got.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6), name


def test_same_seed_same_bits_other_seed_other_bits(uninterrupted: TrainResult) -> None:
    whole = train(CONFIG, imbalanced(DATA, CONFIG.class_counts))  # handing in the subset is the same
    assert _same(whole, uninterrupted)
    assert _bits(train(replace(CONFIG, seed=1), DATA)) != _bits(uninterrupted)


def test_bytes_normalised_batch_by_batch_train_the_same(
    uninterrupted: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_FLOAT_BYTES", 0)
    assert _same(train(CONFIG, DATA), uninterrupted)


def test_records_are_complete(tmp_path: Path, uninterrupted: TrainResult) -> None:
    calls = []
    result = train(CONFIG, DATA, tmp_path / "deep" / "run", progress=lambda *call: calls.append(call))
    header, *records = _on_disk(tmp_path / "deep" / "run")
    assert list(misfits(header, RunHeader)) == []
    assert [found for record in records for found in misfits(record, EvaluationRecord)] == []
    assert header["config"] == json.loads(CONFIG.to_json())
    assert header["config_digest"] == CONFIG.digest
    assert header["seed"] == 0
    assert header["versions"]["torch"] == torch.__version__
    assert header["device"].startswith("cpu")
    assert {"commit", "data_digest", "threads", "begun"} <= header.keys()
    assert [record["epoch"] for record in records] == [3, 6, 9, 12]
    assert [record["learning_rate"] for record in records] == pytest.approx([0.1, 0.01, 0.001, 0.001])
    assert [record["lambda_w"] for record in records] == [0.02] * 4
    assert records == result.records
    assert _same(result, uninterrupted)
    assert load_records(tmp_path / "deep" / "run") == [header, *records]
    assert [call[:2] for call in calls] == [(epoch, 12) for epoch in range(1, 13)]
    assert [call[2] for call in calls if call[2] is not None] == result.records


def test_measure_joins_the_records_with_numbers_that_json_lacks(tmp_path: Path) -> None:
    def measure(model: Any, data: Any) -> dict[str, Any]:
        assert len(data.train_labels) == 65
        seen = sum(len(labels) for _, _, labels in features_and_logits(model, data))
        return {
            "seen": seen,
            "tensor": torch.eye(2),
            "undefined": math.nan,
            "nested": {"values": (1, math.inf)},
        }

    result = train(CONFIG, DATA, tmp_path, measure=measure)
    on_disk = _on_disk(tmp_path)[-1]
    assert (on_disk["seen"], on_disk["tensor"]) == (65, [[1.0, 0.0], [0.0, 1.0]])
    assert (on_disk["undefined"], on_disk["nested"]) == (None, {"values": [1, "inf"]})
    last: Any = result.records[-1]
    for record in (last, load_records(tmp_path)[-1]):
        assert math.isnan(record["undefined"])
        assert record["nested"]["values"][1] == math.inf


class _PowerCutError(Exception):
    pass


def _after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, until it has been called often enough; then the power fails."""
    count = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise _PowerCutError
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("place", "calls"),
    [
        ((loop, "penalised_backward"), 2),  # in the first epoch, before any checkpoint
        ((loop, "penalised_backward"), 4 * 7 + 2),  # in the middle of a later one
        ((RunFolder, "append_record"), 0),  # before the header
        ((RunFolder, "append_record"), 2),  # after the steps of an epoch, before its record
        ((RunFolder, "save"), 5),  # after the record of epoch 6, before its checkpoint
        ((os, "fsync"), 4),  # while a checkpoint is being written
        ((RunFolder, "save"), 11),  # before the last checkpoint
    ],
)
def test_crash_and_resume_end_in_the_same_bits(
    place: tuple[Any, str],
    calls: int,
    tmp_path: Path,
    uninterrupted: TrainResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as crash:
        crash.setattr(*place, _after(calls, getattr(*place)))
        with pytest.raises(_PowerCutError):
            train(CONFIG, DATA, tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    steps = []
    result = train(CONFIG, DATA, tmp_path, progress=lambda epoch, *_: steps.append(epoch))
    assert _same(result, uninterrupted)
    assert _timeless(_on_disk(tmp_path)[1:]) == _timeless(uninterrupted.records)
    assert steps[-1] == 12
    assert train(CONFIG, DATA, tmp_path, progress=lambda *_: pytest.fail("trained again")).epoch == 12


def test_kill_at_a_random_moment_and_resume(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=80, eval_every=7)
    chance = random.Random()  # another moment on every run of the tests
    target, pause = chance.randrange(2, 20), chance.uniform(0, 0.02)
    context = forked()
    epochs, their_end = context.Pipe(duplex=False)
    child = context.Process(target=trained, args=(config.to_json(), str(tmp_path / "killed"), their_end))
    child.start()
    their_end.close()  # so that a child that ends early ends the waiting below
    while epochs.recv() < target:
        pass
    time.sleep(pause)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    begun = load_run(tmp_path / "killed")
    assert target <= begun.epoch < 80
    assert [record["epoch"] for record in begun.records] == list(range(7, begun.epoch + 1, 7))
    resumed = train(config, DATA, tmp_path / "killed")
    moment = f"killed {pause:.4f} s after epoch {target}, resumed from {begun.epoch}"
    assert _same(resumed, train(config, DATA)), moment
    assert _timeless(_on_disk(tmp_path / "killed")[1:]) == _timeless(resumed.records), moment


def test_first_interrupt_saves_and_the_second_is_immediate(tmp_path: Path, uninterrupted: TrainResult) -> None:
    def press(epoch: int, *_: object) -> None:
        if epoch == 5:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        TrainingInterrupted, match=r"stopped after epoch [56] of 12; the same call with the same run_dir"
    ):
        train(CONFIG, DATA, tmp_path, progress=press)
    assert signal.getsignal(signal.SIGINT) is before
    assert load_run(tmp_path).epoch == 6  # pressed while epoch 5 was reported
    assert _same(train(CONFIG, DATA, tmp_path), uninterrupted)
    with pytest.raises(TrainingInterrupted, match="nothing is saved"):
        train(CONFIG, DATA, progress=press)

    def press_twice(epoch: int, *_: object) -> None:
        press(epoch)
        press(epoch)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(CONFIG, DATA, progress=press_twice)
    assert not isinstance(caught.value, TrainingInterrupted)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_configuration_or_other_data_are_refused(tmp_path: Path, uninterrupted: TrainResult) -> None:
    train(CONFIG, DATA, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = replace(CONFIG, epochs=13, penalties=Penalties(0.02, 0.0002, math.inf))
    with pytest.raises(ValueError, match=r"another configuration .*lambda_b=inf.* epochs 12 there, 13 here") as caught:
        train(other, DATA, tmp_path)
    assert "\n" not in str(caught.value)
    changed = replace(DATA, train_images=255 - DATA.train_images)
    with pytest.raises(ValueError, match=r"another configuration .other training images"):
        train(CONFIG, changed, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "checkpoint.safetensors").unlink()  # a run killed before its first checkpoint has a header
    with pytest.raises(ValueError, match="another configuration"):
        train(other, DATA, tmp_path)
    assert train(other, DATA, tmp_path, resume=False).epoch == 13
    assert [record["epoch"] for record in load_records(tmp_path)[1:]] == [3, 6, 9, 12, 13]
    assert _same(train(CONFIG, DATA, tmp_path, resume=False), uninterrupted)


def test_a_penalty_that_was_computed_again_may_differ_by_rounding(tmp_path: Path, uninterrupted: TrainResult) -> None:
    """Penalties taken from thresholds (``collapsar demo``) move in their last digits between machines and releases."""
    with pytest.raises(TrainingInterrupted):
        train(CONFIG, DATA, tmp_path, stop=lambda: True)

    def at(factor: float) -> TrainConfig:
        p = CONFIG.penalties
        return replace(CONFIG, penalties=Penalties(p.lambda_w * factor, p.lambda_h, p.lambda_b))

    with pytest.raises(ValueError, match=r"another configuration \(penalties"):
        train(at(1 + 1e-5), DATA, tmp_path)
    resumed = train(at(1 + 1e-12), DATA, tmp_path)
    assert resumed.config == CONFIG
    assert _same(resumed, uninterrupted)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "foreign", "tensor lost"])
def test_damaged_checkpoint_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save

    config = replace(CONFIG, epochs=2)
    train(config, DATA, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "garbage": bytes(range(256)) * 20,
            "empty": b"",
            "foreign": save({"weights": torch.zeros(3)}),
            "tensor lost": content.replace(b"model.head.bias", b"model.head.bIas"),
        }[damage]
    )
    for action in (lambda: train(config, DATA, tmp_path), lambda: load_run(tmp_path)):
        with pytest.raises(ValueError, match=r"checkpoint.*resume=False") as caught:
            action()
        assert "\n" not in str(caught.value)
    assert train(config, DATA, tmp_path, resume=False).epoch == 2


def test_lost_or_damaged_records_are_one_clear_line(tmp_path: Path) -> None:
    train(CONFIG, DATA, tmp_path)
    path = tmp_path / "records.jsonl"
    content = path.read_text()
    path.write_text(content.replace('"epoch": 6', "'epoch': 6"))
    with pytest.raises(ValueError, match=r"line 3 of .* is not a JSON object"):
        train(CONFIG, DATA, tmp_path)
    path.write_text(content[:-40])
    assert len(load_records(tmp_path)) == 4  # a line cut short is left out
    with pytest.raises(ValueError, match="records are missing"):
        train(CONFIG, DATA, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="cannot read the records"):
        load_records(tmp_path)
    with pytest.raises(ValueError, match="records are missing"):
        train(CONFIG, DATA, tmp_path)


def test_folder_that_cannot_be_written_fails_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_train_epoch", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="`run_dir` must be a folder that can be written"):
            train(CONFIG, DATA, bad)


def test_load_run_brings_the_network_back(tmp_path: Path) -> None:
    result = train(CONFIG, DATA, tmp_path)
    loaded = load_run(tmp_path)
    assert _same(loaded, result)
    assert (loaded.config, loaded.epoch, loaded.finished) == (CONFIG, 12, "epochs")
    assert loaded.header == load_records(tmp_path)[0]
    with pytest.raises(ValueError, match="missing or damaged"):
        load_run(tmp_path / "nowhere")


def test_stops_once_the_head_stands_still_and_stays_stopped(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=60, stop_at=1e9)
    result = train(config, DATA, tmp_path)
    assert (result.epoch, result.finished) == (
        42,
        "stationary",
    )  # the first evaluation past 2/3 of the epochs
    assert train(config, DATA, tmp_path, progress=lambda *_: pytest.fail("trained on")).epoch == 42
    assert train(replace(config, epochs=6, stop_at=0.0), DATA).finished == "epochs"


def test_head_without_bias(tmp_path: Path) -> None:
    config = replace(CONFIG, penalties=Penalties(0.02, 0.0002), epochs=3)
    result = train(config, DATA, tmp_path)
    assert result.model.head.bias is None
    assert load_run(tmp_path).model.head.bias is None


def test_adamw_decays_the_head_as_torch_does() -> None:
    """Three epochs by hand with torch's own AdamW, a group for the head's weight and one for the rest."""
    config = replace(CONFIG, model=ModelSpec("mlp", (12,)), epochs=3, penalties=Penalties(0.0, 0.0, 0.0))
    config = replace(
        config, optimizer="adamw", learning_rate=0.01, weight_decay=0.5, head_decay=4.0, clip_norm=math.inf,
        learning_rate_steps=((0.0, 1.0),),
    )  # fmt: skip
    got = train(config, DATA)
    data = imbalanced(DATA, config.class_counts)
    generator = torch.Generator().manual_seed(config.seed)
    model = build_model(config.model, data.image_shape, 10, generator=generator)
    rest = [p for p in model.parameters() if p is not model.head.weight]
    groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": 0.5}]
    optimizer = torch.optim.AdamW([*groups, {"params": [model.head.weight], "weight_decay": 4.5}], lr=0.01)
    images, labels = data.normalised(data.train_images), data.train_labels
    for _ in range(3):
        for batch in torch.randperm(65, generator=generator).split(20):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch])[0], labels[batch]).backward()
            optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(got.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5), name
    assert got.optimizer is not None
    assert got.optimizer.state[got.model.head.weight]["exp_avg_sq"].shape == (10, 12)


def test_no_momentum_resumes_too(tmp_path: Path) -> None:
    config = replace(CONFIG, momentum=0.0, epochs=4)
    train(config, DATA, tmp_path)
    assert train(config, DATA, tmp_path).epoch == 4


def test_divergence_says_what_to_change() -> None:
    config = replace(CONFIG, learning_rate=1e9, clip_norm=math.inf, model=ModelSpec("mlp", widths=(16, 12)))
    with pytest.raises(DivergedError, match=r"diverged; lower `learning_rate` .* or set `clip_norm`"):
        train(config, DATA)


def test_what_does_not_fit_is_refused() -> None:
    for change, complaint in (
        (
            {"dataset": "fashion-mnist"},
            "`data` must be the data set of the configuration, 'fashion-mnist', got 'digits'",
        ),
        ({"class_counts": (500,) * 10}, "class 0 .0. of digits has 133 training images, 500 were asked for"),
        ({"batch_size": 32}, "`batch_size` 32 leaves one of the 65 images alone"),
        ({"device": "abacus"}, "`device` must be one that this machine has, got 'abacus'"),
    ):
        with pytest.raises(ValueError, match=complaint) as caught:
            train(replace(CONFIG, **change), DATA)  # pyright: ignore[reportArgumentType]
        assert "\n" not in str(caught.value)
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="`device` must be one that this machine has, got 'cuda'"):
        choose_device("cuda")


def test_start_gives_the_weights_and_its_digest_guards_the_folder(tmp_path: Path, uninterrupted: TrainResult) -> None:
    start = uninterrupted.model.state_dict()
    still = replace(CONFIG, learning_rate=1e-30, epochs=2, eval_every=1)
    moved = train(still, DATA, tmp_path, start=start)
    parameters = dict(moved.model.named_parameters())
    assert parameters
    assert all(torch.equal(value, start[name]) for name, value in parameters.items())
    assert moved.header.get("start_digest")
    assert uninterrupted.header.get("start_digest") == ""
    assert _same(train(still, DATA, tmp_path, start=start), moved)
    other = {**start, "head.bias": start["head.bias"] + 1}
    for wrong in (other, None):
        with pytest.raises(ValueError, match="another `start`"):
            train(still, DATA, tmp_path, start=wrong)
    with pytest.raises(ValueError, match="`start` must be a state_dict") as caught:
        train(replace(CONFIG, model=ModelSpec("mlp", widths=(12,))), DATA, start=start)
    assert "\n" not in str(caught.value)
    assert load_run(tmp_path).header.get("start_digest") == moved.header.get("start_digest")


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "change",
    [
        {"model": ModelSpec("cnn", (4, 8, 16))},
        {"model": ModelSpec("resnet18", (3, 4, 5, 12))},
        {
            "model": ModelSpec("vit", (4, 12), feature_relu=False, feature_norm="rmsnorm"),
            "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, "head_decay": 2.0,
        },
    ],
    ids=lambda change: change["model"].name,
)  # fmt: skip
def test_other_networks_and_optimizers_resume_in_the_same_bits(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, epochs=2, eval_every=1, **change)
    whole = train(config, DATA)
    with monkeypatch.context() as crash:
        crash.setattr(loop, "penalised_backward", _after(6, penalised_backward))
        with pytest.raises(_PowerCutError):
            train(config, DATA, tmp_path)
    assert load_run(tmp_path).epoch == 1
    assert _same(train(config, DATA, tmp_path), whole)
    assert _same(load_run(tmp_path), whole)


@pytest.mark.usefixtures("eager")
def test_a_warm_started_run_resumes_in_the_same_bits(
    tmp_path: Path, uninterrupted: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = uninterrupted.model.state_dict()
    config = replace(CONFIG, seed=3, epochs=4)
    whole = train(config, DATA, start=start)
    assert _bits(whole) != _bits(train(config, DATA))
    with monkeypatch.context() as crash:
        crash.setattr(loop, "penalised_backward", _after(9, penalised_backward))
        with pytest.raises(_PowerCutError):
            train(config, DATA, tmp_path, start=start)
    assert _same(train(config, DATA, tmp_path, start=start), whole)


def test_bfloat16_trains_the_same_network_roughly_and_measures_it_exactly(
    tmp_path: Path, uninterrupted: TrainResult
) -> None:
    config = replace(CONFIG, precision="bf16")
    result = train(config, DATA, tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in result.model.parameters())
    assert _bits(result) != _bits(uninterrupted)
    assert result.records[-1]["train_loss"] == pytest.approx(uninterrupted.records[-1]["train_loss"], abs=0.05)
    loaded = load_run(tmp_path).model.eval()
    loaded.body_dtype = torch.float32
    images = imbalanced(DATA, CONFIG.class_counts).normalised(DATA.test_images)
    assert torch.equal(loaded(images)[0], result.model.eval()(images)[0])  # evaluation is float32 either way


def test_products_are_exact_while_training_and_the_setting_returns() -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    seen: list[object] = []

    def note(*_: object) -> None:
        seen.extend(backend.fp32_precision for backend in backends)

    train(replace(CONFIG, epochs=1), DATA, progress=note)
    assert seen == ["ieee", "ieee"]
    assert [backend.fp32_precision for backend in backends] == before


class _FakeRecorder:
    """Stands in for CUDA: notes a call without making it; what it returns makes it."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, call: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            call()

        return replay


@pytest.mark.parametrize(
    "change", [{}, {"clip_norm": math.inf}, {"model": ModelSpec("cnn", (3, 4, 12), batch_norm=True)}]
)
def test_recorded_steps_train_the_same_network(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    """Four stages of penalties and learning rates, batches of 20 and one of 5: eight kinds of steps."""
    config = replace(CONFIG, epochs=12, cuda_graphs=True, warm_fraction=0.5, **change)
    plain = train(config, DATA)
    recorder = _FakeRecorder()
    monkeypatch.setattr(loop, "recorder", lambda device: recorder)
    assert _same(train(config, DATA), plain)
    stages = {(config.learning_rate_at(epoch), config.penalties_at(epoch)) for epoch in range(12)}
    assert recorder.recorded == 2 * len(stages) - 2  # the stages of two epochs have too few short batches to record
    assert recorder.replayed == 12 * 4 - 2 * 3 * len(stages) + 2


def test_steps_that_cannot_be_recorded_are_made_as_they_are(
    uninterrupted: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_call: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(loop, "recorder", lambda device: refuse)
    with pytest.warns(UserWarning, match="launched piece by piece: operation not permitted when stream is capturing$"):
        result = train(replace(CONFIG, cuda_graphs=True), DATA)
    assert _same(result, uninterrupted)


def test_a_run_that_is_told_to_stop_goes_on_in_the_same_bits(tmp_path: Path, uninterrupted: TrainResult) -> None:
    with pytest.raises(TrainingInterrupted, match="after epoch 1 of 12; the same call"):
        train(CONFIG, DATA, tmp_path, stop=lambda: True)
    assert load_run(tmp_path).epoch == 1
    assert _same(train(CONFIG, DATA, tmp_path, stop=lambda: False), uninterrupted)


@pytest.mark.slow  # a C++ compiler runs
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it imports its compiler
def test_a_compiled_network_trains_the_same_to_rounding(uninterrupted: TrainResult) -> None:
    compiled = train(replace(CONFIG, compile=True), DATA)
    pairs = zip(compiled.model.state_dict().values(), uninterrupted.model.state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it imports its compiler
@pytest.mark.filterwarnings("error:the training step cannot be recorded")  # whatever else is asked for
@pytest.mark.parametrize(
    ("change", "rtol"),
    [({}, 1e-3), ({"precision": "bf16"}, 0.1), ({"compile": True}, 1e-3), ({"cuda_graphs": True}, 1e-3)],
    ids=["exact", "bf16", "compiled", "graphs"],
)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_gpu_trains_what_the_cpu_does(name: str, change: dict[str, Any], rtol: float, tmp_path: Path) -> None:
    """Same weights and order at the start; six epochs at a small rate keep the paths of rounding together."""
    model = ModelSpec(name, widths=(16, 12) if name == "mlp" else (4, 8, 12))
    config = replace(CONFIG, model=model, epochs=6, learning_rate=0.01, device="cpu")
    on_cpu = train(config, DATA).records[-1]
    on_gpu = train(replace(config, device="cuda", **change), DATA, tmp_path)
    assert on_gpu.records[-1]["train_loss"] == pytest.approx(on_cpu["train_loss"], rel=rtol)
    assert on_gpu.model.head.weight.is_cuda
    assert load_run(tmp_path).records == on_gpu.records
