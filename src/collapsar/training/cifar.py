"""CIFAR-10 in its binary version: records of one label byte and 3072 pixel bytes, never unpickled.

Krizhevsky, Learning multiple layers of features from tiny images, 2009. Five training files and one test file, found
in a folder, plain or in the archive as it is published, or fetched with a checksum.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from collapsar.training.fetch import bytes_of, fetch, first_line

ARCHIVE = "cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
SOURCES = (
    "https://www.cs.toronto.edu/~kriz/",
    "https://cave.cs.toronto.edu/kriz/",
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
)
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_FOLDER = "cifar-10-batches-bin"
_SPLITS = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_RECORD = 1 + 3 * 32 * 32


def read_cifar(data_dir: Path | None = None, cache_dir: Path | None = None) -> dict[str, Tensor]:
    """Images and labels of both splits.

    Args:
        data_dir: A folder that holds the six files, a folder ``cifar-10-batches-bin`` with them, or the archive.
            None: the archive in the cache, which is filled from ``SOURCES``.
        cache_dir: The cache; None: the user's own cache folder.

    Returns:
        "train_images", "train_labels", "test_images" and "test_labels"; images uint8 (N, 3, 32, 32), labels int64.

    Raises:
        ValueError: A file is missing or damaged, or no source could be reached or gave the right bytes.
    """
    if data_dir is None:
        return _from_archive(fetch(ARCHIVE, SOURCES, f"sha256:{SHA256}", (cache_dir or Path()) / "cifar10"))
    for folder in (data_dir, data_dir / _FOLDER):
        if (folder / _SPLITS["test"][0]).is_file():
            return _tensors(lambda name, folder=folder: bytes_of(folder / name), str(folder))
    if (data_dir / ARCHIVE).is_file():
        return _from_archive(data_dir / ARCHIVE)
    raise ValueError(
        f"`data_dir` {data_dir} has neither {_SPLITS['test'][0]} nor {_FOLDER}/ nor {ARCHIVE}; leave --data-dir "
        'out to use the cache or fetch "cifar10"'
    )


def _from_archive(path: Path) -> dict[str, Tensor]:
    try:
        with tarfile.open(path, "r:gz") as archive:

            def content(name: str) -> bytes:
                member = archive.extractfile(f"{_FOLDER}/{name}")  # read in place: nothing is unpacked to disk
                return b"" if member is None else member.read()

            return _tensors(content, str(path))
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged archive: {first_line(error)}; replace the file") from None


def _tensors(content: Callable[[str], bytes], where: str) -> dict[str, Tensor]:
    tensors = {}
    for split, names in _SPLITS.items():
        parts = []
        for name in names:
            raw = bytearray(content(name))
            if not raw or len(raw) % _RECORD:
                raise ValueError(
                    f"{name} in {where} is damaged: its {len(raw)} bytes are not a whole number of records of "
                    f"{_RECORD} bytes; replace the file"
                )
            parts.append(torch.frombuffer(raw, dtype=torch.uint8).reshape(-1, _RECORD))
        records = torch.cat(parts)
        tensors[f"{split}_images"] = records[:, 1:].reshape(-1, 3, 32, 32).contiguous()
        tensors[f"{split}_labels"] = records[:, 0].long()
    return tensors
