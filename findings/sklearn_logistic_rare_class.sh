#!/bin/sh
# scikit-learn 1.9.1, LogisticRegression with its default solver and tolerance, numpy 2.4.6, scipy 1.17.1.
# Expected: a fit that raises no ConvergenceWarning lies near the minimum of the objective that the user guide states
#   (scikit-learn.org/stable/modules/linear_model.html, logistic regression), a strictly convex one.
# Seen: with 5 samples of one class among 55 005 it stops after a dozen steps, without a warning, at twice the minimum
#   (18.2 for 7.8), and gives only 4 of the 5 to their class where the optimum gives all. The solver asks for a gradient
#   of the mean loss below tol=1e-4; a class with a ten-thousandth of the samples can pull no harder than that from the
#   start. newton-cg stops short likewise (10.6); tol=1e-10 finds the minimum in 40 steps.
# In Collapsar: heads on frozen features are solved with a certified gap, relative to the objective.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
"$folder/venv/bin/python" -W error::UserWarning - <<'PY'
import numpy as np
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

rng = np.random.default_rng(1)
labels = np.repeat(np.arange(3), (50_000, 5000, 5))
samples = rng.normal(size=(3, 20))[labels] + 0.5 * rng.normal(size=(len(labels), 20))
seen = {}
for solver, tol in (("lbfgs", 1e-4), ("newton-cg", 1e-4), ("lbfgs", 1e-10)):
    model = LogisticRegression(solver=solver, tol=tol, max_iter=1000).fit(samples, labels)  # no warning: it would raise
    logits = model.decision_function(samples)
    loss = float(np.sum(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]))
    objective = loss + float(np.sum(model.coef_**2)) / 2
    right = int(np.sum(model.predict(samples[labels == 2]) == 2))
    seen[solver, tol] = objective, right
    print(f"{solver:9s} tol {tol:g}: {int(model.n_iter_[0])} steps, objective {objective:.3f}, {right} of 5 rare right")
least, _ = seen["lbfgs", 1e-10]
assert seen["lbfgs", 1e-10][1] == 5
assert seen["lbfgs", 1e-4][0] > 1.5 * least and seen["lbfgs", 1e-4][1] < 5, "mended: this finding is out of date"
PY
