"""``diagnose``: a file of features, a module with a loader, or a run's folder, measured and compared with theory.

torch is imported only for modules and runs; a file of features needs only numpy, and also gets the metrics of neural
collapse if torch is installed.

Example:
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.eye(4).repeat(5, 1), torch.arange(20) % 2
    >>> diagnose(model, [(x, y)], head=model[2]).measurement.class_counts.tolist()
    [10, 10]
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collapsar.core.known import KnownTraining
from collapsar.diagnose.diagnosis import diagnose_measurement
from collapsar.diagnose.feature_files import FeatureFile, read_features
from collapsar.diagnose.frozen import FrozenHead, frozen_of
from collapsar.diagnose.measurement import MAX_TABLE, Measurement, Pass
from collapsar.diagnose.record import Diagnosis
from collapsar.metrics.near_rows import nearest_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from collapsar.metrics import ClassMoments
    from collapsar.training import ImageData, TrainResult

_BATCH = 4096
# NC4 needs the features a second time: they are kept up to this many numbers, 128 MiB in float32.
_KEPT = 1 << 25


def diagnose(
    source: Any,
    loader: Iterable[Any] | None = None,
    *,
    head: nn.Module | str | None = None,
    known: KnownTraining | None = None,
    class_names: Sequence[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    ignore_index: int = -100,
) -> Diagnosis:
    """Diagnose a trained network: which classes collapsed, and what theory says about it.

    Args:
        source: the path of an .npz or .safetensors file or a folder of .npy files (see ``diagnose.feature_files``), or
            of a run's folder; or a torch module, together with ``loader``.
        loader: the training samples, without augmentation: batches (inputs, labels, ...), or mappings with "labels" or
            "label" whose other entries are the module's arguments.
        head: the module's last linear layer, or its name; by default it is found if unambiguous.
        known: penalties and loss of the training; they override those in a file or a run. With ``body`` "frozen"
            (``known_training`` finds it) the head is solved on the features, and so is each mitigation.
        class_names: K names.
        data_dir: the folder of a run's data set, if not in a standard place.
        ignore_index: label that marks samples without one, as in cross-entropy: they are left out.

    Returns:
        The diagnosis.

    Raises:
        ValueError: the file, folder, batches or head are invalid; the message says what to do.
        OSError: a file cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        if loader is not None or head is not None:
            raise ValueError("`loader` and `head` go with a module; `source` is a path")
        path = Path(source)
        if not path.exists():
            raise ValueError(f"`source` {path} does not exist; give an .npz or .safetensors file, or a run's folder")
        if path.is_dir() and not (path / "features.npy").is_file():
            return _of_folder(path, known, class_names, data_dir)
        return _of_file(path, known, class_names, ignore_index)
    if loader is None or not callable(getattr(source, "named_modules", None)):
        raise ValueError(
            "`source` must be a path, or a torch module with a `loader` of (inputs, labels); "
            f"got {type(source).__name__}{'' if loader is not None else ' without a loader'}"
        )
    known = KnownTraining() if known is None else known
    from collapsar.metrics.head import unwrapped
    from collapsar.monitor.exposure import exposure
    from collapsar.monitor.head import is_told, told_head
    from collapsar.monitor.layers import bounding, head_norm

    model = unwrapped(source)  # a compiled one may not notice the hook
    named = None if class_names is None else len(class_names)
    name, layer = told_head(model, head, named, loader, weighted=head is None)
    if not known.lambda_h and known.norm is None and known.bounded_by is None:  # the layers are at hand anyway
        known = replace(known, norm=head_norm(model, layer, None), bounded_by=bounding(model, layer))
    seen = None if known.exposure is None else exposure(loader)
    if seen is not None and seen.resampled:
        known = _as_counted(known)
    told = head is not None or is_told(layer, named, loader)
    passes = _features(model, (name, layer), loader, told=told)
    measurement, kept = _measured(layer, _labelled(passes, ignore_index), known)
    solved = _solved_head(kept, measurement, known)
    return diagnose_measurement(measurement, known, class_names, type(source).__name__, solved)


