#!/bin/sh
# monai 1.6.1: EmbeddingCollapseMetric with its defaults, torch 2.13.0, scikit-learn 1.9.1.
# Expected: as its description says (docs.monai.io/en/stable/metrics.html), scores are higher where embeddings have lost
#   discriminative power, and `aggregate` is the worst of them: a network that tells ten classes apart by wide margins
#   scores below one that has merged five of them, and below embeddings that are noise.
# Seen: it scores above both: .72, .50 and .51. Ten classes that are told apart live in nine dimensions of 256, which the
#   effective rank of all embeddings takes for collapse; noise fills every dimension. The mean cosine of the centroids,
#   which is to see classes converge, is .44 before and .50 after: five classes that have become one are averaged away
#   over the pairs, and .50 is what noise has.
# In Collapsar: every class has a state of its own, by its nearest class, and within and between classes are kept apart.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 monai==1.6.1
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from monai.metrics import EmbeddingCollapseMetric

K, D, n = 10, 256, 40
random = torch.Generator().manual_seed(0)
labels = torch.arange(K).repeat_interleave(n)
apart = torch.zeros(K, D)
apart[:, :K] = torch.eye(K) - 1 / K
merged = apart.clone()
merged[5:] = apart[5:].mean(dim=0)
cases = {"apart": (apart, 0.01), "five merged": (merged, 0.02), "noise": (torch.zeros(K, D), 1.0)}
worst, cosine = {}, {}
for name, (means, spread) in cases.items():
    train, test = (means[labels] + spread * torch.randn(K * n, D, generator=random) for _ in range(2))
    centroids = torch.stack([train[labels == k].mean(dim=0) for k in range(K)])
    right = float((torch.cdist(test, centroids).argmin(dim=1) == labels).float().mean())
    scores = EmbeddingCollapseMetric()(train, labels)
    worst[name], cosine[name] = float(scores["aggregate"]), float(scores["centroid_similarity"])
    print(f"{name:12} nearest mean right {right:.0%}, aggregate {worst[name]:.2f}, centroid similarity {cosine[name]:.2f}")
assert worst["apart"] > max(worst["five merged"], worst["noise"]) + 0.1, "in order now: this finding is out of date"
assert abs(cosine["apart"] - cosine["five merged"]) < 0.1
PY
