#!/bin/sh
# transformers 5.23.0, Trainer with gradient_accumulation_steps, torch 2.13.0: BertForSequenceClassification and most other
#   sequence classifiers.
# Expected: the effective batch is the batch of a device times the steps, as
#   huggingface.co/docs/transformers/main_classes/trainer says: four batches of four are one of sixteen, the same step.
# Seen: for ViT they are. For BERT the gradient and the logged loss are four times as large: the trainer takes any forward
#   with **kwargs for one that divides by the samples of the step, and this one takes the mean of its batch. With SGD the
#   same weight_decay is then a quarter of the penalty, so that more accumulation moves a class from collapsed to not.
# In Collapsar: the callback compares the loss with the mean in the first batch, and divides the penalty that it reads.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.23.0 \
    accelerate==1.15.0
FOLDER="$folder" "$folder/venv/bin/python" - <<'PY'
import os

import torch
import transformers as hf

hf.logging.set_verbosity_error()
small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "num_labels": 3}
still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
kinds = {
    "BERT": (hf.BertForSequenceClassification, hf.BertConfig(vocab_size=10, **small, **still)),
    "ViT": (hf.ViTForImageClassification, hf.ViTConfig(image_size=4, patch_size=2, **small, **still)),
}
inputs = {
    "BERT": [{"input_ids": torch.tensor([i % 10, 3 * i % 10])} for i in range(16)],
    "ViT": [{"pixel_values": torch.sin(torch.arange(48.0) * (i + 1)).reshape(3, 4, 4)} for i in range(16)],
}
ratios = {}
for name, (kind, config) in kinds.items():
    data = [{**one, "labels": torch.tensor(i % 3)} for i, one in enumerate(inputs[name])]
    moved = []
    for steps in (1, 4):
        torch.manual_seed(0)
        network = kind(config)
        before = network.classifier.weight.detach().clone()
        settings = hf.TrainingArguments(
            os.environ["FOLDER"], max_steps=1, per_device_train_batch_size=16 // steps, max_grad_norm=0.0,
            gradient_accumulation_steps=steps, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        )
        plain = torch.optim.SGD(network.parameters(), lr=0.1)
        hf.Trainer(network, settings, train_dataset=data, optimizers=(plain, None)).train()
        moved.append(network.classifier.weight.detach() - before)
    ratios[name] = float(moved[1].norm() / moved[0].norm())
    print(f"{name}: accumulated over 4 batches of 4, the step is {ratios[name]:.3f} times that of a batch of 16")
assert abs(ratios["ViT"] - 1) < 1e-3
assert abs(ratios["BERT"] - 4) < 1e-2, "the loss is divided now: this finding is out of date"
PY
