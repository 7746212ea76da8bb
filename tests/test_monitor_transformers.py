"""The real Hugging Face Trainer on a small image classifier of which three classes are few: the monitor names them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

import collapsar as cs
from collapsar.monitor import MonitorOptions, read_json_lines
from collapsar.monitor.transformers import CollapseCallback

DOCS = Path(__file__).parent.parent / "docs"
COUNTS = (80,) * 3 + (20,) * 3
NAMES = ["zero", "one", "two", "three", "four", "five"]
WEIGHTS = torch.tensor([0.5] * 3 + [2.0] * 3)
LAMBDA_Z, LAMBDA_B, RATIO, WARM, EPOCHS = 0.018, 0.02, 3.0, 12, 40

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are slower on several threads, by far where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Digits(Dataset):
    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
        rows = torch.cat([(labels == k).nonzero().flatten()[:n] for k, n in enumerate(COUNTS)])
        self.images, self.labels = images[rows], labels[rows]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self.images[row], "labels": self.labels[row]}


class Config(PretrainedConfig):
    model_type = "penalised-perceptron"


class Classifier(PreTrainedModel):
    """A perceptron with penalised head and features: a tenth of the penalties at first, so that classes come apart."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.classifier = nn.Linear(16, len(COUNTS))
        self.steps = 0
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        features = self.body(pixel_values)
        logits, loss = self.classifier(features), None
        if labels is not None:
            self.steps += self.training
            scale = LAMBDA_Z * (0.1 if self.steps <= WARM * 6 else 1.0) / 2
            loss = nn.functional.cross_entropy(logits, labels)
            loss = loss + LAMBDA_B / 2 * self.classifier.bias.square().sum()
            loss = loss + scale * RATIO * self.classifier.weight.square().sum()
            loss = loss + scale / RATIO * sum(COUNTS) / len(labels) * features.square().sum()
        return ImageClassifierOutput(loss=loss, logits=logits)


class Weighted(Trainer):
    """As in the Trainer's documentation: the loss of a subclass, with a weight for each class."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.get("logits"), inputs["labels"], weight=WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class Focal(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        each = nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")
        return ((1 - torch.exp(-each)) ** 2 * each).mean()


class Doubled(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return 2 * torch.as_tensor(super().compute_loss(model, inputs))


def weighted(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs.logits, labels, weight=WEIGHTS)


def trainer(tmp_path, *, epochs: int = EPOCHS, kind: type[Trainer] = Trainer, function: Any = None, **more) -> Trainer:
    torch.manual_seed(0)
    config = Config(id2label=dict(enumerate(NAMES)), label2id={name: k for k, name in enumerate(NAMES)})
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=epochs,
        per_device_train_batch_size=50,
        optim="sgd",
        optim_args="momentum=0.9",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        **{"save_strategy": "no", **more},
    )
    model = Classifier(config)
    return kind(model=model, args=arguments, train_dataset=Digits(), eval_dataset=Digits(), compute_loss_func=function)


def model_of(run: Trainer) -> nn.Module:
    assert isinstance(run.model, nn.Module)
    return run.model


def test_it_names_the_classes_that_theory_says_will_merge(tmp_path):
    transitions = cs.thresholds(cs.Problem(COUNTS, lambda_z=LAMBDA_Z, lambda_b=LAMBDA_B))
    assert transitions.merge[3:].max() < LAMBDA_Z < transitions.merge[:3].min()
    said: list[str] = []
    run = trainer(tmp_path, eval_strategy="steps", eval_steps=80)
    CollapseCallback(options=MonitorOptions(say=said.append)).attach(run)
    run.train()
    lines = read_json_lines(tmp_path / "collapse.jsonl")
    merges = [line for line in lines if line.get("event") == "merge"]
    assert {name for line in merges for name in line["names"]} == {"three", "four", "five"}
    assert all(WARM < line["epoch"] <= EPOCHS for line in merges)
    assert merges[0]["message"] in said
    assert said[-1].startswith(f"After epoch {EPOCHS}: 3 of 6 classes are separated")
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == list(range(1, EPOCHS + 1))
    assert all(line["class_counts"] == list(COUNTS) for line in epochs)  # the evaluations between are not counted
    logged = [entry for entry in run.state.log_history if "nc/num_distinct" in entry]
    assert [entry["nc/num_distinct"] for entry in logged] == [line["nc/num_distinct"] for line in epochs]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model_of(run).modules())


def test_training_does_not_change_by_a_bit_and_a_resumed_run_counts_on(tmp_path):
    plain = trainer(tmp_path / "plain", epochs=2)
    plain.train()
    options = MonitorOptions(say=lambda message: None)
    for name, own in (("reuse", None), ("own", DataLoader(Digits(), batch_size=64))):
        watched = trainer(tmp_path / name, epochs=2, save_strategy="epoch")
        watched.add_callback(CollapseCallback(loader=own, options=options))
        watched.train()
        for one, other in zip(model_of(plain).parameters(), model_of(watched).parameters(), strict=True):
            assert torch.equal(one, other)
        assert sum("nc/cdnv" in entry for entry in watched.state.log_history) == 2
    again, callback = trainer(tmp_path / "reuse", epochs=4), CollapseCallback(every=3, options=options)
    again.add_callback(callback)
    again.train(resume_from_checkpoint=True)
    assert callback.monitor is not None
    assert callback.monitor.completed == 4
    lines = read_json_lines(tmp_path / "reuse" / "collapse.jsonl")
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3]


def test_labels_that_the_trainer_keeps_are_named(tmp_path):
    run = trainer(tmp_path, epochs=1, label_smoothing_factor=0.1)
    callback = CollapseCallback().attach(run)
    with pytest.raises(ValueError, match="`labels` did not reach the model, because of label smoothing"):
        run.train()
    assert callback.monitor is not None
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model_of(run).modules())


@pytest.mark.parametrize(
    ("kind", "function", "weights", "caution"),
    [
        (Weighted, None, WEIGHTS, ""),
        (Trainer, weighted, WEIGHTS, ""),
        (Focal, None, None, "The loss is Focal.compute_loss, which is not one of the theory's cross-entropies"),
        (Doubled, None, None, "The loss is 2 times the mean over the samples"),
        (Trainer, None, None, ""),
    ],
)
def test_the_loss_that_the_trainer_computes_is_read(tmp_path, kind, function, weights, caution) -> None:
    run = trainer(tmp_path, epochs=1, kind=kind, function=function)
    options = MonitorOptions(say=lambda message: None)
    callback = CollapseCallback(loader=DataLoader(Digits(), batch_size=64), options=options).attach(run)
    run.train()
    assert callback.monitor is not None
    known = callback.monitor.known
    assert known is not None
    found = known.loss.class_weights
    assert (found is None) is (weights is None)
    if found is not None:
        assert found / found[0] == pytest.approx((weights / weights[0]).numpy(), rel=1e-5)
    of_loss = [text for text in known.cautions if text.startswith("The loss")]
    assert [text.startswith(caution) for text in of_loss] == [True] * bool(caution)


def test_the_table_of_families_is_what_is_found() -> None:
    which = runpy.run_path(str(DOCS / "which_model.py"))
    page = (DOCS / "which-model.md").read_text(encoding="utf-8")
    rows = [str(row) for row in which["table"](("transformers",))]
    assert len(rows) == 16
    assert [row for row in rows if row not in page] == []
    assert all(f"`{family.name}`" in page for family in which["FAMILIES"])
