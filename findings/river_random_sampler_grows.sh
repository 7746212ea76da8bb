#!/bin/sh
# river 0.26.1, imblearn.RandomSampler(classifier, desired_dist=None).
# Expected: "the observations will be sampled uniformly at random", as the documentation says of desired_dist=None
#   (riverml.xyz, api/imblearn/RandomSampler), and strictly as ensemble.BaggingClassifier does: each is learned once on
#   average, or sampling_rate times.
# Seen: the n-th is learned n times, up to some 750: 3000 observations are nearly two million steps, and at
#   sampling_rate=.01, which is 30 steps in all by its description, 45 000, most of them for the last ones: what came early
#   hardly counts. The counts of the classes so far stand where their shares belong. With the shares given by hand each is
#   learned once. No warning.
# In Collapsar: samplers of torch alone are read, by what they draw in an epoch.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check river==0.26.1
"$folder/venv/bin/python" - <<'PY'
import random

from river import base, ensemble, imblearn


class Counting(base.Classifier):
    """Learns nothing, and counts how often it is told to."""

    def __init__(self):
        self.steps = 0

    def learn_one(self, x, y):
        self.steps += 1

    def predict_proba_one(self, x):
        return {}


stream = [0] * 2700 + [1] * 300
random.Random(0).shuffle(stream)


def steps(**settings):
    """Steps in each thousand of the stream."""
    model, found = imblearn.RandomSampler(Counting(), seed=1, **settings), []
    for place, label in enumerate(stream, start=1):
        model.learn_one({}, label)
        if place % 1000 == 0:
            found.append(model.classifier.steps - sum(found))
    return found


bagging = ensemble.BaggingClassifier(Counting(), n_models=2, seed=1)
for label in stream:
    bagging.learn_one({}, label)
bagged = bagging[0].steps
none, tenth = steps(desired_dist=None), steps(desired_dist=None, sampling_rate=0.01)
given = steps(desired_dist={0: 0.9, 1: 0.1})
print(f"3000 observations, one pass: BaggingClassifier {bagged} steps")
print(f"RandomSampler, steps in each thousand: shares given {given}, desired_dist=None {none}, at a rate of .01 {tenth}")
assert abs(bagged - 3000) < 300
assert all(abs(part - 1000) < 200 for part in given)
assert min(none) > 100_000 and tenth[2] > tenth[1] > tenth[0] > 1000, "each is learned once: this finding is out of date"
PY
