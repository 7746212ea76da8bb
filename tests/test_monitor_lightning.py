"""The real Lightning Trainer on digits of which three classes are few: the monitor names them."""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

import collapsar as cs
from collapsar.monitor import MonitorOptions, read_json_lines
from collapsar.monitor.lightning import CollapseCallback, labels_of

COUNTS = (80,) * 3 + (20,) * 3
NAMES = ["zero", "one", "two", "three", "four", "five"]
LAMBDA_Z, LAMBDA_B, RATIO, WARM, EPOCHS = 0.018, 0.02, 3.0, 12, 30

# What Lightning says about loaders, and what torch says about Lightning.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are slower on several threads, by far where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def digits() -> TensorDataset:
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    rows = torch.cat([(labels == k).nonzero().flatten()[:n] for k, n in enumerate(COUNTS)])
    return TensorDataset(images[rows], labels[rows])


class Classifier(lightning.LightningModule):
    """A perceptron with penalised head and features: a tenth of the penalties at first, so that classes come apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.fc = nn.Linear(16, len(COUNTS))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images))

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        features = self.body(images)
        scale = LAMBDA_Z * (0.1 if self.current_epoch < WARM else 1.0) / 2
        loss = nn.functional.cross_entropy(self.fc(features), labels) + LAMBDA_B / 2 * self.fc.bias.square().sum()
        loss = loss + scale * RATIO * self.fc.weight.square().sum()
        return loss + scale / RATIO * sum(COUNTS) / len(labels) * features.square().sum()

    def validation_step(self, batch, batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(
    tmp_path, callbacks, *, epochs: int = EPOCHS, loss: dict[str, Any] | None = None, **more
) -> tuple[Classifier, lightning.Trainer]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model = Classifier()
    for name, value in (loss or {}).items():
        setattr(model, name, value)
    loader = DataLoader(digits(), batch_size=50, shuffle=True, generator=torch.Generator().manual_seed(0))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False, **more},
    )
    trainer.fit(model, loader, DataLoader(digits(), batch_size=100))
    return model, trainer


def test_it_names_the_classes_that_theory_says_will_merge(tmp_path):
    transitions = cs.thresholds(cs.Problem(COUNTS, lambda_z=LAMBDA_Z, lambda_b=LAMBDA_B))
    assert transitions.merge[3:].max() < LAMBDA_Z < transitions.merge[:3].min()
    said: list[str] = []
    callback = CollapseCallback(class_names=NAMES, options=MonitorOptions(say=said.append))
    logger = CSVLogger(tmp_path, name="logs")
    model, trainer = fit(tmp_path, [callback], logger=logger, check_val_every_n_epoch=10)
    lines = read_json_lines(tmp_path / "collapse.jsonl")
    merges = [line for line in lines if line.get("event") == "merge"]
    assert {name for line in merges for name in line["names"]} == {"three", "four", "five"}
    assert all(WARM <= line["epoch"] < EPOCHS for line in merges)
    assert merges[0]["message"] in said
    assert said[-1].startswith(f"After epoch {EPOCHS - 1}: 3 of 6 classes are separated")
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == list(range(EPOCHS))
    assert trainer.callback_metrics["nc/num_distinct"] <= 4
    assert "nc/nc1_trace_ratio" in (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().split("\n")[0]
    assert not model.fc._forward_hooks
    assert callback.monitor is not None
    known = callback.monitor.known
    assert known is not None
    assert known.lambda_w is None  # SGD without weight decay: the penalty is in the loss, which says nothing of it
    (line,) = [line for line in lines if line["kind"] == "training"]
    assert line["lambda_w"] is None
    assert line["cautions"] == list(known.cautions)


def focal(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


@pytest.mark.parametrize(
    ("loss", "caution"),
    [
        ({"loss_fn": focal}, "The loss is focal, which is not one of the theory's cross-entropies"),
        ({"criterion": partial(nn.functional.cross_entropy, label_smoothing=0.1)}, None),
        ({"loss": MeanMetric()}, None),  # its mean over the epoch, for a logger
    ],
)
def test_the_loss_under_a_usual_name_is_read(tmp_path, loss: dict[str, Any], caution: str | None) -> None:
    callback = CollapseCallback(options=MonitorOptions(say=lambda message: None))
    fit(tmp_path, [callback], epochs=1, loss=loss)
    assert callback.monitor is not None
    known = callback.monitor.known
    assert known is not None
    assert known.loss.smoothing == (0.1 if "criterion" in loss else 0.0)
    of_loss = [text for text in known.cautions if text.startswith("The loss")]
    assert [text.startswith(caution or "") for text in of_loss] == [True] * bool(caution)


def test_training_does_not_change_by_a_bit_and_a_resumed_run_counts_on(tmp_path):
    plain, _ = fit(tmp_path / "plain", [], epochs=2)
    loader = DataLoader(digits(), batch_size=64)
    options = MonitorOptions(say=lambda message: None)
    for name, own in (("reuse", None), ("own", loader)):
        watched, trainer = fit(tmp_path / name, [CollapseCallback(loader=own, options=options)], epochs=2)
        for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
            assert torch.equal(one, other)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = CollapseCallback(every=2, options=options)
    resumed = lightning.Trainer(
        max_epochs=5,
        accelerator="cpu",
        callbacks=[again],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(digits(), batch_size=50)
    resumed.fit(Classifier(), data, data, ckpt_path=tmp_path / "last.ckpt")
    assert again.monitor is not None
    assert again.monitor.completed == 5
    assert [line["epoch"] for line in read_json_lines(tmp_path / "collapse.jsonl") if line["kind"] == "epoch"] == [3]


def test_the_hook_goes_when_training_fails(tmp_path):
    class Failing(lightning.Callback):
        def on_train_batch_end(self, *args, **kwargs) -> None:
            raise RuntimeError("stop")

    callback = CollapseCallback()
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, [callback, Failing()], epochs=1)
    assert callback.monitor is not None
    assert not callback.monitor.head._forward_hooks


def test_labels_that_cannot_be_told_are_named():
    with pytest.raises(ValueError, match=r"`labels` cannot be found in a batch of type dict. Pass labels="):
        labels_of({"pixels": 1})