def diagnose_run(
    result: TrainResult,
    data: ImageData,
    source: str = "run",
    *,
    known: KnownTraining | None = None,
    class_names: Sequence[str] | None = None,
) -> Diagnosis:
    """Diagnose a run of this library, whose penalties are known, on its data, cut to its counts.

    ``known`` and ``class_names`` replace those of the run and its data.
    """
    from collapsar.training.measure import features_and_logits

    known = _of_config(result) if known is None else known
    passes = ((features, labels, None) for features, _, labels in features_and_logits(result.model, data, "train"))
    measurement, _ = _measured(result.model.head, passes, known)
    return diagnose_measurement(measurement, known, data.class_names if class_names is None else class_names, source)


def _of_file(
    path: Path, known: KnownTraining | None, class_names: Sequence[str] | None, ignore_index: int
) -> Diagnosis:
    file = read_features(path)
    if file.features.ndim > 2 and file.features.shape[2:] == (1,) * (file.features.ndim - 2):  # pooled, not flattened
        file = replace(file, features=file.features.reshape(file.features.shape[:2]))
    labelled = file.labels != ignore_index
    if labelled.shape == file.features.shape[:1] and not labelled.all():
        file = replace(file, features=file.features[labelled], labels=file.labels[labelled])
    if len(file.labels) == 0:
        raise ValueError(f"`source` {path.name} must have a sample with a label, got none: nothing can be measured")
    known = _merged(known, file.scalars)
    sums = Pass(file.weight, file.bias, known.loss)
    sums.add(file.features, file.labels)
    measurement = sums.result(_metrics(file, sums))
    solved: tuple[FrozenHead | None, str] = (None, "")
    if known.body == "frozen":
        solved = frozen_of(file.features, file.labels, measurement, known)
    names = file.class_names if class_names is None else class_names
    return diagnose_measurement(measurement, known, names, path.name, solved)


def _solved_head(
    kept: Sequence[tuple[Tensor, Tensor]], m: Measurement, known: KnownTraining
) -> tuple[FrozenHead | None, str]:
    """The head solved on the features of a pass, if these are given, were kept, and are the head's input."""
    if known.body != "frozen" or not m.linear:
        return None, ""
    if not kept:
        return None, "The head on frozen features is not solved: too many features to keep; write a sample to a file."
    X, y = (np.concatenate([part.cpu().numpy() for part in parts]) for parts in zip(*kept, strict=True))
    return frozen_of(X, y, m, known)


def _as_counted(known: KnownTraining) -> KnownTraining:
    """What is known, if the samples measured are those that training shows."""
    weights, times = known.loss.class_weights, known.exposure
    if weights is None or times is None:
        return replace(known, exposure=None)
    own = weights / times
    plain = bool(np.ptp(own) <= 1e-9 * own.max())
    return replace(known, exposure=None, loss=replace(known.loss, class_weights=None if plain else own))


def _merged(known: KnownTraining | None, scalars: Mapping[str, float]) -> KnownTraining:
    """What the caller knows, then what is in the file: lambda_w, or weight_decay for head and bias."""
    known = KnownTraining() if known is None else known
    decay = scalars.get("weight_decay")
    of_file = {
        "lambda_w": scalars.get("lambda_w", decay),
        "lambda_h": scalars.get("lambda_h"),
        "lambda_b": scalars.get("lambda_b", decay),
    }
    if of_file["lambda_b"] == np.inf:  # a head without bias simply has none
        of_file["lambda_b"] = None
    return replace(known, **{name: value for name, value in of_file.items() if getattr(known, name) is None})


def _metrics(file: FeatureFile, sums: Pass) -> dict[str, float]:
    """The scalars of a ``CollapseReport``; none without torch."""
    try:
        from collapsar.metrics import class_moments
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("torch", "torchmetrics"):
            raise
        return {}
    import torch

    K = len(file.weight)
    weight = torch.as_tensor(file.weight).double()
    bias = torch.zeros(K).double() if file.bias is None else torch.as_tensor(file.bias).double()
    parts = (slice(start, start + _BATCH) for start in range(0, len(file.features), _BATCH))
    rows = (torch.as_tensor(file.features[p].astype(np.float64)) for p in parts)
    return _scalars(class_moments(file.features, file.labels.astype(np.int64), K), weight, bias, rows, sums)


