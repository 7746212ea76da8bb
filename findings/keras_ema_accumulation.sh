#!/bin/sh
# keras 3.15.1 with jax 0.10.2 (the torch backend gives the same numbers): an optimizer with use_ema=True and
#   gradient_accumulation_steps.
# Expected: model and optimizer variables change once in so many steps, as keras.io/api/optimizers says of
#   gradient_accumulation_steps, so that four batches accumulated end where one large batch does.
# Seen: the weights do, their moving average does not: every batch updates it, four times with the same weights, and
#   ema_momentum m acts as m^4. At .99 the average then looks back 25 updates instead of 100.
# In Collapsar: an average is measured as the network that it is; nothing is taken from the momentum.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 jax==0.10.2 keras==3.15.1
KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PY'
import keras
import numpy as np

updates, momentum = 8, 0.9


def end(accumulated):
    """A weight after eight updates of one each, and what finalize_variable_values, as fit calls it, puts there."""
    weight = keras.Variable(np.zeros(1, "float32"))
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=momentum, gradient_accumulation_steps=accumulated)
    optimizer.build([weight])
    for _ in range(updates * (accumulated or 1)):
        optimizer.apply([keras.ops.convert_to_tensor(np.full(1, -1.0, "float32"))], [weight])
    last = float(np.asarray(weight)[0])
    optimizer.finalize_variable_values([weight])
    return last, float(np.asarray(weight)[0])


def average(batches):
    """Of the weights 1 to 8, each of them averaged in at so many batches, the last at the first of them."""
    value = 1.0
    for weight in np.repeat(np.arange(2.0, updates + 1), batches)[: len(range(2, updates)) * batches + 1]:
        value = momentum * value + (1 - momentum) * weight
    return value


(last, plain), (same, accumulated) = end(None), end(4)
print(f"weights {last:g} and {same:g}; averages {plain:.4f} in one batch, {accumulated:.4f} accumulated over four")
print(f"by the formula: {average(1):.4f} with one update of the average per step, {average(4):.4f} with four")
assert last == same == updates
assert abs(plain - average(1)) < 1e-4
assert abs(accumulated - average(4)) < 1e-4, "not updated at every batch: this finding is out of date"
PY
