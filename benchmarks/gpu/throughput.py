"""Speed on one card: the loop, the bare step, batches from Python lists, the metrics, and what exact float32 costs.

    python benchmarks/gpu/throughput.py --out "$OUT/throughput.json"

All of it in one process, so that every ratio is of one card. Images per second of ``train`` are taken between its
calls of ``progress``, without the first epochs and without the evaluation. Shares are of the matrix rate measured here,
on random numbers.
"""

import argparse
import json
import math
import statistics
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bench_metrics
from piece import PIECES

from collapsar import Penalties
from collapsar.core.files import write_atomically
from collapsar.training import ImageData, ModelSpec, TrainConfig, build_model, train
from collapsar.training.graphs import RecordedSteps, own_stream, recorder, taking_turns
from collapsar.training.loop import one_thread
from collapsar.training.provenance import choose_device

BATCH, CLASSES, SKIPPED = 128, 10, 3
# Networks with channels and units of their own sizes, or small ones that a CPU moves in seconds.
WIDTHS = {"resnet18": (4, 4, 8, 12), "vgg11": (16, 12), "vgg13": (16, 12)}


def random_images(num_samples):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_samples, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.arange(num_samples) % CLASSES
    names = tuple(map(str, range(CLASSES)))
    return ImageData("random", images, labels, images[:CLASSES], labels[:CLASSES], names, (0.5,), (0.3,))


class Clock:
    """Seconds on the device's own time."""

    def __init__(self, device):
        self.device = device

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def median(self, call, repeats=5):
        call()
        taken = []
        for _ in range(repeats):
            begin = self.now()
            call()
            taken.append(self.now() - begin)
        return statistics.median(taken)


