"""``collapsar train`` and ``collapsar demo``. torch is imported when they run, not before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.progress import Progress
from typer import Option

from collapsar.cli.options import DataDir, Json, LabelFile, Prices, command
from collapsar.cli.output import bars, console, plain_table, tell
from collapsar.core.files import write_atomically
from collapsar.core.record_types import DemoRecord, TrainedRecord
from collapsar.core.records import to_json
from collapsar.report.words import share_text, standard_finding, summary_of_states

if TYPE_CHECKING:
    from collapsar.training import TrainConfig

DATA_HELP = "digits (inside scikit-learn), fashion-mnist, mnist, cifar10; or an .npz file or a folder of IDX files."
Seed = Annotated[int, Option("--seed", help="Seed of the initial weights and of the order of the images.")]
Model = Literal["mlp", "cnn", "vit", "resnet18", "vgg11", "vgg13"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Recipe:
    """The network and how it is trained."""

    model: Model = Option("mlp", help="A perceptron, a small CNN, a small vision transformer, or the paper's networks.")
    signed: bool = Option(False, "--signed", help="Leave out the last ReLU: signed features.")
    epochs: int = Option(400, help="Passes over the training images.")
    batch_size: int = Option(128, help="Images per step.")
    learning_rate: float = Option(0.1, help="Initial learning rate of SGD.")
    weight_decay: float = Option(0.0, help="Weight decay of SGD on all parameters, in addition to the penalties.")
    stop_at: float = Option(0.0, help="Stop once the head's relative gradient is below this; 0: never.")


@dataclass(frozen=True)
class Machine:
    """Where a network is trained, and with which seed."""

    seed: Seed = 0
    device: str = Option("auto", "--device", "--accelerator", help="auto, cpu, cuda, ...")
    devices: int = Option(1, help="Number of processes that share each batch.")
    precision: Precision = Option("float32", help="bf16: only for the body.")
    compiled: bool = Option(False, "--compile", help="Compile the network first; on a GPU, CUDA graphs.")


@command(
    "collapsar train --data digits --counts 100x5,20x5 --lambda-z 0.005 --lambda-b 0.02 --out runs/first",
    "collapsar train --data fashion-mnist --counts exp:500:10:10 --lambda-w 0.05 --lambda-h 5e-4 --out runs/tail",
    "collapsar train --data my.npz --counts 500x3,50x3 --lambda-z 0.003 --devices 2 --accelerator cpu --out runs/mine",
)
def train(
    *,
    counts: str = Option(..., help='Training images per class: "100x5,20x5", "exp:500:10:10", ...'),
    out: Path = Option(..., help="Folder for the records and the checkpoint."),
    data: str = Option("digits", help=DATA_HELP),
    data_dir: DataDir = None,
    prices: Prices,
    recipe: Recipe,
    file: LabelFile,
    machine: Machine,
    fresh: bool = Option(False, "--fresh", help="Start again instead of resuming from --out."),
    as_json: Json = False,
) -> None:
    """Train a network on imbalanced data with penalised features, and compare it with the exact optimum.

    With --lambda-z the head gets lambda_w = 10 lambda_z and the features lambda_h = lambda_z / 10, as in the paper.
    An interrupted run resumes where it stopped when the same command is given again.
    """
    prices.price()  # before imports that take seconds, so that a refusal comes at once
    config = _config(data, file.read(counts).counts.tolist(), prices, recipe, machine)
    from collapsar.app.demo import collapse_numbers, run_record
    from collapsar.training import imbalanced, load_data
    from collapsar.training import train as train_network

    images = imbalanced(load_data(data, data_dir), config.class_counts)
    with bars("epochs") as bar:
        move = _moves(bar)

        def progress(epoch: int, epochs: int, _: object) -> None:
            move("training", epoch, epochs)

        result = train_network(config, images, out, progress=progress, resume=not fresh, measure=collapse_numbers)
    found = run_record(result, images)
    record = {"config": json.loads(config.to_json()), **found}
    write_atomically(out / "result.json", json.dumps(to_json(record), allow_nan=False))
    tell(record, lambda: _print_training(found, out), as_json=as_json)


def _config(data: str, counts: list[int], prices: Prices, recipe: Recipe, machine: Machine) -> TrainConfig:
    """The training that the options describe."""
    from collapsar.core.penalties import Penalties
    from collapsar.training import ModelSpec, TrainConfig, penalties_for

    given = {**vars(recipe), **vars(machine)}
    spec, compiled = ModelSpec(given.pop("model"), feature_relu=not given.pop("signed")), given.pop("compiled")
    if prices.lambda_w is None or prices.lambda_h is None:
        penalties = penalties_for(prices.price(), prices.lambda_b)
    else:
        penalties = Penalties(prices.lambda_w, prices.lambda_h, prices.lambda_b)
    return TrainConfig(
        dataset=data,
        class_counts=tuple(counts),
        penalties=penalties,
        model=spec,
        clip_norm=1.0,
        eval_every=max(1, recipe.epochs // 25),
        compile=compiled,
        cuda_graphs=compiled,
        **given,
    )


def _print_training(record: TrainedRecord, out: Path) -> None:
    """The network's diagnosis, as ``collapsar diagnose`` prints it for the folder, and its test accuracy."""
    from collapsar.cli.diagnose import print_diagnosis  # with scipy, which a refusal need not wait for

    assert "diagnosis" in record  # in records of now
    print_diagnosis(record["diagnosis"])
    shown, a = console(), record["accuracy"]
    shown.print(
        f"{record['epochs']} epochs in {record['seconds']:.0f} s. Test accuracy: balanced "
        f"{share_text(a['test_balanced'])}, smallest classes {share_text(a['test_minority'])}."
    )
    shown.print(f"Records: {out.resolve()}", soft_wrap=True)


