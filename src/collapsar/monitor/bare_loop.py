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
    After epoch 2: no class is 0.5 nats ahead of its nearest yet: nothing has been learned that could merge.
    >>> record.epoch, record.report.num_samples, record.events
    (2, 30, ())
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from collapsar.core.json_lines import JsonLines
from collapsar.core.known import KnownTraining
from collapsar.core.sentences import percent
from collapsar.core.types import Record
from collapsar.metrics.head import linear_map, refuse_untold, unwrapped
from collapsar.metrics.predictions import exchanged, exchanged_words
from collapsar.metrics.shared_rows import shared_rows
from collapsar.monitor.differences import differences
from collapsar.monitor.evaluation import MonitorRecord
from collapsar.monitor.features import HeadTap, Pulls
from collapsar.monitor.head import head_sizes, is_told, told_head
from collapsar.monitor.known import facts_of, training_of
from collapsar.monitor.optimizers import Optimizers
from collapsar.monitor.samples import Samples, Totals
from collapsar.monitor.undisturbed import inputs_and_labels, undisturbed
from collapsar.monitor.watch import MergeRule, MergeWatch

# With noisy labels, or a loss that weights samples differently, fewer samples are pulled elsewhere.
_MOST_PULLED = 0.1

_logger = logging.getLogger("collapsar")


@dataclass(frozen=True)
class MonitorOptions:
    """Options that are rarely changed.

    Attributes:
        path: The file of records, JSON lines, appended to; None: ``collapse.jsonl``, in the current folder for a bare
            loop and in the trainer's output folder for a callback.
        rule: When classes count as merging.
        within_scatter: Whether to accumulate Σ_W, which NC1 needs and which costs O(d²) time per sample. None: yes with
            a pass of its own, no with the features of the training pass.
        log: Called with the scalars (names beginning with "nc/") and the epoch, for a logger of your own.
        say: Called with every sentence; None: they go to the logger "collapsar" at level WARNING.
        forward: How a pass of its own runs the model on a batch of the loader; returns the labels.
        first: Whether to evaluate after the first epoch as well, whatever ``every`` is.
    """

    path: str | os.PathLike[str] | None = None
    rule: MergeRule = field(default_factory=MergeRule)
    within_scatter: bool | None = None
    log: Callable[[dict[str, float], float], None] | None = None
    say: Callable[[str], None] | None = None
    forward: Callable[[nn.Module, Any], Any] = inputs_and_labels
    first: bool = False

    def file(self, folder: str | os.PathLike[str]) -> Path:
        """The file of records, in this folder if none is named."""
        return Path(folder) / "collapse.jsonl" if self.path is None else Path(self.path)


