"""Real images: named sets, any ImageFolder and npz files -> uint8 images of one size, labels, class names.

The arrays that leave this room are plain: uint8 [n, c, h, w] and int64 [n], classes numbered in sorted order of
their names.
"""

import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from gencond.errors import InputError
from gencond.files import cache_dir
from gencond.progress import progress
from gencond.ranges import as_bytes

logger = logging.getLogger(__name__)

TEST_FOLDERS = ("test", "val", "validation")
HIDDEN = (".", "__")
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
GREY_MODES = ("1", "L", "LA", *WIDE_MODES)
GENERATOR_SIZES = tuple(sorted(bottom * 2**k for bottom in (4, 5, 6, 7) for k in range(1, 5) if bottom * 2**k <= 64))
LARGEST_AUTOMATIC_SIZE = 32


@dataclass(frozen=True)
class LabeledImages:
    """Images in memory, as stored on disk.

    Args:
        images: channels are grey (1) or RGB (3); uint8, or floats in [-1, 1] of a set that is stored as floats.
        labels: class indices, positions in `class_names`.
        class_names: sorted.
        class_of: the class that each of the source's own labels means, where it numbers classes in another order.
    """

    images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]
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
    def counts(self) -> Int64[Tensor, " classes"]:
        return torch.bincount(self.labels, minlength=self.num_classes)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the pixels, the labels and the class names: the same data, whatever its path."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.class_names)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @cached_property
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, in the range [-1, 1], from the histogram of each channel."""
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
        return replace(self, images=self.images[index], labels=self.labels[index])


# --- loading ---------------------------------------------------------------------------------------------------


def load_real(
    source: str, image_size: int | None = None, test_fraction: float = 0.2
) -> tuple[LabeledImages, LabeledImages]:
    """The training and the test images of a data set.

    Args:
        source: a named set (`digits`, `mnist`, `fashion_mnist`, `cifar10`, `cifar100`); a folder with one folder
            of images per class, or with `train/` and possibly `test/` folders of that kind; or an .npz file with
            `x_train`, `y_train` and possibly `x_test`, `y_test`, `names`.
        image_size: side in pixels to scale and center-crop to. None keeps sets of square images as they are, and
            takes for a folder the largest size a generator can have that is not over the images' median shorter
            side, 8 to 32.
        test_fraction: share of each class held out as test set where the source has none.
    Raises:
        InputError: nothing there, classes without images, unreadable images, sets that do not fit each other.
    """
    if source in NAMED_SETS:
        train, test = NAMED_SETS[source]()
    elif not Path(source).exists():
        raise InputError(f"no such data: {source!r} is neither a path nor one of {', '.join(NAMED_SETS)}")
    elif source.endswith(".npz"):
        train, test = _load_npz(Path(source))
    elif Path(source).is_dir():
        train, test = load_folder(Path(source), image_size)
    else:
        raise InputError(f"{source} is no data: expected a folder with one folder per class, or an .npz file")
    if train.num_classes < 2:
        raise InputError(f"{source} has one class, {train.class_names[0]!r}: condensing needs two or more")
    height, width = train.images.shape[-2:]
    if image_size is None and (height != width or height not in GENERATOR_SIZES):
        image_size = automatic_image_size([min(height, width)])
    if test is None:
        train, test = split_off(train, test_fraction)
    return _resized(train, image_size), _resized(test, image_size)


def split_off(data: LabeledImages, fraction: float) -> tuple[LabeledImages, LabeledImages]:
    """(rest, held out): the same share of every class, at least one image on either side.

    An image's own pixels decide where it goes, so that the split stays as it is when others are added or reordered.

    Raises:
        InputError: a class with fewer than two images.
    """
    held = []
    for label, name in enumerate(data.class_names):
        rows = data.rows_of(label)
        if len(rows) < 2:
            raise InputError(f"class {name!r} has {len(rows)} image(s): two are needed to hold one out for testing")
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        digests = [hashlib.sha256(data.images[row].numpy().tobytes()).digest() for row in rows.tolist()]
        held.append(rows[sorted(range(len(rows)), key=digests.__getitem__)[:count]])
    is_held = torch.zeros(len(data), dtype=torch.bool)
    is_held[torch.cat(held)] = True
    return data.subset((~is_held).nonzero()[:, 0]), data.subset(is_held.nonzero()[:, 0])


def rows_seen(train: LabeledImages, test: LabeledImages) -> Int64[Tensor, " k"]:
    """Rows of `test` whose pixels, as bytes, are those of a training image."""
    known = {row.tobytes() for row in as_bytes(train.images).numpy()}
    seen = [number for number, row in enumerate(as_bytes(test.images).numpy()) if row.tobytes() in known]
    return torch.tensor(seen, dtype=torch.int64)


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
            raise InputError(f"{name} could not be downloaded to {root} ({str(error).splitlines()[0]})") from None
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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as .npz ({error})") from None
    if missing := {"x_train", "y_train"} - arrays.keys():
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; it holds {', '.join(arrays) or 'nothing'}")

    def part(split: str, num_classes: int | None) -> tuple[Tensor, np.ndarray]:
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"].reshape(-1)
        shaped = x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in (1, 3))
        if x.dtype != np.uint8 or not shaped or 0 in x.shape[1:3]:
            raise InputError(
                f"{path}: x_{split} is {x.dtype} {list(x.shape)}; expected uint8 [n, h, w] or [n, h, w, 1 or 3]"
            )
        if len(x) != len(y) or len(y) == 0:
            raise InputError(f"{path}: {len(x)} images but {len(y)} labels in {split}; expected as many, and some")
        if y.dtype.kind not in "iu" or y.min() < 0 or (num_classes is not None and y.max() >= num_classes):
            raise InputError(f"{path}: y_{split} holds something else than class indices from 0")
        return _channels_first(x), y.astype(np.int64)

    names = [str(name) for name in np.atleast_1d(arrays["names"])] if "names" in arrays else None
    if names is not None and len(set(names)) < len(names):
        raise InputError(f"{path}: names holds a class twice")
    x, y = part("train", len(names) if names else None)
    names = names or [str(label) for label in range(int(y.max()) + 1)]
    width = len(str(len(names) - 1))
    if "names" not in arrays:
        names = [f"{label:0{width}d}" for label in range(len(names))]
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = torch.tensor(order).argsort()
    names = tuple(names[label] for label in order)
    class_of = tuple(rank.tolist())
    train = LabeledImages(x, rank[torch.from_numpy(y)], names, class_of)
    _require_every_class(train, str(path))
    if "x_test" not in arrays or "y_test" not in arrays:
        return train, None
    x, y = part("test", len(names))
    if x.shape[1:] != train.images.shape[1:]:
        raise InputError(f"{path}: training images are {list(train.images.shape[1:])}, test images {list(x.shape[1:])}")
    return train, LabeledImages(x, rank[torch.from_numpy(y)], names, class_of)


def _require_every_class(data: LabeledImages, where: str) -> None:
    for name, count in zip(data.class_names, data.counts.tolist(), strict=True):
        if count == 0:
            raise InputError(f"class {name!r} of {where} has no images: add some or remove the class")


def load_folder(root: Path, image_size: int | None) -> tuple[LabeledImages, LabeledImages | None]:
    """(training images, test images where it has a folder of them) of a folder with one folder of images per class.

    Raises as `load_real`.
    """
    splits = {folder.name.lower(): folder for folder in _class_folders(root) if _class_folders(folder)}
    train_root = splits.get("train", root)
    held_out = [splits[name] for name in TEST_FOLDERS if name in splits]
    test_root = held_out[0] if held_out else None
    for folder in held_out[1:]:
        logger.info("data: %s is left out, %s is the test set", folder, test_root)
    candidates = _class_folders(train_root)
    if train_root == root:
        candidates = [folder for folder in candidates if folder not in held_out]
        if flat := [folder for folder in candidates if folder.name.lower() in TEST_FOLDERS]:
            raise InputError(
                f"{flat[0]} holds no class folders, so it is no test set: sort its images into classes or move it away"
            )
    names = tuple(folder.name for folder in candidates)
    if not names:
        raise InputError(f"{train_root} has no class folders: expected {train_root}/<class name>/<image>")
    train_files = {name: image_files(train_root / name) for name in names}
    test_files: dict[str, list[Path]] = {}
    if test_root is not None:
        test_files = {folder.name: image_files(folder) for folder in _class_folders(test_root)}
        if strange := sorted(set(test_files) - set(names)):
            raise InputError(f"{test_root} has class {strange[0]!r}, which {train_root} has not")
    for where, files in ((train_root, train_files), (test_root, test_files)):
        for name, paths in files.items():
            if not paths:
                raise InputError(f"class {name!r} of {where} has no images: add some or remove the folder")
    everything = [path for files in (train_files, test_files) for paths in files.values() for path in paths]
    if image_size is None:
        image_size = automatic_image_size(_short_sides(everything[:: max(1, len(everything) // 1000)]))
    images = _read_all(everything, image_size, root)
    labels = torch.tensor([
        names.index(name) for files in (train_files, test_files) for name, paths in files.items() for _ in paths
    ])  # fmt: skip
    num_train = sum(len(paths) for paths in train_files.values())
    train = LabeledImages(images[:num_train], labels[:num_train], names)
    return train, LabeledImages(images[num_train:], labels[num_train:], names) if test_root else None


def _class_folders(root: Path) -> list[Path]:
    """Visible folders, sorted by name; none where `root` is no folder."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN))


