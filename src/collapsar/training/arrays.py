"""Your own images and labels from one .npz file, never unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Usual names: for each split, the first pair that the file has is used.
_NAMES = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train"), ("images", "labels")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}


def read_npz(path: Path) -> dict[str, Tensor]:
    """Images and labels of a file.

    Args:
        path: The file. It holds ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``, or
            ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or ``images`` and ``labels`` alone. Images: (N, H, W),
            (N, H, W, C) or (N, C, H, W) with one or three channels, bytes or floating-point numbers in [0, 1];
            labels: whole numbers from 0 on.

    Returns:
        "train_images", "train_labels" and, where the file has them, "test_images" and "test_labels"; images uint8
        (N, C, H, W), labels int64 (N,).

    Raises:
        ValueError: The file is missing, damaged, or lacks an array, or an array is not as described.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        ...     np.savez(file, images=np.zeros((3, 8, 8), dtype=np.uint8), labels=[0, 1, 0])
        ...     _ = file.flush()
        ...     read_npz(Path(file.name))["train_images"].shape
        torch.Size([3, 1, 8, 8])
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for names in _NAMES.values() for pair in names for name in pair if name in file}
            found = sorted(file.files)
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on a damaged file
        raise ValueError(f"cannot read {path} as an .npz file of plain arrays: {error}") from None
    tensors = {}
    for split, pairs in _NAMES.items():
        pair = next(((images, labels) for images, labels in pairs if images in arrays and labels in arrays), None)
        if pair is not None:
            tensors[f"{split}_images"] = _images(arrays[pair[0]], f"{pair[0]} of {path}")
            tensors[f"{split}_labels"] = _labels(arrays[pair[1]], f"{pair[1]} of {path}")
        elif split == "train":
            raise ValueError(
                f"{path} must hold train_images and train_labels, x_train and y_train, or images and labels, "
                f"got {found}"
            )
    return tensors


def _images(array: np.ndarray[Any, Any], what: str) -> Tensor:
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
        raise ValueError(
            f"{what} must be images of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, "
            f"got shape {array.shape}"
        )
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"{what} are floating-point numbers and must lie in [0, 1], got {array.min():g}..{array.max():g}; "
                "save them as bytes (uint8), without normalisation"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"{what} must be bytes (uint8) or floating-point numbers in [0, 1], got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array))


def _labels(array: np.ndarray[Any, Any], what: str) -> Tensor:
    array = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or not (array >= 0).all():
        raise ValueError(
            f"{what} must be whole numbers from 0 on, one for each image, got {array.dtype} of {array.shape}"
        )
    return torch.from_numpy(array.astype(np.int64))
