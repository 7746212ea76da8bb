#!/bin/sh
# optax 0.2.8 with jax 0.10.2: adafactor(learning_rate, weight_decay_rate=...).
# Expected: a decay that goes with the learning rate, as in optax's adamw, lion, lamb and adan and in torch's and
#   Keras's Adafactor, so that weight_decay_rate=0.01 can be given where weight_decay=0.01 was.
# Seen: every step takes the share weight_decay_rate of every weight, whatever the learning rate is, at rate 0 too.
#   After 1000 steps without gradient at a rate of .001 adamw leaves .990 of a weight, adafactor .00004, as at a rate
#   of 0: where a schedule falls to 0, decay goes on alone. A weight that is pulled to 1 rests at 1 under adamw, below
#   .001 under adafactor.
# In Collapsar: penalties outside torch are given by hand; the guide on optimizers says to try a step without
#   gradient.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 jax==0.10.2 optax==0.2.8
"$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import optax


def left(optimizer, steps=1000, pull=0.0):
    """What so many steps leave of weights of 1 that are pulled by pull * (w - 1), or by nothing."""
    def step(_, carried):
        weights, state = carried
        updates, state = optimizer.update(pull * (weights - 1), state, weights)
        return optax.apply_updates(weights, updates), state

    weights = jnp.ones((4, 4))
    return float(jax.lax.fori_loop(0, steps, step, (weights, optimizer.init(weights)))[0].mean())


seen = {}
for rate in (1e-1, 1e-3, 0.0):
    seen[rate] = left(optax.adamw(rate, weight_decay=0.01)), left(optax.adafactor(rate, weight_decay_rate=0.01))
    print(f"learning rate {rate:g}: adamw leaves {seen[rate][0]:.5f}, adafactor {seen[rate][1]:.5f}")
held = left(optax.adamw(1e-3, weight_decay=0.01), 20_000, 1.0)
fallen = left(optax.adafactor(1e-3, weight_decay_rate=0.01), 20_000, 1.0)
print(f"pulled to 1: adamw rests at {held:.4f}, adafactor at {fallen:.4f}")
assert all(abs(decayed - (1 - rate * 0.01) ** 1000) < 1e-3 for rate, (decayed, _) in seen.items()) and held > 0.99
same = all(abs(decayed - 0.99**1000) < 1e-6 for _, decayed in seen.values())
assert same and fallen < 1e-3, "the decay goes with the learning rate: this finding is out of date"
PY
