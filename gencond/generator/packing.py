"""Several small images in the place of one: more of them for the same storage.

Source: "multi-formation" of Kim et al., IDC (2205.14959), section 3.1.
"""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def decode(images: Float[Tensor, "n c s s"], factor: int, seen_at: int | None = None) -> Float[Tensor, "m c s2 s2"]:
    """Each image into factor x factor: its crops in reading order, each upsampled to full size (bilinear).

    m = n factor^2, the crops of an image one after the other, so that a prefix of images decodes to a prefix. A side
    that does not divide is padded below and to the right with mid-grey (0 in [-1, 1]).

    Args:
        seen_at: side of the results, smoothed where it is smaller than what they are made of; None: full size.
    """
    size = images.shape[-1]
    seen_at = seen_at or size
    side = math.ceil(size / factor)
    if factor > 1:
        images = cut(F.pad(images, (0, side * factor - size) * 2), factor).flatten(0, 1)
    if seen_at == side:
        return images
    return F.interpolate(
        images, size=(seen_at, seen_at), mode="bilinear", align_corners=False, antialias=seen_at < side
    )


def pack(images: Float[Tensor, "n k c s s"], factor: int) -> Float[Tensor, "n c s s"]:
    """k = factor^2 images into one each, in reading order, downsampled (area): what `decode` starts from.

    Raises:
        ValueError: k is not factor^2.
    """
    num_images, parts, channels, size, _ = images.shape
    if parts != factor**2:
        raise ValueError(f"{parts} images cannot be packed by factor {factor}")
    small = shrink(images.flatten(0, 1), math.ceil(size / factor))
    return tile(small.unflatten(0, (num_images, parts)), factor)[..., :size, :size]


def shrink(images: Float[Tensor, "n c s s"], side: int) -> Float[Tensor, "n c side side"]:
    """What a part of a packed image shows of a whole one: its areas' means."""
    return F.interpolate(images, size=(side, side), mode="area")


def tile(parts: Float[Tensor, "n k c t t"], factor: int) -> Float[Tensor, "n c s s"]:
    """k = factor^2 parts side by side in reading order, s = factor t."""
    num_images, _, channels, side, _ = parts.shape
    grid = parts.view(num_images, factor, factor, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(num_images, channels, factor * side, factor * side)


def cut(images: Float[Tensor, "n c s s"], factor: int) -> Float[Tensor, "n k c t t"]:
    """k = factor^2 parts in reading order, s = factor t: what `tile` lays together.

    Raises:
        RuntimeError: a side that is no multiple of the factor.
    """
    num_images, channels, size, _ = images.shape
    grid = images.reshape(num_images, channels, factor, size // factor, factor, size // factor)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
