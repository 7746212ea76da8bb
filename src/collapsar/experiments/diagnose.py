"""``diagnose``: a file of features, a module with a loader, or a run's folder, measured and compared with theory.

torch is imported for modules and runs only; a file of features needs numpy alone, and gets the metrics of neural
collapse besides where torch is installed.

Example:
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.eye(4).repeat(5, 1), torch.arange(20) % 2
    >>> diagnose(model, [(x, y)], head=model[2]).measurement.class_counts.tolist()
    [10, 10]
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collapsar.analysis.diagnosis import Diagnosis, KnownTraining, diagnose_measurement
from collapsar.analysis.measurement import Measurement, Pass
from collapsar.experiments.feature_files import FeatureFile, read_features

if TYPE_CHECKING:
    from torch import Tensor, nn

    from collapsar.training import ImageData, TrainResult

__all__ = ["diagnose", "diagnose_run"]

_BATCH = 4096


def diagnose(
    source: Any,
    loader: Iterable[Any] | None = None,
    *,
    head: nn.Module | str | None = None,
    known: KnownTraining | None = None,
    class_names: Sequence[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Diagnosis:
    """Diagnose a trained network: which classes collapsed, and what theory says of it.

    Args:
        source: a path, of an .npz or .safetensors file (see ``experiments.feature_files``) or of a run's folder; or a
            torch module, then with ``loader``.
        loader: the training samples, without augmentation: batches (inputs, labels), or mappings with "labels" whose
            other entries are the module's arguments.
        head: the module's last linear layer, or its name; found where it is clear.
        known: penalties and loss of the training; they go before those that a file or a run names.
        class_names: K names.
        data_dir: where a run's data set lies, if not in a standard place.

    Returns:
        The diagnosis.

    Raises:
        ValueError: the file, folder, batches or head are not as they must be; the message says what to do.
        OSError: a file cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        if loader is not None or head is not None:
            raise ValueError("`loader` and `head` go with a module; `source` is a path")
        path = Path(source)
        if not path.exists():
            raise ValueError(f"`source` {path} does not exist; give an .npz or .safetensors file, or a run's folder")
        if path.is_dir():
            return _of_folder(path, known, class_names, data_dir)
        return _of_file(path, known, class_names)
    if loader is None or not callable(getattr(source, "named_modules", None)):
        raise ValueError(
            "`source` must be a path, or a torch module with a `loader` of (inputs, labels); "
            f"got {type(source).__name__}{'' if loader is not None else ' without a loader'}"
        )
    known = KnownTraining() if known is None else known
    from collapsar.integrations.head import find_head, unwrapped

    _, layer = find_head(unwrapped(source), head)
    measurement = _measured(layer, _features(source, layer, loader), known)
    return diagnose_measurement(measurement, known, class_names, type(source).__name__)


def diagnose_run(result: TrainResult, data: ImageData, source: str = "run") -> Diagnosis:
    """Diagnose a training run of ours, its penalties known.

    Args:
        result: the run.
        data: its data, cut to its counts.
        source: for the reader.
    """
    known = _of_config(result)
    return diagnose_measurement(_run_measurement(result, data, known), known, data.class_names, source)


def _of_file(path: Path, known: KnownTraining | None, class_names: Sequence[str] | None) -> Diagnosis:
    file = read_features(path)
    known = _merged(known, file.scalars)
    sums = Pass(file.weight, file.bias, known.loss)
    sums.add(file.features, file.labels)
    return diagnose_measurement(
        sums.result(_metrics(file)), known, file.class_names if class_names is None else class_names, path.name
    )


def _merged(known: KnownTraining | None, scalars: Mapping[str, float]) -> KnownTraining:
    """What the caller knows, then what the file says: lambda_w, or weight_decay for head and bias."""
    known = KnownTraining() if known is None else known
    decay = scalars.get("weight_decay")
    of_file = {
        "lambda_w": scalars.get("lambda_w", decay),
        "lambda_h": scalars.get("lambda_h"),
        "lambda_b": scalars.get("lambda_b", decay),
    }
    if of_file["lambda_b"] == np.inf:  # a head without bias says so by having none
        of_file["lambda_b"] = None
    return replace(known, **{name: value for name, value in of_file.items() if getattr(known, name) is None})


