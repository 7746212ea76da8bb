"""Image data sets: loaded once, kept as bytes, cut to the class counts of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from collapsar.training.arrays import read_npz
from collapsar.training.cifar import CLASS_NAMES, read_cifar
from collapsar.training.idx import FASHION_MNIST, MNIST, IdxSet, find_idx_files, idx_files_in, read_idx

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image set, training and test apart.

    Attributes:
        name: The data set's name, a key of ``DATASETS`` for those that come with the library.
        train_images: uint8, shape (N, C, H, W).
        train_labels: int64, shape (N,), in 0..K-1.
        test_images: uint8, shape (N', C, H, W).
        test_labels: int64, shape (N',).
        class_names: K names.
        mean: Mean of each channel, in units of the full range 0..1.
        std: Standard deviation of each channel, the same units, > 0.

    Raises:
        ValueError: Shapes, types or labels do not fit together.

    Example:
        >>> data = load_data("digits")
        >>> data.image_shape, data.num_classes, tuple(data.train_images.shape)
        ((1, 8, 8), 10, (1343, 1, 8, 8))
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = self.images(split), self.labels(split)
            if images.dtype != torch.uint8 or images.ndim != 4:
                raise ValueError(
                    f"`{split}_images` must be uint8 of shape (N, C, H, W), got {images.dtype} of {tuple(images.shape)}"
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"`{split}_labels` must be int64 of shape ({len(images)},), one for each image, got "
                    f"{labels.dtype} of {tuple(labels.shape)}"
                )
            if len(labels) and not (labels.min() >= 0 and labels.max() < self.num_classes):
                raise ValueError(
                    f"`{split}_labels` must lie in 0..{self.num_classes - 1}, got {labels.min()}..{labels.max()}"
                )
        if self.test_images.shape[1:] != self.train_images.shape[1:]:
            raise ValueError(
                f"`test_images` must have the training images' shape {self.image_shape}, "
                f"got {tuple(self.test_images.shape[1:])}"
            )
        if not (len(self.mean) == len(self.std) == self.image_shape[0] and all(value > 0 for value in self.std)):
            raise ValueError(
                f"`mean` and `std` must have one entry for each of {self.image_shape[0]} channels and std > "
                f"0, got {self.mean!r} and {self.std!r}"
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> Shape:
        """(C, H, W)."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @cached_property
    def class_counts(self) -> tuple[int, ...]:
        """n_k, training samples of each class."""
        return tuple(torch.bincount(self.train_labels, minlength=self.num_classes).tolist())

    def images(self, split: str) -> Tensor:
        """The images of "train" or "test"."""
        return {"train": self.train_images, "test": self.test_images}[split]

    def labels(self, split: str) -> Tensor:
        """The labels of "train" or "test"."""
        return {"train": self.train_labels, "test": self.test_labels}[split]

    def to(self, device: torch.device | str) -> ImageData:
        """The same data with its tensors on ``device``."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )

    def normalised(self, images: Tensor) -> Tensor:
        """Bytes of shape (B, C, H, W) as float32 with mean 0 and standard deviation 1, on the same device."""
        mean, std = self._moments.to(images.device)
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    @cached_property
    def _moments(self) -> Tensor:
        """Mean and deviation, shape (2, C, 1, 1), on the images' device: a copy from the host would stall a GPU."""
        values = torch.tensor((self.mean, self.std), dtype=torch.float32, device=self.train_images.device)
        return values[:, :, None, None]


def load_data(name: str, data_dir: str | Path | None = None) -> ImageData:
    """A whole data set.

    Args:
        name: "digits" (inside scikit-learn: 1797 images of 8x8, 10 classes), "fashion-mnist" or "mnist" (70000 of
            28x28), "cifar10" (60000 of 3x32x32); or the path of your own: an .npz file (see ``read_npz``) or a folder
            with four IDX files.
        data_dir: Folder with the set's files, if it has any; then nothing is fetched. None: they are sought where
            Debian's package puts them, then in the user's cache, and finally fetched with a checksum.

    Raises:
        ValueError: The name is unknown, or a file is missing, damaged or cannot be fetched.

    Example:
        >>> min(load_data("digits").class_counts)
        130
    """
    if name in DATASETS:
        return DATASETS[name](None if data_dir is None else Path(data_dir))
    if not (name.endswith(".npz") or Path(name).is_dir()):
        raise ValueError(
            f"`name` of the data must be one of {', '.join(sorted(DATASETS))}, an .npz file or a folder of IDX files, "
            f"got {name!r}"
        )
    if data_dir is not None:
        raise ValueError(
            f"`data_dir` must be None if `name` is itself a path, got {str(data_dir)!r}; leave --data-dir out"
        )
    return _own(name, read_npz(Path(name)) if name.endswith(".npz") else _idx_tensors(idx_files_in(Path(name))))


def whole_counts(class_counts: Iterable[int]) -> tuple[int, ...]:
    """Class counts as Python numbers.

    Raises:
        ValueError: An entry is not a whole number >= 1, or there is none.

    Example:
        >>> whole_counts([5, 3])
        (5, 3)
    """
    given = tuple(class_counts)
    try:
        counts = tuple(index(count) for count in given)
    except TypeError:
        counts = ()
    if not counts or min(counts) < 1:
        raise ValueError(f"`class_counts` must be whole numbers >= 1, one for each class, got {list(given)!r}")
    return counts


