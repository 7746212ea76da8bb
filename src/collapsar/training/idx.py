"""Image sets in the IDX format of the MNIST family: four files, found in a folder or fetched with a checksum.

The format: two zero bytes, a type byte (8: unsigned byte), the number of dimensions, each dimension as a
big-endian 32-bit number, then the bytes. Files may be gzipped. Nothing here is ever unpickled.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collapsar.training.fetch import bytes_of, fetch, first_line


@dataclass(frozen=True)
class IdxSet:
    """Where to find an image set and how to recognise it.

    Attributes:
        name: The data set's name.
        hashes: For each file, in the order of ``_NAMES``, the md5 of the gzipped file, as published by the set's
            authors, which checks a download; and the sha256 of its content, which checks the cache, since md5 does not
            stop a forger.
        sources: Addresses to which the file name and ".gz" are appended, tried in order.
        class_names: K names.
        moments: Mean and standard deviation of the training images' pixels, in units of the full range.
        system_dir: Where the operating system's package puts the files; None if there is no package.
        package: The name of that package, for the error message.
    """

    name: str
    hashes: tuple[tuple[str, str], ...]
    sources: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    moments: tuple[float, float] = (0.0, 1.0)
    system_dir: Path | None = None
    package: str = ""


_NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


# Xiao, Rasul and Vollgraf (arXiv 1708.07747).
FASHION_MNIST = IdxSet(
    name="fashion-mnist",
    hashes=(
        ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        ("25c81989df183df01b3e8a0aad5dffbe", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        ("bef4ecab320f06d8554ea6380940ec79", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        ("bb300cfdad3c16e7a12a480ee83cd310", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
    sources=(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    moments=(0.2860, 0.3530),  # as the paper's experiments use them
    system_dir=Path("/usr/share/datasets/fashion-mnist"),
    package="dataset-fashion-mnist",
)

# LeCun, Cortes and Burges (1998).
MNIST = IdxSet(
    name="mnist",
    hashes=(
        ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("d53e105ee54ea40749a09fcbcd1e9432", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        ("9fb629c4189551a2d022fa330f9573f3", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("ec29112dd5afa0611ce80d1b7f02629c", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    sources=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    class_names=tuple("0123456789"),
    moments=(0.1307, 0.3081),
)


def find_idx_files(idx_set: IdxSet, data_dir: Path | None = None, cache_dir: Path | None = None) -> dict[str, Path]:
    """The four files of a set, fetched if they are not on this machine.

    Args:
        idx_set: The set.
        data_dir: A folder that must hold the files, gzipped or plain. None: the folder of the operating system's
            package, otherwise the cache, which is filled from ``idx_set.sources``.
        cache_dir: The cache; None: the user's own cache folder.

    Returns:
        A path for each role.

    Raises:
        ValueError: ``data_dir`` lacks a file, or no source could be reached or gave the right bytes.
    """
    folder, way_out = data_dir, f'leave --data-dir out to use the system\'s copy or fetch "{idx_set.name}"'
    if folder is None and idx_set.system_dir is not None and idx_set.system_dir.is_dir():
        folder, way_out = idx_set.system_dir, f"reinstall the package {idx_set.package}"
    if folder is not None:
        return idx_files_in(folder, f"; {way_out}")
    package = f", or install Debian's package {idx_set.package}" if idx_set.package else ""
    cache = (cache_dir or Path()) / idx_set.name
    return {
        role: fetch(f"{name}.gz", idx_set.sources, f"md5:{md5}", cache, content=(_content, sha256), way_out=package)
        for (role, name), (md5, sha256) in zip(_NAMES.items(), idx_set.hashes, strict=True)
    }


def idx_files_in(folder: Path, way_out: str = "") -> dict[str, Path]:
    """The four files of any set in a folder, recognised by "train" or "t10k" or "test", and "images" or "labels".

    If a file is there both gzipped and plain, the gzipped one is used.

    Raises:
        ValueError: One of the four is missing or not the only one of its kind.
    """
    found = {}
    for role, name in _NAMES.items():
        split, kind = ("train" if role.startswith("train") else "t10k|test"), role.partition("_")[2]
        these = [path for path in sorted(folder.glob("*ubyte*")) if re.search(f"({split}).*{kind}", path.name)]
        if len({path.name.removesuffix(".gz") for path in these}) != 1:
            raise ValueError(
                f"{folder} must hold one IDX file of the {split.replace('|', ' or ')} {kind}, named like {name}.gz, "
                f"got {[path.name for path in these]}{way_out}"
            )
        found[role] = these[-1]
    return found


def read_idx(path: str | Path) -> Tensor:
    """One IDX file of unsigned bytes.

    Args:
        path: The file, gzipped (by its first bytes, not its name) or plain.

    Returns:
        uint8 tensor of the file's own shape.

    Raises:
        ValueError: The file is missing, damaged, truncated or not IDX.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])), file.flush()
        ...     read_idx(file.name)
        tensor([7, 8, 9], dtype=torch.uint8)
    """
    path = Path(path)
    content = _content(path)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or content[3] == 0:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it begins with {content[:4].hex(' ') or 'nothing'}"
        )
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ValueError(f"{path} is truncated: its header alone needs {header} bytes, but it has {len(content)}")
    shape = np.frombuffer(content, ">u4", content[3], offset=4).tolist()
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path} is damaged: its header promises {'x'.join(map(str, shape))} = {math.prod(shape)} bytes, "
            f"{len(content) - header} follow; replace the file"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].reshape(shape)


def _content(path: Path) -> bytes:
    """The file's bytes, unpacked if they are gzipped."""
    raw = bytes_of(path)
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file: {first_line(error)}; replace the file") from None
