"""Time and memory of one pass of the metrics against the bare matrix products, as ratios within one run.

    pytest benchmarks/bench_metrics.py --benchmark-only -s        # or: python benchmarks/bench_metrics.py

The bare products are what any one-pass metric must at least do: the Gram matrix XᵀX and the sums per class, nothing
centred and nothing checked, in float64 (the precision of the moments) and in float32 (that of the features). The pass
is ``NeuralCollapse.update`` in batches of 1024. Times are the best of interleaved repeats, on the CPU in processor
seconds of one thread, so that what other processes take does not count. Each size runs in its own process, so that its
peak memory is its own.

Beside it, where it is installed, github.com/rhubarbwu/neural-collapse (commit c05a0b8): one pass for the class
means and one for the covariance and the variances of the classes, in float32, and the metrics that both have.
"""

import importlib.util
import json
import resource
import subprocess
import sys
import time

import pytest

SIZES = [(50_000, 512, 100), (50_000, 2048, 1000), (20_000, 768, 50_000)]
BATCH = 1024


def peak_gib():
    """The largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peer(features, labels, num_classes):
    """The metrics of neural-collapse under our names, and the processor seconds of its passes and of its metrics."""
    from neural_collapse.accumulate import CovarAccumulator, MeanAccumulator, VarNormAccumulator
    from neural_collapse.measure import covariance_ratio, simplex_etf_error, variability_cdnv

    begin = time.process_time()
    batches = list(zip(features.split(BATCH), labels.split(BATCH), strict=True))
    sizes = num_classes, features.shape[1]
    averages, covariance, variances = MeanAccumulator(*sizes), CovarAccumulator(*sizes), VarNormAccumulator(*sizes)
    for batch, its in batches:
        averages.accumulate(batch, its)
    means, middle = averages.compute()
    for batch, its in batches:
        covariance.accumulate(batch, its, means)
        variances.accumulate(batch, its, means)
    passes = time.process_time() - begin
    sample_mean = averages.ns_samples / len(features) @ means
    found = {
        "nc1_uniform": covariance_ratio(covariance.compute(), means, sample_mean),
        "cdnv": variability_cdnv(variances.compute()[0], means, tile_size=100),
        "nc2_etf": simplex_etf_error(means, middle),
    }
    return found, passes, time.process_time() - begin - passes


def beside_the_peer(num_samples=50_000, dim=512, num_classes=100):
    """Both packages on the same features, classes of different sizes: seconds and the largest relative difference."""
    import torch

    from collapsar.metrics import NeuralCollapse

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(num_classes, dim, generator=generator)
    labels = (num_classes * torch.rand(num_samples, generator=generator) ** 2).long()
    features = centres[labels] + 0.1 * torch.randn(num_samples, dim, generator=generator)
    rows, peaks, ours, theirs = [], [], {}, {}
    for _ in range(3):
        begin = time.process_time()
        metric = NeuralCollapse(num_classes=num_classes, num_features=dim)
        for batch, its in zip(features.split(BATCH), labels.split(BATCH), strict=True):
            metric.update(batch, its)
        middle = time.process_time()
        ours = metric.compute().scalars()
        end = time.process_time()
        peaks.append(peak_gib())
        theirs, passes, metrics = peer(features, labels, num_classes)
        rows.append((middle - begin, end - middle, passes, metrics))
    names = "pass_s", "compute_s", "peer_pass_s", "peer_compute_s"
    record = {name: min(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    record |= {"peak_gib": peaks[0], "peak_gib_with_peer": peak_gib()}
    apart = {name: abs(value / ours[name] - 1) for name, value in theirs.items()}
    return {"size": [num_samples, dim, num_classes], **record, "apart": apart}


def measure(num_samples, dim, num_classes, device="cpu"):
    """Seconds (best of the repeats) and peak memory for one size."""
    import torch

    from collapsar.metrics import NeuralCollapse

    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.randint(num_classes, (num_samples,)).to(device)
    features = (torch.randn(num_samples, dim) + 10).to(device)

    def bare(dtype):
        gram = torch.zeros(dim, dim, dtype=dtype, device=device)
        sums = torch.zeros(num_classes, dim, dtype=dtype, device=device)
        for start in range(0, num_samples, BATCH):
            rows = features[start : start + BATCH].to(dtype)
            gram.addmm_(rows.T, rows)
            sums.index_add_(0, labels[start : start + BATCH], rows)

    def one_pass():
        metric.reset()
        for start in range(0, num_samples, BATCH):
            metric.update(features[start : start + BATCH], labels[start : start + BATCH])

    def seconds_now():
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    metric = NeuralCollapse(num_classes=num_classes, num_features=dim).to(device)
    repeats = 10 if num_samples * dim**2 < 1e11 or device != "cpu" else 3
    seconds = {"float64": float("inf"), "float32": float("inf"), "pass": float("inf")}
    for _ in range(repeats):
        for name, call in (
            ("float64", lambda: bare(torch.float64)),
            ("float32", lambda: bare(torch.float32)),
            ("pass", one_pass),
        ):
            start = seconds_now()
            call()
            took = seconds_now() - start
            seconds[name] = min(seconds[name], took if took > 0 else float("inf"))  # a virtual clock may stand still
    compute = {}
    for metric.pairwise in (True, False):
        start = seconds_now()
        metric.compute()
        compute[metric.pairwise] = seconds_now() - start
    return {
        "size": [num_samples, dim, num_classes],
        "pass_s": seconds["pass"],
        "over_float64": seconds["pass"] / seconds["float64"],
        "over_float32": seconds["pass"] / seconds["float32"],
        "compute_s": compute[True],
        "compute_without_pairs_s": compute[False],
        "state_mib": metric.packed_moments.nbytes / 2**20,
        "peak_gib": peak_gib(),
    }


def in_own_process(size):
    """The record of ``measure`` from a fresh interpreter."""
    command = [sys.executable, __file__, *map(str, size)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_one_pass_against_the_bare_products(benchmark, size):
    record = benchmark.pedantic(in_own_process, args=(size,), rounds=1, iterations=1)
    benchmark.extra_info.update(record)
    print(json.dumps(record))
    if size == SIZES[0]:
        assert record["over_float64"] <= 2
    assert record["peak_gib"] <= 8


def test_beside_the_peer(benchmark):
    pytest.importorskip("neural_collapse", reason="neural-collapse is not installed: see the head of this file")
    record = benchmark.pedantic(beside_the_peer, rounds=1, iterations=1)
    benchmark.extra_info.update(record)
    print(json.dumps(record))
    assert max(record["apart"].values()) < 1e-4  # float32 sums there


if __name__ == "__main__":
    wanted = [tuple(map(int, sys.argv[1:]))] if sys.argv[1:] else SIZES
    for one in wanted:
        print(json.dumps(measure(*one) if sys.argv[1:] else in_own_process(one)), flush=True)
    if not sys.argv[1:] and importlib.util.find_spec("neural_collapse"):
        print(json.dumps(beside_the_peer()))
