"""Image sets in the IDX format of the MNIST family: four files, found in a folder or fetched with a checksum.

The format: two zero bytes, a type byte (8: unsigned byte), the number of dimensions, each dimension as a
big-endian 32-bit number, then the bytes. Files may be gzipped. Nothing here is ever unpickled.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["FASHION_MNIST", "IdxFile", "IdxSet", "find_idx_files", "read_idx"]


@dataclass(frozen=True)
class IdxFile:
    """One file of a set.

    Attributes:
        name: File name without ".gz".
        md5: Of the gzipped file, as the set's authors publish it; checks a download.
        sha256: Of the unpacked content; checks what the cache holds, since md5 does not stop a forger.
    """

    name: str
    md5: str
    sha256: str


@dataclass(frozen=True)
class IdxSet:
    """Where an image set lives and how to know it.

    Attributes:
        name: The data set's name.
        files: Its files under the roles "train_images", "train_labels", "test_images", "test_labels".
        sources: Addresses to which the file name and ".gz" are appended, tried in order.
        system_dir: Where the operating system's package puts the files.
        package: The name of that package, for the error message.
    """

    name: str
    files: Mapping[str, IdxFile]
    sources: tuple[str, ...]
    system_dir: Path
    package: str


FASHION_MNIST = IdxSet(
    name="fashion-mnist",
    files={
        "train_images": IdxFile(
            "train-images-idx3-ubyte",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        "train_labels": IdxFile(
            "train-labels-idx1-ubyte",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "test_images": IdxFile(
            "t10k-images-idx3-ubyte",
            "bef4ecab320f06d8554ea6380940ec79",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        "test_labels": IdxFile(
            "t10k-labels-idx1-ubyte",
            "bb300cfdad3c16e7a12a480ee83cd310",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
    sources=(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    system_dir=Path("/usr/share/datasets/fashion-mnist"),
    package="dataset-fashion-mnist",
)


def find_idx_files(idx_set: IdxSet, data_dir: Path | None = None, cache_dir: Path | None = None) -> dict[str, Path]:
    """The four files of a set, fetched where they are nowhere on this machine.

    Args:
        idx_set: The set.
        data_dir: A folder that must hold the files, gzipped or plain. Where None: the folder of the operating
            system's package, else the cache, which is filled from ``idx_set.sources``.
        cache_dir: The cache; the user's own cache folder where None.

    Returns:
        A path for each role.

    Raises:
        ValueError: ``data_dir`` lacks a file, or no source could be reached or gave the right bytes.
    """
    if data_dir is not None:
        return _files_in(
            idx_set, data_dir, f'call with data_dir=None to use the system\'s copy or fetch "{idx_set.name}"'
        )
    if idx_set.system_dir.is_dir():
        return _files_in(idx_set, idx_set.system_dir, f"reinstall the package {idx_set.package}")
    return {role: _fetched(idx_set, file, cache_dir) for role, file in idx_set.files.items()}


def _files_in(idx_set: IdxSet, folder: Path, way_out: str) -> dict[str, Path]:
    found = {}
    for role, file in idx_set.files.items():
        candidates = [folder / f"{file.name}.gz", folder / file.name]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise ValueError(f"`data_dir` {folder} has neither {file.name}.gz nor {file.name}; {way_out}")
        found[role] = path
    return found


def _fetched(idx_set: IdxSet, file: IdxFile, cache_dir: Path | None) -> Path:
    """The file in the cache, downloaded where it is missing or damaged."""
    import pooch  # only here, so that embedded data sets need nothing but torch and scikit-learn

    folder = Path(cache_dir or pooch.os_cache("collapsar")) / idx_set.name
    failures = []
    for source in idx_set.sources:
        try:
            # pooch downloads beside the target, compares the checksum and only then moves: no half files.
            path = pooch.retrieve(f"{source}{file.name}.gz", f"md5:{file.md5}", fname=f"{file.name}.gz", path=folder)
        except (
            OSError,
            ValueError,
        ) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
            failures.append(f"{source}: {type(error).__name__}, {_first_line(error)[:60]}")
            continue
        if hashlib.sha256(_content(Path(path))).hexdigest() == file.sha256:
            return Path(path)
        Path(path).unlink()
        failures.append(f"{source}: the content's sha256 is not the published one")
    raise ValueError(
        f"could not fetch {file.name}.gz of {idx_set.name} ({'; '.join(failures)}); put the four files into "
        f"a folder and name it as `data_dir`, or install Debian's package {idx_set.package}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


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
        raise ValueError(f"{path} is truncated: its header alone needs {header} bytes, it has {len(content)}")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path} is damaged: its header promises {'x'.join(map(str, shape))} = {math.prod(shape)} bytes, "
            f"{len(content) - header} follow; replace the file"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].reshape(shape)


def _content(path: Path) -> bytes:
    """The file's bytes, unpacked where they are gzipped."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file: {_first_line(error)}; replace the file") from None
