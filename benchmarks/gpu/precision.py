"""Does bf16 move the mean predictions by less than they are from the optimum? A short run in each precision.

    python benchmarks/gpu/precision.py --data-dir data --out "$OUT/precision.json"

One run of Fig. 5 cut short, in bf16 and in float32, and once more in bf16 with another seed: what chance alone moves.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np


def compare(args):
    from collapsar.core.files import write_atomically
    from collapsar_studies.against_theory import MODELS, environment, summary
    from collapsar_studies.presets import figure_plan
    from collapsar_studies.sweep import Cell, SweepSettings, run_sweep

    jobs = {job.labels["value"]: job for job in figure_plan(5, args.preset).jobs}
    value = min(jobs, key=lambda value: abs(value - args.lambda_z))
    short = replace(jobs[value].cell.config, epochs=args.epochs, eval_every=args.epochs)
    configs = {
        "bf16": replace(short, precision="bf16"),
        "float32": replace(short, precision="float32"),
        "bf16, another seed": replace(short, precision="bf16", seed=short.seed + 1),
    }
    cells = {name: Cell(config) for name, config in configs.items()}
    folder = Path(args.folder)
    settings = SweepSettings(folder / "precision" / "cells", folder / "precision" / "scratch", args.data_dir)
    records = run_sweep([(cell,) for cell in cells.values()], settings)
    done = {name: records[cell.key] for name, cell in cells.items()}
    failed = [f"{name}: {record['error']}" for name, record in done.items() if record["error"]]
    if failed:
        raise ValueError("; ".join(failed))
    Z = {name: np.array(record["result"]["Z"]) for name, record in done.items()}
    size = np.linalg.norm(Z["float32"])
    if size < 1e-3:
        raise ValueError(
            f"`--lambda-z` {value:g} leaves no predictions to compare (|Z| = {size:.1e}); take a smaller one"
        )
    changes = {name: float(np.linalg.norm(Z[name] - Z["float32"]) / size) for name in Z if name != "float32"}
    distances = {
        name: {model: summary(record, 5)["distance"][model]["Z"] for model in MODELS} for name, record in done.items()
    }
    nearest = min(distances["float32"].values())
    record = {
        "value": value,
        "epochs": args.epochs,
        "change": changes,
        "distance": distances,
        "stationarity": {name: record["result"]["stationarity"] for name, record in done.items()},
        "holds": changes["bf16"] < nearest,
        "environment": environment(list(done.values())),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, json.dumps(record) + "\n")
    print(
        f"bf16 moves Z by {changes['bf16']:.4f} of its size; another seed too, by {changes['bf16, another seed']:.4f}"
    )
    print(f"in float32 Z is {nearest:.4f} from the nearer optimum: {'less' if record['holds'] else 'NOT less'}")
    return record["holds"]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--lambda-z", type=float, default=0.0045, help="on Fig. 5's axis")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--folder", default="runs/gpu")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/precision.json"))
    return compare(parser.parse_args(arguments))


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except (ValueError, OSError) as error:
        print(f"precision: {error}", file=sys.stderr)
        sys.exit(2)
