#!/bin/sh
# neural_collapse 0.1 (github.com/rhubarbwu/neural-collapse, commit c05a0b8), covariance_ratio with its default "pinv"
#   and accumulators in their default float32; torch 2.13.0, numpy 2.4.6, scipy 1.17.1.
# Expected: NC1, the trace of the within-class covariance times the pseudo-inverse of the between-class covariance, over
#   the number of classes, grows without bound as the means of some classes approach each other at a fixed spread within
#   classes.
# Seen: where ten of twenty class means are a tenth of the others' distances apart it is right; at a hundredth it is a fifth
#   too small; at a thousandth, a tenth of the spread, it is 1.7e-5 where 9.2 is right: merged classes read as perfect
#   collapse. The pseudo-inverse drops eigenvalues below d times the precision of float32 of the largest: the larger d,
#   the sooner. In float64 it is right.
# In Collapsar: moments are float64; NC1 comes with the rank that was inverted and the tolerance.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 scipy==1.17.1 \
    https://github.com/rhubarbwu/neural-collapse/archive/c05a0b80d6bc6e8e2e102f2180f1f33b2c9605fd.tar.gz
"$folder/venv/bin/python" - <<'PY'
import torch
from neural_collapse.accumulate import CovarAccumulator, MeanAccumulator
from neural_collapse.measure import covariance_ratio

K, d, n = 20, 64, 100
generator = torch.Generator().manual_seed(0)
centres = torch.randn(K, d, generator=generator, dtype=torch.float64)
apart = torch.randn(K // 2, d, generator=generator, dtype=torch.float64)
spread = 0.01 * torch.randn(K * n, d, generator=generator, dtype=torch.float64)
labels = torch.arange(K).repeat_interleave(n)


def packaged(features, dtype):
    averages, covariance = MeanAccumulator(K, d, dtype=dtype), CovarAccumulator(K, d, dtype=dtype)
    averages.accumulate(features.to(dtype), labels)
    means, middle = averages.compute()
    covariance.accumulate(features.to(dtype), labels, means)
    return covariance_ratio(covariance.compute(), means, middle)


def by_definition(features):
    means = features.view(K, n, d).mean(dim=1)
    rows = features - means[labels]
    centred = means - means.mean(dim=0)
    vectors, values, _ = torch.linalg.svd(centred.T, full_matrices=False)
    projected = rows @ vectors[:, : K - 1]  # K - 1 directions between classes, whatever their lengths
    return float((projected.square().mean(dim=0) * K / values[: K - 1].square()).sum()) / K


seen = {}
for distance in (1e-1, 1e-2, 1e-3):
    means = torch.cat([centres[: K // 2], centres[K // 2] + distance * apart])
    features = means[labels] + spread
    single, double, exact = packaged(features, torch.float32), packaged(features, torch.float64), by_definition(features)
    seen[distance] = single / exact
    print(f"means {distance:g} apart: float32 {single:.3g}, float64 {double:.3g}, by definition {exact:.3g}")
    assert abs(double / exact - 1) < 1e-6
assert abs(seen[1e-1] - 1) < 1e-4
assert seen[1e-3] < 1e-4, "float32 sees merged classes: this finding is out of date"
PY
