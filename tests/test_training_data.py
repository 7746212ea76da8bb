"""Data sets: the digits' split, IDX files good and bad, downloads from a server of our own, imbalance."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from collapsar.training import cifar
from collapsar.training import data as data_module
from collapsar.training.data import ImageData, imbalanced, load_data
from collapsar.training.idx import FASHION_MNIST, IdxSet, find_idx_files, read_idx

ROLES = ("train_images", "train_labels", "test_images", "test_labels")
FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def _idx_bytes(tensor: torch.Tensor) -> bytes:
    header = bytes([0, 0, 8, tensor.ndim]) + struct.pack(f">{tensor.ndim}I", *tensor.shape)
    return header + bytes(tensor.flatten().tolist())


def _contents() -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "train_images": torch.randint(0, 256, (20, 5, 4), generator=generator),
        "train_labels": torch.arange(20) % 10,
        "test_images": torch.randint(0, 256, (10, 5, 4), generator=generator),
        "test_labels": torch.arange(10),
    }
    return {role: _idx_bytes(tensor) for role, tensor in tensors.items()}


def _write_fashion(folder: Path, gzipped: bool) -> dict[str, bytes]:
    contents = _contents()
    for content, name in zip(contents.values(), FILES, strict=True):
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)
    return contents


def test_a_file_that_is_there_gzipped_and_plain_is_read_once(tmp_path: Path) -> None:
    contents = _write_fashion(tmp_path, gzipped=True)
    (tmp_path / FILES[0]).write_bytes(b"an older copy")
    assert bytes(load_data(str(tmp_path)).train_images.flatten().tolist()) == contents["train_images"][16:]


def test_digits_are_all_of_scikit_learns_and_split_within_each_class() -> None:
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    data = load_data("digits")
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)
    for label in range(10):
        mine = [data.images(split)[data.labels(split) == label].flatten(1) for split in ("train", "test")]
        theirs = torch.from_numpy(images[target == label])
        assert torch.equal(torch.cat(mine).double().mul(16 / 255).round(), theirs)  # same images, same order
        assert len(mine[0]) == len(theirs) * 3 // 4
    normalised = data.normalised(data.train_images)
    assert normalised.mean().item() == pytest.approx(0, abs=1e-5)
    assert normalised.std().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("gzipped", [False, True])
def test_fashion_mnist_from_a_folder(tmp_path: Path, gzipped: bool) -> None:
    contents = _write_fashion(tmp_path, gzipped)
    data = load_data("fashion-mnist", tmp_path)
    assert data.image_shape == (1, 5, 4)
    assert bytes(data.train_images.flatten().tolist()) == contents["train_images"][16:]
    assert data.test_labels.tolist() == list(range(10))
    pixel = data.normalised(data.train_images)[3, 0, 2, 1].item()
    assert pixel == pytest.approx((data.train_images[3, 0, 2, 1].item() / 255 - 0.2860) / 0.3530, rel=1e-5)


SYSTEM = FASHION_MNIST.system_dir or Path()


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="the Debian package is not installed")
def test_fashion_mnist_of_the_system_is_the_published_one() -> None:
    data = load_data("fashion-mnist")
    assert data.class_counts == (6000,) * 10
    read = data.train_images[:, 0], data.train_labels, data.test_images[:, 0], data.test_labels
    for values, (_, sha256) in zip(read, FASHION_MNIST.hashes, strict=True):
        header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        content = header + values.numpy().astype(np.uint8).tobytes()
        assert hashlib.sha256(content).hexdigest() == sha256


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00", "begins with 00 00"),
        (b"<html>not found</html>", "not an IDX file"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0]), "not an IDX file of unsigned bytes"),
        (bytes([0, 0, 8, 0]), "not an IDX file"),
        (bytes([0, 0, 8, 3, 0, 0, 0, 1]), "header alone needs 16 bytes, but it has 8"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 4, 1, 2, 3]), "promises 4 = 4 bytes, 3 follow"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 2, 3]), "promises 2 = 2 bytes, 3 follow"),
        (gzip.compress(bytes(1000), mtime=0)[:-9], "damaged gzip"),
        (b"\x1f\x8bgarbage", "damaged gzip"),
    ],
)
def test_garbage_is_one_clear_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_mixed_up_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nowhere"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"named like train-images-idx3-ubyte.gz, got \[\]; leave --data-dir out"):
        load_data("fashion-mnist", tmp_path)
    contents = _write_fashion(tmp_path, gzipped=False)
    images = tmp_path / "train-images-idx3-ubyte"
    images.write_bytes(contents["train_labels"])
    with pytest.raises(ValueError, match="must have 3 dimensions, it has 1"):
        load_data("fashion-mnist", tmp_path)
    images.write_bytes(contents["test_images"])
    with pytest.raises(ValueError, match=r"`train_labels` must be int64 of shape \(10,\)"):
        load_data("fashion-mnist", tmp_path)


def test_names_and_folders_that_make_no_sense() -> None:
    with pytest.raises(
        ValueError,
        match=r"`name` of the data must be one of cifar10, digits, fashion-mnist, mnist, an .* got 'imagenet'",
    ):
        load_data("imagenet")
    with pytest.raises(ValueError, match="`data_dir` must be None for"):
        load_data("digits", "somewhere")
    with pytest.raises(ValueError, match="`data_dir` must be None if"):
        load_data("mine.npz", "somewhere")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which it is served."""
    monkeypatch.setenv("NO_PROXY", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def _served_set(folder: Path, *sources: str) -> IdxSet:
    hashes = []
    for content, name in zip(_contents().values(), FILES, strict=True):
        packed = gzip.compress(content, mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)
        hashes.append((hashlib.md5(packed).hexdigest(), hashlib.sha256(content).hexdigest()))
    return IdxSet("small", tuple(hashes), sources, system_dir=folder / "no-system-package", package="small-package")


def test_download_tries_the_next_source_and_keeps_a_checked_copy(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    idx_set = _served_set(folder, f"{address}gone/", address)
    cache = tmp_path / "cache"
    paths = find_idx_files(idx_set, cache_dir=cache)
    assert {role: gzip.decompress(path.read_bytes()) for role, path in paths.items()} == _contents()
    paths["test_labels"].write_bytes(b"damaged meanwhile")
    assert find_idx_files(idx_set, cache_dir=cache) == paths
    assert gzip.decompress(paths["test_labels"].read_bytes()) == _contents()["test_labels"]
    for path in folder.iterdir():
        path.unlink()
    assert find_idx_files(idx_set, cache_dir=cache) == paths  # all from the cache


@pytest.mark.parametrize("forged", [False, True])
def test_download_with_wrong_bytes_is_refused(tmp_path: Path, served: tuple[Path, str], forged: bool) -> None:
    """Not even bytes that satisfy the md5 pass: the content has a sha256 of its own."""
    folder, address = served
    idx_set = _served_set(folder, address)
    md5, sha256 = idx_set.hashes[0]
    wrong = (md5, "0" * 64) if forged else ("0" * 32, sha256)
    idx_set = replace(idx_set, hashes=(wrong, *idx_set.hashes[1:]))
    with pytest.raises(
        ValueError, match=r"could not fetch train-images-idx3-ubyte.gz of small .*small-package"
    ) as caught:
        find_idx_files(idx_set, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.gz"))


def test_system_folder_comes_before_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_fashion(tmp_path, gzipped=True)
    monkeypatch.setattr(data_module, "FASHION_MNIST", replace(FASHION_MNIST, system_dir=tmp_path, sources=()))
    assert load_data("fashion-mnist").class_counts == (2,) * 10


def test_imbalanced_takes_the_first_of_each_class() -> None:
    data = load_data("digits")
    counts = (3, 130, 1, 7, 7, 7, 7, 7, 7, 20)
    small = imbalanced(data, counts)
    assert small.class_counts == counts
    for label, count in enumerate(counts):
        whole = data.train_images[data.train_labels == label]
        assert torch.equal(small.train_images[small.train_labels == label], whole[:count])
    assert torch.equal(small.test_images, data.test_images)
    assert (small.mean, small.std) == (data.mean, data.std)
    again = imbalanced(small, counts)
    assert torch.equal(again.train_images, small.train_images)


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ((10,) * 9, "one entry for each of the 10 classes of digits, 0 to 9, got 9"),
        ((10,) * 9 + (0,), "whole numbers >= 1"),
        ((10,) * 9 + (-3,), "whole numbers >= 1"),
        ((10,) * 9 + (2.5,), "whole numbers >= 1"),
        ((10,) * 9 + (float("nan"),), "whole numbers >= 1"),
        ((), "whole numbers >= 1"),
        ((10,) * 8 + (500, 10), r"class 8 \(8\) of digits has 130 training images, 500 were asked for"),
    ],
)
def test_counts_that_cannot_be_had(counts: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        imbalanced(load_data("digits"), counts)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train_images": torch.zeros(4, 1, 2, 2)}, "`train_images` must be uint8"),
        ({"train_images": torch.zeros(4, 2, 2, dtype=torch.uint8)}, "`train_images` must be uint8 of shape"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, "`train_labels` must be int64 of shape"),
        ({"test_labels": torch.tensor([0, 2])}, r"`test_labels` must lie in 0..1, got 0..2"),
        ({"test_labels": torch.tensor([-1, 0])}, "`test_labels` must lie in"),
        ({"test_images": torch.zeros(2, 1, 3, 2, dtype=torch.uint8)}, "`test_images` must have the training"),
        ({"std": (0.0,)}, "std > 0"),
        ({"mean": (0.0, 0.0)}, "`mean` and `std` must have one entry"),
    ],
)
def test_image_data_checks_itself(change: dict[str, object], named: str) -> None:
    good = ImageData(
        name="tiny",
        train_images=torch.zeros(4, 1, 2, 2, dtype=torch.uint8),
        train_labels=torch.tensor([0, 1, 0, 1]),
        test_images=torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
        test_labels=torch.tensor([0, 1]),
        class_names=("a", "b"),
        mean=(0.5,),
        std=(0.5,),
    )
    assert good.class_counts == (2, 2)
    with pytest.raises(ValueError, match=named):
        replace(good, **change)  # pyright: ignore[reportArgumentType]


_CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


def _cifar_records(number: int, count: int = 4) -> list[tuple[int, np.ndarray]]:
    """(label, image in rows of (red, green, blue) pixels) of one file, as the format's page describes them."""
    generator = np.random.default_rng(number)
    return [
        (int(generator.integers(10)), generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)
    ]


def _cifar_bytes(number: int) -> bytes:
    """One byte of label, then 1024 of red, 1024 of green, 1024 of blue, each in rows."""
    return b"".join(
        bytes(
            [
                label,
                *(int(image[row, column, colour]) for colour in range(3) for row in range(32) for column in range(32)),
            ]
        )
        for label, image in _cifar_records(number)
    )


def _write_cifar(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(_CIFAR_FILES):
        (folder / name).write_bytes(_cifar_bytes(number))


def _cifar_archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for number, name in enumerate(_CIFAR_FILES):
            content = _cifar_bytes(number)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _check_cifar(data: ImageData) -> None:
    records = [record for number in range(5) for record in _cifar_records(number)]
    assert data.image_shape == (3, 32, 32)
    assert data.train_labels.tolist() == [label for label, _ in records]
    assert np.array_equal(data.train_images.permute(0, 2, 3, 1).numpy(), np.stack([image for _, image in records]))
    assert data.test_labels.tolist() == [label for label, _ in _cifar_records(5)]
    green = data.normalised(data.test_images)[1, 1, 7, 30].item()
    assert green == pytest.approx((int(_cifar_records(5)[1][1][7, 30, 1]) / 255 - 0.4822) / 0.243, rel=1e-5)


@pytest.mark.parametrize("layout", ["files", "folder", "archive"])
def test_cifar_from_a_folder(tmp_path: Path, layout: str) -> None:
    if layout == "archive":
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(_cifar_archive())
    else:
        _write_cifar(tmp_path / ("cifar-10-batches-bin" if layout == "folder" else ""))
    _check_cifar(load_data("cifar10", tmp_path))


def test_cifar_from_a_server_then_from_the_cache(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    content = _cifar_archive()
    (folder / "cifar-10-binary.tar.gz").write_bytes(content)
    monkeypatch.setattr(cifar, "SOURCES", (f"{address}gone/", address))
    with pytest.raises(ValueError, match=r"could not fetch cifar-10-binary.tar.gz .*404.*hash.*`data_dir`") as caught:
        cifar.read_cifar(cache_dir=tmp_path / "cache")  # these are not the published bytes
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(cifar, "SHA256", hashlib.sha256(content).hexdigest())
    first = cifar.read_cifar(cache_dir=tmp_path / "cache")
    (folder / "cifar-10-binary.tar.gz").unlink()
    again = cifar.read_cifar(cache_dir=tmp_path / "cache")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["train_labels"].tolist() == [label for number in range(5) for label, _ in _cifar_records(number)]


def test_damaged_cifar_is_one_clear_line(tmp_path: Path) -> None:
    _write_cifar(tmp_path / "cut")
    (tmp_path / "cut" / "data_batch_3.bin").write_bytes(_cifar_bytes(2)[:-1])
    _write_cifar(tmp_path / "gap")
    (tmp_path / "gap" / "data_batch_2.bin").unlink()
    _write_cifar(tmp_path / "label")
    (tmp_path / "label" / "test_batch.bin").write_bytes(b"\x0a" + _cifar_bytes(5)[1:])
    for name, content in (("torn", _cifar_archive()[:-200]), ("garbage", b"\x1f\x8bgarbage"), ("page", b"<html>")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cifar-10-binary.tar.gz").write_bytes(content)
    for name, complaint in (
        ("cut", "data_batch_3.bin in .* is damaged: its 12291 bytes"),
        ("gap", "cannot read .*data_batch_2.bin"),
        ("label", r"`test_labels` must lie in 0..9, got 0?.*10"),
        ("torn", "is a damaged archive"),
        ("garbage", "is a damaged archive"),
        ("page", "is a damaged archive"),
        ("nowhere", "has neither test_batch.bin nor cifar-10-batches-bin/ nor cifar-10-binary.tar.gz"),
    ):
        with pytest.raises(ValueError, match=complaint) as caught:
            load_data("cifar10", tmp_path / name)
        assert "\n" not in str(caught.value)


def test_mnist_and_an_unknown_idx_set_from_folders(tmp_path: Path) -> None:
    contents = _write_fashion(tmp_path, gzipped=True)  # the files of the whole family have the same names
    data = load_data("mnist", tmp_path)
    assert (data.name, data.mean, data.image_shape) == ("mnist", (0.1307,), (1, 5, 4))
    own = load_data(str(tmp_path))
    assert torch.equal(own.train_images, data.train_images)
    pixels = np.frombuffer(contents["train_images"][16:], dtype=np.uint8) / 255
    assert own.mean[0] == pytest.approx(pixels.mean(), rel=1e-12)
    assert own.std[0] == pytest.approx(pixels.std(ddof=1), rel=1e-12)
    for path in tmp_path.glob("*.gz"):
        path.rename(path.with_name(f"emnist-letters-{path.name}"))
    assert torch.equal(load_data(str(tmp_path)).test_images, data.test_images)
    next(tmp_path.glob("*train-labels*")).unlink()
    with pytest.raises(ValueError, match="must hold one IDX file of the train labels"):
        load_data(str(tmp_path))


def _arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "train_images": generator.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8),
        "train_labels": np.arange(20) % 4,
        "test_images": generator.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8),
        "test_labels": np.arange(8) % 4,
    }


