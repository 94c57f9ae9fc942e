"""Real images: named sets, image folders, shards and npz files -> uint8 images of one size, labels, class names.

The arrays that leave this room are plain: uint8 [n, c, h, w] and int64 [n], classes numbered in sorted order of
their names. Those of a set that does not fit in memory stay in a file until they are indexed.
"""

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from gencond.common.distributed import main_process_first
from gencond.common.errors import InputError, first_line
from gencond.common.files import cache_dir
from gencond.common.ranges import as_bytes
from gencond.common.room import require_memory, require_text
from gencond.data import find as sources
from gencond.data.find import ImageSource, decode_into_cache, find_images, read_into_memory, short_sides, told_apart
from gencond.data.mapped import MappedImages

logger = logging.getLogger(__name__)

GENERATOR_SIZES = tuple(sorted(bottom * 2**k for bottom in (4, 5, 6, 7) for k in range(1, 5) if bottom * 2**k <= 64))
LARGEST_AUTOMATIC_SIZE = 32


@dataclass(frozen=True)
class LabeledImages:
    """Images as stored on disk, in memory or, where they are too many, in a file.

    Args:
        images: channels are grey (1) or RGB (3); uint8, or floats in [-1, 1] of a set that is stored as floats. Of a
            file, what is indexed is read: ask for some rows at a time.
        labels: class indices, positions in `class_names`.
        class_names: sorted.
        class_of: the class that each of the source's own labels means, where it numbers classes in another order.
    """

    images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"] | MappedImages
    labels: Int64[Tensor, " n"]
    class_names: tuple[str, ...]
    class_of: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.images.shape[-1]

    @property
    def words(self) -> str:
        """What it is, for people: sizes and fingerprint."""
        sizes = "x".join(map(str, self.images.shape[1:]))
        return f"{len(self):,} images of {sizes} px, {self.num_classes:,} classes, fingerprint {self.fingerprint}"

    @property
    def counts(self) -> Int64[Tensor, " classes"]:
        return torch.bincount(self.labels, minlength=self.num_classes)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the pixels, the labels and the class names: the same data, whatever its path.

        Of images in a file, of the digests of their pixels.
        """
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.class_names)).encode())
        if isinstance(self.images, MappedImages):
            for facts in self.images.facts():
                digest.update(facts["digest"].tobytes())
        else:
            digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @cached_property
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, in the range [-1, 1], from the histogram of each channel.

        Of images in a file, from the sums of each image: no pixel is read.
        """
        if isinstance(self.images, MappedImages):
            return _mean_std_of(self.images)
        levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        means, stds = [], []
        for channel in self.images.unbind(1):
            share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
            means.append(float(share @ levels))
            stds.append(max(float(share @ (levels - means[-1]).square()) ** 0.5, 1e-3))
        return tuple(means), tuple(stds)

    @cached_property
    def _rows_by_class(self) -> tuple[Int64[Tensor, " k"], ...]:
        order = self.labels.argsort(stable=True)
        return order.split(self.counts.tolist())

    def rows_of(self, label: int) -> Int64[Tensor, " k"]:
        """Positions of a class's images, ascending."""
        return self._rows_by_class[label]

    def subset(self, index: Int64[Tensor, " k"]) -> "LabeledImages":
        """Some of the images: a copy in memory, or where they are too many still in their file."""
        large = isinstance(self.images, MappedImages) and (
            len(index) * self.images.image_bytes > sources.MAPPED_ABOVE_BYTES
        )
        return replace(self, images=self.images.at(index) if large else self.images[index], labels=self.labels[index])

    def digests(self) -> Iterator[bytes]:
        """SHA-256 of each image's pixels as bytes, in order."""
        if isinstance(self.images, MappedImages):
            for facts in self.images.facts():
                yield from map(bytes, facts["digest"])
        else:
            yield from self._digests

    @cached_property
    def _digests(self) -> list[bytes]:
        """Kept, since the split, the search for images seen twice and the codec's held-out slice all ask."""
        return [hashlib.sha256(image.tobytes()).digest() for image in as_bytes(self.images).numpy()]


