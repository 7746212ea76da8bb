"""``collapsar train`` and ``collapsar demo``. torch is imported when they run, not before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import Progress

from collapsar.cli.app import app
from collapsar.cli.options import (
    Column,
    DataDir,
    IgnoreIndex,
    Json,
    LambdaB,
    LambdaH,
    LambdaW,
    LambdaZ,
    counts_given,
    price,
)
from collapsar.cli.output import bars, print_demo, print_json, print_training
from collapsar.core.files import write_atomically
from collapsar.core.records import to_json

if TYPE_CHECKING:
    from collapsar.training import TrainConfig

__all__ = ["demo", "train"]

Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="digits (inside scikit-learn), fashion-mnist, mnist, cifar10; or an .npz file or a folder of IDX files.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of the initial weights and of the order of the images.")]


TrainCounts = Annotated[
    str, typer.Option("--counts", help='Training images per class: "100x5,20x5", "exp:500:10:10", ...')
]
TrainOut = Annotated[Path, typer.Option("--out", help="Folder for the records and the checkpoint.")]
Model = Annotated[
    Literal["mlp", "cnn", "vit", "resnet18", "vgg11", "vgg13"],
    typer.Option("--model", help="A perceptron, a small CNN, a small vision transformer, or the paper's networks."),
]
Signed = Annotated[bool, typer.Option("--signed", help="Leave out the last ReLU: signed features.")]
Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the training images.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Images per step.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", help="Of SGD, before its steps down.")]
WeightDecay = Annotated[float, typer.Option("--weight-decay", help="SGD's, on all parameters, on top.")]
StopAt = Annotated[float, typer.Option("--stop-at", help="Stop once the head is this stationary; 0: never.")]
Device = Annotated[str, typer.Option("--device", "--accelerator", help="auto, cpu, cuda, ...")]
Devices = Annotated[int, typer.Option("--devices", help="Processes that share each batch.")]
Precision = Annotated[Literal["float32", "bf16"], typer.Option("--precision", help="bf16: for the body alone.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the network first; on a GPU, CUDA graphs.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew instead of resuming what is in --out.")]


@app.command(
    epilog="""Examples:

    collapsar train --data digits --counts 100x5,20x5 --lambda-z 0.005 --lambda-b 0.02 --out runs/first

    collapsar train --data fashion-mnist --counts exp:500:10:10 --lambda-w 0.05 --lambda-h 5e-4 --out runs/tail

    collapsar train --data my.npz --counts 500x3,50x3 --lambda-z 0.003 --devices 2 --accelerator cpu --out runs/mine"""
)
def train(
    context: typer.Context,
    counts: TrainCounts,
    out: TrainOut,
    data: Data = "digits",
    data_dir: DataDir = None,
    lambda_z: LambdaZ = None,
    lambda_w: LambdaW = None,
    lambda_h: LambdaH = None,
    lambda_b: LambdaB = float("inf"),
    model: Model = "mlp",
    signed: Signed = False,
    epochs: Epochs = 400,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 0.1,
    weight_decay: WeightDecay = 0.0,
    stop_at: StopAt = 0.0,
    column: Column = None,
    ignore_index: IgnoreIndex = None,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = 1,
    precision: Precision = "float32",
    compiled: Compiled = False,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Train a network on imbalanced data with penalised features, and compare it with the exact optimum.

    With --lambda-z the head gets lambda_w = 10 lambda_z and the features lambda_h = lambda_z / 10, as in the paper.
    A run that is interrupted goes on where it stopped when the same command is given again.
    """
    config = _config(context.params)  # before imports that take seconds, which a refusal need not wait for
    from collapsar.app.demo import collapse_numbers, run_record
    from collapsar.training import imbalanced, load_data
    from collapsar.training import train as train_network

    images = imbalanced(load_data(data, data_dir), config.class_counts)
    with bars("epochs") as bar:
        progress = _advance(bar, "training")
        result = train_network(config, images, out, progress=progress, resume=not fresh, measure=collapse_numbers)
    record = {"config": json.loads(config.to_json()), **run_record(result, images)}
    write_atomically(out / "result.json", json.dumps(to_json(record), allow_nan=False))
    if as_json:
        print_json(record)
    else:
        print_training(record, out)


def _config(given: dict[str, Any]) -> TrainConfig:
    """The training that the options describe."""
    z, lambda_b = price(given["lambda_z"], given["lambda_w"], given["lambda_h"]), given["lambda_b"]
    counts = counts_given(given["counts"], given["column"], given["ignore_index"]).counts
    from collapsar.core.penalties import Penalties
    from collapsar.training import ModelSpec, TrainConfig, penalties_for

    if given["lambda_z"] is None:
        penalties = Penalties(lambda_w=given["lambda_w"], lambda_h=given["lambda_h"], lambda_b=lambda_b)
    else:
        penalties = penalties_for(z, lambda_b)
    same = ("epochs", "batch_size", "learning_rate", "weight_decay", "stop_at", "seed", "device", "devices")
    return TrainConfig(
        dataset=given["data"],
        class_counts=tuple(int(n) for n in counts),
        penalties=penalties,
        model=ModelSpec(given["model"], feature_relu=not given["signed"]),
        clip_norm=1.0,
        eval_every=max(1, given["epochs"] // 25),
        precision=given["precision"],
        compile=given["compiled"],
        cuda_graphs=given["compiled"],
        **{name: given[name] for name in same},
    )


@app.command(
    epilog="""Examples:

    collapsar demo

    collapsar demo --data fashion-mnist --out runs/fashion"""
)
def demo(
    data: Annotated[Literal["digits", "fashion-mnist"], typer.Option("--data", help="The images.")] = "digits",
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for it all; default runs/demo-DATA.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train three networks on imbalanced data and watch the small classes collapse where the theory says.

    One penalty below, one between and one above the thresholds; then two networks as people train, with a LayerNorm and
    weight decay on the head alone. Prints a table of what was predicted and what was measured, and writes a report
    that opens in any browser. Less than a minute on two cores; no download for digits.
    """
    from collapsar.app.demo import demo as run_demo
    from collapsar.report import demo_page, png_bytes
    from collapsar.report.plots import demo_figure

    folder = Path("runs") / f"demo-{data}" if out is None else out
    with bars("epochs") as bar:
        tasks: dict[str, Callable[..., None]] = {}

        def progress(words: str, epoch: int, epochs: int) -> None:
            if words not in tasks:
                tasks[words] = _advance(bar, words)
            tasks[words](epoch, epochs, None)

        record = to_json(run_demo(data, out=folder, data_dir=data_dir, seed=seed, progress=progress))
    write_atomically(folder / "record.json", json.dumps(record, allow_nan=False))
    write_atomically(folder / "picture.png", png_bytes(demo_figure(record)))
    page = write_atomically(folder / "report.html", demo_page(record))
    if as_json:
        print_json(record)
    else:
        print_demo(record, page)


def _advance(bar: Progress, name: str) -> Callable[[int, int, Any], None]:
    task = bar.add_task(name, total=None)

    def advance(epoch: int, epochs: int, record: Any) -> None:
        bar.update(task, completed=epoch, total=epochs)

    return advance