@pytest.mark.parametrize("form", ["named", "keras", "channels first", "fractions", "column labels"])
def test_npz_in_every_common_form(tmp_path: Path, form: str) -> None:
    plain = _arrays()
    arrays = dict(plain)
    if form == "keras":
        arrays = dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays.values(), strict=True))
    elif form == "column labels":
        arrays["train_labels"] = arrays["train_labels"][:, None].astype(np.uint8)
    elif form != "named":
        change = (lambda a: a.transpose(0, 3, 1, 2)) if form == "channels first" else (lambda a: a / 255)
        arrays |= {name: change(arrays[name]) for name in ("train_images", "test_images")}
    np.savez(tmp_path / "mine.npz", **arrays)  # pyright: ignore[reportArgumentType]
    data = load_data(str(tmp_path / "mine.npz"))
    assert data.name == str(tmp_path / "mine.npz")
    assert data.class_counts == (5,) * 4
    for split in ("train", "test"):
        assert np.array_equal(data.images(split).permute(0, 2, 3, 1).numpy(), plain[f"{split}_images"])
        assert np.array_equal(data.labels(split).numpy(), plain[f"{split}_labels"])
    channels = plain["train_images"].reshape(-1, 3) / 255
    assert data.mean == pytest.approx(channels.mean(axis=0), rel=1e-12)
    assert data.std == pytest.approx(channels.std(axis=0, ddof=1), rel=1e-12)


