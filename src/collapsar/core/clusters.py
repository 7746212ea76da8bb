"""Classes that a problem cannot tell apart form a cluster and share one block of the optimum.

A cluster is the set of classes with equal (n, q, m, delta, tau, iota), and an equal penalty of their rows of the head
where those differ (Hong & Ling, JMLR 25(192), 2024, Thm 2b). Theory and solver both calculate on clusters, each in its
own coordinates; this module defines what a cluster is and which classes are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from collapsar.core.problem import Problem
from collapsar.core.types import Vector

PER_CLUSTER = ("sizes", "share", "mass", "scales", "temperatures", "offsets")
"""The vectors of a clustered problem."""
NUMBERS = (*PER_CLUSTER, "smoothing", "lambda_b")
"""Its fields, except the classes' labels."""


@dataclass(frozen=True)
class ClusteredProblem:
    """A problem per cluster; vectors have shape (J,), or (..., J) for several problems of J clusters at once.

    Attributes:
        labels: shape (K,), the cluster of each class; empty for several problems.
        sizes: k, classes per cluster.
        share: q, loss share of one class.
        mass: m, feature mass of one class.
        scales: delta, per logit.
        temperatures: tau, per class of the sample.
        offsets: iota, per logit.
        smoothing: eps, a number per problem.
        lambda_b: penalty of the bias, a number per problem.
    """

    labels: NDArray[np.intp]
    sizes: Vector
    share: Vector
    mass: Vector
    scales: Vector
    temperatures: Vector
    offsets: Vector
    smoothing: float | Vector
    lambda_b: float | Vector

    @classmethod
    def of(cls, problem: Problem, labels: NDArray[np.intp], first: NDArray[np.intp], **more: Any) -> Self:
        """The problem on given clusters.

        Args:
            problem: the problem.
            labels: shape (K,), the cluster of each class.
            first: shape (J,), a class of each cluster.
            **more: fields of a subclass.
        """
        return cls(
            labels=labels,
            sizes=np.bincount(labels).astype(np.float64),
            share=problem.loss_share[first],
            mass=problem.mass[first],
            scales=problem.scales[first],
            temperatures=problem.temperatures[first],
            offsets=problem.offsets[first],
            smoothing=problem.loss.smoothing,
            lambda_b=problem.lambda_b,
            **more,
        )

    @property
    def num_clusters(self) -> int:
        """J."""
        return self.sizes.shape[-1]


def alike(problem: Problem) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The cluster of each class, shape (K,), and the first class of each, (J,), in order of first appearance.

    Example:
        >>> labels, first = alike(Problem([5, 9, 5, 9, 1], 0.1))
        >>> labels.tolist(), first.tolist()
        ([0, 1, 0, 1, 2], [0, 1, 4])
    """
    loss = problem.loss
    rows = None if problem.normalization is None else problem.normalization.lambda_w
    vectors = (loss.class_weights, problem.feature_mass, loss.scales, loss.temperatures, loss.offsets, rows)
    # q and m follow from the counts unless they are given
    given = [problem.class_counts.tolist(), *(v.tolist() for v in vectors if isinstance(v, np.ndarray))]
    keys = given[0] if len(given) == 1 else list(zip(*given, strict=True))
    number = {key: j for j, key in enumerate(dict.fromkeys(keys))}
    labels = [number[key] for key in keys]
    first = dict(zip(reversed(labels), range(len(labels) - 1, -1, -1), strict=True))  # the last one written stays
    return np.array(labels), np.array([first[j] for j in range(len(first))])
