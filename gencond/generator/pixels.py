"""Learnable pixels as a synthesizer and an artefact: what DM, M3D and DREAM condense into."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gencond.common.errors import InputError
from gencond.generator.artefact import Condensed


class CondensedPixels(Condensed):
    """A bank of images, learned pixel by pixel: (class, slot) -> image.

    What is learned are values x per channel; the image in [-1, 1] is `offset + scale * x`. Learning in units of the
    data's standard deviation or of the range of images takes steps of different sizes.

    Args:
        class_names: class i of the labels is `class_names[i]`.
        num_slots: images of each class.
        image_size, channels: of the images; the side is that before `factor` cuts them.
        factor: every image is cut into factor x factor (`packing.decode`).
        offset, scale: per channel.
        provenance: what was condensed by what: recipe, data fingerprint, commit, versions.
        storage: how its weights are saved; see `stored_as`, which rounds them.
    Raises:
        InputError: offsets or scales of other channels.
    """

    stored = "learned images"

    @register_to_config
    def __init__(
        self,
        class_names: Sequence[str],
        num_slots: int,
        image_size: int,
        channels: int,
        factor: int = 1,
        offset: Sequence[float] = (0.0,),
        scale: Sequence[float] = (1.0,),
        provenance: Mapping[str, Any] | None = None,
        storage: str = "float32",
    ) -> None:
        super().__init__()
        if any(len(values) not in (1, channels) for values in (offset, scale)):
            raise InputError(f"offset and scale hold a number for each of {channels} channels, or one for all")
        self.pixels = nn.Parameter(torch.zeros(len(class_names) * num_slots, channels, image_size, image_size))

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.config.image_size

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def largest_ipc(self) -> int:
        return self.num_slots

    def bytes_of(self, ipc: int) -> int:
        return self.num_bytes * ipc // self.num_slots

    @property
    def _affine(self) -> tuple[Tensor, Tensor]:
        offset, scale = (
            self.pixels.new_tensor(value).view(1, -1, 1, 1) for value in (self.config.offset, self.config.scale)
        )
        return offset, scale

    @torch.no_grad()
    def fill_(self, images: Float[Tensor, "n c s s"]) -> None:
        """Starts from images in [-1, 1], class-major."""
        offset, scale = self._affine
        self.pixels.copy_((images - offset) / scale)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Back into the range of images, as M3D and DREAM do; DM never does."""
        offset, scale = self._affine
        self.pixels.copy_(((self.pixels * scale + offset).clamp(-1, 1) - offset) / scale)

    def forward(
        self, labels: Int64[Tensor, " n"], slots: Int64[Tensor, " n"], seed: int | None = None
    ) -> Float[Tensor, "n c s s"]:
        """Images of (class, slot) pairs, with gradient; `seed` means nothing here.

        Raises:
            ValueError: a slot past the last image of a class.
        """
        if len(slots) and int(slots.max()) >= self.num_slots:
            raise ValueError(f"slot {int(slots.max())} of a bank that holds {self.num_slots} images of each class")
        offset, scale = self._affine
        return self.pixels[labels * self.num_slots + slots] * scale + offset