@contextmanager
def products_in(precision):
    """Float32 products "ieee" (exact) or "tf32"."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = precision
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.fp32_precision = was


def matrix_rates(clock, size):
    """FLOP/s of one product of random matrices in bf16, TF32 and exact float32."""
    rates = {}
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "ieee"),
        ("tf32", torch.float32, "tf32"),
        ("float32", torch.float32, "ieee"),
    ):
        a, b = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
        with products_in(precision):
            rates[name] = 2 * size**3 / clock.median(lambda a=a, b=b: a @ b)
    return rates


def flops_per_image(spec):
    """Forward and backward, counted on two images."""
    model = build_model(spec, (1, 28, 28), CLASSES)
    with FlopCounterMode(display=False) as counter:
        logits, _ = model(torch.randn(2, 1, 28, 28))
        logits.sum().backward()
    return counter.get_total_flops() / 2


def loop_rate(clock, spec, settings, epochs, at_once=1):
    """Images per second of ``train``, all runs together, from the last one's third epoch to the first one's last."""
    settings = dict(settings)
    data = random_images(settings.pop("num_samples"))
    torch.backends.cudnn.benchmark = settings.pop("cudnn_benchmark", False)
    config = TrainConfig("random", data.class_counts, Penalties(1e-3, 1e-5, 1e-2), epochs, spec, batch_size=BATCH)
    config = replace(config, learning_rate=1e-3, eval_every=epochs, device=str(clock.device), **settings)
    times = [[] for _ in range(at_once)]

    def one(number):
        with taking_turns():
            train(replace(config, seed=number), data, progress=lambda *_: times[number].append(time.perf_counter()))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(at_once)]
    with products_in("ieee"):  # here as well: the first to leave would take the setting from the others
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if any(len(mine) < epochs for mine in times):
        raise RuntimeError(f"{at_once} runs at once did not all end; their errors stand above")
    begin, end = max(mine[SKIPPED - 1] for mine in times), min(mine[-2] for mine in times)
    if end <= begin:  # on a CPU the runs take turns whole
        begin, end = min(mine[SKIPPED - 1] for mine in times), max(mine[-2] for mine in times)
    epochs_done = sum(begin < moment <= end for mine in times for moment in mine)
    return epochs_done * len(data.train_labels) / (end - begin)


def bare_rates(clock, spec, steps, precision, size=BATCH):
    """Images per second of the bare step (forward, cross-entropy, backward, update): plain, recorded, from lists."""
    data = random_images(size * 4)
    images, labels = data.normalised(data.train_images).to(clock.device), data.train_labels.to(clock.device)
    model = build_model(spec, data.image_shape, CLASSES, generator=torch.Generator().manual_seed(0)).to(clock.device)
    model.body_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    place = [images[:size].clone(), labels[:size].clone()]

    def step(_rows=None, _setting=None):
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(place[0])[0], place[1]).backward()
        optimizer.step()

    stored = [(image.cpu().numpy(), int(label)) for image, label in zip(images, labels, strict=True)]

    def from_lists():
        import numpy as np

        for first in range(0, len(stored), size):
            batch = stored[first : first + size]
            place[0] = torch.tensor(np.array([list(image) for image, _ in batch])).to(clock.device)
            place[1] = torch.tensor([label for _, label in batch]).to(clock.device)
            step()

    rates = {}
    with own_stream(clock.device), products_in("tf32" if precision == "tf32" else "ieee"):
        rates["plain"] = steps * size / clock.median(lambda: [step() for _ in range(steps)], 3)
        record = recorder(clock.device)
        if record is not None:
            recorded, rows = RecordedSteps(step, record), labels[:1]
            rates["recorded"] = steps * size / clock.median(lambda: [recorded(rows, 0) for _ in range(steps)], 3)
            recorded(rows, 1)  # drops the recording before the lists move the batch
        if precision == "bf16":
            begin = clock.now()
            from_lists()
            rates["lists, one run"] = len(stored) / (clock.now() - begin)
    return rates


def network_rates(clock, name, args, matrix_rate):
    """Everything about one network."""
    spec = ModelSpec(name, widths=WIDTHS[name] if args.tiny else ())
    flops = flops_per_image(spec)
    batch = CLASSES // 2 if args.tiny else BATCH
    sizes = {"batch_size": batch, "num_samples": batch * (2 if args.tiny else 24)}
    loops = {}
    for label, settings, at_once in (
        ("plain", {}, 1),
        ("recorded", {"cuda_graphs": True}, 1),
        *((f"recorded, {n} at once", {"cuda_graphs": True}, n) for n in args.at_once),
        ("recorded, cudnn.benchmark", {"cuda_graphs": True, "cudnn_benchmark": True}, 1),
        *((("compiled and recorded", {"cuda_graphs": True, "compile": True}, 1),) if args.compile else ()),
    ):
        given = {"precision": "bf16", **sizes, **settings}
        loops[label] = _or_error(lambda given=given, n=at_once: loop_rate(clock, spec, given, args.epochs, n))
    given = {"precision": "float32", "cuda_graphs": True, **sizes}
    loops["recorded, exact float32"] = _or_error(lambda: loop_rate(clock, spec, given, args.epochs))
    bare = {
        p: _or_error(lambda p=p: bare_rates(clock, spec, args.steps, p, batch)) for p in ("bf16", "tf32", "float32")
    }
    best = max((rate for rate in loops.values() if isinstance(rate, float)), default=math.nan)
    record = {"gflop_per_image": flops / 1e9, "loop": loops, "bare": bare, "share": best * flops / matrix_rate}
    if "recorded" in bare["bf16"]:
        record["launch_bound"] = bare["bf16"]["recorded"] > 1.2 * bare["bf16"]["plain"]
    if isinstance(loops["recorded"], float):
        ready = bare["bf16"].get("recorded", bare["bf16"].get("plain", math.nan))
        record["loop_over_bare"] = loops["recorded"] / ready
    return record


def piece_minutes(networks):
    """Minutes of every piece at the measured rates: training, and evaluation as a third of an exact training step."""
    from collapsar_studies.presets import figure_plan
    from collapsar_studies.which_model import WHICH_MODEL, which_model_jobs

    def jobs(name):
        return (
            which_model_jobs(WHICH_MODEL["paper"])
            if name == "which-model"
            else figure_plan(int(name[3:]), "paper").jobs
        )

    minutes = {}
    for name, figures in PIECES.items():
        cells = {job.cell for each in figures for job in jobs(each)}
        seconds = 0.0
        for cell in cells:
            config, rates = cell.config, networks.get(cell.config.model.name, {}).get("loop", {})
            best = max((rate for rate in rates.values() if isinstance(rate, float)), default=math.nan)
            exact = rates.get("recorded, exact float32", math.nan)
            samples = sum(config.class_counts)
            looks = config.epochs / config.eval_every * (samples * (2 if cell.detail == "curve" else 1) + 10_000)
            seconds += config.epochs * samples / best + looks / (3 * exact if isinstance(exact, float) else math.nan)
        minutes[name] = round(seconds / 60, 1)
    return {name: value for name, value in minutes.items() if math.isfinite(value)}


def _or_error(call):
    """A number, or what went wrong: one variant that fails must not cost the others their time on the card."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="the training step cannot be recorded")
            return call()
    except (RuntimeError, ValueError, AssertionError, UserWarning) as error:
        print(f"throughput: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        return {"error": str(error)[:500]}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--networks", nargs="+", default=["resnet18", "vgg11", "vgg13"], choices=WIDTHS)
    parser.add_argument("--at-once", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--epochs", type=int, default=24, help="of each measured loop, of 24 batches")
    parser.add_argument("--steps", type=int, default=100, help="of the bare step")
    parser.add_argument("--compile", action="store_true", help="also through torch.compile (a minute more a network)")
    parser.add_argument("--tiny", action="store_true", help="small networks, matrices and sets, for a CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/throughput.json"))
    args = parser.parse_args(arguments)
    if args.epochs < SKIPPED + 2:
        parser.error(f"--epochs must be at least {SKIPPED + 2}, got {args.epochs}")
    device = choose_device(args.device)
    clock = Clock(device)
    record = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "matrix_tflops": {},
        "networks": {},
        "metrics": [],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rates = matrix_rates(clock, 256 if args.tiny else 8192)
    record["matrix_tflops"] = {name: rate / 1e12 for name, rate in rates.items()}
    for size in ((2000, 32, 10),) if args.tiny else ((50_000, 2048, 1000), (20_000, 768, 50_000)):
        with one_thread():  # which is what ``measure`` sets, for good
            record["metrics"].append(_or_error(lambda size=size: bench_metrics.measure(*size, device=str(device))))
        write_atomically(args.out, json.dumps(record) + "\n")
    for name in args.networks:
        record["networks"][name] = network_rates(clock, name, args, rates["bf16"])
        write_atomically(args.out, json.dumps(record) + "\n")  # what is measured is kept, whatever comes
    if not args.tiny:
        record["minutes"] = piece_minutes(record["networks"])
        write_atomically(args.out, json.dumps(record) + "\n")
    print(json.dumps(record, indent=1), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"throughput: {error}", file=sys.stderr)
        sys.exit(2)
