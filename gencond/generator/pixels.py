"""Learnable pixels as a synthesizer: what DM, M3D and DREAM condense into."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


def decode(images: Float[Tensor, "n c s s"], factor: int) -> Float[Tensor, "m c s s"]:
    """Each image into factor x factor: its crops in reading order, each upsampled to full size (bilinear).

    m = n factor^2, the crops of an image one after the other, so that a prefix of images decodes to a prefix. A side
    that does not divide is padded below and to the right with mid-grey (0 in [-1, 1]).

    Source: "uniform multi-formation" of Kim et al., IDC (2205.14959), section 3.1.
    """
    if factor == 1:
        return images
    num_images, channels, size, _ = images.shape
    side = math.ceil(size / factor)
    padded = F.pad(images, (0, side * factor - size) * 2)
    tiles = padded.view(num_images, channels, factor, side, factor, side).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.reshape(num_images * factor**2, channels, side, side)
    return F.interpolate(tiles, size=(size, size), mode="bilinear", align_corners=False)


def pack(images: Float[Tensor, "n k c s s"], factor: int) -> Float[Tensor, "n c s s"]:
    """k = factor^2 images into one each, in reading order, downsampled (area): what `decode` starts from.

    Raises:
        ValueError: k is not factor^2.
    """
    num_images, parts, channels, size, _ = images.shape
    if parts != factor**2:
        raise ValueError(f"{parts} images cannot be packed by factor {factor}")
    side = math.ceil(size / factor)
    small = F.interpolate(images.flatten(0, 1), size=(side, side), mode="area")
    tiles = small.view(num_images, factor, factor, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(num_images, channels, factor * side, factor * side)[..., :size, :size]


class Pixels(nn.Module):
    """A bank of images, learned pixel by pixel: (labels, slots) -> images.

    Args:
        images: class-major, what learning starts from, in [-1, 1] or as the method scales them.
        ipc: images of each class.
    Raises:
        ValueError: as many images are not a whole number of classes.
    """

    def __init__(self, images: Float[Tensor, "n c s s"], ipc: int) -> None:
        super().__init__()
        if len(images) % ipc:
            raise ValueError(f"{len(images)} images are no whole number of classes of {ipc}")
        self.ipc = ipc
        self.images = nn.Parameter(images.clone())

    def forward(self, labels: Int64[Tensor, " n"], slots: Int64[Tensor, " n"]) -> Float[Tensor, "n c s s"]:
        """The images of (class, slot) pairs, with gradient.

        Raises:
            ValueError: a slot past the last image of a class: a bank of pixels has no more.
        """
        if len(slots) and int(slots.max()) >= self.ipc:
            raise ValueError(f"slot {int(slots.max())} of a bank that holds {self.ipc} images of each class")
        return self.images[labels * self.ipc + slots]

    @torch.no_grad()
    def clamp_(self, low: float = -1.0, high: float = 1.0) -> None:
        """Back into the range of images, as M3D and DREAM do; DM never does."""
        self.images.clamp_(low, high)
