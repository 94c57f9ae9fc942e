"""Real images: named sets, image folders, shards and npz files -> uint8 images of one size, labels, class names.

The arrays that leave this room are plain: uint8 [n, c, h, w] and int64 [n], classes numbered in sorted order of
their names. Those of a set that does not fit in memory stay in a file until they are indexed.
"""

import logging
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from gencond.common.distributed import main_process_first, new_accelerator
from gencond.common.errors import InputError
from gencond.common.room import require_memory
from gencond.config import Data
from gencond.data import decode
from gencond.data.decode import decode_into_cache, read_into_memory, short_sides
from gencond.data.find import find_images, holds_encoded
from gencond.data.images import (
    GENERATOR_SIZES,
    LARGEST_AUTOMATIC_SIZE,
    LabeledImages,
    automatic_image_size,
    require_classes,
    require_two_of_each,
    split_off,
)
from gencond.data.mapped import MappedImages
from gencond.data.named import NAMED_SETS
from gencond.data.npz import load_npz
from gencond.data.overlap import notes_on_overlap
from gencond.data.source import ImageSource
from gencond.data.tables import THE_ONLY_ONES, Columns, columns_of

logger = logging.getLogger(__name__)


def load_real(
    source: str,
    image_size: int | None = None,
    test_fraction: float = 0.2,
    fewest_classes: int = 2,
    columns: Columns = THE_ONLY_ONES,
) -> tuple[LabeledImages, LabeledImages]:
    """The training and the test images of a data set.

    A folder or shards with more than `decode.MAPPED_ABOVE_BYTES` of pixels is decoded into a file of the cache by all
    processes together: every one of them has to call this.

    Args:
        source: a named set (`digits`, `mnist`, `fashion_mnist`, `cifar10`, `cifar100`); a folder with one folder
            of images per class, or with `train/` and possibly `test/` folders of that kind; a folder of WebDataset
            shards, or with `train/` and possibly `test/` folders of those; parquet files, a folder that `save_to_disk`
            wrote or a set of the Hub, see `tables.find_in_tables`; or an .npz file with `x_train`, `y_train` and
            possibly `x_test`, `y_test`, `names`.
        image_size: side in pixels to scale and center-crop to. None keeps sets of square images as they are, and
            takes for a folder the largest size a generator can have that is not over the images' median shorter
            side, 8 to 32.
        test_fraction: share of each class held out as test set where the source has none, see `split_off`.
        fewest_classes: that it has to have.
        columns: of images and classes, in tables.
    Raises:
        InputError: nothing there, classes without images, unreadable images, sets that do not fit each other.
    """
    if any(columns) and not holds_encoded(source):
        raise InputError(f"{source} has no columns: leave --image-column and --label-column out")
    if source in NAMED_SETS:
        if Path(source).exists():
            logger.info("data: %s is the named set; the folder or file of that name is ./%s", source, source)
        with main_process_first():  # one process downloads a set, the others find it
            train, test = NAMED_SETS[source]()
    elif holds_encoded(source):
        found = find_images(source, columns)
        require_classes(found.class_names, source, fewest_classes)  # what is missing is said before an hour of decoding
        if not found.has_test:
            require_two_of_each(found.labels.bincount(minlength=len(found.class_names)), found.class_names)
        side = image_size or size_of(found)
        train, test = _parts(found, (decode_into_cache if is_mapped(found, side) else read_into_memory)(found, side))
    elif not Path(source).exists():
        known = f"a path, hf:owner/name of the Hub, or one of {', '.join(NAMED_SETS)}"
        raise InputError(f"no such data: {source!r} is not {known}")
    elif source.endswith(".npz") and Path(source).is_file():
        train, test = load_npz(Path(source))
    else:
        raise InputError(
            f"{source} is no data: expected a folder with one folder per class, shards, parquet files, or an .npz file"
        )
    require_classes(train.class_names, source, fewest_classes)
    height, width = train.images.shape[-2:]
    if image_size is None and (height != width or height not in GENERATOR_SIZES):
        image_size = automatic_image_size([min(height, width)])
        _say_scaled(source, min(height, width), image_size)
    if test is None:
        train, test = split_off(train, test_fraction, closed=source in NAMED_SETS)
    return _resized(train, image_size), _resized(test, image_size)


def size_of(source: ImageSource) -> int:
    """The side in pixels that a source's images are brought to where nothing says another."""
    sides = short_sides(source) or [LARGEST_AUTOMATIC_SIZE]
    side = automatic_image_size(sides)
    _say_scaled(str(source.root), round(statistics.median(sides)), side)
    return side


@cache
def _say_scaled(source: str, own: int, side: int) -> None:
    """That images are made smaller or larger unasked: once, though a plan looks at them before a run."""
    if own != side:
        larger = "; data.image_size takes them larger, which takes longer" if own > side else ""
        logger.info("data: images of %d px (the median shorter side) are brought to %d px%s", own, side, larger)


def is_mapped(source: ImageSource, image_size: int) -> bool:
    """Whether a source's images are too many to be held in memory; grey ones are counted as if they had colour."""
    return len(source) * 3 * image_size**2 > decode.MAPPED_ABOVE_BYTES


def _parts(
    source: ImageSource, images: UInt8[Tensor, "n c h w"] | MappedImages
) -> tuple[LabeledImages, LabeledImages | None]:
    everything = LabeledImages(images, source.labels, source.class_names, source.class_of)
    if not source.has_test:
        return everything, None
    rows_train, rows_test = torch.arange(len(source)).split([source.num_train, len(source) - source.num_train])
    if isinstance(images, MappedImages):
        return everything.subset(rows_train), everything.subset(rows_test)
    labels_train, labels_test = source.labels[rows_train], source.labels[rows_test]
    return (  # views, where `subset` would copy
        replace(everything, images=images[: source.num_train], labels=labels_train),
        replace(everything, images=images[source.num_train :], labels=labels_test),
    )


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


def data_source(data: str | None) -> str | None:
    """A path as it is found from any working directory; the name of a named set as it is.

    Raises:
        InputError: an empty path, which would be the folder that one happens to be in.
    """
    if data == "":
        raise InputError("the data has an empty name: name a folder, a file or a named set")
    if data is None or data in NAMED_SETS or not Path(data).exists():
        return data
    return str(Path(data).resolve())


def load_data(part: Data, fewest_classes: int = 2) -> tuple[LabeledImages, LabeledImages]:
    """The images to condense and those to judge on, as a recipe's `data` part says; of so many classes at least."""
    accelerator = new_accelerator()  # first: processes share the decoding of a large set
    train, test = load_real(part.source, part.image_size, part.test_fraction, fewest_classes, columns_of(part))
    if part.judge_on == "validation":
        train, test = split_off(train, part.validation_fraction, "validation", part.source in NAMED_SETS)
    if accelerator.is_main_process:
        logger.info(
            "data: %s, %d classes, %d training and %d %s images of %dx%dx%d",
            part.source, train.num_classes, len(train), len(test), part.judge_on, train.channels,
            train.image_size, train.image_size,
        )  # fmt: skip
    for note in notes_on_overlap(train, test, part):
        if accelerator.is_main_process:
            logger.warning("data: %s", note)
    return train, test
