"""``CollapseCallback`` for Hugging Face's ``Trainer``: the monitor as a ``TrainerCallback``.

    from collapsar.monitor.transformers import CollapseCallback
    trainer = transformers.Trainer(model=model, args=args, train_dataset=data)
    CollapseCallback().attach(trainer)        # logs through trainer.log, and so to every reporting integration

For models that classify a sample as a whole (sequences, images). Records go to ``collapse.jsonl`` in ``output_dir``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from collapsar.metrics.head import find_head, unwrapped
from collapsar.monitor.bare_loop import CollapseMonitor, MonitorOptions
from collapsar.monitor.features import Hook
from collapsar.monitor.head import head_sizes

# The key of the monitor's state within the trainer's.
_STATE = "CollapseMonitor"
_WITHOUT_LABEL = -100  # marks samples that the trainer does not count and torch's loss leaves out


class CollapseCallback(TrainerCallback):
    """A ``CollapseMonitor`` over ``Trainer.train``; epochs are numbered as in the trainer's state.

    Labels are taken from the ``labels`` that the model receives; of several passes with gradients in a step the first
    one counts. With label smoothing or a loss function of its own the trainer does not pass them to the model: give a
    ``loader`` then.

    Args:
        head: The head's module or name within the model; None looks for the linear layer with ``config.num_labels``
            outputs.
        loader: Batches for a pass of its own, mappings with "labels"; None reuses the training pass.
        every: Evaluate after every this many epochs.
        class_names: K names; None takes ``config.id2label``.
        ignore_index: Label that marks samples without one: they are left out.
        options: Everything else; see ``MonitorOptions``.

    Raises:
        ValueError: At the start of training, as ``CollapseMonitor``; at the first evaluation, if no labels came.
    """

    def __init__(
        self,
        head: nn.Module | str | None = None,
        *,
        loader: Iterable[Any] | None = None,
        every: int = 1,
        class_names: Sequence[str] | None = None,
        ignore_index: int = -100,
        options: MonitorOptions | None = None,
    ) -> None:
        self.monitor: CollapseMonitor | None = None
        self._head, self._loader, self._names = head, loader, class_names
        self._begin = functools.partial(CollapseMonitor, loader=loader, every=every, ignore_index=ignore_index)
        self._options = MonitorOptions() if options is None else options
        self._trainer: Trainer | None = None
        self._labels: Any = None
        self._samples: Any = None
        self._times: float | None = None
        self._model: nn.Module | None = None
        self._added = False
        self._hooks: list[Any] = []

    def attach(self, trainer: Trainer) -> CollapseCallback:
        """Add the callback to the trainer, log through it, and remove the hooks when its training fails.

        Without this, scalars reach only the log history, a loss that the trainer computes is not read, and after an
        exception, about which callbacks are not told, the hooks stay until ``close`` or the next training.
        """
        self._trainer = trainer
        trainer.add_callback(self)
        train = trainer.train

        @functools.wraps(train)
        def closing(*args: Any, **kwargs: Any) -> Any:
            try:
                return train(*args, **kwargs)
            finally:
                self.close()

        trainer.train = closing
        return self

    def close(self) -> None:
        """Remove the hooks; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.monitor is not None:
            self.monitor.close(summarise=False)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook model and head, before the first batch and so before anything is compiled."""
        self.close()  # of a training that ended with an exception
        model = unwrapped(kwargs["model"])
        options = replace(self._options, path=self._options.file(args.output_dir or "."))
        config: Any = getattr(model, "config", None)
        _, head = find_head(model, self._head, getattr(config, "num_labels", None))
        names = self._names
        if names is None and len(getattr(config, "id2label", None) or {}) == head_sizes(head)[0]:
            names = [str(config.id2label[k]) for k in sorted(config.id2label)]
        self.monitor = self._begin(model, head=head, class_names=names, options=options)
        saved: Any = state.stateful_callbacks or {}  # a mapping, whatever its annotation says
        if _STATE in saved:
            self.monitor.load_state_dict(saved[_STATE])
        if self._loader is None:
            self._model, self._added, self._times = model, False, None
            keep_labels: Any = Hook(self._keep_labels)
            add_batch: Any = Hook(self._add_batch)
            self._hooks = [
                model.register_forward_pre_hook(keep_labels, with_kwargs=True),
                model.register_forward_hook(add_batch),
            ]

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Expect the next batch, also if gradients are accumulated over several."""
        self._added = False

    on_step_end = on_substep_end

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate and log."""
        if self.monitor is None:
            return
        record = self.monitor.end_epoch(None if state.epoch is None else round(state.epoch, 6))
        # Saved with the trainer's state, so that a resumed run says nothing twice. An ``ExportableState`` would be
        # recreated from JSON on resumption, without its head, loader and options.
        saved: Any = state.stateful_callbacks
        if saved is not None:
            saved[_STATE] = self.monitor.state_dict()
        if record is None:
            return
        if self._trainer is not None:
            self._trainer.log(dict(record.scalars))
        else:
            state.log_history.append({**record.scalars, "epoch": record.epoch, "step": state.global_step})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read what the optimizer did to the head (``monitor.known``), print a summary and remove the hooks."""
        if self.monitor is not None:
            schedule = kwargs.get("lr_scheduler")
            schedule = getattr(schedule, "scheduler", schedule)  # within Accelerate's
            self.monitor.read_training(
                kwargs.get("optimizer"),
                criterion=_own_loss(self._trainer)
                or _Multiplied(self._times or 1.0, label_smoothing=args.label_smoothing_factor),
                schedule=schedule if isinstance(schedule, LRScheduler) else state.global_step,
            )
            self.monitor.close()
        self.close()

    def _keep_labels(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if model is self._model:  # not a copy of it, such as a teacher
            self._labels, self._samples = kwargs.get("labels"), kwargs.get("num_items_in_batch")

    def _add_batch(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.monitor is None or model is not self._model or not model.training:
            return
        if self._added or not torch.is_grad_enabled():  # a second view, perturbed or unlabelled samples, a teacher
            self.monitor.forget()
            return
        self._added = True
        if self._times is None:
            self._times = _times_the_mean(output, self._labels, self._samples)
        if self._labels is None:
            raise ValueError(
                "`labels` did not reach the model, because of label smoothing or a loss function of the trainer's. "
                "Pass CollapseCallback(loader=...), which makes a pass of its own"
            )
        self.monitor.step(self._labels)


class _Multiplied(nn.CrossEntropyLoss):
    """Cross-entropy, times a number."""

    def __init__(self, times: float, label_smoothing: float) -> None:
        super().__init__(label_smoothing=label_smoothing)
        self.times = times

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return self.times * super().forward(input, target)


def _own_loss(trainer: Trainer | None) -> Callable[[torch.Tensor, torch.Tensor], Any] | None:
    """The loss that a trainer computes from the logits, in a subclass or a function given to it; None for the model's.

    The trainer is called with a model that returns the logits to be tried.
    """
    own = trainer is not None and type(trainer).compute_loss is not Trainer.compute_loss
    if trainer is None or not (own or getattr(trainer, "compute_loss_func", None)):
        return None

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> Any:
        x, y = logits.to(trainer.args.device), labels.to(trainer.args.device)
        output: Any = {"loss": nn.functional.cross_entropy(x, y), "logits": x}
        model: Any = lambda **_: SequenceClassifierOutput(**output)  # noqa: E731
        return trainer.compute_loss(model, {"labels": y})

    loss.__name__ = f"{type(trainer).__name__}.compute_loss"
    return loss


def _times_the_mean(output: Any, labels: Any, samples: Any) -> float:
    """The factor between what the trainer adds up over its batches and the mean loss over a step.

    To a model whose ``forward`` takes any keyword, the trainer gives the number of samples of the step,
    ``num_items_in_batch``, and leaves the division to it. Most classifiers of transformers 5.23 nevertheless divide by
    their own batch (its issue 47688): with gradients accumulated over four batches the loss is then four times its
    mean, with the same weight decay. In a tuple the loss comes first, as for the trainer, and the logits somewhere.
    """
    if samples is None or labels is None or labels.ndim != 1:
        return 1.0
    if isinstance(output, Mapping):
        loss, logits = output.get("loss"), output.get("logits")
    else:
        loss, *others = output if isinstance(output, tuple | list) and output else (None,)
        rows = (x for x in others if isinstance(x, torch.Tensor) and x.ndim == 2 and len(x) == len(labels))
        logits = next(rows, None)
    known = int((labels != _WITHOUT_LABEL).sum())
    if loss is None or logits is None or not known or loss.ndim != 0:
        return 1.0
    own, times = float(loss.detach()), float(samples) / known
    mean = float(nn.functional.cross_entropy(logits.detach().float(), labels))
    return times if abs(own - mean) < abs(own - mean / times) else 1.0
