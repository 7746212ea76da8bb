"""Files from the network: several sources, a checksum, the user's cache, and never half a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path


def fetch(
    name: str,
    sources: Iterable[str],
    known_hash: str,
    folder: Path,
    *,
    content: tuple[Callable[[Path], bytes], str] | None = None,
    way_out: str = "",
) -> Path:
    """A file in the cache, downloaded if it is missing or damaged.

    Args:
        name: of the file.
        sources: addresses to which the name is appended, tried in order.
        known_hash: "algorithm:digest" of the file.
        folder: folder of the cache; a relative one is inside the user's own cache folder.
        content: a second check, for files whose published hash does not stop a forger: a function that reads the
            content, and its sha256.
        way_out: what the user can do besides naming a folder.

    Raises:
        ValueError: no source could be reached or gave the right bytes; the message says what each one did.
    """
    import pooch  # only here, so that embedded data sets need nothing but torch and scikit-learn

    target, failures = Path(pooch.os_cache("collapsar")) / folder, []
    for source in sources:
        try:
            # pooch downloads beside the target, compares the checksum and only then moves: no half files.
            path = Path(pooch.retrieve(f"{source}{name}", known_hash, fname=name, path=target))
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
            failures.append(f"{source}: {type(error).__name__}, {first_line(error)}")
            continue
        if content is None or hashlib.sha256(content[0](path)).hexdigest() == content[1]:
            return path
        path.unlink()
        failures.append(f"{source}: the content's sha256 is not the published one")
    raise ValueError(
        f"could not fetch {name} of {folder.name} ({'; '.join(failures) or 'it has no source'}); put the "
        f"set's files into a folder and pass it as `data_dir` (--data-dir){way_out}"
    )


def bytes_of(path: Path) -> bytes:
    """A file's content.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


def first_line(error: Exception) -> str:
    """The message of an exception, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