def _scalars(
    moments: ClassMoments, weight: Tensor | None, bias: Tensor | None, rows: Iterable[Tensor] | None, sums: Pass
) -> dict[str, float]:
    """Every metric of moments and head; NC4, which compares with the means, from the samples once more, if given."""
    from collapsar.metrics import collapse_report

    agreements = None
    if rows is not None and weight is not None:
        agreements = _agreements(moments, rows, sums)
    pairwise = moments.num_classes <= MAX_TABLE
    return collapse_report(moments, weight, bias, agreements=agreements, pairwise=pairwise).scalars()


def _agreements(moments: ClassMoments, rows: Iterable[Tensor], sums: Pass) -> Tensor:
    """Per class the number of samples that the head predicts as the class of the nearest mean, shape (K,).

    A sample nearer to a mean than half the distance to the nearest other mean is nearest to it: only the other samples
    are compared with all means.
    """
    import torch

    from collapsar.metrics.centers import nearest_centers

    centres = moments.class_means.cpu().masked_fill((moments.class_counts == 0).cpu()[:, None], torch.nan)
    labels, decided = map(torch.from_numpy, map(np.concatenate, zip(*sums.decided, strict=True)))
    reach = torch.zeros(len(centres), dtype=torch.float64)
    seen = torch.isfinite(centres).all(dim=1)
    if len(labels) > len(centres) and seen.sum() > 1:
        reach[seen] = 0.5 * (1 - 1e-9) * torch.from_numpy(nearest_rows(centres[seen].numpy())[1])
    agree, start = torch.zeros(len(labels), dtype=torch.bool), 0
    for part in rows:
        h, given = part.cpu().double(), decided[start : start + len(part)]
        near = torch.linalg.vector_norm(h - centres[given], dim=1) < reach[given]
        if not bool(near.all()):
            near[~near] = nearest_centers(h[~near], centres) == given[~near]
        agree[start : start + len(part)] = near
        start += len(part)
    return torch.bincount(labels[agree], minlength=len(centres)).to(moments.class_counts.device)


def _of_folder(
    path: Path, known: KnownTraining | None, class_names: Sequence[str] | None, data_dir: str | os.PathLike[str] | None
) -> Diagnosis:
    if not (path / "checkpoint.safetensors").is_file():
        inside = sorted(p.name for p in path.iterdir() if (p / "checkpoint.safetensors").is_file())
        hint = f"; give one of its runs: {', '.join(inside[:5])}" if inside else "; give the --out folder of a training"
        raise ValueError(f"`source` {path} has no checkpoint.safetensors{hint}")
    if known is not None and known.body == "frozen":
        raise ValueError(f"`source` {path} is a run, which trains all layers; leave out `--frozen` (`known.body`)")
    from collapsar.training import imbalanced, load_data, load_run

    result = load_run(path)
    data = imbalanced(
        load_data(result.config.dataset, None if data_dir is None else Path(data_dir)), result.config.class_counts
    )
    own = _of_config(result)
    if known is not None:
        given = {name: getattr(known, name) for name in ("lambda_w", "lambda_h", "lambda_b", "features")}
        own = replace(own, loss=known.loss, **{name: value for name, value in given.items() if value is not None})
    return diagnose_run(result, data, str(path), known=own, class_names=class_names)


def _of_config(result: TrainResult) -> KnownTraining:
    """The penalties of a run of this library, including the optimizer's decay."""
    import torch

    from collapsar.monitor.differences import differences
    from collapsar.monitor.known import facts_of, training_of

    config, model = result.config, result.model
    optimizer = result.optimizer  # with its state, which AdamW's decay is read from
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    facts = facts_of(model, model.head, optimizer, config.penalties, None, range(sum(config.class_counts)))
    known = training_of(facts, differences(facts))  # no warnings: the diagnosis has them
    return replace(known, features="nonnegative" if config.model.feature_relu else "signed")