def imbalanced(data: ImageData, class_counts: Sequence[int]) -> ImageData:
    """The first n_k training images of each class; the test set stays whole.

    These are the paper's data sets (JMLR Sec. 4). A class with too few images is an error: it is never filled up from
    the test set, as in published scripts.

    Args:
        data: The full set.
        class_counts: n_k for each of the K classes, whole numbers >= 1.

    Returns:
        The subset, in the original order, with the full set's ``mean`` and ``std``.

    Raises:
        ValueError: The length is not K, an entry is not a whole number >= 1, or a class has fewer images.

    Example:
        >>> imbalanced(load_data("digits"), (100,) * 5 + (20,) * 5).class_counts
        (100, 100, 100, 100, 100, 20, 20, 20, 20, 20)
    """
    counts = whole_counts(class_counts)
    if len(counts) != data.num_classes:
        raise ValueError(
            f"`class_counts` must have one entry for each of the {data.num_classes} classes of {data.name}, "
            f"{data.class_names[0]} to {data.class_names[-1]}, got {len(counts)} entries"
        )
    for label, (asked, has) in enumerate(zip(counts, data.class_counts, strict=True)):
        if not has:
            raise ValueError(
                f"class {label} ({data.class_names[label]}) of {data.name} has test images but no training image; "
                "leave its test images out of the data"
            )
        if asked > has:
            raise ValueError(
                f"class {label} ({data.class_names[label]}) of {data.name} has {has} training images, "
                f"{asked} were asked for; lower its entry of `class_counts`"
            )
    members = [(data.train_labels == label).nonzero().flatten()[:count] for label, count in enumerate(counts)]
    chosen = torch.cat(members).sort().values
    return replace(data, train_images=data.train_images[chosen], train_labels=data.train_labels[chosen])


def _digits(data_dir: Path | None) -> ImageData:
    """scikit-learn's digits: the first three quarters of each class train, the rest test.

    The images are in the order of their writers, so that most writers are only on one side.
    """
    if data_dir is not None:
        raise ValueError(
            '`data_dir` must be None for "digits": the images are inside scikit-learn; leave --data-dir out'
        )
    bunch = _digits_file()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]  # 0..16 to 0..255
    labels = torch.from_numpy(bunch.target).long().clone()
    return _own("digits", {"train_images": images, "train_labels": labels})


@cache
def _digits_file() -> Any:
    """Cached: reading it takes as long as many epochs."""
    from sklearn import datasets  # only here: nothing else needs it

    return datasets.load_digits()


def _own(name: str, tensors: dict[str, Tensor]) -> ImageData:
    """A set without metadata: mean and deviation are those of its training images.

    Its classes are the labels that occur, and are named by them: labels 1..K become 0..K-1 with the names "1" to "K".

    Without a test set, the first three quarters of each class train and the rest test.
    """
    if "test_images" not in tensors:
        images, labels = tensors["train_images"], tensors["train_labels"]
        if len(labels) != len(images):
            raise ValueError(f"{name} must have one label for each image, got {len(labels)} for {len(images)}")
        members = [(labels == label).nonzero().flatten() for label in range(int(labels.max()) + 1)]
        for split, part in (("train", slice(0, 3)), ("test", slice(3, 4))):
            rows = torch.cat([rows[_quarters(len(rows), part)] for rows in members]).sort().values
            tensors = {**tensors, f"{split}_images": images[rows], f"{split}_labels": labels[rows]}
    present = torch.cat((tensors["train_labels"], tensors["test_labels"])).unique()
    own = {split: torch.searchsorted(present, tensors[split]) for split in ("train_labels", "test_labels")}
    mean, std = _moments(tensors["train_images"])
    return ImageData(name, class_names=tuple(map(str, present.tolist())), mean=mean, std=std, **{**tensors, **own})


def _quarters(size: int, part: slice) -> slice:
    return slice(size * part.start // 4, size * part.stop // 4)


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of the full range.

    From counts of the 256 values, in float64: no copy of the images, and hardly any rounding.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        total = counts.sum()
        mean = float(counts @ values / total)
        means.append(mean)
        deviations.append(float((counts @ (values - mean).square() / (total - 1)).sqrt()))
    return tuple(means), tuple(deviations)


def _cifar10(data_dir: Path | None) -> ImageData:
    """Krizhevsky (2009); mean and deviation as the paper's experiments use them."""
    return ImageData(
        name="cifar10",
        class_names=CLASS_NAMES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        **read_cifar(data_dir),
    )


def _idx_data(idx_set: IdxSet, data_dir: Path | None) -> ImageData:
    mean, std = ((value,) for value in idx_set.moments)
    tensors = _idx_tensors(find_idx_files(idx_set, data_dir))
    return ImageData(name=idx_set.name, class_names=idx_set.class_names, mean=mean, std=std, **tensors)


def _idx_tensors(paths: dict[str, Path]) -> dict[str, Tensor]:
    tensors = {}
    for role, path in paths.items():
        tensor, dimensions = read_idx(path), 3 if role.endswith("images") else 1
        if tensor.ndim != dimensions:
            raise ValueError(
                f"{path} must have {dimensions} dimensions, it has {tensor.ndim}; the files may be mixed up"
            )
        tensors[role] = tensor[:, None] if dimensions == 3 else tensor.long()
    return tensors


# A further data set is one more entry: a function from the data folder, or None, to an ImageData.
DATASETS: dict[str, Callable[[Path | None], ImageData]] = {
    "digits": _digits,
    "fashion-mnist": lambda folder: _idx_data(FASHION_MNIST, folder),
    "mnist": lambda folder: _idx_data(MNIST, folder),
    "cifar10": _cifar10,
}
