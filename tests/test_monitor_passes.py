"""The features of the right pass of the right network: copies, saved models, several passes in a step."""

from __future__ import annotations

import copy
import io
import logging
import sys
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import transformers
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from collapsar.metrics import class_moments
from collapsar.monitor import CollapseMonitor, MonitorOptions, read_json_lines
from collapsar.monitor.lightning import CollapseCallback
from collapsar.monitor.transformers import CollapseCallback as HuggingFaceCallback

K = 3
LABELS = torch.arange(60) % K
IMAGES = 3 * torch.eye(8)[LABELS] + 0.1 * torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
OTHERS = 3 * torch.eye(8)[(LABELS + 1) % K]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, K))


def options(tmp_path: Any, said: list[str] | None = None) -> MonitorOptions:
    return MonitorOptions(path=tmp_path / "nc.jsonl", say=(lambda text: None) if said is None else said.append)


def expected_means() -> np.ndarray:
    with torch.no_grad():
        return class_moments(network()[:2](IMAGES), LABELS, K).class_means.numpy()


def teacher_first(model: nn.Module, x: torch.Tensor, others: torch.Tensor) -> None:
    with torch.no_grad():
        model(others)
    model(x)


def validation_first(model: nn.Module, x: torch.Tensor, others: torch.Tensor) -> None:
    model.eval()
    model(others)
    model.train()
    model(x)


def recomputed(model: nn.Module, x: torch.Tensor, others: torch.Tensor) -> None:
    out: Any = checkpoint(model, x.clone().requires_grad_(), use_reentrant=False)
    out.sum().backward()


def twice(model: nn.Module, x: torch.Tensor, others: torch.Tensor) -> None:
    model(x)
    model(others)


STEPS: dict[str, tuple[Any, bool]] = {
    "one pass": (lambda model, x, others: model(x), False),
    "unlabelled after": (twice, True),
    "other size first": (lambda model, x, others: (model(others[:7]), model(x)), True),
    "perturbed after": (lambda model, x, others: (model(x), model(x + 5 * torch.randn_like(x))), True),
    "a teacher's pass without gradients": (teacher_first, False),
    "a validation in between": (validation_first, False),
    "a checkpointed network": (recomputed, False),
    "a copy": (lambda model, x, others: (model(x), copy.deepcopy(model)(others)), False),
    "an average": (lambda model, x, others: (model(x), AveragedModel(model)(others)), False),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_pass_that_trains_is_measured(name: str, tmp_path: Any) -> None:
    run, complains = STEPS[name]
    model, said = network(), []
    with CollapseMonitor(model, options=options(tmp_path, said)) as monitor:
        for rows in torch.arange(60).split(20):
            run(model, IMAGES[rows], OTHERS[rows])
            monitor.step(LABELS[rows])
        record = monitor.end_epoch()
    assert record is not None
    np.testing.assert_allclose(record.report.class_means, expected_means(), atol=1e-5)
    assert record.report.num_samples == 60
    assert sum("runs more than once in a step" in text for text in said) == complains


def test_a_pass_can_be_hidden(tmp_path: Any) -> None:
    model, said = network(), []
    with CollapseMonitor(model, options=options(tmp_path, said)) as monitor:
        with monitor.without():
            model(OTHERS)
        model(IMAGES)
        monitor.step(LABELS)
        record = monitor.end_epoch()
    assert record is not None
    np.testing.assert_allclose(record.report.class_means, expected_means(), atol=1e-5)
    assert not any("more than once" in text for text in said)


def test_a_monitored_model_can_be_saved_whole_and_leaves_nothing_in_its_copies(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    monitor = CollapseMonitor(model, options=options(tmp_path))
    file, twin = io.BytesIO(), copy.deepcopy(model)
    torch.save(model, file)
    torch.save(model, tmp_path / "during.pt")
    monitor.close()
    for later in (model, twin):
        torch.save(later, io.BytesIO())
        torch.save(copy.deepcopy(later), io.BytesIO())
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (loaded, twin):
        assert torch.equal(other(IMAGES), model(IMAGES))
    assert b"collapsar" not in (tmp_path / "during.pt").read_bytes()
    for name in [name for name in sys.modules if name.partition(".")[0] == "collapsar"]:
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    elsewhere = torch.load(tmp_path / "during.pt", weights_only=False)
    assert torch.equal(elsewhere(IMAGES), model(IMAGES))


# --- Lightning


class Module(lightning.LightningModule):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = network(), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        if self.kind == "adversarial":
            loss = loss + 0 * nn.functional.cross_entropy(self(x + 5 * torch.randn_like(x)), y)
        if self.kind == "unlabelled":
            loss = loss + 0 * self(OTHERS[: len(x)]).sum()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    tmp_path: Any, kind: str, callbacks: list[Any], epochs: int = 4, module: Any = None, **more: Any
) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=tmp_path,
        **{"enable_checkpointing": False, **more},
    )
    data = DataLoader(TensorDataset(IMAGES, LABELS), 20)
    trainer.fit((module or Module)(kind), data, data)
    return trainer