@command(
    "collapsar demo",
    "collapsar demo --data fashion-mnist --out runs/fashion",
)
def demo(
    data: Literal["digits", "fashion-mnist"] = Option("digits", help="The data set."),
    data_dir: DataDir = None,
    out: Path | None = Option(None, help="Folder for the results; default runs/demo-DATA."),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train five networks on imbalanced data and watch the small classes collapse where the theory says.

    Three networks have a penalty below, between and above the thresholds; two more have standard training, with a
    LayerNorm and weight decay on the head alone. Prints a table of what was predicted and what was measured, and writes
    a report that opens in any browser. Less than a minute on two cores; no download for digits.
    """
    from collapsar.app.demo import demo as run_demo
    from collapsar.report import demo_page, png_bytes
    from collapsar.report.plots import demo_figure

    folder = Path("runs") / f"demo-{data}" if out is None else out
    with bars("epochs") as bar:
        record: DemoRecord = to_json(run_demo(data, out=folder, data_dir=data_dir, seed=seed, progress=_moves(bar)))
    write_atomically(folder / "record.json", json.dumps(record, allow_nan=False))
    write_atomically(folder / "picture.png", png_bytes(demo_figure(record)))
    page = write_atomically(folder / "report.html", demo_page(record))
    tell(record, lambda: _print_demo(record, page), as_json=as_json)


def _moves(bar: Progress) -> Callable[[str, int, int], None]:
    """A function of a name, the progress and its end, which moves a bar that is made the first time."""
    task = cache(lambda name: bar.add_task(name, total=None))
    return lambda name, done, total: bar.update(task(name), completed=done, total=total)


def _print_demo(record: DemoRecord, page: Path) -> None:
    """The table of the demo, what it found, and where the report is."""
    small, counts, t = record["clusters"][1], record["class_counts"], record["thresholds"]["nonnegative"]
    shown = console()
    shown.print(
        f"{record['data']}: {len(counts)} classes, {max(counts)} images in each large one, {min(counts)} in each small."
        f" Theory: small classes vanish above lambda_z = {t['vanish'][small[0]]:.5g}, all above {t['complete']:.5g}."
    )
    rows, agree = [], 0
    for run in record["runs"]:
        predicted, measured = (summary_of_states(run[which]["states"], small) for which in ("predicted", "measured"))
        agree += predicted == measured
        shares = (
            run["distance"]["Z"],
            run["distance"]["b"],
            run["accuracy"]["train"],
            run["accuracy"]["test_minority"],
        )
        rows.append((f"{run['lambda_z']:.5g}", predicted, measured, *map(share_text, shares)))
    columns = ("lambda_z", "theory", "measured", "Z off", "b off", "train", "small test")
    shown.print(plain_table(*columns, rows=rows))
    shown.print(
        f"Theory and network agree on the state of the small classes at {agree} of {len(record['runs'])} penalties. "
        "Z off, b off: relative distance of the network's mean predictions and bias from the exact optimum (– if that "
        "is zero). train, small test: accuracy on the training images, and on the small classes' test images. A class "
        "has vanished when its images change no score, so that the network cannot tell it from others."
    )
    if finding := standard_finding(record):
        shown.print(f"Two networks had standard training. {finding}")
    shown.print(f"Report: {page.resolve().as_uri()}", soft_wrap=True)
