#!/bin/sh
# skl2onnx 1.20.0, SGDClassifier(loss="modified_huber") of three or more classes; scikit-learn 1.9.1, onnxruntime 1.32.0.
# Expected: the exported model gives the labels of predict, as for the loss "log_loss".
# Seen: they are taken from the probabilities, which this loss cuts off at 0 and 1, where predict compares scores: several
#   classes with scores above 1 are tied, and all classes are where all scores are below -1. The first of them is given,
#   the largest one if classes are numbered by size. The recall of a class with 400 samples beside one with 2000 falls
#   from .985 to .94; every label that differs is a tie. Probabilities are right; no error, no warning.
# In Collapsar: an output whose probabilities are divided by their sum is not followed, and such a file refused.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 \
    onnx==1.23.2 skl2onnx==1.20.0 onnxruntime==1.32.0
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
from sklearn.linear_model import SGDClassifier
from skl2onnx import to_onnx

rng = np.random.default_rng(0)
means, sizes = rng.standard_normal((3, 6)) * 2, (2000, 400, 80)
X = np.concatenate([means[k] + rng.standard_normal((n, 6)) for k, n in enumerate(sizes)]).astype(np.float32)
y = np.repeat(np.arange(3), sizes)
recalls = {}
for loss in ("log_loss", "modified_huber"):
    model = SGDClassifier(loss=loss, random_state=0).fit(X, y)
    file = to_onnx(model, X[:1], options={id(model): {"zipmap": False}}).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    labels, shares = session.run(None, {session.get_inputs()[0].name: X})
    predicted = model.predict(X)
    assert np.abs(shares - model.predict_proba(X)).max() < 1e-5
    recalls[loss] = [[float(np.mean(given[y == k] == k)) for k in range(3)] for given in (predicted, labels)]
    print(f"{loss}: recall by predict {np.round(recalls[loss][0], 3)}, exported {np.round(recalls[loss][1], 3)}")
    top = np.sort(shares[labels != predicted], axis=1)
    if len(top):
        print(f"  {len(top)} labels differ, {np.sum(np.isclose(top[:, -1], top[:, -2]))} of them between classes that are tied")
assert recalls["log_loss"][0] == recalls["log_loss"][1]
assert recalls["modified_huber"][0][1] - recalls["modified_huber"][1][1] > 0.02, "labels agree: this is out of date"
PY
