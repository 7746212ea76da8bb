"""Watch a Hugging Face training: one callback, scalars through trainer.log, sentences when classes merge."""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from collapsar.monitor import MonitorOptions
from collapsar.monitor.transformers import CollapseCallback

torch.manual_seed(0)
torch.set_num_threads(1)
counts, names = [80, 80, 80, 20, 20, 20], ["zero", "one", "two", "three", "four", "five"]
images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
rows = torch.cat([(labels == k).nonzero().flatten()[:n] for k, n in enumerate(counts)])
data = [{"pixel_values": images[row], "labels": labels[row]} for row in rows]


class Classifier(PreTrainedModel):  # in your project: AutoModelForImageClassification.from_pretrained(...)
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.classifier = nn.Linear(16, config.num_labels)
        self.steps = 0
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, pixel_values, labels):
        self.steps += self.training
        strength = 0.0009 if self.steps <= 72 else 0.009  # half of lambda_z
        features = self.body(pixel_values)
        logits = self.classifier(features)
        loss = nn.functional.cross_entropy(logits, labels)
        loss = loss + strength * 3 * self.classifier.weight.square().sum()
        loss = loss + 0.01 * self.classifier.bias.square().sum()
        loss = loss + strength / 3 * len(rows) / len(labels) * features.square().sum()
        return ImageClassifierOutput(loss=loss, logits=logits)


config = PretrainedConfig(id2label=dict(enumerate(names)), label2id={name: k for k, name in enumerate(names)})
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    num_train_epochs=40,
    per_device_train_batch_size=50,
    optim="sgd",
    optim_args="momentum=0.9",
    learning_rate=0.1,
    lr_scheduler_type="constant",
    use_cpu=True,
    report_to=[],  # yours: "nc/..." goes to every integration that trainer.log reaches
    logging_strategy="no",
    save_strategy="no",
    disable_tqdm=True,
)
trainer = Trainer(model=Classifier(config), args=arguments, train_dataset=data)
trainer.remove_callback(PrinterCallback)  # prints every logged number
CollapseCallback(options=MonitorOptions(say=print)).attach(trainer)
trainer.train()
