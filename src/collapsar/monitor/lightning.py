"""``CollapseCallback`` for Lightning: the monitor as a callback of ``Trainer``.

    from collapsar.monitor.lightning import CollapseCallback
    trainer = lightning.Trainer(callbacks=[CollapseCallback(class_names=names)])

Scalars go to the trainer's loggers as "nc/...", and can be watched by callbacks that come after this one
(``EarlyStopping``, ``ModelCheckpoint``), in every epoch: between evaluations the last value is logged again. If there
is a validation loop, which ends earlier, they need ``check_on_train_epoch_end=True`` and
``save_on_train_epoch_end=True``. Records go to ``collapse.jsonl`` in ``default_root_dir``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import lightning
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from collapsar.core.types import Record
from collapsar.monitor.bare_loop import CollapseMonitor, MonitorOptions
from collapsar.monitor.undisturbed import labels_in

# Usual names of a module's loss.
_LOSSES = ("criterion", "loss_fn", "loss_function", "loss")


def labels_of(batch: Any) -> Any:
    """Return the labels of a batch (``labels_in``).

    Raises:
        ValueError: There are none.
    """
    labels = labels_in(batch)
    if labels is None:
        raise ValueError(
            f"`labels` cannot be found in a batch of type {type(batch).__name__}. Pass labels=..., a function from "
            "the batch to its class indices"
        )
    return labels


class CollapseCallback(lightning.Callback):
    """A ``CollapseMonitor`` over ``trainer.fit``; epochs are numbered as in Lightning, from 0.

    Args:
        head: The head's module or name within the LightningModule; None looks for it.
        loader: Batches for a pass of its own, which calls the LightningModule itself on the inputs; None reuses the
            training pass.
        every: Evaluate after the first epoch and then after every this many.
        class_names: K names; None numbers the classes.
        labels: A function from a training batch to its class indices.
        ignore_index: Label that marks samples without one: they are left out.
        options: Everything else; see ``MonitorOptions``.

    Raises:
        ValueError: At the start of training, as ``CollapseMonitor``.
    """

    def __init__(
        self,
        head: nn.Module | str | None = None,
        *,
        loader: Iterable[Any] | None = None,
        every: int = 1,
        class_names: Sequence[str] | None = None,
        labels: Callable[[Any], Any] = labels_of,
        ignore_index: int = -100,
        options: MonitorOptions | None = None,
    ) -> None:
        self.monitor: CollapseMonitor | None = None
        self._begin = partial(
            CollapseMonitor, head=head, loader=loader, every=every, class_names=class_names, ignore_index=ignore_index
        )
        self._labels = labels
        self._options = MonitorOptions() if options is None else options
        self._state: Record | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Hook the head, before the first batch and so before anything is compiled."""
        # Callbacks that watch a scalar need it in the first epoch.
        options = replace(self._options, first=True, path=self._options.file(trainer.default_root_dir))
        self.monitor = self._begin(pl_module, options=options)
        if self._state is not None:
            self.monitor.load_state_dict(self._state)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch."""
        if self.monitor is not None and self.monitor.loader is None:
            self.monitor.step(self._labels(batch))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Evaluate if it is due, and log; between evaluations the last values."""
        if self.monitor is None:
            return
        self.monitor.end_epoch(trainer.current_epoch)
        if self.monitor.scalars:
            # In every epoch, evaluated or not, since callbacks that watch a scalar would miss it. It is already equal
            # on all processes; averaging tells Lightning so.
            pl_module.log_dict(self.monitor.scalars, on_epoch=True, sync_dist=trainer.world_size > 1)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Read what the optimizer did to the head (``monitor.known``), print a summary and remove the hook."""
        if self.monitor is not None:
            self.monitor.read_training(trainer.optimizers, criterion=_criterion(pl_module), schedule=_schedule(trainer))
        self._close(summarise=True)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Remove the hook."""
        self._close(summarise=False)

    def state_dict(self) -> Record:
        """The state for the checkpoint, so that a resumed run says nothing twice."""
        return {} if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: Record) -> None:
        """Take the state from the checkpoint; it is used when training starts."""
        self._state = state_dict or None
        if self.monitor is not None and state_dict:
            self.monitor.load_state_dict(state_dict)

    def _close(self, *, summarise: bool) -> None:
        if self.monitor is not None:
            self.monitor.close(summarise=summarise)


def _schedule(trainer: lightning.Trainer) -> LRScheduler | int:
    """The scheduler, if there is one and the optimizer counts its steps, maybe more; otherwise the steps made."""
    counted = any("step" in state for optimizer in trainer.optimizers for state in optimizer.state.values())
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    only = schedulers[0] if counted and len(schedulers) == 1 else None
    return only if isinstance(only, LRScheduler) else trainer.global_step


def _criterion(module: nn.Module) -> Any:
    """The loss, if it is a module or function under a usual name; a method might take a whole batch."""
    found = (getattr(module, name, None) for name in _LOSSES)
    losses = (loss for loss in found if callable(loss) and not isinstance(loss, Metric | MethodType))
    return next(losses, None)
