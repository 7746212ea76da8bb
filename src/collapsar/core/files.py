"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write ``data`` to ``path``, all of it or nothing: a temporary file beside it, flushed, then renamed.

    Args:
        path: the file; its folder must exist.
        data: bytes, or text to be encoded as UTF-8.

    Returns:
        The path.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    if not target.parent.is_dir():  # otherwise the error would name a temporary file that the user has never heard of
        raise FileNotFoundError(f"{target} cannot be written: there is no folder {target.parent}; create it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} cannot be written: it is a folder; name a file in it")
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp's 0600 would surprise whoever shares the folder
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target
