"""Training criteria that match :class:`collapsar.Loss`, so that the optimum is the one that ``solve`` computes."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapsar.core.problem import Problem


class MatchedCrossEntropy(nn.Module):
    """The cross-entropy of a problem's loss, per batch: its mean over the data set is the program's data term.

    (1/|B|) sum_i v_{y_i} [ lse(u_i) - <t_i, u_i> ],  u_i = tau_{y_i} delta o g_i + iota,  t_i = (1 - eps) e_{y_i} +
    (eps / K) 1, with g the logits, v_k = w_k N / sum(w n), and w, delta, tau, iota, eps the class weights, scales,
    temperatures, offsets and smoothing of the loss. Weights are normalised over the *data set*, not over the batch as
    ``torch.nn.CrossEntropyLoss`` does, which would give another optimum. Offsets are *added* to the training logits:
    logit adjustment takes +tau log prior, so that the unadjusted logits favour rare classes more.

    For predictions use the unmodified logits: weights, scales, temperatures and offsets belong to training.

    ``loss`` is the :class:`collapsar.Loss` that it computes; ``known_training`` reads it.

    Args:
        problem: counts and loss; its penalties are not used.
        oversampled: whether a sampler realises the class weights: they are then left out here.
        ignore_index: label of samples without one, as in ``torch.nn.CrossEntropyLoss``; the mean leaves them out.

    Raises:
        ValueError: ``ignore_index`` is a class.

    Example:
        >>> from collapsar import Loss
        >>> p = Problem([30, 10], 0.01, loss=Loss(class_weights=[1.0, 3.0]))
        >>> criterion = MatchedCrossEntropy(p)
        >>> loss = criterion(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        >>> round(float(loss), 6)  # log 2: over the data set's frequencies the weights average to 1
        0.693147
    """

    sample_weights: Tensor
    scales: Tensor
    temperatures: Tensor
    offsets: Tensor

    def __init__(self, problem: Problem, *, oversampled: bool = False, ignore_index: int = -100) -> None:
        super().__init__()
        n = problem.class_counts
        if not (isinstance(ignore_index, Integral) and not 0 <= ignore_index < n.size):
            raise ValueError(f"`ignore_index` must be a whole number that is not a class, got {ignore_index!r}")
        weights = problem.loss_share * n.sum() / n
        if oversampled:
            weights = weights * 0 + 1
        for name, value in (
            ("sample_weights", weights),
            ("scales", problem.scales),
            ("temperatures", problem.temperatures),
            ("offsets", problem.offsets),
        ):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64), persistent=False)
        self.loss = replace(problem.loss, class_weights=None) if oversampled else problem.loss
        self.smoothing, self.ignore_index = problem.loss.smoothing, ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch, in nats: logits of shape (B, K), class indices of shape (B,).

        For logits in half precision it is float32, like torch's own under autocast: the factor of ``GradScaler`` would
        take it beyond the range of float16.

        Raises:
            ValueError: a shape or the labels' type is wrong. (Labels' values are not checked, since that would stall a
                GPU: one outside 0..K-1 that is not ``ignore_index`` fails in torch.)
        """
        K = len(self.scales)
        if logits.ndim != 2 or logits.shape[1] != K or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"`logits` must have shape (B, {K}) and `labels` (B,), got {tuple(logits.shape)} and "
                f"{tuple(labels.shape)}; soft or one-hot labels have no class"
            )
        if labels.dtype is not torch.int64:
            raise ValueError(f"`labels` must be class indices of type int64, got {labels.dtype}; call .long()")
        half = logits.dtype in (torch.float16, torch.bfloat16)  # sums of weighted losses exceed the range of float16
        like = {"dtype": torch.float32 if half else logits.dtype, "device": logits.device}
        known = labels != self.ignore_index
        labels = labels.where(known, 0)
        tau = self.temperatures.to(**like)[labels, None]
        u = tau * self.scales.to(**like) * logits.to(**like) + self.offsets.to(**like)
        each = functional.cross_entropy(u, labels, reduction="none", label_smoothing=self.smoothing)
        each = self.sample_weights.to(**like)[labels] * each
        return each.where(known, 0).sum() / known.sum()