class CollapseMonitor:
    """Follows the class means and the head through training; reports in words when classes begin to merge, and which.

    Without ``loader`` it reuses the training pass: a hook on the head keeps what the head receives, ``step(labels)``
    after each batch adds it up, ``end_epoch()`` evaluates. The features are then those of training mode, averaged over
    an epoch in which the network changes. If a step has several passes, the first one in training mode with gradients
    counts, among those with as many rows as there are labels; ``without()`` hides passes. With ``loader`` it makes a
    pass of its own in ``end_epoch()``, in evaluation mode: slower and more accurate. Neither changes the training by a
    bit (``undisturbed``). A copy of the model, or a file with the whole model, has no trace of the monitor.

    Create it before ``torch.compile`` and before the first step; leave its ``with`` block or call ``close()`` when
    training ends. In a distributed run every process has its own, each with its part of the data, and all call
    ``end_epoch()``: results are merged exactly, and process 0 writes the file and the messages.

    Args:
        model: The network; wrappers of data-parallel training are looked through.
        head: Its last linear layer, or that layer's name; None looks for it (``find_head``).
        loader: Batches of training data for a pass of its own; None reuses the training pass.
        every: Evaluate after epochs ``every``, 2 ``every``, and so on, >= 1.
        class_names: K names; None numbers the classes.
        ignore_index: Label that marks samples without one, as in cross-entropy: they are left out.
        options: Everything else.

    Raises:
        ValueError: The head is ambiguous, the model is compiled already, or ``every`` is less than 1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        head: nn.Module | str | None = None,
        loader: Iterable[Any] | None = None,
        every: int = 1,
        class_names: Sequence[str] | None = None,
        ignore_index: int = -100,
        options: MonitorOptions | None = None,
    ) -> None:
        if not every >= 1:
            raise ValueError(f"`every` must be at least 1; got {every}. Use 1 to evaluate after each epoch")
        self.options = MonitorOptions() if options is None else options
        self.model = unwrapped(model)
        named = None if class_names is None else len(class_names)
        self.head_name, self.head = told_head(self.model, head, named, loader)
        self._told = head is not None or is_told(self.head, named, loader)
        _refuse_compiled(self.model if loader is not None else model, self.head)
        self._sizes = head_sizes(self.head)
        self.watch = MergeWatch(self._sizes[0], self.options.rule, class_names)
        self.loader, self.every, self.completed = loader, every, 0
        self.record: MonitorRecord | None = None
        self.known: KnownTraining | None = None
        self.scalars: dict[str, float] = {}
        scatter = loader is not None if self.options.within_scatter is None else self.options.within_scatter
        self._samples = Samples(*self._sizes, within_scatter=scatter, ignore_index=ignore_index)
        self._lines = JsonLines(self.options.file("."))
        self._complaints: set[str] = set()
        self._tap = HeadTap(self.model, self.head_name)
        self._tap.listening = self._reusing()

    def __enter__(self) -> CollapseMonitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(summarise=kind is None)

    def __call__(self, epoch: float | None = None) -> MonitorRecord | None:
        """The same as ``end_epoch``."""
        return self.end_epoch(epoch)

    def step(self, labels: Any) -> None:
        """Add the batch that the head saw last, any time between its forward pass and the next one.

        Args:
            labels: Class indices of the batch, shape (B,).

        Raises:
            ValueError: The head has seen no batch since the last step, or one of another size.
        """
        if not self._tap.listening:
            return
        self._add(labels)
        if self._tap.ignored:
            self._complain(
                self.completed + 1,
                "several passes",
                f"The head {self.head_name!r} runs more than once in a step: the first pass counts, the others are "
                "ignored. If the labels belong to another pass, run those before it inside monitor.without().",
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
            epoch: The number of the epoch that has just ended; None counts from 1.

        Returns:
            The evaluation, or None if none is due or there were no samples, which is said once.

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
        """Remove the hook and, unless told otherwise, print a summary; a second call does nothing."""
        if not (self._tap.remove() and summarise and _is_first_process()):
            return
        summary = self.watch.summary()
        if not summary and self.record is not None:  # too many classes to watch their pairs
            summary = self.record.summary(self.watch.class_names)
        if summary:
            self._speak(summary)
            self._lines.append({"kind": "summary", "message": summary})

    def read_training(
        self, optimizer: Optimizers | None, *, criterion: Any = None, schedule: LRScheduler | int | None = None
    ) -> KnownTraining | None:
        """Read what the optimizer does to the head (``known_training``), record it and keep it as ``known``.

        It reads the optimizer's present state: call it when training ends. The cautions go to the file of records, and
        with ``diagnose(model, loader, known=monitor.known)`` into the diagnosis.

        Args:
            optimizer: The training's, or several.
            criterion: Its loss; None is plain cross-entropy.
            schedule: Its scheduler of the learning rate, or the number of steps.

        Returns:
            None, with a message, if it cannot be read.
        """
        samples = None if self.record is None else range(self.record.report.num_samples)
        try:
            facts = facts_of(self.model, self.head, optimizer, None, criterion, samples, schedule)
            known = training_of(facts, differences(facts))  # no warnings: they are the cautions
        except Exception as error:  # a training that has ended well must not fail here
            why = f"{type(error).__name__}: {error}"
            self._complain(self.completed, "training", f"What the optimizer does to the head cannot be read: {why}")
            return None
        self.known = known
        if _is_first_process():
            self._lines.append({"kind": "training", **known.to_dict()})
        return known

    def state_dict(self) -> Record:
        """Return what a resumed run needs so that nothing is said twice."""
        return {"completed": self.completed, "watch": self.watch.state_dict(), "scalars": self.scalars}

    def load_state_dict(self, state: Record) -> None:
        """Continue from a ``state_dict``."""
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
                self._add(self.options.forward(self.model, batch))

    def _add(self, labels: Any) -> None:
        features, logits = self._tap.take(labels)
        if not self._told:
            refuse_untold(self.model, self.head_name, logits.shape[1], self._tap.others)
        self._samples.add(features, logits, labels)
        if self._tap.with_labels:
            self._complain(
                self.completed + 1,
                "labels",
                f"The head {self.head_name!r} receives more than features, perhaps labels, as for margin losses: "
                "recall is that of the logits in this pass. With a loader it is that of evaluation mode.",
            )

    def _evaluate(self, epoch: float, begin: float) -> MonitorRecord | None:
        head = linear_map(self.head, self._sizes[1]) if self._tap.linear() else None
        pulls = self._tap.pulls(self._samples.ignore_index)
        totals = self._samples.finish(head)
        if totals.not_finite:
            text = f"{totals.not_finite} samples have features that are not finite (epoch {epoch:g})."
            self._complain(epoch, "diverged", text)
        if totals.report.num_samples == 0:
            if not totals.not_finite:
                cure = "Call step(labels) after each batch" if self.loader is None else "The loader gave none"
                self._complain(epoch, "no samples", f"No samples to evaluate (epoch {epoch:g}). {cure}.")
            return None
        rows = () if head is None or not totals.linear else shared_rows(head.weight.cpu().double().numpy())
        events = ()
        if totals.evidence is not None:
            events = self.watch.observe(
                epoch, totals.evidence, totals.logits, totals.recalls, totals.taken_for, shared_rows=rows
            )
        small = totals.evidence is not None
        record = MonitorRecord(
            epoch=epoch,
            report=totals.report,
            separation=self.watch.separation if small else None,
            standings=self.watch.standings if small else None,
            recalls=totals.recalls,
            shared_rows=rows,
            events=events,
            seconds=time.perf_counter() - begin,
        )
        self.record, self.scalars = record, record.scalars
        self._caution(epoch, totals, pulls)
        if _is_first_process():
            self._lines.append(record.line())
            if self.options.log is not None:
                self.options.log(record.scalars, epoch)
        for event in events:
            self._announce(epoch, event.kind, event.classes, event.message)
        return record

    def _caution(self, epoch: float, totals: Totals, pulls: Pulls) -> None:
        """Say once which assumptions about the head and the labels do not hold."""
        if pulls.elsewhere > _MOST_PULLED:
            self._complain(
                epoch,
                "targets",
                f"The loss pulls {percent(pulls.elsewhere)} of the samples to another class than the label that the "
                "monitor was given: labels are mixed in the loop, as by mixup, come from another network, or are in "
                "another order than the batch. States and recall are those of the labels given; use a loader of "
                "unmixed samples for their own.",
            )
        swapped: tuple[int, ...] = ()
        if totals.taken_for is not None and totals.evidence is not None:
            n = totals.report.class_counts
            swapped = exchanged(totals.recalls, totals.taken_for, n, self.watch.standings.behind(n.size))
        if swapped:
            words = exchanged_words([self.watch.class_names[k] for k in swapped])
            self._complain(epoch, "exchanged", f"Classes {words}")
        if pulls.twice:
            self._complain(
                epoch,
                "softmax",
                "The model returns probabilities, and the loss hardly pulls on samples with a small one: it applies a "
                "softmax of its own, as CrossEntropyLoss does, and lost samples stay lost. Leave the model's softmax "
                "out.",
            )
        if not totals.linear:
            self._complain(
                epoch,
                "head",
                f"The model's logits are not W h + b of the head {self.head_name!r} (cosine, scale, adapter, several "
                "heads): states and recall are those of the logits; the head's geometry is left out.",
            )
        unseen, K = len(totals.report.unseen_classes), totals.report.num_classes
        if unseen > K / 2:
            self._complain(
                epoch,
                "outputs",
                f"The head {self.head_name!r} has {K} outputs, but samples of only {K - unseen} of these classes were "
                "seen: is it a hidden layer or a projection? Name the right one with head=...",
            )

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


def _refuse_compiled(model: nn.Module, head: nn.Module) -> None:
    """Refuse a model in which a module around the head is already compiled: a hook would be ignored."""
    for name, module in model.named_modules():
        compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        if compiled and any(part is head for part in module.modules()):
            what = f"its module {name!r}" if name else "it"
            raise ValueError(
                f"`model` must not be compiled before the monitor is created; got a model with {what}, which has "
                "the head, compiled: a compiled model ignores hooks added later. Create the monitor first, or give it "
                "a `loader` and a model compiled by torch.compile(model), which is then measured uncompiled"
            )


def _is_first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