def _measured(
    head: Any, passes: Iterable[tuple[Tensor, Tensor, Tensor | None]], known: KnownTraining
) -> tuple[Measurement, list[tuple[Tensor, Tensor]]]:
    """One pass over (features, labels, logits): the sums that theory needs, and the moments of every metric.

    If the logits are not W h + b, they are measured in place of features and head. Features and labels are returned as
    well, unless there are too many.
    """
    from collapsar.metrics.head import computes
    from collapsar.metrics.running import RunningMoments

    sums: Pass | None = None
    metric: RunningMoments | None = None
    kept: list[tuple[Tensor, Tensor]] = []
    W, b, size, linear = None, None, 0, True
    for features, labels, logits in passes:
        rows, classes = features.detach(), labels.detach()
        if sums is None or metric is None:
            linear = logits is None or computes(head, rows, logits)
            if linear:
                W, b = _linear(head, rows.shape[1])
                sums = Pass(W.double().cpu().numpy(), None if b is None else b.double().cpu().numpy(), known.loss)
            else:
                assert logits is not None
                sums = Pass(np.eye(logits.shape[1]), loss=known.loss)
            metric = RunningMoments(len(sums.weight), rows.shape[1], rows.device)
        elif linear and not (logits is None or computes(head, rows, logits)):
            raise ValueError(
                "`loader` begins with samples for which the head computes W h + b, but later it does not (a scale per "
                "class?); shuffle it, so that the first batch shows what the head does"
            )
        seen = rows if linear or logits is None else logits.detach()
        sums.add(seen.double().cpu().numpy(), classes.cpu().numpy())
        metric.update(rows, classes)
        size += rows.numel()
        if size <= _KEPT:
            kept.append((rows, classes))
    if sums is None or metric is None or not sums.counts.any():
        raise ValueError("`features` must hold at least one sample, got none")
    if not linear:
        return sums.result(_scalars(metric.moments, None, None, None, sums), linear=False), []
    kept = kept if size <= _KEPT else []
    return sums.result(_scalars(metric.moments, W, b, [rows for rows, _ in kept] or None, sums)), kept


def _labelled(
    passes: Iterable[tuple[Tensor, Tensor, Tensor | None]], ignore_index: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The samples that have a label."""
    for rows, labels, logits in passes:
        known = labels != ignore_index
        if known.shape != rows.shape[:1] or bool(known.all()):
            yield rows, labels, logits
        elif bool(known.any()):
            known = known.to(rows.device)
            yield rows[known], labels[known.to(labels.device)], None if logits is None else logits[known]


def _linear(head: Any, num_features: int) -> tuple[Tensor, Tensor | None]:
    from collapsar.metrics.head import linear_map

    found = linear_map(head, num_features)
    if found is None:
        raise ValueError(
            f"`head` must have a weight of shape (K, d) or return logits of shape (B, K), got {type(head).__name__}; "
            "name the layer that computes the logits"
        )
    return found


def _features(
    model: nn.Module, head: tuple[str, nn.Module], loader: Iterable[Any], *, told: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The head's input, batch by batch, in evaluation mode, and the model's logits; the model is then restored."""
    from collapsar.metrics.head import from_probabilities, model_logits, one_row_each, other_scores, refuse_untold
    from collapsar.metrics.moments import class_indices
    from collapsar.monitor.undisturbed import inputs_and_labels, undisturbed

    caught: list[tuple[Tensor, Any]] = []
    given: list[Any] = []
    hooks = (
        head[1].register_forward_hook(lambda _, inputs, output: caught.append((inputs[0], output))),
        model.register_forward_hook(lambda _, __, output: given.append(output)),
    )
    with hooks[0], hooks[1], undisturbed(model, loader):
        for batch in loader:
            caught.clear()
            given.clear()
            labels = inputs_and_labels(model, batch)
            if len(caught) != 1:
                raise ValueError(
                    f"`head` must run once per batch, not {len(caught)} times; name the layer that returns the logits"
                )
            rows, output = caught[0]
            logits = model_logits(given[-1] if given else None, output)
            if logits is not None and given and not told:
                refuse_untold(model, head[0], logits.shape[1], other_scores(given[-1], output))
            logits = None if logits is None else from_probabilities(logits)
            yield one_row_each(rows, head[0]), class_indices(labels), logits