def image_files(folder: Path) -> list[Path]:
    """Visible image files at any depth, links followed, sorted. Files of other kinds are counted in the log."""
    from PIL import Image

    Image.init()
    extensions = {suffix for suffix, format in Image.registered_extensions().items() if format in Image.OPEN}
    found, others = [], []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        for name in sorted(files):
            if not name.startswith(HIDDEN):
                path = Path(parent, name)
                (found if path.suffix.lower() in extensions else others).append(path)
    if others:
        logger.info("data: %d file(s) in %s are no images and left out, %s first", len(others), folder, others[0].name)
    return sorted(found)


def _short_sides(paths: list[Path]) -> list[int]:
    """From the headers alone. Files that cannot be read are named later, when all are decoded."""
    from PIL import Image, UnidentifiedImageError

    sides = []
    for path in paths:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        except (OSError, UnidentifiedImageError):
            continue
    return sides or [LARGEST_AUTOMATIC_SIZE]


def _read_image(path: Path, image_size: int) -> np.ndarray | str:
    """[h, w] for grey images, [h, w, 3] for all others, or why the file cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft("RGB", (image_size * 2, image_size * 2))  # JPEGs decode at a fraction of their size
            grey = image.mode in GREY_MODES
            if image.mode in WIDE_MODES:
                image = Image.fromarray(_wide_to_uint8(np.asarray(image)))
            if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
            side = (image_size, image_size)
            return np.asarray(ImageOps.fit(image, side, Image.Resampling.BICUBIC), dtype=np.uint8)
    except Exception as error:  # whatever a decoder throws at a broken file: it is named and counted
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _wide_to_uint8(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 or 32 bits or floats to 0..255, by the smallest usual range that holds them."""
    largest = values.max()
    if values.min() < 0 or largest > 65535:
        raise ValueError(f"grey values from {values.min()} to {largest}: expected 0..1, 0..255 or 0..65535")
    if values.dtype.kind == "f" and largest <= 1:
        return (values * 255).round().astype(np.uint8)
    return (values if largest <= 255 and values.dtype.itemsize > 2 else values / 257).round().astype(np.uint8)


def _read_all(paths: list[Path], image_size: int, root: Path) -> UInt8[Tensor, "n c h w"]:
    with ThreadPoolExecutor() as pool:
        decoded = list(
            progress(
                pool.map(lambda path: _read_image(path, image_size), paths),
                description="reading images",
                total=len(paths),
                unit="image",
                disable=len(paths) < 2000,
            )
        )
    broken = [(path, why) for path, why in zip(paths, decoded, strict=True) if isinstance(why, str)]
    if broken:
        named = ", ".join(f"{path.relative_to(root)} ({why})" for path, why in broken[:3])
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InputError(
            f"{len(broken)} of {len(paths)} images in {root} cannot be read: {named}{more}; repair or remove them"
        )
    if any(image.ndim == 3 for image in decoded):
        decoded = [image if image.ndim == 3 else image[..., None].repeat(3, -1) for image in decoded]
    return _channels_first(np.stack(decoded))


def _resized(data: LabeledImages, image_size: int | None) -> LabeledImages:
    """Shorter side to `image_size`, then the center square. Nothing where the size is right already."""
    height, width = data.images.shape[-2:]
    if image_size is None or (height, width) == (image_size, image_size):
        return data
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
