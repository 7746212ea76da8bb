"""Sums over the samples of a pass: moments of the features, and decisions by the logits, merged over processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from collapsar.metrics import CollapseReport, collapse_report
from collapsar.metrics.evidence import class_evidence
from collapsar.metrics.head import HeadMap, from_probabilities
from collapsar.metrics.moments import class_indices
from collapsar.metrics.running import RunningMoments

MAX_TABLE = 4096
"""Above this many classes there are too many pairs to examine every epoch: K² numbers."""

# A merge of moments costs some 25 small operations whatever its size: as much as a training step of a small network.
# So rows are collected until one merge pays for itself; 2^21 numbers are 8 MiB in float32.
_ROWS, _NUMBERS = 4096, 1 << 21


@dataclass(frozen=True, eq=False)
class Totals:
    """Everything since the last time, over all processes.

    Attributes:
        report: metrics of the features, and of the head if it computes the model's logits as W h + b.
        linear: whether it does.
        logits: mean logits [logit, class], shape (K, K), bias included; NaN columns without samples; None for more than
            ``MAX_TABLE`` classes.
        evidence: the same without what all classes share; see ``metrics.evidence``.
        recalls: share of each class's samples that are recognised, shape (K,); NaN without samples.
        taken_for: the class that most others are predicted as, shape (K,), -1 for none; None as ``logits``.
        not_finite: how many samples were left out because features or logits were not finite.
    """

    report: CollapseReport
    linear: bool
    logits: NDArray[np.float64] | None
    evidence: NDArray[np.float64] | None
    recalls: NDArray[np.float64]
    taken_for: NDArray[np.int64] | None
    not_finite: int


class Samples:
    """Adds up samples in large pieces, without those that have no label or are not finite.

    Args:
        num_classes: K.
        num_features: d.
        within_scatter: whether to accumulate the within-class scatter.
        ignore_index: label that marks samples without one.
    """

    def __init__(self, num_classes: int, num_features: int, *, within_scatter: bool, ignore_index: int) -> None:
        self._sizes, self._within_scatter = (num_classes, num_features), within_scatter
        self._tables = num_classes <= MAX_TABLE
        self.ignore_index = ignore_index
        self._rows: list[Tensor] = []
        self._filled = 0
        self._begin(torch.device("cpu"))

    def add(self, features: Tensor, logits: Tensor, labels: Any) -> None:
        """Add a batch: features (B, d), logits (B, K), class indices (B,).

        Raises:
            ValueError: The sizes differ, or the labels are not integers.
        """
        labels = class_indices(labels)
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"`labels` must be class indices, integers; got {labels.dtype}. Mixed labels name no class: give the "
                "monitor a loader of unmixed samples; convert indices stored as floats with .long()"
            )
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"`labels` must hold one class index for each of the {len(features)} samples that the head received "
                f"last, shape ({len(features)},); got {tuple(labels.shape)}. Mixed or one-hot labels name no class; "
                "give the monitor a loader of unmixed samples"
            )
        if logits.shape != (len(features), self._sizes[0]):
            raise ValueError(
                f"the model's logits must have shape (B, {self._sizes[0]}), a score for each class; got "
                f"{tuple(logits.shape)}. Name the layer that computes them with head=..."
            )
        parts = [features, logits, labels.to(features.device, torch.int64)]
        size = len(labels)
        capacity = min(_ROWS, max(1, _NUMBERS // (features.shape[1] + logits.shape[1])))
        if not self._rows or any(
            a.dtype != b.dtype or a.device != b.device for a, b in zip(self._rows, parts, strict=True)
        ):
            self._flush()
            self._rows = [part.new_empty(capacity, *part.shape[1:]) for part in parts]
        if self._filled + size > capacity:
            self._flush()
        if size > capacity:
            self._merge(*parts)
            return
        # Copied: a view would keep a larger tensor alive, and a CUDA graph reuses its memory.
        for rows, part in zip(self._rows, parts, strict=True):
            rows[self._filled : self._filled + size].copy_(part)
        self._filled += size

    def finish(self, head: HeadMap | None) -> Totals:
        """Everything since the last time, over all processes of a distributed run, each of which must call this.

        ``head`` is the head's map if the logits were W h + b, as far as this process saw; None if they were not.
        """
        self._flush()
        flags = torch.tensor([self._not_finite, int(head is None)], device=self._moments.device)
        tables = [table for table in (flags, self._correct, self._decisions, self._logits) if table is not None]
        if dist.is_available() and dist.is_initialized():
            for table in tables:
                dist.all_reduce(table)
        moments = self._moments.over_processes()
        linear = head is not None and not int(flags[1])
        W, b = head if head is not None and linear else (None, None)
        report = collapse_report(moments, W, b, pairwise=self._tables)
        totals = self._totals(report, linear=linear, not_finite=int(flags[0]))
        self._begin(self._moments.device)
        return totals

    def _totals(self, report: CollapseReport, *, linear: bool, not_finite: int) -> Totals:
        with np.errstate(invalid="ignore"):  # a class without samples has no recall
            recalls = self._correct.cpu().numpy() / report.class_counts
        logits = evidence = taken_for = None
        if self._decisions is not None and self._logits is not None:
            wrong = self._decisions.clone().fill_diagonal_(0)
            most, rival = (x.cpu().numpy() for x in wrong.max(dim=1))
            taken_for = np.where(most > 0, rival, -1)
            if linear:
                assert report.Z is not None
                assert report.b is not None
                logits, evidence = report.Z + report.b[:, None], report.evidence
            else:
                counts = np.where(report.class_counts > 0, report.class_counts, np.nan)
                means = self._logits.cpu().numpy() / counts[:, None]
                logits, evidence = means.T, class_evidence(means, np.eye(len(means)), report.class_counts)
        return Totals(report, linear, logits, evidence, recalls, taken_for, not_finite)

    def _begin(self, device: torch.device) -> None:
        """Forget all samples."""
        K = self._sizes[0]
        self._not_finite = 0
        self._moments = RunningMoments(*self._sizes, device, within_scatter=self._within_scatter)
        # correct decisions; with tables, also decisions [label, decision] and sums of logits [label, logit]
        self._correct = torch.zeros(K, dtype=torch.int64, device=device)
        self._decisions = torch.zeros(K, K, dtype=torch.int32, device=device) if self._tables else None
        self._logits = torch.zeros(K, K, dtype=torch.float64, device=device) if self._tables else None

    def _flush(self) -> None:
        if self._filled:
            features, logits, labels = (rows[: self._filled] for rows in self._rows)
            self._merge(features, logits, labels)
        self._filled = 0

    def _merge(self, features: Tensor, logits: Tensor, labels: Tensor) -> None:
        self._moments.to(features.device)
        labelled = labels != self.ignore_index
        if not bool(labelled.all()):
            features, logits, labels = features[labelled], logits[labelled], labels[labelled]
        # A sum, because a mask costs as much as the rest.
        if not bool(torch.isfinite(features.sum(dtype=torch.float32) + logits.sum(dtype=torch.float32))):
            finite = torch.isfinite(features).all(dim=1) & torch.isfinite(logits).all(dim=1)
            self._not_finite += int((~finite).sum())
            features, logits, labels = features[finite], logits[finite], labels[finite]
        self._moments.update(features, labels)
        self._decide(from_probabilities(logits), labels)

    def _decide(self, logits: Tensor, labels: Tensor) -> None:
        device = self._moments.device
        logits, labels = logits.to(device), labels.to(device)
        if self._correct.device != device:
            self._correct = self._correct.to(device)
            self._decisions = None if self._decisions is None else self._decisions.to(device)
            self._logits = None if self._logits is None else self._logits.to(device)
        decisions = logits.argmax(dim=1)
        self._correct.index_add_(0, labels, (decisions == labels).to(torch.int64))
        if self._decisions is not None and self._logits is not None:
            ones = torch.ones_like(labels, dtype=torch.int32)
            self._decisions.view(-1).index_add_(0, labels * len(self._correct) + decisions, ones)
            if len(labels) < len(self._logits):
                self._logits.index_add_(0, labels, logits.double())
            else:  # in single precision, which is faster and accurate enough for a few thousand
                sums = torch.zeros_like(self._logits, dtype=torch.float32)
                self._logits += sums.index_add_(0, labels, logits.float())
