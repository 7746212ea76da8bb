"""One piece of the paper-size results: train for so many minutes, draw what has ended, leave files that can travel.

    python benchmarks/gpu/piece.py which-model --data-dir data --out "$OUT"

The same call goes on where the last one stopped, on the same machine or with what ``parcels.py open`` put in place.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import parcels

# Most valuable first, with the figures that the same runs give. What it takes: docs/gpu.md.
PIECES = {
    "which-model": ("which-model", "fig5"),
    "fig5": ("fig5",),
    "fig7": ("fig7",),
    "fig9": ("fig9",),
    "fig1": ("fig1", "fig2", "fig3", "fig4"),
    "fig6": ("fig6",),
    "fig8": ("fig8",),
}


class TimeIsUp:
    """True from so many seconds on; a value, so that other processes can be sent it."""

    def __init__(self, seconds):
        self.until = time.time() + seconds

    def __call__(self):
        return time.time() >= self.until


def run(name, args):
    """Train, draw, pack; returns what was done."""
    import torch

    from collapsar.training import TrainingInterrupted
    from collapsar.training.provenance import choose_device
    from collapsar_studies.reproduce import Place, Request, reproduce

    begun, folder = time.monotonic(), Path(args.folder)
    stop = TimeIsUp(60 * args.minutes)
    torch.backends.cudnn.benchmark = args.cudnn_benchmark
    place = Place(folder / "results", folder / "scratch", args.data_dir, at_once=args.at_once, stop=stop)
    seconds, drawn = [], {}
    for each in PIECES[name]:
        try:
            record = reproduce(Request(each, args.preset, beyond=args.beyond), place, progress=_says(each), note=_note)
            drawn[each] = record["environment"]["runs"]
        except TrainingInterrupted as interrupted:
            _note(str(interrupted))
            if not stop():
                raise
        seconds.append(round(time.monotonic() - begun, 1))
    report = {
        "piece": name,
        "preset": args.preset,
        "device": _device_name(choose_device("auto")),
        "at_once": args.at_once,
        "seconds_until_drawn": seconds,
        "runs_drawn": drawn,
        "in_progress": _in_progress(folder / "scratch"),
    }
    if args.out is not None:
        there, sent = parcels.send(folder, args.out)
        report["parcels"] = {"there": there, "sent": sent}
        for each in drawn:
            (args.out / f"{each}.png").write_bytes((folder / "results" / each / f"{each}.png").read_bytes())
    return report


def _in_progress(scratch):
    """Finished epochs of every run that was cut off."""
    from collapsar.training.checkpoint import read_checkpoint

    checkpoints = [read_checkpoint(path) for path in sorted(scratch.glob("*/*/checkpoint.safetensors"))]
    return [
        {"epoch": c.epoch, "of": json.loads(c.config)["epochs"], "minutes": round(c.seconds / 60, 2)}
        for c in checkpoints
        if not c.finished
    ]


def _device_name(device):
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _says(name):
    def progress(done, total, seconds):
        left = "" if not seconds > 0 else f", about {seconds / 60:.1f} min for the rest"
        print(f"{name}: {done} of {total} runs{left}", flush=True)

    return progress


def _note(sentence):
    print(f"piece: {sentence}", file=sys.stderr, flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", choices=PIECES)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which runs are saved and the piece ends")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side on the card")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="choose convolution kernels by trial")
    parser.add_argument("--beyond", type=int, default=200, help="at most so many epochs more, until the head is still")
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with the four IDX files")
    parser.add_argument("--folder", default="runs/gpu", help="where results and runs in progress lie")
    parser.add_argument("--out", type=Path, default=None, help="where the files go that are to travel")
    args = parser.parse_args(arguments)
    print(json.dumps(run(args.name, args)), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"piece: {error}", file=sys.stderr)
        sys.exit(2)
