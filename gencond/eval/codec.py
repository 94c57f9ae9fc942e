"""The rival at equal storage: ordinary photographs, as many as an ordinary image codec holds in the same bytes."""

import io
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from gencond.data.images import LabeledImages
from gencond.data.select import random_rows

logger = logging.getLogger(__name__)

# Qualities from coarse and many photographs to fine and few, of which the best is chosen on a held-out slice.
QUALITIES = (20, 40, 60, 80)
# All that decides the bytes is said: defaults change between versions (tune does, in libavif 1.4). Of the settings of
# scripts/bench/codec.py these have the least error for their bytes; 4:4:4 keeps colours that are a pixel wide.
ENCODER = {"codec": "aom", "speed": 4, "advanced": {"tune": "psnr"}, "range": "full", "autotiling": False}
SUBSAMPLING = {1: "4:0:0", 3: "4:4:4"}
# A mosaic holds as many photographs as make a megapixel: memory is bounded, no limit of a decoder is met, mosaics are
# encoded side by side, and a frame costs 300 bytes of some 50,000.
MOSAIC_PIXELS = 2**20
WELL_FILLED = 0.98  # of the bytes; below, the photographs are made finer


def encoder_version() -> str:
    """What the bytes of a mosaic depend on, for people: Pillow, libavif and its codecs."""
    import PIL
    from PIL import _avif

    return f"Pillow {PIL.__version__}, libavif {_avif.libavif_version} ({_avif.codec_versions()})"


def encode_mosaic(images: UInt8[Tensor, "n c h w"], quality: int) -> bytes:
    """Images side by side in one AVIF file, as square as their number allows.

    Args:
        quality: 0 (coarse) to 100.
    """
    from PIL import Image

    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = images.new_zeros(rows * columns, channels, height, width)
    canvas[:count] = images
    pixels = canvas.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = pixels.reshape(rows * height, columns * width, channels).contiguous().numpy()
    buffer = io.BytesIO()
    # One thread: how an image is cut for several decides its bytes, and machines differ in how many they have.
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(
        buffer, "AVIF", quality=quality, subsampling=SUBSAMPLING[channels], max_threads=1, **ENCODER
    )
    return buffer.getvalue()


def decode_mosaic(content: bytes, shape: tuple[int, ...]) -> UInt8[Tensor, "n c h w"]:
    """The images of `encode_mosaic` as they come back.

    Args:
        shape: [n, c, h, w] of what was encoded.
    """
    from PIL import Image

    count, channels, height, width = shape
    with Image.open(io.BytesIO(content)) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB" if channels == 3 else "L")))
    columns = math.ceil(math.sqrt(count))
    tiles = pixels.view(-1, height, columns, width, channels).permute(0, 2, 4, 1, 3)
    return tiles.reshape(-1, channels, height, width)[:count].contiguous()


@dataclass(frozen=True)
class StoredPhotographs:
    """Photographs as they come back from mosaics.

    Args:
        images: as many of each class; photograph i is of class i modulo the classes, so labels cost nothing.
        num_bytes: of all files.
        quality: of the codec.
    """

    images: LabeledImages
    num_bytes: int
    quality: int


