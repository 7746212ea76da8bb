"""``CollapseMonitor``: which classes are merging, followed epoch by epoch in a training loop of your own.

Example:
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> images, labels = torch.randn(30, 4), torch.arange(30) % 3
    >>> with CollapseMonitor(model, options=MonitorOptions(say=print)) as monitor:
    ...     for epoch in range(2):
    ...         for rows in torch.arange(30).split(10):
    ...             loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    ...             # loss.backward(), optimizer.step(), ...
    ...             monitor.step(labels[rows])
    ...         record = monitor.end_epoch()
    After epoch 2: no class is told apart from the others yet.
    >>> record.epoch, record.report.num_samples, record.events
    (2, 30, ())
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collapsar.metrics import ClassSeparation, CollapseReport, NeuralCollapse
from collapsar.metrics.head import find_head, is_linear_head, unwrapped
from collapsar.monitor.features import BatchedMetric, HeadTap
from collapsar.monitor.records import JsonLines
from collapsar.monitor.undisturbed import undisturbed
from collapsar.monitor.watch import Event, MergeRule, MergeWatch

__all__ = ["CollapseMonitor", "MonitorOptions", "MonitorRecord", "inputs_and_labels"]

# Above this, the pairs of classes are too many to be looked at every epoch: K² distances in K dimensions.
_MAX_CLASSES = 4096

_logger = logging.getLogger("collapsar")


def inputs_and_labels(model: nn.Module, batch: Any) -> Any:
    """Run the model on a batch and return its labels: ``forward`` of a monitor's own pass, unless given.

    Args:
        model: The model.
        batch: (inputs, labels, ...), or a mapping with "labels" or "label", all else going to the model by name.

    Raises:
        ValueError: The batch is neither.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in ("labels", "label") if key in batch), None)
        if labels is not None:
            inputs = {key: value for key, value in batch.items() if key not in ("labels", "label")}
            model(**{key: v.to(device) if isinstance(v, Tensor) else v for key, v in inputs.items()})
            return labels
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 1:
        model(batch[0].to(device) if isinstance(batch[0], Tensor) else batch[0])
        return batch[1]
    raise ValueError(
        f"`loader` must yield (inputs, labels) or mappings with labels; got {type(batch).__name__}. Wrap it in a "
        "generator that does, or give a monitor MonitorOptions(forward=...), a function of model and batch that runs "
        "the model and returns the labels"
    )


@dataclass(frozen=True)
class MonitorOptions:
    """What rarely changes from one monitor to the next.

    Attributes:
        path: The file of records, JSON lines, appended to; None is ``collapse.jsonl`` in the present folder for a bare
            loop and in the trainer's output folder for a callback.
        rule: When classes count as merging.
        within_scatter: Whether to accumulate Σ_W, which NC1 needs and which costs O(d²) time per sample. None: with a
            pass of its own yes, with the features of the training pass no.
        log: Gets the scalars (names beginning with "nc/") and the epoch, for a logger of yours.
        say: Gets every sentence; None sends it to the logger "collapsar" at level WARNING.
        forward: How a pass of its own runs the model on a batch of the loader; returns the labels.
        first: Whether to evaluate after the first epoch as well, whatever ``every`` says.
    """

    path: str | os.PathLike[str] | None = None
    rule: MergeRule = field(default_factory=MergeRule)
    within_scatter: bool | None = None
    log: Callable[[dict[str, float], float], None] | None = None
    say: Callable[[str], None] | None = None
    forward: Callable[[nn.Module, Any], Any] = inputs_and_labels
    first: bool = False


@dataclass(frozen=True)
class MonitorRecord:
    """One evaluation.

    Attributes:
        epoch: What the epoch is called.
        report: All metrics.
        separation: Which classes are separated, merged, vanished; None above 4096 classes.
        events: What was said.
        scalars: What was logged, names beginning with "nc/"; undefined and infinite values are left out.
        seconds: Time of a pass of its own, if any, and of the evaluation.
    """

    epoch: float
    report: CollapseReport
    separation: ClassSeparation | None
    events: tuple[Event, ...]
    scalars: dict[str, float]
    seconds: float


