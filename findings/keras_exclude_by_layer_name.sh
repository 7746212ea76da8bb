#!/bin/sh
# Keras 3.15.1 with jax 0.10.2 (the torch backend does the same): optimizer.exclude_from_weight_decay(var_names=...).
# Expected: var_names=["head"] takes the variables of the layer named "head" out of the weight decay, as it did while
#   variables were called "head/kernel", or is refused where it matches nothing.
# Seen: names are looked for in the variable's own name, "kernel" or "bias", never in its path "sequential/head/kernel": the
#   head is decayed as before, without an error or a warning. var_list=layer.trainable_variables does what was meant.
# In Collapsar: penalties of a training are read from what an optimizer does to the weights, never from names; for Keras they
#   are given by hand, and the guide on them says to check the head by one step without gradient, as is done here.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 jax==0.10.2 keras==3.15.1
KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PY'
import warnings

import keras
import numpy as np

warnings.simplefilter("error", UserWarning)


def shrunk(**excluded):
    """By which factor a step without gradient changes the kernel of the head."""
    head = keras.layers.Dense(4, name="head")
    model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(6, name="body"), head])
    optimizer = keras.optimizers.AdamW(learning_rate=0.1, weight_decay=0.5)
    if "layer" in excluded:
        optimizer.exclude_from_weight_decay(var_list=head.trainable_variables)
    elif excluded:
        optimizer.exclude_from_weight_decay(**excluded)
    optimizer.build(model.trainable_variables)
    before = keras.ops.convert_to_numpy(head.kernel).copy()
    optimizer.apply_gradients([(keras.ops.zeros(v.shape), v) for v in model.trainable_variables])
    print(f"{head.kernel.path:24s} excluded by {excluded or 'nothing'}", end=": ")
    factor = float(np.linalg.norm(keras.ops.convert_to_numpy(head.kernel)) / np.linalg.norm(before))
    print(f"a step multiplies it by {factor:.4f}")
    return factor


plain, by_layer_name, by_list = shrunk(), shrunk(var_names=["head"]), shrunk(layer="its list")
assert abs(plain - 0.95) < 1e-6 and abs(by_list - 1) < 1e-6
assert abs(by_layer_name - 0.95) < 1e-6, "this finding is out of date"
PY
