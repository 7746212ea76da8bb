"""Data sets reduced to the class counts of a run, the last few kept: neighbouring runs share them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from collapsar.training import ImageData, TrainConfig, imbalanced, load_data
from collapsar.training.provenance import data_digest


@lru_cache(maxsize=2)
def _whole(name: str, data_dir: Path | None) -> ImageData:
    return load_data(name, data_dir)


@lru_cache(maxsize=4)
def _of_counts(name: str, class_counts: tuple[int, ...], data_dir: Path | None) -> tuple[ImageData, str]:
    data = imbalanced(_whole(name, data_dir), class_counts)
    return data, data_digest(data)


def data_of(config: TrainConfig, data_dir: Path | None) -> ImageData:
    """The training images a run takes, and all test images.

    Raises:
        ValueError: The data set cannot be found, or a class has too few images.
    """
    return _of_counts(config.dataset, config.class_counts, data_dir)[0]


def digest(config: TrainConfig, data_dir: Path | None) -> str:
    """A hash of those training images."""
    return _of_counts(config.dataset, config.class_counts, data_dir)[1]
