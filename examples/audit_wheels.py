"""Two models in public wheels, audited: a text recogniser of 6625 characters and a tagger of 753 tags.

Downloads rapidocr-onnxruntime 1.4.4, natasha 1.6.0 and jieba 0.42.1 (for the frequency of characters) by name into a
temporary folder, installs none of them and runs nothing of theirs: weights are read, not executed.

    python examples/audit_wheels.py [--picture audit.png] [--recall]

With --recall the recogniser is run on rendered text, to see what becomes of the dead characters. That needs onnxruntime
and pillow, and downloads a font by name as well.
"""

from __future__ import annotations

import argparse
import gzip
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

import collapsar as cs
from collapsar.diagnose.head_files import read_head

FONT = "cvttf-notosanscjk-regular==1.0"
LINES = 3  # for each character
WHEELS = ("rapidocr-onnxruntime==1.4.4", "natasha==1.6.0", "jieba==0.42.1")


def download(folder: Path, packages: tuple[str, ...] = WHEELS) -> None:
    """The packages, as files."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", "-d"]
    subprocess.run([*command, str(folder), *packages], check=True, stderr=subprocess.DEVNULL)


def character_counts(folder: Path, names: list[str]) -> np.ndarray:
    """How often each character occurs in jieba's list of words with their frequencies; ASCII is not in it: -1."""
    counts: Counter[str] = Counter()
    with tarfile.open(next(folder.glob("jieba-*.tar.gz"))) as archive:
        (member,) = [m for m in archive.getnames() if m.endswith("jieba/dict.txt")]
        for line in io.TextIOWrapper(archive.extractfile(member), encoding="utf-8"):  # type: ignore[arg-type]
            word, number, _ = line.split(" ", 2)
            for character in word:
                counts[character] += int(number)
    return np.array([counts[name] if len(name) == 1 and ord(name) > 0x2E7F else -1 for name in names])


def recogniser(folder: Path) -> tuple[cs.Audit, cs.Audit, np.ndarray]:
    """An audit of all characters, one of those with a known frequency, and which they are."""
    import onnx

    with zipfile.ZipFile(next(folder.glob("rapidocr*.whl"))) as wheel:
        wheel.extract("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", folder)
    path = folder / "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    head = read_head(path)
    metadata = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    names = ["blank", *metadata["character"].splitlines(), " "]
    print(f"recogniser: {head.name} {head.weight.shape}, {head.reason}")
    whole = cs.audit(head.weight, head.bias, class_names=names)
    counts = character_counts(folder, names)
    known = np.flatnonzero(counts >= 0)
    part = cs.audit(
        head.weight[known],
        head.bias[known],
        class_names=[names[k] for k in known],
        class_counts=counts[known],
        options=cs.AuditOptions(largest_reach=0),
    )
    return whole, part, known


def recall(folder: Path, whole: cs.Audit, part: cs.Audit, known: np.ndarray) -> None:
    """Render lines of frequent characters with one dead character in each, or a living one of the same frequency."""
    import onnxruntime
    from fontTools.ttLib import TTFont
    from PIL import Image, ImageDraw, ImageFont

    download(folder, (FONT,))
    with zipfile.ZipFile(next(folder.glob("cvttf*.whl"))) as wheel:
        font_file = wheel.extract(next(name for name in wheel.namelist() if name.endswith(".otf")), folder)
    font, glyphs = ImageFont.truetype(font_file, 36), TTFont(font_file).getBestCmap()
    session = onnxruntime.InferenceSession(str(folder / "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"))
    names, counts = whole.class_names, part.class_counts
    assert names is not None
    assert counts is not None

    def read(text: str) -> set[int]:
        """The classes that the recogniser answers with on a picture of the text."""
        image = Image.new("RGB", (36 * len(text) + 24, 48), "white")
        ImageDraw.Draw(image).text((12, 24), text, fill="black", font=font, anchor="lm")
        pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        (scores,) = session.run(None, {session.get_inputs()[0].name: pixels})
        return set(np.asarray(scores)[0].argmax(axis=1).tolist())

    rng = np.random.default_rng(0)
    drawable = np.array([ord(names[k]) in glyphs for k in known])
    frequent = known[np.argsort(-counts)[:300]]
    living = np.flatnonzero(drawable & ~whole.dead[known])
    shared = np.flatnonzero(drawable & part.dead)
    inside = np.flatnonzero(drawable & whole.dead[known] & ~part.dead)
    predicted: set[int] = set()
    for kind, dead in (("on one row", shared), ("inside the hull", inside)):
        if not len(dead):
            continue
        left = list(living)
        others = [left.pop(int(np.abs(np.log1p(counts[left]) - np.log1p(counts[k])).argmin())) for k in dead]
        found = []
        for some in (dead, np.array(others)):
            right = 0
            for k in known[some].tolist() * LINES:
                context = [names[j] for j in rng.choice(frequent, 8)]
                answers = read("".join([*context[:4], names[k], *context[4:]]))
                right += k in answers
                predicted |= answers
            found.append(f"{right} of {len(some) * LINES}")
        print(f"recall of characters {kind}: {found[0]}; of as many living ones of the same frequency: {found[1]}")
    answered = np.isin(np.flatnonzero(whole.dead), list(predicted))
    print(f"dead classes that were ever answered: {int(answered.sum())} of {len(answered)}")


def tagger(folder: Path) -> cs.Audit:
    """The head of slovnet's morphology model, which natasha ships: stored with a column per tag."""
    with zipfile.ZipFile(next(folder.glob("natasha*.whl"))) as wheel:
        data = wheel.read("natasha/data/model/slovnet_morph_news_v1.tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as model:

        def read(name: str) -> bytes:
            return model.extractfile(name).read()  # type: ignore[union-attr]

        tags = gzip.decompress(read("vocabs/tag.gz")).decode().splitlines()
        weight = np.frombuffer(read("arrays/19.bin"), dtype="<f4").reshape(64, len(tags)).T
        bias = np.frombuffer(read("arrays/20.bin"), dtype="<f4")
    options = cs.AuditOptions(tolerance=0.1)
    found = cs.audit(weight, bias, class_names=tags, options=options)
    pad = tags.index("<pad>")
    near = np.linalg.norm(weight - weight[pad], axis=1) <= 0.1 * found.scale
    print(f"tagger: {int(near.sum())} rows, <pad> among them, within 10 % of the longest row from that of <pad>")
    return found


def main() -> None:
    """Print what the documentation quotes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--recall", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        download(folder)
        whole, part, known = recogniser(folder)
        for found in (whole, part, tagger(folder)):
            print(f"\n{found.summary}")
            print("\n".join(f"- {sentence}" for sentence in (*found.words, *found.notes)))
        if given.recall:
            recall(folder, whole, part, known)
    if given.picture is not None:
        from collapsar.report import audit_figure, png_bytes

        # whether a class can be the answer is a matter of all rows
        record = part.to_dict() | {"unreachable": np.flatnonzero(whole.unreachable[known]).tolist()}
        given.picture.write_bytes(png_bytes(audit_figure(record)))


if __name__ == "__main__":
    main()
