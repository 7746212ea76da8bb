#!/bin/sh
# imbalanced-learn 0.14.2, imblearn.metrics.specificity_score (and sensitivity_specificity_support,
#   geometric_mean_score) with sample_weight, scikit-learn 1.9.1.
# Expected: the weighted share of the other classes' samples that are not given to a class, as sensitivity_score is the
#   weighted share of its own that are; a weight of 5 is the sample five times over; equal weights change nothing.
# Seen: sensitivity is so. For the specificity true negatives are the number of samples, unweighted, less weighted sums:
#   with all weights 2 the specificities .667, .875 and .8 become 0, .5 and .5, with weights of 5 for the large class one
#   is 1.11. Right only where the weights sum to the number of samples. The geometric mean takes the wrong values over.
# In Collapsar: recall of classes is counted per class, with nothing to weigh.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 \
    imbalanced-learn==0.14.2
"$folder/venv/bin/python" - <<'PY'
import warnings

import numpy as np
from imblearn.metrics import geometric_mean_score, sensitivity_score, specificity_score

warnings.simplefilter("ignore")  # that a weighted specificity of 0 is "ill-defined"
true = np.array([0] * 6 + [1] * 4 + [2] * 2)
given = np.array([0, 0, 0, 0, 1, 2, 1, 1, 0, 2, 2, 0])
plain = specificity_score(true, given, average=None)
weights = {"all 1": np.ones(12), "all 2": np.full(12, 2), "whole numbers": np.where(true == 0, 5, 1),
           "balanced": 12 / (3 * np.bincount(true))[true]}
for name, w in weights.items():
    by_hand = np.array([w[(true != k) & (given != k)].sum() / w[true != k].sum() for k in range(3)])
    found = specificity_score(true, given, average=None, sample_weight=w)
    recall = np.array([w[(true == k) & (given == k)].sum() / w[true == k].sum() for k in range(3)])
    assert np.allclose(recall, sensitivity_score(true, given, average=None, sample_weight=w))
    print(f"{name:13s} by definition {by_hand.round(3)}, specificity_score {found.round(3)}")
    if w.sum() == len(true):
        assert np.allclose(found, by_hand)
    else:
        assert np.abs(found - by_hand).max() > 0.1, "weights are taken into account: this finding is out of date"
twice = np.repeat(np.arange(12), np.where(true == 0, 5, 1))
print("repeated      ", specificity_score(true[twice], given[twice], average=None).round(3))
for name in ("all 1", "all 2"):
    value = geometric_mean_score(true, given, average="macro", sample_weight=weights[name])
    print(f"geometric mean, macro, {name}: {value:.3f}")
PY
