"""The rival at equal storage: ordinary photographs, as many as an ordinary image codec holds in the same bytes."""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from gencond.data import LabeledImages
from gencond.selection import random_subset

QUALITY = 30  # of AVIF; which is best depends on the bytes and on how long is trained, see docs/flagship.md


def encode_mosaic(images: UInt8[Tensor, "n c h w"], quality: int = QUALITY) -> bytes:
    """Images side by side in one AVIF file, as square as their number allows; quality in 0 (coarse) .. 100."""
    from PIL import Image

    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = images.new_zeros(rows * columns, channels, height, width)
    canvas[:count] = images
    pixels = canvas.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = pixels.reshape(rows * height, columns * width, channels).expand(-1, -1, 3)
    buffer = io.BytesIO()
    # One thread: how an image is cut for several decides its bytes, and machines differ in how many they have.
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, "AVIF", quality=quality, max_threads=1)
    return buffer.getvalue()


def decode_mosaic(content: bytes, shape: tuple[int, int, int, int]) -> UInt8[Tensor, "n c h w"]:
    """The images of `encode_mosaic` as they were seen again.

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


def codec_subsets(
    train: LabeledImages, num_bytes: int, seeds: Sequence[int], quality: int = QUALITY
) -> tuple[list[LabeledImages], int] | None:
    """(for each seed random real images as decoded, as many a class as fit for all of them; bytes of the largest file).

    A mosaic is class-major, so that labels cost nothing.

    Args:
        num_bytes: that no file may exceed.
        quality: of the codec, 0 to 100.
    Returns:
        None where not one image a class fits.
    """
    ipc = int(train.counts.min())
    for seed in seeds:
        found = _most_that_fit(train, ipc, num_bytes, seed, quality)
        if found is None:
            return None
        ipc = found
    while True:  # what a later seed allows fits an earlier one, but for a few bytes of luck
        real = [random_subset(train, ipc, seed) for seed in seeds]
        files = [encode_mosaic(one.images[:], quality) for one in real]
        if max(map(len, files)) <= num_bytes:
            break
        if ipc == 1:
            return None
        ipc -= 1
    decoded = [
        LabeledImages(decode_mosaic(file, tuple(one.images.shape)), one.labels, train.class_names)
        for one, file in zip(real, files, strict=True)
    ]
    return decoded, max(map(len, files))


def _most_that_fit(train: LabeledImages, most: int, num_bytes: int, seed: int, quality: int) -> int | None:
    """How many images a class a file of `num_bytes` holds, to one in a hundred; at most `most`."""
    held, too_many, ipc = 0, most + 1, min(most, 32)
    while True:
        size = len(encode_mosaic(random_subset(train, ipc, seed).images[:], quality))
        if size <= num_bytes:
            held = ipc
        else:
            too_many = ipc
        guess = min(max(int(ipc * num_bytes / size), held + 1), too_many - 1)
        if guess <= held + held // 100:
            return held or None
        ipc = guess
