"""Overhead of ``CollapseMonitor`` that reuses the training pass, as a share of an epoch, within one run.

    pytest benchmarks/bench_monitor.py --benchmark-only -s        # or: python benchmarks/bench_monitor.py

Training on FashionMNIST images (Debian's package, or fetched; scikit-learn's digits where neither is to be had), in
batches of 128, by SGD with momentum. Epochs with and without the monitor alternate, each from the same weights, and the
overhead is the median of their ratios, in processor seconds of one thread, so that what other processes take does not
count. The bar is for the convolutional network; the perceptron, where a step takes four milliseconds, shows the limit.
``scatter`` is what NC1 needs on top.
"""

import itertools
import json
import os
import statistics
import sys
import tempfile
import time

import pytest

BATCH = 128
ROUNDS = 7
# Name of the case: model, its widths, training images, whether to accumulate the scatter, and the bar.
CASES = {
    "mlp-512-512": ("mlp", (512, 512), 30_000, False, None),
    "mlp-512-512-scatter": ("mlp", (512, 512), 30_000, True, None),
    "cnn": ("cnn", (), 3840, False, 0.03),
    "cnn-scatter": ("cnn", (), 3840, True, 0.03),
}


def data(num_samples):
    """Normalised images, labels, and the name of the data set."""
    from collapsar.training import load_data

    try:
        found = load_data("fashion-mnist")
    except ValueError:
        found = load_data("digits")
    images = found.normalised(found.train_images[:num_samples])
    return images, found.train_labels[: len(images)], found.name


def network(kind, widths, shape):
    from torch import nn

    if kind == "mlp":
        sizes = [shape[0] * shape[1] * shape[2], *widths]
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], 10))
    blocks = [
        part
        for a, b in ((shape[0], 32), (32, 64), (64, 128))
        for part in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def measure(case):
    """The record of one case: median seconds of an epoch without, and the monitor's share of it."""
    import torch

    from collapsar.monitor import CollapseMonitor, MonitorOptions

    torch.set_num_threads(1)
    kind, widths, num_samples, scatter, bar = CASES[case]
    images, labels, name = data(num_samples)
    torch.manual_seed(0)
    model = network(kind, widths, tuple(images.shape[1:]))
    start = {key: value.clone() for key, value in model.state_dict().items()}
    folder = tempfile.TemporaryDirectory()
    quiet = MonitorOptions(path=f"{folder.name}/nc.jsonl", within_scatter=scatter, say=lambda message: None)

    def epoch(watched):
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
        monitor = CollapseMonitor(model, options=quiet) if watched else None
        begin = time.process_time()
        for rows in order.split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if monitor is not None:
                monitor.step(labels[rows])
        if monitor is not None:
            monitor.end_epoch()
        seconds = time.process_time() - begin
        if monitor is not None:
            monitor.close()
        return seconds

    epoch(True)
    pairs = [(epoch(False), epoch(True)) for _ in range(ROUNDS)]
    folder.cleanup()
    return {
        "case": case,
        "data": name,
        "images": len(labels),
        "epoch_s": statistics.median(plain for plain, _ in pairs),
        "overhead": statistics.median(watched / plain for plain, watched in pairs) - 1,
        "overhead_of_fastest": min(b for _, b in pairs) / min(a for a, _ in pairs) - 1,
        "bar": bar,
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
    }


@pytest.mark.parametrize("case", CASES)
def test_overhead_of_the_monitor(benchmark, case):
    record = benchmark.pedantic(measure, args=(case,), rounds=1, iterations=1)
    benchmark.extra_info.update(record)
    print(json.dumps(record))
    if record["bar"] is not None:
        assert record["overhead"] <= record["bar"]


if __name__ == "__main__":
    for one in sys.argv[1:] or CASES:
        print(json.dumps(measure(one)), flush=True)
