"""What comes back from a lent machine, and goes there again: results, and the runs that were cut off, in small files.

    python benchmarks/gpu/parcels.py send runs/gpu "$OUT" --first 3     # on that machine: the next parcels
    python benchmarks/gpu/parcels.py open runs/gpu FILES...             # here, or on the next machine

``results.zip`` holds everything but the runs in progress. Those are one archive, cut into ``state-000`` and so on, of
which as many travel at a time as are allowed; ``parcels.json`` inside ``results.zip`` says which there are.
"""

import argparse
import hashlib
import io
import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

FILE = 16 << 20  # bytes that one file may have
PARCEL = 15 << 20
MOST = 3  # of 8 files and 64 MiB in all: beside the results and the pictures


def send(folder, out, first=0):
    """Write ``results.zip`` and the parcels from ``first`` on; returns (how many there are, how many were written)."""
    folder, out = Path(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    state = _zipped(folder / "scratch", zipfile.ZIP_STORED)  # float32 does not compress
    parcels = [state[i : i + PARCEL] for i in range(0, len(state), PARCEL)]
    digests = [hashlib.sha256(parcel).hexdigest() for parcel in parcels]
    results = _zipped(folder / "results", zipfile.ZIP_DEFLATED, {"parcels.json": json.dumps(digests)})
    if len(results) > FILE:
        raise ValueError(f"the results have {len(results)} bytes, more than one file may; send a figure at a time")
    (out / "results.zip").write_bytes(results)
    chosen = range(first, min(first + MOST, len(parcels)))
    for number in chosen:
        (out / f"state-{number:03d}").write_bytes(parcels[number])
    return len(parcels), len(chosen)


def open_parcels(folder, files):
    """Put results and, where all their parcels are there, runs in progress where ``piece.py`` looks for them.

    Raises:
        ValueError: There is no ``results.zip``, or a parcel is missing or damaged.
    """
    folder, files = Path(folder), {Path(file).name: Path(file) for file in files}
    if "results.zip" not in files:
        raise ValueError(f"results.zip must be among the files, got {', '.join(sorted(files)) or 'none'}")
    with zipfile.ZipFile(files["results.zip"]) as archive:
        digests = json.loads(archive.read("parcels.json"))
        names = [name for name in archive.namelist() if name != "parcels.json"]
        _unpack(archive, names, folder / "results")
    state = b""
    for number, digest in enumerate(digests):
        name = f"state-{number:03d}"
        content = files[name].read_bytes() if name in files else b""
        if hashlib.sha256(content).hexdigest() != digest:
            what = "is damaged" if content else "is missing"
            raise ValueError(
                f"{name} {what}: the results are in place, but the runs in progress need all {len(digests)} parcels of "
                "one call; fetch it, or go without: those runs begin anew"
            )
        state += content
    if state:
        with zipfile.ZipFile(io.BytesIO(state)) as archive:
            _unpack(archive, archive.namelist(), folder / "scratch")


def _unpack(archive, names, folder):
    """Extract beside the target first, so that nothing is left half written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        archive.extractall(place, names)
        shutil.copytree(place, folder, dirs_exist_ok=True)


def _zipped(folder, method, extra=None):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
        for name, text in (extra or {}).items():
            archive.writestr(name, text)
    return content.getvalue() if archive.namelist() else b""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sending = commands.add_parser("send")
    sending.add_argument("folder")
    sending.add_argument("out")
    sending.add_argument("--first", type=int, default=0, help="number of the first parcel")
    opening = commands.add_parser("open")
    opening.add_argument("folder")
    opening.add_argument("files", nargs="+")
    args = parser.parse_args(arguments)
    if args.command == "open":
        open_parcels(args.folder, args.files)
        return
    there, sent = send(args.folder, args.out, args.first)
    print(f"{sent} of {there} parcels sent, from number {args.first} on")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        sys.exit(f"parcels: {error}")
