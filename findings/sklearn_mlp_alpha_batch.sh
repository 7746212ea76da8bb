#!/bin/sh
# scikit-learn 1.9.1, MLPClassifier with solver="sgd" or "adam" (the default), numpy 2.4.6.
# Expected: the penalty of the weights is alpha / (2 n) ||W||^2 with n the number of samples, as the user guide's formula
#   says (scikit-learn.org/stable/modules/neural_networks_supervised.html, mathematical formulation), whatever the batch
#   size is. Without hidden layers the model is logistic regression, and its optimum is known.
# Seen: with lbfgs, or one batch of all samples, it is that optimum. With mini-batches the penalty is alpha / (2 B), B the
#   batch size: at the default of 200, ten times as strong for 2000 samples, and more the more samples there are. Here
#   the recall of the rare class falls from .5 to 0 by the batch size alone.
# In Collapsar: penalties are those beside the mean loss; for such a network lambda_w = alpha / batch_size.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
"$folder/venv/bin/python" -W ignore - <<'PY'
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

rng = np.random.default_rng(0)
centres = np.zeros((3, 5))
centres[1, 0], centres[2, 1] = 1.5, 3
labels = np.repeat(np.arange(3), (1000, 960, 40))
samples = rng.normal(size=(len(labels), 5)) + centres[labels]
n, alpha = len(labels), 20.0
optimum = {
    size: LogisticRegression(C=size / (alpha * n), tol=1e-10, max_iter=10_000).fit(samples, labels).coef_
    for size in (n, 200, 20)
}
seen = {}
for size, epochs in ((n, 4000), (200, 300), (20, 50)):
    network = MLPClassifier((), solver="sgd", alpha=alpha, batch_size=size, learning_rate_init=min(1e-4 * size, 0.02))
    network.set_params(max_iter=epochs, random_state=0, tol=0, n_iter_no_change=epochs).fit(samples, labels)
    documented, by_batch = (
        float(np.linalg.norm(network.coefs_[0].T - W) / np.linalg.norm(W)) for W in (optimum[n], optimum[size])
    )
    rare = float(np.mean(network.predict(samples[labels == 2]) == 2))
    seen[size] = documented, by_batch, rare
    print(f"batch {size:4d}: distance to the optimum of alpha/n {documented:.3f}, of alpha/B {by_batch:.3f}, ", end="")
    print(f"recall of the rare class {rare:.2f}")
assert seen[n][0] < 0.05 and seen[n][2] > 0.3
assert all(seen[size][1] < 0.1 for size in (200, 20))
assert all(seen[size][0] > 0.4 and seen[size][2] == 0 for size in (200, 20)), "mended: this finding is out of date"
PY
