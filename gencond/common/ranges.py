"""The three ranges of pixel values: uint8 on disk, [0, 1] at the public edge, [-1, 1] inside; and no NaN in any."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gencond.common.errors import InputError


def to_signed(images: UInt8[Tensor, "*n c h w"] | Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """uint8 -> [-1, 1]; floats are there already."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1


def to_unit(images: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """[-1, 1] -> [0, 1]."""
    return (images + 1) / 2


def from_unit(images: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """[0, 1] -> [-1, 1]."""
    return images * 2 - 1


def to_uint8(images: Float[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n c h w"]:
    """[0, 1] -> uint8, rounded."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def as_bytes(images: UInt8[Tensor, "*n c h w"] | Float[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n c h w"]:
    """Floats in [-1, 1] -> uint8; bytes are there already."""
    return to_uint8(to_unit(images)) if images.is_floating_point() else images


def require_finite(state: Mapping[str, Tensor], what: str = "") -> None:
    """Raises InputError that names the first tensor with NaN or infinity: weights are looked at where they enter.

    Args:
        what: they are, for the message.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(
                f"{what and what + ': '}{name} holds NaN or infinity: the file is damaged, or its training diverged"
            )
