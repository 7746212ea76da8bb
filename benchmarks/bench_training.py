"""Steps per second of the training loop against the bare steps of the same network, as ratios within one run.

    pytest benchmarks/bench_training.py --benchmark-only -s        # or: python benchmarks/bench_training.py

The bare step is forward, cross-entropy, backward and update on batches that lie ready: no shuffling, no gathering, no
penalties, no records. The loop is ``train`` itself, timed between its calls of ``progress``; each of its epochs is
followed by a bare one, and ratios are medians over these pairs, so that a busy machine slows both. "clipped" is the
loop with ``clip_norm``, a pass over all gradients that the bare step does not make; "lists" is the bare step on
batches that are gathered from Python lists on the host, as published scripts do.
"""

import json
import math
import statistics
import subprocess
import sys
import time

import pytest

NETWORKS = {"mlp": (120, 0.95), "cnn": (12, 0.95)}  # epochs, and the least share of the bare speed
NUM_SAMPLES, BATCH, CLASSES = 128 * 12, 128, 10


def measure(network, threads=1, device="cpu", precision="float32"):
    """Medians over the epochs, in steps per second, and their ratios."""
    import torch
    from torch.nn import functional

    from collapsar import Penalties
    from collapsar.training import ImageData, ModelSpec, TrainConfig, build_model, train

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (NUM_SAMPLES, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.arange(NUM_SAMPLES) % CLASSES
    names = tuple(map(str, range(CLASSES)))
    data = ImageData("random", images, labels, images[:CLASSES], labels[:CLASSES], names, (0.5,), (0.3,))
    inputs = data.normalised(images).to(device)
    spec = ModelSpec(network)

    def bare_epochs():
        """A function that makes one bare epoch; on lists where it is told so."""
        model = build_model(spec, data.image_shape, CLASSES, generator=torch.Generator().manual_seed(0)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        rows = [slice(i, i + BATCH) for i in range(0, NUM_SAMPLES, BATCH)]
        ready = [(inputs[batch].clone(), labels[batch].to(device)) for batch in rows]

        def steps(batches):
            for x, y in batches:
                loss = functional.cross_entropy(model(x)[0], y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        stored = [(image.cpu().numpy(), int(label)) for image, label in zip(inputs, labels, strict=True)]
        return lambda: steps(ready), lambda: steps(_from_lists(stored, rows, device))

    def seconds_of(call):
        begin = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    epochs, _ = NETWORKS[network]
    bare_seconds, ratios = [], {"loop": [], "clipped": [], "lists": []}
    for kind, clip_norm in (("loop", math.inf), ("clipped", 1e9)):
        bare, lists = bare_epochs()
        clock = {"begin": math.nan}

        def note(*_, kind=kind, bare=bare, lists=lists, clock=clock):
            if device != "cpu":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - clock["begin"]
            bare_seconds.append(seconds_of(bare))
            ratios[kind].append(bare_seconds[-1] / seconds)
            if len(bare_seconds) % 10 == 0:
                ratios["lists"].append(bare_seconds[-1] / seconds_of(lists))
            clock["begin"] = time.perf_counter()

        counts = tuple(torch.bincount(labels).tolist())
        config = TrainConfig("random", counts, Penalties(1e-3, 1e-5, 1e-2), epochs, spec, batch_size=BATCH)
        settings = {"learning_rate": 1e-3, "clip_norm": clip_norm, "eval_every": epochs, "device": device}
        train(_changed(config, settings | {"precision": precision}), data, progress=note)
    return {
        "network": network,
        "device": device,
        "precision": precision,
        "threads": threads,
        "bare_steps_per_s": NUM_SAMPLES / BATCH / statistics.median(bare_seconds),
        # The first epoch warms up, the last one evaluates.
        **{f"{kind}_over_bare": statistics.median(values[1:-1] or values) for kind, values in ratios.items()},
    }


def _changed(config, settings):
    from dataclasses import replace

    return replace(config, **settings)


def _from_lists(stored, rows, device):
    """Batches as published scripts make them: lists of arrays on the host, copied image by image."""
    import numpy as np
    import torch

    for batch in rows:
        images = torch.tensor(np.array([list(image) for image, _ in stored[batch]]))
        yield images.to(device), torch.tensor([label for _, label in stored[batch]]).to(device)


def in_own_process(*arguments):
    """The record of ``measure`` from a fresh interpreter."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("network", NETWORKS)
def test_loop_against_bare_steps(benchmark, network):
    record = benchmark.pedantic(in_own_process, args=(network,), rounds=1, iterations=1)
    benchmark.extra_info.update(record)
    print(json.dumps(record))
    assert record["loop_over_bare"] >= NETWORKS[network][1]


def _has_gpu():
    import torch

    return torch.cuda.is_available()


@pytest.mark.skipif(not _has_gpu(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_loop_on_a_gpu(benchmark, precision):
    record = benchmark.pedantic(in_own_process, args=("cnn", 1, "cuda", precision), rounds=1, iterations=1)
    benchmark.extra_info.update(record)
    print(json.dumps(record))
    assert record["loop_over_bare"] > record["lists_over_bare"]


if __name__ == "__main__":
    if sys.argv[1:]:
        network, *rest = sys.argv[1:]
        threads, *others = rest or ["1"]
        print(json.dumps(measure(network, int(threads), *others)))
    else:
        for network in NETWORKS:
            for threads in (1, 2):
                print(json.dumps(in_own_process(network, threads)), flush=True)
