"""The three ranges of pixel values: uint8 on disk, [0, 1] at the public edge, [-1, 1] inside."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_signed(images: UInt8[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """uint8 -> [-1, 1]."""
    return images.float() / 127.5 - 1


def to_unit(images: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """[-1, 1] -> [0, 1]."""
    return (images + 1) / 2


def to_uint8(images: Float[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n c h w"]:
    """[0, 1] -> uint8, rounded."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