def test_more_passes_in_a_lightning_step_change_nothing(tmp_path: Any) -> None:
    scalars = []
    for kind, more in (
        ("one", {}),
        ("adversarial", {}),
        ("unlabelled", {}),
        ("one", {"val_check_interval": 2}),
    ):
        callback = CollapseCallback(options=options(tmp_path))
        fit(tmp_path, kind, [callback], **more)
        assert callback.monitor is not None
        assert callback.monitor.record is not None
        scalars.append(callback.monitor.record.scalars)
        assert callback.monitor.record.report.num_samples == 60
    assert scalars[1:] == scalars[:1] * 3


def test_callbacks_can_watch_a_scalar_that_is_measured_every_second_epoch(tmp_path: Any) -> None:
    callback = CollapseCallback(every=2, options=options(tmp_path))
    early = EarlyStopping("nc/num_distinct", mode="max", patience=50, check_on_train_epoch_end=True)
    keep = ModelCheckpoint(tmp_path, monitor="nc/num_distinct", mode="max", save_on_train_epoch_end=True)
    trainer = fit(tmp_path, "one", [callback, early, keep], epochs=5, enable_checkpointing=True)
    assert trainer.current_epoch == 5
    assert callback.monitor is not None
    lines = [line["epoch"] for line in read_json_lines(tmp_path / "nc.jsonl") if line["kind"] == "epoch"]
    assert lines == [0, 1, 3]
    assert float(early.best_score) == trainer.callback_metrics["nc/num_distinct"] == 3
    assert keep.best_model_path


def test_the_callback_reads_what_the_optimizer_does(tmp_path: Any) -> None:
    class Decayed(Module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.02)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]

    callback = CollapseCallback(options=options(tmp_path))
    fit(tmp_path, "one", [callback], module=Decayed)
    assert callback.monitor is not None
    known = callback.monitor.known
    assert known is not None
    assert (known.lambda_w, known.lambda_b) == (0.02, 0.02)
    assert known.decay_clock == pytest.approx(0.02 * 0.1 * 12)  # at most: SGD does not count its steps
    line = read_json_lines(tmp_path / "nc.jsonl")[-2]
    assert (line["kind"], line["lambda_w"]) == ("training", 0.02)


# --- Hugging Face


