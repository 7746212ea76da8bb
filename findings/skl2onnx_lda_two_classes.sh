#!/bin/sh
# skl2onnx 1.20.0, LinearDiscriminantAnalysis of two classes; scikit-learn 1.9.1, onnxruntime 1.32.0.
# Expected: the exported model gives the probabilities of predict_proba to rounding, as it does for LogisticRegression of
#   two classes and for linear discriminants of three.
# Seen: it gives those of twice the score: a softmax over s and -s, where predict_proba has the sigmoid of s. Labels are
#   right, probabilities off by up to .15 (0.5 and 1 are right, .9 becomes .988), so that a threshold other than .5, as
#   rare classes need, is another one. No error, no warning.
# In Collapsar: the head of an ONNX file is read as the file acts, so its log odds are twice those of the model before.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 \
    onnx==1.23.2 skl2onnx==1.20.0 onnxruntime==1.32.0
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
from scipy.special import expit
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from skl2onnx import to_onnx

rng = np.random.default_rng(0)
sizes = (2000, 100, 100)
X = np.concatenate([rng.standard_normal((n, 6)) + rng.standard_normal(6) for n in sizes]).astype(np.float32)
y = np.repeat(np.arange(3), sizes)
away = {}
for make, classes in ((LogisticRegression, 2), (LinearDiscriminantAnalysis, 3), (LinearDiscriminantAnalysis, 2)):
    chosen = y < classes
    model = make().fit(X[chosen], y[chosen])
    file = to_onnx(model, X[:1], options={id(model): {"zipmap": False}}).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    labels, found = session.run(None, {session.get_inputs()[0].name: X[chosen]})
    expected = model.predict_proba(X[chosen])
    away[make.__name__, classes] = float(np.abs(found - expected).max())
    print(f"{make.__name__} of {classes} classes: probabilities off by {away[make.__name__, classes]:.1e}; "
          f"labels differ for {np.mean(labels != model.predict(X[chosen])):.1%}")
twice = expit(2 * model.decision_function(X[chosen]))
print(f"from the sigmoid of twice the score they are off by {np.abs(found[:, 1] - twice).max():.1e}; "
      f"given to the rare class at a threshold of .9: {np.sum(expected[:, 1] > 0.9)}, exported {np.sum(found[:, 1] > 0.9)}")
assert away["LogisticRegression", 2] < 1e-5
assert away["LinearDiscriminantAnalysis", 3] < 1e-5
assert away["LinearDiscriminantAnalysis", 2] > 0.1, "probabilities are right: this finding is out of date"
assert np.abs(found[:, 1] - twice).max() < 1e-4
PY