class CollapseMonitor:
    """Follows the class means and the head through training; says in words when classes begin to merge, and which.

    Without ``loader`` it reuses the training pass: a hook on the head keeps what the head receives, ``step(labels)``
    after each batch adds it up, ``end_epoch()`` evaluates. The features are then those of training mode, averaged over
    an epoch in which the network moves. Of several passes in a step the first one in training mode with gradients
    counts, among those with as many rows as there are labels; ``without()`` hides passes. With ``loader`` it makes a
    pass of its own in ``end_epoch()``, in evaluation mode: slower and sharper. Neither changes the training by a bit
    (``undisturbed``). A copy of the model, and a file it is saved to whole, hold no trace of the monitor.

    Create it before ``torch.compile`` and before the first step; leave its ``with`` block or call ``close()`` when
    training ends. In a distributed run every process has its own, each with its part of the data, and all call
    ``end_epoch()``: results are merged exactly, process 0 writes and speaks.

    Args:
        model: The network; wrappers of data-parallel training are looked through.
        head: Its last linear layer, or that layer's name; None looks for it (``find_head``).
        loader: Batches of training data for a pass of its own; None reuses the training pass.
        every: Evaluate after epochs ``every``, 2 ``every``, and so on, >= 1.
        class_names: K names; None numbers the classes.
        options: Everything else.

    Raises:
        ValueError: The head cannot be told, the model is compiled already, or ``every`` is less than 1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        head: nn.Module | str | None = None,
        loader: Iterable[Any] | None = None,
        every: int = 1,
        class_names: Sequence[str] | None = None,
        options: MonitorOptions | None = None,
    ) -> None:
        if not every >= 1:
            raise ValueError(f"`every` must be at least 1; got {every}. 1 evaluates after each epoch")
        self.options = MonitorOptions() if options is None else options
        self.model = unwrapped(model)
        self.head_name, self.head = find_head(self.model, head, None if class_names is None else len(class_names))
        _refuse_compiled(self.model if loader is not None else model, self.head)
        weight: Any = self.head.weight
        num_classes = len(weight)
        self.watch = MergeWatch(num_classes, self.options.rule, class_names)
        self.loader, self.every, self.completed = loader, every, 0
        self.record: MonitorRecord | None = None
        self.scalars: dict[str, float] = {}
        scatter = loader is not None if self.options.within_scatter is None else self.options.within_scatter
        small = num_classes <= _MAX_CLASSES
        self._linear = is_linear_head(self.head)
        read = self.head if self._linear else _Identity(num_classes)
        self._samples = BatchedMetric(NeuralCollapse(head=read, pairwise=small, within_scatter=scatter))
        self._lines = JsonLines("collapse.jsonl" if self.options.path is None else self.options.path)
        self._complaints: set[str] = set()
        self._tap = HeadTap(self.head, self.head_name)
        self._tap.listening = self._reusing()

    def __enter__(self) -> CollapseMonitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(summarise=kind is None)

    def __call__(self, epoch: float | None = None) -> MonitorRecord | None:
        """The same as ``end_epoch``."""
        return self.end_epoch(epoch)

    def step(self, labels: Any) -> None:
        """Add the batch that the head saw last, anywhere between its forward pass and the next one.

        Args:
            labels: Class indices of the batch, shape (B,); −100 leaves a sample out, as in cross-entropy.

        Raises:
            ValueError: The head has seen no batch since the last step, or one of another size.
        """
        if not self._tap.listening:
            return
        self._samples.add(self._taken(labels), labels)
        if self._tap.ignored:
            self._complain(
                self.completed + 1,
                "several passes",
                f"The head {self.head_name!r} runs more than once in a step: the first pass counts, the others are "
                "ignored. If another one has the labels, run what comes before it inside monitor.without().",
            )

    def forget(self) -> None:
        """Forget the forward passes since the last step: they have no labels."""
        self._tap.forget()

    @contextmanager
    def without(self) -> Iterator[None]:
        """Hide the forward passes inside from the monitor: those of a teacher, of unlabelled or perturbed samples."""
        listening, self._tap.listening = self._tap.listening, False
        try:
            yield
        finally:
            self._tap.listening = listening

    def end_epoch(self, epoch: float | None = None) -> MonitorRecord | None:
        """Evaluate, if it is due; every process of a distributed run must call this.

        Args:
            epoch: What to call the epoch that has just ended; None counts from 1.

        Returns:
            The evaluation, or None where none is due or there were no samples, which is said once.

        Raises:
            ValueError: A batch of the loader does not fit.
        """
        self.completed += 1
        begin, record = time.perf_counter(), None
        if self._due(self.completed):
            if self.loader is not None:
                self._own_pass()
            record = self._evaluate(self.completed if epoch is None else epoch, begin)
        self._tap.listening = self._reusing()
        return record

    def close(self, *, summarise: bool = True) -> None:
        """Remove the hook and, unless told otherwise, say how things stand; a second call does nothing."""
        if self._tap.remove() and summarise and (summary := self.watch.summary()) and _is_first_process():
            self._speak(summary)
            self._lines.append({"kind": "summary", "message": summary})

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs so that nothing is said twice."""
        return {"completed": self.completed, "watch": self.watch.state_dict(), "scalars": self.scalars}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self.watch.load_state_dict(state["watch"])
        self.completed, self.scalars = int(state["completed"]), dict(state.get("scalars", {}))
        self._tap.listening = self._reusing()

    def _reusing(self) -> bool:
        return self.loader is None and self._due(self.completed + 1)

    def _due(self, epoch: int) -> bool:
        return epoch % self.every == 0 or (self.options.first and not self.scalars)

    def _own_pass(self) -> None:
        with undisturbed(self.model, self.loader):
            self._tap.listening = True
            for batch in self.loader or ():
                labels = self.options.forward(self.model, batch)
                self._samples.add(self._taken(labels), labels)

    def _taken(self, labels: Any) -> Tensor:
        """What the head received; of a head that does not compute W h + b, its logits."""
        features = self._tap.take(_length(labels))
        if self._linear:
            return features
        with torch.no_grad():
            logits = self.head.forward(features)  # not through its hooks
        self._complain(
            self.completed + 1,
            "head",
            f"The head {self.head_name!r} does not compute W h + b from the weight it holds: classes are followed by "
            "its logits, and the metrics are those of the logits.",
        )
        return logits

    def _evaluate(self, epoch: float, begin: float) -> MonitorRecord | None:
        report, lost = self._samples.finish()
        if lost:
            self._complain(epoch, "diverged", f"{lost} samples have features that are not finite (epoch {epoch:g}).")
        if report.num_samples == 0 or report.Z is None:
            if not lost:
                cure = "Call step(labels) after each batch" if self.loader is None else "The loader gave none"
                self._complain(epoch, "no samples", f"No samples to evaluate (epoch {epoch:g}). {cure}.")
            return None
        small = report.num_classes <= _MAX_CLASSES
        events = self.watch.observe(epoch, report.evidence, _mean_logits(report)) if small else ()
        separation = self.watch.separation if small else None
        scalars = _scalars(report, separation)
        if small:
            scalars["nc/num_lost"] = float(len(self.watch.standings.lost))
        record = MonitorRecord(epoch, report, separation, events, scalars, time.perf_counter() - begin)
        self.record, self.scalars = record, scalars
        if _is_first_process():
            self._lines.append(_line(record))
            if self.options.log is not None:
                self.options.log(scalars, epoch)
        for event in events:
            self._announce(epoch, event.kind, event.classes, event.message)
        return record

    def _complain(self, epoch: float, kind: str, message: str) -> None:
        """Say once what is wrong with the samples."""
        if kind not in self._complaints:
            self._complaints.add(kind)
            self._announce(epoch, kind, (), message)

    def _announce(self, epoch: float, kind: str, classes: tuple[int, ...], message: str) -> None:
        if _is_first_process():
            names = [self.watch.class_names[k] for k in classes]
            line = {"kind": "event", "event": kind, "epoch": epoch, "classes": classes, "names": names}
            self._lines.append({**line, "message": message})
            self._speak(message)

    def _speak(self, message: str) -> None:
        (_logger.warning if self.options.say is None else self.options.say)(message)


