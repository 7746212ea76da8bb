#!/bin/sh
# transformers 5.23.0, Trainer.create_optimizer with weight_decay > 0, torch 2.13.0: EfficientNet, ImageGPT.
# Expected: biases and layer norms are excluded from decay, as huggingface.co/docs/transformers/main_classes/trainer says of
#   weight_decay; and in one network norms of one kind fare alike.
# Seen: what counts is how an attribute is called. In EfficientNet the gains of the batch norms called expand_bn,
#   project_bn and top_bn, which feeds the classifier, are decayed, those called depthwise_norm are not. ImageGPT's own
#   layer norms (ln_1, ln_2, ln_f) are decayed, those of GPT-2 with the same names are not. The norm before the head
#   matters: its gain acts as a penalty on the features where it is decayed, and as none where it is not.
# In Collapsar: whether the gain before the head is decayed is read from the optimizer's groups, never from names.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.23.0 \
    accelerate==1.15.0
FOLDER="$folder" "$folder/venv/bin/python" - <<'PY'
import os

import transformers as hf

networks = {
    "EfficientNet": hf.EfficientNetForImageClassification(hf.EfficientNetConfig(width_coefficient=0.2)),
    "ImageGPT": hf.ImageGPTForImageClassification(hf.ImageGPTConfig(n_embd=16, n_head=1, n_layer=1, vocab_size=9)),
    "GPT-2": hf.GPT2ForSequenceClassification(hf.GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=9)),
}
seen = {}
for name, network in networks.items():
    settings = hf.TrainingArguments(os.environ["FOLDER"], weight_decay=0.1, use_cpu=True, report_to=[])
    groups = hf.Trainer(network, settings).create_optimizer().param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    norms = {path: layer for path, layer in network.named_modules() if "Norm" in type(layer).__name__}
    found = {path.rsplit(".", 1)[-1]: decay[id(layer.weight)] for path, layer in norms.items()}
    decayed = sum(decay[id(layer.weight)] > 0 for layer in norms.values())
    seen[name] = {called for called, value in found.items() if value > 0}, set(found)
    print(f"{name}: the gains of {decayed} of {len(norms)} norms are decayed: {found}")
assert seen["GPT-2"] == (set(), {"ln_1", "ln_2", "ln_f"})
assert "depthwise_norm" in seen["EfficientNet"][1] - seen["EfficientNet"][0]
for name, called in (("EfficientNet", "top_bn"), ("ImageGPT", "ln_f")):
    assert called in seen[name][0], f"{name}: {called} is no longer decayed: this finding is out of date"
PY
