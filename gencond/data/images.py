"""Labelled images, in memory or in a file, and how a part of them is held out."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.ranges import as_bytes
from gencond.common.room import require_text
from gencond.data import decode
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
        class_names: sorted, but where classes were appended to an artefact.
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

    def in_order(self, class_names: Sequence[str]) -> "LabeledImages":
        """The same images with classes numbered as `class_names` has them; as it is where that is how they are.

        Args:
            class_names: its own, in any order.
        """
        if tuple(class_names) == self.class_names:
            return self
        position = {name: label for label, name in enumerate(class_names)}
        labels = torch.tensor([position[name] for name in self.class_names])[self.labels]
        return replace(self, labels=labels, class_names=tuple(class_names), class_of=None)

    def among(self, class_names: Sequence[str]) -> "LabeledImages":
        """The same images with their classes numbered as among `class_names`, of which theirs are some."""
        others = tuple(name for name in class_names if name not in self.class_names)
        return replace(self, class_names=(*self.class_names, *others)).in_order(class_names)

    def subset(self, index: Int64[Tensor, " k"]) -> "LabeledImages":
        """Some of the images: a copy in memory, or where they are too many still in their file."""
        images = self.images
        if isinstance(images, MappedImages) and len(index) * images.image_bytes > decode.MAPPED_ABOVE_BYTES:
            return replace(self, images=images.at(index), labels=self.labels[index])
        return replace(self, images=images[index], labels=self.labels[index])

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
        return [hashlib.sha256(image.tobytes()).digest() for image in as_bytes(self.images[:]).numpy()]


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
    rest, held_out = rows_split_off(data, fraction, part, closed)
    return data.subset(rest), data.subset(held_out)


def rows_split_off(
    data: LabeledImages, fraction: float, part: Literal["test", "validation"] = "test", closed: bool = False
) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " m"]]:
    """(rows of the rest, rows held out), ascending, as `split_off` has them; no image is copied. Raises as it does."""
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
    return (~is_held).nonzero()[:, 0], is_held.nonzero()[:, 0]


def require_two_of_each(counts: Int64[Tensor, " classes"], class_names: Sequence[str]) -> None:
    """Raises InputError where a class has too few images to hold one out."""
    for name, count in zip(class_names, counts.tolist(), strict=True):
        if count < 2:
            raise InputError(f"class {name!r} has {count} image(s): two are needed to hold one out for testing")


def require_classes(class_names: Sequence[str], source: str, fewest: int = 2) -> None:
    """Raises InputError where there is nothing to tell apart, or a name is no text that an artefact could hold."""
    for name in class_names:
        require_text(name, f"{source}: class")
    if len(class_names) < fewest:
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


def require_every_class(data: LabeledImages, where: str) -> None:
    for name, count in zip(data.class_names, data.counts.tolist(), strict=True):
        if count == 0:
            raise InputError(f"class {name!r} of {where} has no images: add some or remove the class")
