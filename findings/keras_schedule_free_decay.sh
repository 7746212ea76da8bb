#!/bin/sh
# keras 3.15.1 with jax 0.10.2: ScheduleFreeAdamW with weight_decay.
# Expected: the method's own decay (algorithm 1 of arxiv.org/abs/2405.15682): it shrinks z, the sequence that
#   gradients move, of which x is the average and the network's weights y = .1 z + .9 x. Where y rests, x and z rest
#   with it.
# Seen: it shrinks y and leaves z alone, so that all of it falls on x. A weight of 1 that nothing pulls keeps a
#   hundredth and a z of 1 after lr * weight_decay has summed to 100; the method leaves .001 and less. A weight that
#   is held at 1 ends with a z of 92 that grows with the steps, and an x of -9: the average, by the class's
#   description the sequence for evaluation, is nowhere near any weight that there was. No error, no warning.
# In Collapsar: penalties outside torch are given by hand; the one for torch (schedulefree) is tried, as all
#   optimizers are.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 jax==0.10.2 keras==3.15.1
KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PY'
import jax
import keras
import numpy as np

rate, decay, steps = 0.1, 0.5, 2000


def kept(pull):
    """Keras: y, z and x after so many steps of a weight of 1 that is pulled to 1, or by nothing."""
    weight = keras.Variable(np.ones(1, "float32"))
    optimizer = keras.optimizers.ScheduleFreeAdamW(learning_rate=rate, weight_decay=decay)
    optimizer.build([weight])
    moved = next(i for i, v in enumerate(optimizer.variables) if v is optimizer._momentums[0])

    def step(_, carried):
        weights, variables = carried
        return optimizer.stateless_apply(variables, [pull * (weights[0] - 1)], weights)

    start = [weight.value], [v.value for v in optimizer.variables]
    weights, variables = jax.lax.fori_loop(0, steps, step, start)
    y, z = float(weights[0][0]), float(variables[moved][0])
    return y, z, (y - 0.1 * z) / 0.9


def by_the_method(pull):
    """The same by the formulas, in plain numbers."""
    x = y = z = 1.0
    v = 0.0
    for t in range(1, steps + 1):
        gradient = pull * (y - 1)
        v = 0.999 * v + 0.001 * gradient**2
        z -= rate * (gradient / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8) + decay * y)
        x += (z - x) / t
        y = 0.1 * z + 0.9 * x
    return y, z, x


seen = {}
for pull in (0, 1):
    seen[pull] = kept(pull), by_the_method(pull)
    for name, (y, z, x) in zip(("keras", "the method"), seen[pull], strict=True):
        print(f"pulled by {pull} (w - 1), {name:10s}: y {y:8.2g}, z {z:8.2g}, x {x:8.2g}")
assert np.abs(seen[0][1]).max() < 1e-3 and np.allclose(seen[1][1], 1, atol=0.05)
assert seen[0][0][1] == 1 and seen[0][0][0] > 5e-3, "the decay reaches z: this finding is out of date"
assert abs(seen[1][0][0] - 1) < 0.05 and seen[1][0][1] > 50 and seen[1][0][2] < -5, "this finding is out of date"
PY