class Album:
    """Random photographs of a set in the order in which they are stored: one of each class, another of each, and so on.

    The first k of each class are those of `selection.random_subset(train, k, seed)`.
    """

    def __init__(self, train: LabeledImages, seed: int) -> None:
        self.train, self.rows = train, random_rows(train, int(train.counts.min()), seed).T
        self.num_in_mosaic = max(1, MOSAIC_PIXELS // train.image_size**2)
        self.ipc_of_mosaic = min(len(self.rows), max(1, self.num_in_mosaic // train.num_classes))  # about one mosaic
        self._files: dict[tuple[int, int, int], bytes] = {}

    @property
    def most(self) -> int:
        """Photographs of each class that there are."""
        return len(self.rows)

    def encoded(self, ipc: int, quality: int) -> list[bytes]:
        """The mosaics of `ipc` photographs of each class; each is encoded once."""
        stop = ipc * self.train.num_classes
        parts = [(first, min(first + self.num_in_mosaic, stop)) for first in range(0, stop, self.num_in_mosaic)]

        def encode(part: tuple[int, int]) -> bytes:
            if (known := self._files.get((*part, quality))) is None:
                known = self._files[(*part, quality)] = encode_mosaic(self._pixels(*part), quality)
            return known

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return list(threads.map(encode, parts))

    def size(self, ipc: int, quality: int) -> int:
        """Bytes of `ipc` photographs of each class."""
        return sum(map(len, self.encoded(ipc, quality)))

    def most_that_fit(self, num_bytes: int, quality: int) -> int:
        """How many photographs of each class fit, to one in a hundred; 0 where not one does."""
        held, too_many = 0, self.most + 1
        ipc = self.ipc_of_mosaic  # which says what one takes
        while True:
            size = self.size(ipc, quality)
            if size <= num_bytes:
                held = ipc
            else:
                too_many = ipc
            guess = min(max(int(ipc * num_bytes / size), held + 1), too_many - 1)
            if guess <= held + held // 100:
                return held
            ipc = guess

    def stored(self, ipc: int, num_bytes: int, quality: int) -> StoredPhotographs:
        """Photographs that fit at a quality; where they leave bytes over, at the finest that still fits."""
        if (size := self.size(ipc, quality)) < WELL_FILLED * num_bytes:
            # The first mosaic foretells what all of them take: a large set is not encoded at every quality in between.
            first = min(ipc, self.ipc_of_mosaic)
            bytes_per_byte = size / self.size(first, quality)
            coarse, fine = quality, 100
            while coarse < fine:
                middle = -(-(coarse + fine) // 2)
                fits = self.size(first, middle) * bytes_per_byte <= num_bytes
                coarse, fine = (middle, fine) if fits else (coarse, middle - 1)
            while coarse > quality and self.size(ipc, coarse) > num_bytes:
                coarse -= 1
            quality = coarse
        files, rows = self.encoded(ipc, quality), self.rows[:ipc].flatten()
        parts = rows.split(self.num_in_mosaic)
        images = torch.cat([
            decode_mosaic(file, (len(part), *self.train.images.shape[1:]))
            for file, part in zip(files, parts, strict=True)
        ])  # fmt: skip
        decoded = LabeledImages(images, self.train.labels[rows], self.train.class_names)
        return StoredPhotographs(decoded, sum(map(len, files)), quality)

    def _pixels(self, first: int, stop: int) -> UInt8[Tensor, "n c h w"]:
        return self.train.images[self.rows.flatten()[first:stop]]


def stored_photographs(
    train: LabeledImages, num_bytes: int, seeds: Sequence[int], quality: int
) -> list[StoredPhotographs] | None:
    """For each seed random photographs as they come back, as many of each class for one as for another.

    Args:
        num_bytes: that no seed's files may exceed.
    Returns:
        None where not one photograph of each class fits.
    """
    albums = [Album(train, seed) for seed in seeds]
    ipc = min(album.most_that_fit(num_bytes, quality) for album in albums)
    while ipc and max(album.size(ipc, quality) for album in albums) > num_bytes:
        ipc -= 1  # fewer photographs in a last mosaic may by chance take some bytes more
    return [album.stored(ipc, num_bytes, quality) for album in albums] if ipc else None


@dataclass(frozen=True)
class Choice:
    """The quality that taught best on a held-out slice of the training set.

    Args:
        quality: of the codec.
        top1: quality -> held-out accuracy in [0, 1], of one classifier each.
    """

    quality: int
    top1: dict[int, float]


def choose_quality(
    rest: LabeledImages,
    num_bytes: int,
    score: Callable[[LabeledImages], float],
    qualities: Sequence[int] = QUALITIES,
) -> Choice | None:
    """Which quality to store photographs in: coarse ones hold more, and which is better depends on bytes and training.

    Args:
        rest: the training set without the held-out slice.
        score: photographs -> accuracy on the slice, in [0, 1].
    Returns:
        None where not one photograph of each class fits at any quality.
    """
    album = Album(rest, seed=0)
    top1: dict[int, float] = {}
    of_files: dict[tuple[int, int], float] = {}  # where all photographs fit, several qualities end at the same files
    for quality in qualities:
        if not (ipc := album.most_that_fit(num_bytes, quality)):
            continue
        stored = album.stored(ipc, num_bytes, quality)
        if (ipc, stored.quality) not in of_files:
            of_files[ipc, stored.quality] = score(stored.images)
        top1[quality] = of_files[ipc, stored.quality]
        logger.info(
            "codec: %d photographs of each class in %d bytes at quality %d teach %.1f %% of held-out ones",
            ipc, stored.num_bytes, stored.quality, 100 * top1[quality],
        )  # fmt: skip
    return Choice(max(top1, key=top1.__getitem__), top1) if top1 else None