def _metrics(file: FeatureFile) -> dict[str, float]:
    """The scalars of a ``CollapseReport``; none without torch."""
    try:
        from collapsar.metrics import center_agreement, class_moments, collapse_report
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("torch", "torchmetrics"):
            raise
        return {}
    import torch

    K = len(file.weight)
    moments = class_moments(file.features, file.labels.astype(np.int64), K)
    weight = torch.as_tensor(file.weight).double()
    bias = torch.zeros(K).double() if file.bias is None else torch.as_tensor(file.bias).double()
    agreements = torch.zeros(K, dtype=torch.int64)
    for start in range(0, len(file.features), _BATCH):
        part = slice(start, start + _BATCH)
        rows, labels = (
            torch.as_tensor(np.asarray(x, dtype=kind))
            for x, kind in ((file.features[part], np.float64), (file.labels[part], np.int64))
        )
        centres = moments.class_means.masked_fill((moments.class_counts == 0)[:, None], torch.nan)
        agreements += center_agreement(rows, labels, centres, weight, bias)
    return collapse_report(moments, weight, bias, agreements=agreements).scalars()


def _of_folder(
    path: Path, known: KnownTraining | None, class_names: Sequence[str] | None, data_dir: str | os.PathLike[str] | None
) -> Diagnosis:
    if not (path / "checkpoint.safetensors").is_file():
        inside = sorted(p.name for p in path.iterdir() if (p / "checkpoint.safetensors").is_file())
        hint = f"; give one of its runs: {', '.join(inside[:5])}" if inside else "; give the --out folder of a training"
        raise ValueError(f"`source` {path} holds no checkpoint.safetensors{hint}")
    from collapsar.training import imbalanced, load_data, load_run

    result = load_run(path)
    data = imbalanced(
        load_data(result.config.dataset, None if data_dir is None else Path(data_dir)), result.config.class_counts
    )
    own = _of_config(result)
    if known is not None:
        given = {name: getattr(known, name) for name in ("lambda_w", "lambda_h", "lambda_b", "features")}
        own = replace(own, loss=known.loss, **{name: value for name, value in given.items() if value is not None})
    names = data.class_names if class_names is None else class_names
    return diagnose_measurement(_run_measurement(result, data, own), own, names, str(path))


def _of_config(result: TrainResult) -> KnownTraining:
    """The penalties of a run of ours, the optimizer's decay added."""
    import torch

    from collapsar.integrations.effective import PenaltyWarning, known_training

    config, model = result.config, result.model
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PenaltyWarning)  # the diagnosis says them
        known = known_training(
            model, model.head, optimizer, penalties=config.penalties, data=range(sum(config.class_counts))
        )
    return replace(known, features="nonnegative" if config.model.feature_relu else "signed")


def _run_measurement(result: TrainResult, data: ImageData, known: KnownTraining) -> Measurement:
    from collapsar.training import features_and_logits

    pairs = ((features, labels) for features, _, labels in features_and_logits(result.model, data, "train"))
    return _measured(result.model.head, pairs, known)


def _measured(head: Any, pairs: Iterable[tuple[Tensor, Tensor]], known: KnownTraining) -> Measurement:
    """One pass: the sums that theory needs, and the moments of every metric."""
    from collapsar.metrics import NeuralCollapse

    weight, bias = (None if p is None else p.detach().double().cpu().numpy() for p in (head.weight, head.bias))
    assert weight is not None
    sums = Pass(weight, bias, known.loss)
    metric = NeuralCollapse(head=head)
    for features, labels in pairs:
        rows, classes = features.detach(), labels.detach()
        sums.add(rows.double().cpu().numpy(), classes.cpu().numpy())
        metric.update(rows, classes)
    return sums.result(metric.compute().scalars() if sums.counts.any() else None)


def _features(model: nn.Module, head: nn.Module, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """What the head receives, batch by batch, in evaluation mode; every part's mode comes back afterwards."""
    import torch

    caught: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    device = next(model.parameters()).device
    with hook, _evaluating(model), torch.no_grad():
        for batch in loader:
            arguments, keywords, labels = _parts(batch)
            caught.clear()
            model(*(_moved(x, device) for x in arguments), **{k: _moved(x, device) for k, x in keywords.items()})
            if len(caught) != 1:
                raise ValueError(
                    f"`head` must run once per batch, it ran {len(caught)} times; name the layer that makes the logits"
                )
            yield caught[0], torch.as_tensor(labels)


def _parts(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    if isinstance(batch, Mapping) and "labels" in batch:
        return (), {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return (batch[0],), {}, batch[1]
    raise ValueError(
        f'`loader` must give (inputs, labels) or mappings with "labels", got {type(batch).__name__}; '
        "wrap it in a generator"
    )


def _moved(value: Any, device: Any) -> Any:
    return value.to(device) if hasattr(value, "to") else value


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