class _Identity(nn.Module):
    """The head of features that are logits already."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.eye(size)


def _mean_logits(report: CollapseReport) -> Any:
    assert report.Z is not None
    assert report.b is not None
    return report.Z + report.b[:, None]


def _length(labels: Any) -> int | None:
    return len(labels) if hasattr(labels, "__len__") and getattr(labels, "ndim", 1) else None


def _refuse_compiled(model: nn.Module, head: nn.Module) -> None:
    """A hook on the head is met where no module around it is compiled already."""
    for name, module in model.named_modules():
        compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        if compiled and any(part is head for part in module.modules()):
            what = f"its module {name!r}" if name else "it"
            raise ValueError(
                f"`model` must not be compiled before the monitor is created; got a model with {what}, which has "
                "the head, compiled: a compiled model ignores hooks added later. Create the monitor first, or give it "
                "a `loader` and a model compiled by torch.compile(model), which is then measured uncompiled"
            )


def _scalars(report: CollapseReport, separation: ClassSeparation | None) -> dict[str, float]:
    values = report.scalars()
    del values["nc1_tolerance"]  # a detail of the numerics, not a curve to look at
    if separation is not None:
        nearest = separation.nearest_separation
        values |= {
            "num_distinct": float(separation.num_distinct),
            "num_merged": float(len(separation.merged_classes)),
            "num_vanished": float(len(separation.vanished_classes)),
            "least_separation": float(min(nearest[nearest == nearest], default=math.nan)),
            "least_norm": float(min(separation.relative_norms[report.class_counts > 0], default=math.nan)),
            "largest_norm": separation.scale,
        }
    return {f"nc/{name}": value for name, value in values.items() if math.isfinite(value)}


def _line(record: MonitorRecord) -> dict[str, Any]:
    """The record as one line: the scalars, and per class what the words are made from."""
    line: dict[str, Any] = {"kind": "epoch", "epoch": record.epoch, "seconds": record.seconds, **record.scalars}
    line["class_counts"] = record.report.class_counts.tolist()
    if record.separation is not None:
        found = asdict(record.separation)
        line |= {name: found[name] for name in ("states", "groups")}
        line |= {name: found[name].tolist() for name in ("relative_norms", "nearest", "nearest_separation")}
    return line


def _is_first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
