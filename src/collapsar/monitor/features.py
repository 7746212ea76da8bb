"""What the head receives, the model's logits and where the loss pulls them, all caught by hooks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from collapsar.metrics.head import (
    differ,
    flat_rows,
    from_probabilities,
    linear_map,
    model_logits,
    one_row_each,
    other_scores,
    own_logits,
    tensors_in,
)
from collapsar.metrics.moments import class_indices

# How many passes of a step are kept until its labels come.
_MOST_PASSES = 8
# Rows of a pass for which the model's logits are compared with W h + b.
_COMPARED = 64
# A share of the target for a class other than the label; smoothing gives less to each. The fewest samples that count.
_PULLED, _FEWEST = 0.15, 20
# Two softmaxes weight a sample by about its own probability, one weights all equally.
_UNEQUAL = 3.0
# The sum of a gradient's entries relative to them: zero for any softmax, up to rounding.
_BALANCED = 0.02


class Pulls(NamedTuple):
    """What a loss did to the logits of some samples.

    Attributes:
        elsewhere: the share that it pulled to another class than their label; NaN for too few samples.
        twice: whether the model returned probabilities and the loss weighted samples like a second softmax.
    """

    elsewhere: float
    twice: bool


@dataclass(eq=False)
class _Pass:
    """One forward pass of the head.

    Attributes:
        features: what it received, shape (B, d).
        own: the logits that it returned, as a view; None without any.
        logits: what the model returned, shape (B, K), a copy; None if there are none so far.
        place: where in memory they were copied from, and how often that had been written to.
        expected: W h + b of some of the rows; None if they are not compared.
        rank: how likely it is the pass that trains.
        others: how many scores the model gave each sample, if the head gave another number.
        gradient: of the loss with respect to the head's output, for some rows; None before there is one.
    """

    features: Tensor
    own: Tensor | None
    logits: Tensor | None
    expected: Tensor | None
    rank: tuple[bool, bool]
    place: tuple[int, int] | None = None
    others: int | None = None
    gradient: Tensor | None = None

    def feel(self, output: Any) -> None:
        """Keep the gradient in what the head returned, once the loss sends it back."""
        part = next((part for part in tensors_in(output) if flat_rows(part).ndim == 2), None)
        if part is None or not part.requires_grad:
            return

        def arrived(gradient: Tensor) -> None:
            if self.gradient is None:
                self.gradient = _some(flat_rows(gradient.detach())).clone()

        with contextlib.suppress(RuntimeError):  # inside transforms of functions
            part.register_hook(arrived)

    def keep(self, logits: Tensor | None) -> None:
        """Copy the logits as they are now, unless they have been: a loss may change them in place."""
        if logits is None:
            return
        place = None if logits.is_inference() else (logits.data_ptr(), logits._version)
        if place is None or place != self.place:
            self.logits, self.place = logits.clone(), place


class Hook:
    """A forward hook of one module of one model: in a copy of the module, and on disk, it does nothing.

    A model that is copied (``copy.deepcopy``, ``AveragedModel``) or saved whole while it is monitored takes its hooks
    along; this one becomes a built-in method that does nothing, so that such a file can be read where Collapsar is not
    installed.

    Args:
        call: called with the hook's arguments, as positional ones; its result is dropped.
    """

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    @torch.compiler.disable  # a compiled model would otherwise trace the hook and keep the monitor's state as constants
    def __call__(self, *arguments: Any) -> None:
        """Pass the arguments on."""
        self._call(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")  # takes anything and returns None


class HeadTap:
    """Keeps what the head receives and the model's logits, by forward hooks, until they are taken.

    A step may run the head more than once: a teacher, an adversarial or an unlabelled batch, a second view, a
    validation. The pass that trains is taken to be the first one in training mode with gradients; other passes are
    used only if there is none such.

    The logits are those returned by the outermost module around the head that is called. In the first pass, and ever
    more rarely after that, they are compared with W h + b, while the weight is still that of the pass.

    Args:
        model: The network.
        name: The head's name in it.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.listening = False
        self.ignored = 0
        self.with_labels = False
        self.others: int | None = None
        self._name, self._head = name, model.get_submodule(name)
        parts = name.split(".") if name else []
        self._around = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
        self._passes: list[_Pass] = []
        self._open: _Pass | None = None
        self._count, self._differences = 0, []
        self._labelled: list[tuple[_Pass, Tensor]] = []
        self._softmax = True
        catch: Any = Hook(self._catch)
        follow: Any = Hook(self._follow)
        self._hooks = [self._head.register_forward_hook(catch)]
        self._hooks += [module.register_forward_hook(follow) for module in reversed(self._around)]

    def take(self, labels: Any = None) -> tuple[Tensor, Tensor]:
        """Return features, shape (B, d), and logits, shape (B, K), and forget all passes so far.

        Of several training passes, the first with as many rows as there are labels, if these are known.

        Raises:
            ValueError: There are none since the last time, or they are not one row per sample.
        """
        passes, self._passes, self._open = self._passes, [], None
        if not passes:
            raise ValueError(
                f"`head` {self._name!r} has received nothing since the last step. Call step(labels) once after each "
                "forward pass; if the model was compiled or copied after the monitor was created, or does not use "
                "this layer, create the monitor on the model that trains and name its head"
            )
        size = len(labels) if hasattr(labels, "__len__") and getattr(labels, "ndim", 1) else None
        found = next((seen for seen in passes if size is None or len(seen.features) == size), passes[0])
        # The same batch once more is the recomputation of a checkpointed layer.
        if self.ignored == 0:
            self.ignored = sum(not (seen is found or torch.equal(seen.features, found.features)) for seen in passes)
        one_row_each(found.features, self._name)
        if found.logits is None:
            raise ValueError(
                f"`head` {self._name!r} must return logits of shape (B, K), and returns none. Name the layer that "
                "makes them"
            )
        if found.expected is not None:
            self._compare(found.expected, found.logits)
            if size == len(found.features) and not isinstance(labels[0], str):
                self._labelled.append((found, _some(class_indices(labels))))
        self.others = found.others
        return found.features, found.logits

    def linear(self) -> bool:
        """Whether the logits since the last time were W h + b, as far as they were compared."""
        differences, self._count, self._differences = self._differences, 0, []
        return not any(map(bool, differences))

    def pulls(self, ignore_index: int) -> Pulls:
        """What the loss did to the logits since the last time, in the passes that were compared.

        Nothing is said about a loss without a softmax, such as the squared error: its gradients are not differences
        between predicted and target shares.
        """
        looked, self._labelled = self._labelled, []
        rows, twice = [torch.zeros(0)], False
        for seen, labels in looked:
            if seen.gradient is None or seen.logits is None:
                continue
            y, logits = labels.to(seen.gradient.device), _some(seen.logits)
            kept = y != ignore_index
            self._softmax &= _is_balanced(seen.gradient[kept])
            elsewhere, weights = _pulled(seen.gradient[kept], logits[kept], y[kept])
            if from_probabilities(logits) is not logits:
                twice |= bool((weights.amin() * _UNEQUAL < weights.amax()).cpu()) if len(weights) else False
            else:
                rows.append(elsewhere.cpu().float())
        found = torch.cat(rows) if self._softmax else rows[0]
        return Pulls(float(found.mean()) if len(found) >= _FEWEST else math.nan, twice)

    def forget(self) -> None:
        """Drop the passes so far."""
        self._passes, self._open = [], None

    def remove(self) -> bool:
        """Remove the hooks; False if they had been removed already."""
        was = bool(self._hooks)
        for hook in self._hooks:
            hook.remove()
        self.listening, self._hooks = False, []
        self.forget()
        return was

    def _catch(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not (self.listening and inputs and module is self._head):
            return
        self._open = None
        rank = (module.training, torch.is_grad_enabled())
        best = self._passes[0].rank if self._passes else rank
        if rank > best:
            self._passes = []
        if rank >= best and len(self._passes) < _MOST_PASSES:
            features = flat_rows(inputs[0].detach())
            own = own_logits(output)
            self._open = _Pass(features, own, None, self._expected(features), rank)
            self._open.keep(model_logits(None, own))
            if self._open.expected is not None and rank == (True, True):
                self._open.feel(output)
            self._passes.append(self._open)
            self.with_labels |= len(inputs) > 1

    def _follow(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found = self._open
        if found is None or found.logits is None or not any(module is around for around in self._around):
            return
        found.keep(model_logits(output, found.own))
        found.others = other_scores(output, found.own)

    def _expected(self, features: Tensor) -> Tensor | None:
        """W h + b of some rows, in the first pass, the second, the fourth, and so on."""
        if features.ndim != 2 or not len(features):
            return None
        self._count += 1
        if self._count & (self._count - 1):
            return None
        found = linear_map(self._head, features.shape[1])
        rows = _some(features)
        return rows.new_zeros(len(rows), 0) if found is None or found.weight.shape[1] != rows.shape[1] else found(rows)

    def _compare(self, expected: Tensor, logits: Tensor) -> None:
        rows = _some(logits)
        fits = expected.shape == rows.shape
        self._differences.append(differ(expected, from_probabilities(rows)) if fits else True)


def _is_balanced(gradient: Tensor) -> bool:
    """Whether the entries of most rows (B, K) sum to zero, as those of c (p - t) do; one column is one of two."""
    g = gradient.double().nan_to_num(0, 0, 0)
    balanced = g.sum(dim=1).abs() <= _BALANCED * g.abs().sum(dim=1)
    return g.shape[1] == 1 or not len(g) or float(balanced.float().mean()) > 0.5


def _pulled(gradient: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What a gradient with respect to the logits (B, K) tells about the loss.

    Cross-entropy has the gradient c (p - t), p the softmax of the logits, t the target, c the weight of the sample;
    where t is the label alone, c is -g_y / (1 - p_y). The largest of these over the rows is taken for all of them.

    Returns:
        Per row whether the target has a share of a class that is not the label's, shape (B,); and the weights of the
        samples that are not right yet.
    """
    g = (gradient if gradient.shape[1] > 1 else torch.cat([-gradient, gradient], dim=1)).double().nan_to_num(0, 0, 0)
    y = labels.long().clamp(0, g.shape[1] - 1)[:, None]
    missing = 1 - from_probabilities(logits).double().softmax(dim=1).gather(1, y)
    c = (-g.gather(1, y) / missing)[missing > _PULLED]
    most = c.amax().clamp_min(0) if len(c) else g.new_full((), math.inf)
    return (-g).scatter(1, y, 0.0).amax(dim=1) > _PULLED * most, c


def _some(rows: Tensor) -> Tensor:
    return rows[:: max(1, len(rows) // _COMPARED)][:_COMPARED]