def test_npz_without_a_test_set_keeps_a_quarter_of_each_class(tmp_path: Path) -> None:
    images = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    labels = np.array([0] * 25 + [1] * 15)
    np.savez(tmp_path / "one.npz", images=images, labels=labels)
    data = load_data(str(tmp_path / "one.npz"))
    assert data.train_images[:, 0, 0, 0].tolist() == [*range(18), *range(25, 36)]
    assert data.test_images[:, 0, 0, 0].tolist() == [*range(18, 25), *range(36, 40)]
    assert data.test_labels.tolist() == [0] * 7 + [1] * 4


def test_npz_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    good = _arrays()
    bad: dict[str, tuple[dict[str, np.ndarray], str]] = {
        "pickled": ({**good, "train_labels": np.array([{}] * 20)}, "cannot read .* as an .npz file of plain arrays"),
        "unnamed": ({"a": good["train_images"]}, r"must hold train_images and train_labels, .* got \['a'\]"),
        "flat": ({**good, "train_images": np.zeros((20, 9), np.uint8)}, r"must be images of shape .* \(20, 9\)"),
        "hot": ({**good, "train_labels": np.eye(20)}, "train_labels of .* must be whole numbers from 0 on"),
        "below": ({**good, "train_labels": np.arange(20) - 1}, "must be whole numbers from 0 on"),
        "scaled": (
            {**good, "test_images": good["test_images"] / 1.0},
            r"must lie in \[0, 1\], got .* save them as bytes",
        ),
        "nan": ({**good, "test_images": good["test_images"] * np.nan}, r"must lie in \[0, 1\]"),
        "wide": ({**good, "test_images": good["test_images"].astype(np.int32)}, r"must be bytes .* got int32"),
        "short": ({**good, "train_labels": np.arange(7)}, "`train_labels` must be int64 of shape"),
        "uneven": ({"images": good["train_images"], "labels": np.arange(7)}, "one label for each image, got 7 for 20"),
    }
    for name, (arrays, complaint) in bad.items():
        path = tmp_path / f"{name}.npz"
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=complaint) as caught:
            load_data(str(path))
        assert "\n" not in str(caught.value)
    (tmp_path / "garbage.npz").write_bytes(b"PK garbage")
    for name in ("garbage", "nowhere"):
        with pytest.raises(ValueError, match="cannot read"):
            load_data(str(tmp_path / f"{name}.npz"))


@pytest.mark.parametrize("present", [range(1, 11), (0, 1, 3), (5, 7)])
def test_classes_are_the_labels_that_occur(present, tmp_path) -> None:
    """Labels 1..10 (SVHN), or 1..26 (EMNIST letters), and sets with gaps: numbered from 0, named as they were."""
    labels = np.tile(list(present), 4)
    images = np.random.default_rng(0).integers(0, 255, (len(labels), 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = load_data(str(tmp_path / "own.npz"))
    assert data.class_names == tuple(map(str, present))
    assert data.class_counts == (4,) * len(present)
    assert [int(data.class_names[k]) for k in data.test_labels] == labels.tolist()
    assert imbalanced(data, [2] * len(present)).class_counts == (2,) * len(present)


def test_a_class_without_training_images_is_named(tmp_path) -> None:
    labels = np.tile([0, 1, 2], 4)
    images = np.zeros((12, 4, 4), dtype=np.uint8) + labels[:, None, None].astype(np.uint8)
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels % 2, x_test=images, y_test=labels)
    with pytest.raises(ValueError, match=r"class 2 \(2\).* no training image"):
        imbalanced(load_data(str(tmp_path / "own.npz")), [1, 1, 1])