def in_silence(tmp_path: Any, **settings: Any) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **settings,
    )


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, Any]:
        logits = self.net(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class TwoPasses(transformers.Trainer):
    twice = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        first = model(**inputs)["loss"]
        if self.twice:
            first = first + 0 * model(x=OTHERS[: len(inputs["x"])], labels=inputs["labels"])["loss"]
            with torch.no_grad():
                model(**inputs)
        return first


@pytest.mark.parametrize("accumulate", [1, 3])
def test_more_passes_in_a_hugging_face_step_change_nothing(accumulate: int, tmp_path: Any) -> None:
    scalars = []
    for again in (False, True):
        args = in_silence(
            tmp_path,
            num_train_epochs=2,
            per_device_train_batch_size=10,
            gradient_accumulation_steps=accumulate,
            learning_rate=1e-3,
            weight_decay=0.01,
        )
        data: Any = [{"x": x, "labels": y} for x, y in zip(IMAGES, LABELS, strict=True)]
        trainer = TwoPasses(model=Classifier(), args=args, train_dataset=data)
        trainer.twice = again
        callback = HuggingFaceCallback(head="net.2", options=options(tmp_path)).attach(trainer)
        trainer.train()
        assert callback.monitor is not None
        assert callback.monitor.record is not None
        assert callback.monitor.record.report.num_samples == 60
        scalars.append(callback.monitor.record.scalars)
        known = callback.monitor.known
        assert known is not None
        assert known.lambda_w is None  # AdamW, not at rest
        steps = trainer.state.global_step
        assert known.decay_clock == pytest.approx(0.01 * 1e-3 * (steps + 1) / 2)
        assert any("AdamW shrinks weights" in caution for caution in known.cautions), known.cautions
    assert scalars[0] == scalars[1]


@pytest.mark.parametrize("size", [64, 5000])
@pytest.mark.parametrize("labels", [torch.rand, torch.ones, lambda n: torch.full((n,), torch.nan)])
def test_labels_that_are_no_integers_are_refused_whatever_the_batch(size, labels, tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with CollapseMonitor(model, options=MonitorOptions(path=tmp_path / "x.jsonl")) as monitor:
        model(torch.randn(size, 4))
        with pytest.raises(ValueError, match="class indices, integers"):
            monitor.step(labels(size))


class Accepting(Classifier):
    """Takes any keyword, as classifiers of transformers do; divides by the step's samples, or by its batch's."""

    divides = True

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
        out = super().forward(x, labels)
        samples = kwargs.get("num_items_in_batch")
        if self.divides and labels is not None and samples is not None:
            out["loss"] = nn.functional.cross_entropy(out["logits"], labels, reduction="sum") / samples
        return out


class AsTuple(Accepting):
    """Returns loss, features and logits, as models with ``return_dict=False`` do."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        out = super().forward(x, labels, **kwargs)
        return out["loss"], torch.zeros(len(x), 2, 3), out["logits"]


@pytest.mark.parametrize("kind", [Accepting, AsTuple])
@pytest.mark.parametrize(("divides", "accumulate", "times"), [(True, 3, 1), (False, 1, 1), (False, 3, 3)])
def test_a_loss_added_up_over_accumulated_batches_divides_the_penalty(
    kind: type[Accepting], divides: bool, accumulate: int, times: int, tmp_path: Any
) -> None:
    """Against the gradient itself: one step of plain SGD moves the head by lr times that of the mean, so many times."""
    model = kind()
    model.divides = divides
    args = in_silence(
        tmp_path,
        max_steps=1,
        per_device_train_batch_size=60 // accumulate,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0,
    )
    data: Any = [{"x": x, "labels": y} for x, y in zip(IMAGES, LABELS, strict=True)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.03)
    trainer: Any = transformers.Trainer(model, args, train_dataset=data, optimizers=(optimizer, None))
    callback = HuggingFaceCallback(head="net.2", options=options(tmp_path)).attach(trainer)
    trainer.train()

    reference = network()
    before, after = reference.get_parameter("2.weight"), model.net.get_parameter("2.weight")
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(reference(IMAGES), LABELS), before)
    assert torch.allclose(before - after, 0.1 * (times * gradient + 0.03 * before), rtol=1e-3, atol=1e-7)
    assert callback.monitor is not None
    known = callback.monitor.known
    assert known is not None
    assert known.lambda_w == pytest.approx(0.03 / times)
    assert any(f"{times} times the mean" in caution for caution in known.cautions) is (times > 1)


def focal(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    p = z.softmax(1).gather(1, y[:, None])
    return -((1 - p) ** 2 * p.log()).mean()


def one_against_all(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(z, F.one_hot(y, K).float())


def half_of(z: torch.Tensor, y: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(z, 0.6 * F.one_hot(y, K) + 0.4 * F.one_hot(other, K))


# the loss, what the network gets of the samples and the monitor of the labels, and whether that is told
LOSSES: dict[str, tuple[Any, Any, Any, bool]] = {
    "plain": (F.cross_entropy, None, None, False),
    "scaled, as by a GradScaler": (lambda z, y: 65536 * F.cross_entropy(z, y), None, None, False),
    "smoothed": (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2), None, None, False),
    "class weights": (lambda z, y: F.cross_entropy(z, y, torch.tensor([1.0, 1.0, 30.0])), None, None, False),
    "logit adjustment": (lambda z, y: F.cross_entropy(z + torch.tensor([0.0, 1.0, -3.0]), y), None, None, False),
    "focal": (focal, None, None, False),
    "one against all": (one_against_all, None, None, False),
    "squared error": (lambda z, y: F.mse_loss(z, F.one_hot(y, K).float()), None, None, False),
    "mixup": (lambda z, y: half_of(z, y, y.roll(7)), lambda x: 0.6 * x + 0.4 * x.roll(7, 0), None, True),
    "labels in another order": (F.cross_entropy, None, lambda y: y.roll(1), True),
    "other labels": (F.cross_entropy, None, lambda y: (y + 1) % K, True),
    "a teacher's": (lambda z, y: half_of(z, y, 2 - y), None, None, True),
}


@pytest.mark.parametrize("name", LOSSES)
def test_labels_that_the_loss_does_not_pull_to_are_told(name: str, tmp_path: Any) -> None:
    loss, shown, given, told = LOSSES[name]
    model, said = network(), []
    x = IMAGES + 1.5 * torch.randn(60, 8, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with CollapseMonitor(
        model, every=3, options=options(tmp_path, said)
    ) as monitor:  # odd, so that both orders are met
        for epoch in range(24):
            for rows in torch.arange(60).split(30):
                y = LABELS[rows] if given is None else given(LABELS[rows])
                value = loss(model(x[rows] if shown is None else shown(x[rows])), LABELS[rows])
                if epoch % 2:  # before the backward pass or after it
                    monitor.step(y)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                if not epoch % 2:
                    monitor.step(y)
            monitor.end_epoch()
    assert any("to another class than the label that the monitor was given" in text for text in said) == told


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_two_classes_of_one_output_are_pulled_to_their_labels(smoothing: float, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, said, x, y = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)), [], OTHERS, LABELS.clamp_max(1)
    x = x + 1.5 * torch.randn(60, 8, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with CollapseMonitor(model, every=4, options=options(tmp_path, said)) as monitor:
        for epoch in range(40):
            z, target = model(x)[:, 0], (1 - smoothing) * y + smoothing / 2
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(z, target.float()).backward()
            optimizer.step()
            monitor.step(y if epoch < 36 else 1 - y)
            monitor.end_epoch()
            assert any("to another class than the label" in text for text in said) == (epoch == 39)


@pytest.mark.parametrize(
    ("loss", "told"),
    [(F.cross_entropy, True), (lambda p, y: F.nll_loss(p.clamp_min(1e-12).log(), y), False)],
    ids=["a second softmax", "the logarithm"],
)
def test_a_softmax_before_a_loss_that_applies_one_is_told(loss: Any, told: bool, tmp_path: Any) -> None:
    model, said = nn.Sequential(*network(), nn.Softmax(dim=1)), []
    x = IMAGES + 1.5 * torch.randn(60, 8, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with CollapseMonitor(model, every=3, options=options(tmp_path, said)) as monitor:
        for _ in range(30):
            optimizer.zero_grad()
            loss(model(x), LABELS).backward()
            optimizer.step()
            monitor.step(LABELS)
            monitor.end_epoch()
    assert any("The model returns probabilities" in text for text in said) == told
    assert not any("to another class" in text for text in said)