def _mean_std_of(images: MappedImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`LabeledImages.mean_std` from whole numbers, so that nothing is lost to rounding on the way."""
    totals, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for facts in images.facts():
        totals += facts["sum"].sum(0)
        squares += facts["square"].sum(0)
    _, channels, height, width = images.shape
    count = len(images) * height * width
    means, stds = [], []
    for total, square in zip(totals[:channels].tolist(), squares[:channels].tolist(), strict=True):
        means.append(total / count / 127.5 - 1)
        stds.append(max(max(square * count - total**2, 0) ** 0.5 / count / 127.5, 1e-3))
    return tuple(means), tuple(stds)


# --- loading ---------------------------------------------------------------------------------------------------


def load_real(
    source: str, image_size: int | None = None, test_fraction: float = 0.2
) -> tuple[LabeledImages, LabeledImages]:
    """The training and the test images of a data set.

    A folder or shards with more than `sources.MAPPED_ABOVE_BYTES` of pixels is decoded into a file of the cache by all
    processes together: every one of them has to call this.

    Args:
        source: a named set (`digits`, `mnist`, `fashion_mnist`, `cifar10`, `cifar100`); a folder with one folder
            of images per class, or with `train/` and possibly `test/` folders of that kind; a folder of WebDataset
            shards, or with `train/` and possibly `test/` folders of those; or an .npz file with `x_train`, `y_train`
            and possibly `x_test`, `y_test`, `names`.
        image_size: side in pixels to scale and center-crop to. None keeps sets of square images as they are, and
            takes for a folder the largest size a generator can have that is not over the images' median shorter
            side, 8 to 32.
        test_fraction: share of each class held out as test set where the source has none, see `split_off`.
    Raises:
        InputError: nothing there, classes without images, unreadable images, sets that do not fit each other.
    """
    if source in NAMED_SETS:
        if Path(source).exists():
            logger.info("data: %s is the named set; the folder or file of that name is ./%s", source, source)
        with main_process_first():  # one process downloads a set, the others find it
            train, test = NAMED_SETS[source]()
    elif not Path(source).exists():
        raise InputError(f"no such data: {source!r} is neither a path nor one of {', '.join(NAMED_SETS)}")
    elif source.endswith(".npz") and Path(source).is_file():
        train, test = _load_npz(Path(source))
    elif Path(source).is_dir():
        found = find_images(Path(source))
        require_two_classes(found.class_names, source)  # what is missing is said before an hour of decoding
        if not found.has_test:
            require_two_of_each(found.labels.bincount(minlength=len(found.class_names)), found.class_names)
        side = image_size or size_of(found)
        train, test = _parts(found, (decode_into_cache if is_mapped(found, side) else read_into_memory)(found, side))
    else:
        raise InputError(f"{source} is no data: expected a folder with one folder per class, shards, or an .npz file")
    require_two_classes(train.class_names, source)
    height, width = train.images.shape[-2:]
    if image_size is None and (height != width or height not in GENERATOR_SIZES):
        image_size = automatic_image_size([min(height, width)])
    if test is None:
        train, test = split_off(train, test_fraction, closed=source in NAMED_SETS)
    return _resized(train, image_size), _resized(test, image_size)


def split_off(
    data: LabeledImages, fraction: float, part: Literal["test", "validation"] = "test", closed: bool = False
) -> tuple[LabeledImages, LabeledImages]:
    """(rest, held out): about the same share of every class, at least one image on either side.

    An image is held out where its digest, as a number in [0, 1), is below `fraction`: its own pixels decide, so that it
    stays where it is when others are added, removed or reordered. Of a class so small that none or all of its images
    would be held out, the image nearest to that is; the log says so.

    Args:
        part: a validation set is chosen by other digits of the digest than a test set, since it is taken from what that
            left over. What is split by the same digits again gives next to nothing.
        closed: nothing is ever added to this set, so exactly the share is taken: the images of lowest digest.
    Raises:
        InputError: a class with fewer than two images.
    """
    require_two_of_each(data.counts, data.class_names)
    digits = slice(8, 16) if part == "validation" and not closed else slice(8)
    numbers = torch.tensor([int.from_bytes(digest[digits]) >> 1 for digest in data.digests()])  # of 63 bits
    held, small = [], []
    for label in range(data.num_classes):
        rows = data.rows_of(label)
        wanted = round(len(rows) * fraction) if closed else int((numbers[rows] < int(fraction * 2**63)).sum())
        count = min(max(wanted, 1), len(rows) - 1)
        if count != wanted and not closed:
            small.append(data.class_names[label])
        held.append(rows[numbers[rows].argsort(stable=True)[:count]])
    if small:
        logger.info(
            "data: of %d class(es), %r first, all or none of the images would be held out, so few there are: one is "
            "moved, and another may be when images are added",
            len(small), small[0],
        )  # fmt: skip
    is_held = torch.zeros(len(data), dtype=torch.bool)
    is_held[torch.cat(held)] = True
    return data.subset((~is_held).nonzero()[:, 0]), data.subset(is_held.nonzero()[:, 0])


def require_two_of_each(counts: Int64[Tensor, " classes"], class_names: Sequence[str]) -> None:
    """Raises InputError where a class has too few images to hold one out."""
    for name, count in zip(class_names, counts.tolist(), strict=True):
        if count < 2:
            raise InputError(f"class {name!r} has {count} image(s): two are needed to hold one out for testing")


def require_two_classes(class_names: Sequence[str], source: str) -> None:
    """Raises InputError where there is nothing to tell apart, or a name is no text that an artefact could hold."""
    for name in class_names:
        require_text(name, f"{source}: class")
    if len(class_names) < 2:
        raise InputError(f"{source} has one class, {class_names[0]!r}: condensing needs two or more")


def rows_seen(train: LabeledImages, test: LabeledImages) -> Int64[Tensor, " k"]:
    """Rows of `test` whose pixels, as bytes, are those of a training image."""
    of_test = list(test.digests())
    shared = set(of_test).intersection(train.digests())
    return torch.tensor([row for row, digest in enumerate(of_test) if digest in shared], dtype=torch.int64)


def automatic_image_size(short_sides: Sequence[int]) -> int:
    """The largest of `GENERATOR_SIZES` that is not over the median shorter side, within 8..32."""
    largest = min(int(np.median(short_sides)), LARGEST_AUTOMATIC_SIZE)
    return max((size for size in GENERATOR_SIZES if size <= largest), default=GENERATOR_SIZES[0])


def _digits() -> tuple[LabeledImages, None]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return LabeledImages(images, labels, tuple(str(digit) for digit in range(10))), None


def _torchvision_set(name: str) -> Callable[[], tuple[LabeledImages, LabeledImages]]:
    def load() -> tuple[LabeledImages, LabeledImages]:
        from torchvision import datasets

        root = cache_dir() / "data"
        try:
            train, test = (getattr(datasets, name)(root, train=train, download=True) for train in (True, False))
        except (OSError, RuntimeError) as error:
            raise InputError(f"{name} could not be downloaded to {root} ({first_line(error)})") from None
        order = sorted(range(len(train.classes)), key=lambda label: train.classes[label])
        names = tuple(train.classes[label] for label in order)
        rank = torch.tensor(order).argsort()
        return tuple(
            LabeledImages(
                _channels_first(np.asarray(part.data)), rank[torch.as_tensor(part.targets)], names, tuple(rank.tolist())
            )
            for part in (train, test)
        )

    return load


NAMED_SETS: dict[str, Callable[[], tuple[LabeledImages, LabeledImages | None]]] = {
    "digits": _digits,
    "mnist": _torchvision_set("MNIST"),
    "fashion_mnist": _torchvision_set("FashionMNIST"),
    "cifar10": _torchvision_set("CIFAR10"),
    "cifar100": _torchvision_set("CIFAR100"),
}


def _channels_first(images: np.ndarray) -> UInt8[Tensor, "n c h w"]:
    """[n, h, w] or [n, h, w, c] -> [n, c, h, w]."""
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images))


def _load_npz(path: Path) -> tuple[LabeledImages, LabeledImages | None]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            arrays = {key: loaded[key] for key in loaded.files}
    # RuntimeError: with a password, or packed in an unknown way; MemoryError: a damaged shape
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as .npz ({first_line(error)})") from None
    if missing := {"x_train", "y_train"} - arrays.keys():
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; it holds {', '.join(arrays) or 'nothing'}")
    if len(of_test := {"x_test", "y_test"} & arrays.keys()) == 1:
        raise InputError(
            f"{path} has {of_test.pop()} alone: a test set is x_test and y_test, add one or remove the other"
        )
    if others := arrays.keys() - {"x_train", "y_train", "x_test", "y_test", "names"}:
        logger.info("data: left out of %s: %s", path, ", ".join(sorted(others)))

    def part(split: str) -> tuple[Tensor, np.ndarray]:
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"].reshape(-1)
        shaped = x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in (1, 3))
        if x.dtype != np.uint8 or not shaped or 0 in x.shape[1:3]:
            raise InputError(
                f"{path}: x_{split} is {x.dtype} {list(x.shape)}; expected uint8 [n, h, w] or [n, h, w, 1 or 3]"
            )
        if len(x) != len(y) or len(y) == 0:
            raise InputError(f"{path}: {len(x)} images but {len(y)} labels in {split}; expected as many, and some")
        most = len(names) if names else arrays["y_train"].size  # each class has an image
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= most:
            held = f"from {y.min()} to {y.max()}" if y.dtype.kind in "iu" else f"as {y.dtype}"
            raise InputError(
                f"{path}: y_{split} holds labels {held}; expected class indices from 0 to {most - 1} at most"
            )
        return _channels_first(x), y.astype(np.int64)

    names = told_apart(_names_in(arrays["names"], path)) if "names" in arrays else []
    x, y = part("train")
    if not names:
        count = int(y.max()) + 1
        names = [f"{label:0{len(str(count - 1))}d}" for label in range(count)]
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = torch.tensor(order).argsort()
    class_names, class_of = tuple(names[label] for label in order), tuple(rank.tolist())
    train = LabeledImages(x, rank[torch.from_numpy(y)], class_names, class_of)
    _require_every_class(train, str(path))
    if "x_test" not in arrays:
        return train, None
    x, y = part("test")
    if x.shape[1:] != train.images.shape[1:]:
        raise InputError(f"{path}: training images are {list(train.images.shape[1:])}, test images {list(x.shape[1:])}")
    return train, LabeledImages(x, rank[torch.from_numpy(y)], class_names, class_of)


def _names_in(array: np.ndarray, path: Path) -> list[str]:
    """Class names of an array of text, UTF-8 bytes or whole numbers."""
    try:
        if array.ndim == 1 and len(array) and array.dtype.kind in "USiu":
            return [name.decode() if isinstance(name, bytes) else str(name) for name in array.tolist()]
    except UnicodeDecodeError:
        pass
    raise InputError(f"{path}: names is {array.dtype} {list(array.shape)}; expected a text for each class")


def _require_every_class(data: LabeledImages, where: str) -> None:
    for name, count in zip(data.class_names, data.counts.tolist(), strict=True):
        if count == 0:
            raise InputError(f"class {name!r} of {where} has no images: add some or remove the class")


def size_of(source: ImageSource) -> int:
    """The side in pixels that a source's images are brought to where nothing says another."""
    return automatic_image_size(short_sides(source) or [LARGEST_AUTOMATIC_SIZE])


def is_mapped(source: ImageSource, image_size: int) -> bool:
    """Whether a source's images are too many to be held in memory; grey ones are counted as if they had colour."""
    return len(source) * 3 * image_size**2 > sources.MAPPED_ABOVE_BYTES


def _parts(
    source: ImageSource, images: UInt8[Tensor, "n c h w"] | MappedImages
) -> tuple[LabeledImages, LabeledImages | None]:
    everything = LabeledImages(images, source.labels, source.class_names, source.class_of)
    if not source.has_test:
        return everything, None
    rows = torch.arange(len(source)).split([source.num_train, len(source) - source.num_train])
    if isinstance(images, Tensor):  # views, where `subset` would copy
        return tuple(replace(everything, images=images[of[0] : of[-1] + 1], labels=source.labels[of]) for of in rows)
    return tuple(map(everything.subset, rows))


def _resized(data: LabeledImages, image_size: int | None) -> LabeledImages:
    """Shorter side to `image_size`, then the center square. Nothing where the size is right already."""
    height, width = data.images.shape[-2:]
    if image_size is None or (height, width) == (image_size, image_size):
        return data
    require_memory(
        len(data) * data.channels * image_size**2, f"{len(data):,} images of {image_size} px", "lower data.image_size"
    )
    scale = image_size / min(height, width)
    size = [max(image_size, round(height * scale)), max(image_size, round(width * scale))]
    top, left = (size[0] - image_size) // 2, (size[1] - image_size) // 2
    chunks = [
        F.interpolate(chunk.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)[..., top : top + image_size, left : left + image_size]
        for chunk in data.images.split(1000)
    ]
    return replace(data, images=torch.cat(chunks))
