"""Files from the network: several sources, a checksum, the user's cache, and never half a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["NoSourceError", "fetch", "first_line", "sha256_of"]


class NoSourceError(Exception):
    """No source gave the right bytes; the text lists what each one did."""


def fetch(
    addresses: Iterable[str],
    known_hash: str,
    folder: Path,
    content_hash: tuple[Callable[[Path], str], str] | None = None,
) -> Path:
    """A file in the cache, downloaded where it is missing or damaged.

    Args:
        addresses: Where it lies, tried in order; the last part of each is the file's name.
        known_hash: "algorithm:digest" of the file.
        folder: Folder of the cache; a relative one lies in the user's own cache folder.
        content_hash: A second check, for files whose published hash does not stop a forger: a function of the path
            and what it must return.

    Raises:
        NoSourceError: No address could be reached or gave the right bytes.
    """
    import pooch  # only here, so that embedded data sets need nothing but torch and scikit-learn

    target = Path(pooch.os_cache("collapsar")) / folder
    failures = []
    for address in addresses:
        source, _, name = address.rpartition("/")
        try:
            # pooch downloads beside the target, compares the checksum and only then moves: no half files.
            path = Path(pooch.retrieve(address, known_hash, fname=name, path=target))
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
            failures.append(f"{source}/: {type(error).__name__}, {first_line(error)}")
            continue
        if content_hash is None or content_hash[0](path) == content_hash[1]:
            return path
        path.unlink()
        failures.append(f"{source}/: the content's sha256 is not the published one")
    raise NoSourceError("; ".join(failures) or "it has no source")


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def sha256_of(content: bytes) -> str:
    """Hexadecimal."""
    return hashlib.sha256(content).hexdigest()
