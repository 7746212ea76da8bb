"""Rows that training never changed: their length is that of an initialisation, their direction that of noise.

Lengths alone would also flag trained rows that happen to be as long. So a row's direction must be random while others
keep to the directions that features use, or a large part of the head must have the lengths and the rank of random rows.
None of this changes under a rotation or an offset of the features: rows are taken about their mean.

Example:
    >>> rng = np.random.default_rng(0)
    >>> W = rng.uniform(-1, 1, (400, 64)) / 8  # as torch.nn.Linear(64, 400) begins
    >>> mean, lengths = W.mean(axis=0), np.linalg.norm(W - W.mean(axis=0), axis=1)
    >>> rows, scheme = at_initial_length(W, lengths, row_spectrum(W, mean), mean)
    >>> int(rows.sum()), scheme
    (400, 'torch.nn.Linear')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Mask, Vector
from collapsar.metrics.near_rows import Rows, SomeRows, row_blocks

# A spectrum of more rows than this is estimated from this many, evenly spaced.
_SPECTRUM_ROWS = 16384
_FEWEST = 8
_LARGE_PART = 0.25
# Half width of the accepted range, in standard deviations of a random row's length.
_WIDTH = 4.0
_DIRECTIONS = 512
# A set of rows counts as initialised if that is likelier by this many nats, a row of it if by this probability.
_CERTAIN, _SURE = 25.0, 0.9
# Relative variance of the squared length, times d, for a uniform and for a normal distribution.
_UNIFORM, _NORMAL = 0.8, 2.0


@dataclass(frozen=True, eq=False)
class RowSpectrum:
    """Principal directions of the rows about their mean.

    Attributes:
        singular_values: of the centred rows, descending, shape (min(K, d),); estimated from some of the rows if K is
            large.
        directions: shape (d, d) or (d, K), a column per singular value.
        rank: singular values above rounding.
        effective_rank: exp of the entropy of the singular values over their sum (Roy & Vetterli, EUSIPCO 2007).
        num_rows: how many rows it is based on.
    """

    singular_values: Vector
    directions: NDArray
    rank: int
    effective_rank: float
    num_rows: int


def row_spectrum(rows: Rows, mean: NDArray) -> RowSpectrum:
    """The spectrum of the rows about ``mean``, shape (d,)."""
    K, d = rows.shape
    kind = np.float64 if d <= 1024 else np.float32
    chosen = np.linspace(0, K - 1, _SPECTRUM_ROWS).round().astype(np.int64) if K > _SPECTRUM_ROWS else None
    part = rows if chosen is None else rows[chosen]
    n = part.shape[0]
    if n < d:
        centred = np.asarray(part[:], dtype=np.float64) - mean
        _, sigma, directions = np.linalg.svd(centred, full_matrices=False)
        directions = directions.T
    else:
        scatter = np.zeros((d, d), dtype=kind)
        for _, block in row_blocks(part, kind):
            centred = block - mean.astype(kind)
            scatter += centred.T @ centred
        values, directions = np.linalg.eigh(scatter)
        sigma, directions = np.sqrt(np.maximum(values[::-1], 0)), directions[:, ::-1]
    top = float(sigma[0]) if len(sigma) else 0.0
    rounding = np.sqrt(np.finfo(kind).eps) if n >= d else np.finfo(np.float32).eps  # a scatter squares it
    share = sigma / sigma.sum() if top > 0 else np.zeros_like(sigma)
    share = share[share > 0]
    return RowSpectrum(
        singular_values=np.asarray(sigma * np.sqrt(K / n), dtype=np.float64),
        directions=directions,
        rank=int((sigma > rounding * top).sum()) if top > 0 else 0,
        effective_rank=float(np.exp(-(share * np.log(share)).sum())) if top > 0 else 0.0,
        num_rows=n,
    )


def initial_variances(num_classes: int, num_features: int) -> Mapping[str, float]:
    """The variance of a weight at the start, by the name of the common initialisations of a (K, d) head.

    Example:
        >>> {name: round(value, 6) for name, value in initial_variances(10, 90).items()}["Xavier (Glorot)"]
        0.02
    """
    K, d = num_classes, num_features
    return {
        "torch.nn.Linear": 1 / (3 * d),
        "Xavier (Glorot)": 2 / (K + d),
        "Kaiming (He)": 2 / d,
        "LeCun": 1 / d,
        "normal with deviation 0.02": 4e-4,
        "normal with deviation 0.01": 1e-4,
        "torch.nn.Embedding": 1.0,
    }


def at_initial_length(rows: Rows, lengths: Vector, spectrum: RowSpectrum, mean: NDArray) -> tuple[Mask, str]:
    """Rows that look as initialised, shape (K,), and the scheme, the one with the most rows; "" without any.

    The lengths, shape (K,), are those of the rows about their mean.
    """
    K, d = rows.shape
    best, scheme = np.zeros(K, dtype=bool), ""
    for name, variance in initial_variances(K, d).items():
        expected = np.sqrt(variance * d * (1 - 1 / K))
        width = _WIDTH * 0.5 * np.sqrt(_NORMAL / d)
        within = np.abs(lengths / expected - 1) <= width
        if not within.any() or width > 0.6:  # in few dimensions every row has the length of some scheme
            continue
        members = np.flatnonzero(within)
        found = np.zeros(K, dtype=bool)
        if _random_set(rows, members, lengths, variance, mean):
            found = within
        elif 2 * d <= K:  # otherwise every row has its own directions
            evidence = _random_directions(rows, members, spectrum, mean) + _length_evidence(
                lengths, members, expected, width / _WIDTH
            )
            found[members] = _mixed_in(evidence, K)
        if found.sum() > best.sum():
            best, scheme = found, name
    return best, scheme


def _random_directions(rows: Rows, members: NDArray[np.int64], spectrum: RowSpectrum, mean: NDArray) -> Vector:
    """How much likelier the members' directions are under randomness than under the head's own spread, in nats.

    Directions of normal vectors with the head's covariance have the angular central Gaussian density (Tyler,
    Biometrika 74, 1987); the strongest and weakest principal directions tell most, and so does their share.
    """
    d = rows.shape[1]
    half = min(_DIRECTIONS, d) // 2
    loud_and_quiet = np.r_[:half, d - (min(_DIRECTIONS, d) - half) : d]
    directions = spectrum.directions[:, loud_and_quiet]
    variances = np.maximum(spectrum.singular_values[loud_and_quiet] ** 2, 1e-12 * spectrum.singular_values[0] ** 2)
    found = []
    for _, block in row_blocks(SomeRows(rows, members), directions.dtype):
        squares = np.square((block - mean.astype(directions.dtype)) @ directions, dtype=np.float64)
        total = np.maximum(squares.sum(axis=1), np.finfo(np.float64).tiny)
        found.append(0.5 * len(variances) * np.log((squares @ (1 / variances)) / total))
    return np.concatenate(found) + 0.5 * float(np.log(variances).sum())


def _length_evidence(lengths: Vector, members: NDArray[np.int64], expected: float, deviation: float) -> Vector:
    """How much likelier the members' lengths are under the scheme than under the others' distribution, in nats.

    The logarithms of the others' lengths are modelled by a Laplace distribution, which has heavy tails.
    """
    logs = np.log(np.maximum(lengths, 1e-12 * lengths.max()))
    middle = float(np.median(logs))
    breadth = max(float(np.mean(np.abs(logs - middle))), deviation)
    own = np.log(lengths[members] / expected) / deviation
    random = -0.5 * own**2 - np.log(deviation * np.sqrt(2 * np.pi))
    return random + np.abs(logs[members] - middle) / breadth + np.log(2 * breadth)


def _mixed_in(evidence: Vector, num_classes: int) -> Mask:
    """Which rows are of the second kind in a mixture of two, with the likeliest share; none unless it is clear."""
    ratio = np.exp(np.minimum(evidence, 600.0))
    share, of_it = len(evidence) / num_classes, np.zeros(len(evidence))
    for _ in range(200):
        of_it = share * ratio / (1 - share + share * ratio)
        share = min(float(of_it.sum()) / num_classes, 0.999)
    gain = np.log1p(share * (ratio - 1)).sum() + (num_classes - len(evidence)) * np.log1p(-share)
    return (of_it > _SURE) & (gain > _CERTAIN)


def _random_set(rows: Rows, members: NDArray[np.int64], lengths: Vector, variance: float, mean: NDArray) -> bool:
    """Whether the members' lengths and rank are those of independent random rows with this variance."""
    n, d = len(members), rows.shape[1]
    if n < max(_FEWEST, _LARGE_PART * len(lengths)):  # a few have that length by chance
        return False
    squares = lengths[members] ** 2 / (variance * d)
    spread = squares.var() * d
    slack = np.exp(_WIDTH * np.sqrt(2 / n))
    centre_off = abs(squares.mean() - 1) > 0.01 + _WIDTH * np.sqrt(_NORMAL / (n * d)) + 2 / n
    if centre_off or not _UNIFORM / slack <= spread <= _NORMAL * slack:
        return False
    some = members[np.linspace(0, n - 1, min(n, 1024)).round().astype(np.int64)]
    centred = np.asarray(rows[some], dtype=np.float64) - mean
    gram = centred @ centred.T
    participation = np.trace(gram) ** 2 / float((gram**2).sum())
    expected = len(some) * d / (len(some) + d)
    return abs(participation / expected - 1) <= 0.1
