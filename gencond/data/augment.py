"""Differentiable Siamese Augmentation (DSA): random image operations that gradients pass through.

The operations and their ranges are those of Zhao & Bilen, Dataset Condensation with Differentiable Siamese
Augmentation (ICML 2021), as DM (2110.04181) uses them. Drawing the parameters is apart from applying them, so
that one draw can serve real and synthetic images alike ("siamese"), or be cut into shares for many processes.

Everything is batched: one affine resampling, one colour transform and one mask do all operations of all images,
whichever image drew which.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gencond.common.errors import InputError

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
RESAMPLING = ("crop", "scale", "rotate")
CROP_RATIO = 0.125
CUTOUT_RATIO = 0.5
SCALE_RATIO = 1.2
ROTATE_DEGREES = 15.0
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5


Mode = Literal["one", "one_a_batch", "idc", "idc_a_batch", "all"]


class AugmentParams(NamedTuple):
    """What n images go through. Neutral rows leave their image as it is (to resampling error)."""

    theta: Float[Tensor, "n 2 3"]  # output -> input coordinates of `affine_grid`
    brightness: Float[Tensor, " n"]  # added, in standard deviations of the data
    saturation: Float[Tensor, " n"]  # factor on the distance to the pixel's grey
    contrast: Float[Tensor, " n"]  # factor on the distance to the image's mean
    cutout: Float[Tensor, "n 4"]  # box top, left, bottom, right in pixels; empty where nothing is cut

    def rows(self, index: slice | Tensor) -> "AugmentParams":
        """The parameters of some of the images."""
        return type(self)(*(field[index] for field in self))

    @classmethod
    def cat(cls, several: "Sequence[AugmentParams]") -> "AugmentParams":
        """Those of several draws, one after the other."""
        return cls(*map(torch.cat, zip(*several, strict=True)))

    def to(self, device: torch.device) -> "AugmentParams":
        return type(self)(*(field.to(device) for field in self))


@dataclass(frozen=True)
class Augmentation:
    """Random operations on images of one size, for example `Augmentation("color_crop_cutout_flip_scale_rotate", 32)`.

    Args:
        strategy: names from `OPERATIONS` joined by "_", or "none".
        image_size: side in pixels.
        mean, std: of the data, per channel, in the range of the images. The operations work on normalised images,
            where what moves in from outside (crop, scale, rotate) or is cut out is 0: the data's mean colour.
        mode: `one` draws one operation an image (DSA); `idc` flips, colours and cuts out always, with one of crop,
            scale and rotate; `all` applies the whole strategy (DiffAugment). With `_a_batch`, all images of a draw go
            through the same drawn operation, each by an amount of its own, as the released code trains classifiers.
    Raises:
        InputError: an unknown operation.
    """

    strategy: str
    image_size: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    mode: Mode = "one"

    def __post_init__(self) -> None:
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown:
            raise InputError(
                f"unknown augmentation {unknown[0]!r} in {self.strategy!r}; known: {', '.join(OPERATIONS)}"
            )

    @property
    def operations(self) -> list[str]:
        return [] if self.strategy in ("", "none") else self.strategy.split("_")

    def draw(self, num_images: int, rng: torch.Generator) -> AugmentParams:
        """Parameters for `num_images` images, drawn on the CPU so that every device sees the same ones."""
        n, size, names = num_images, self.image_size, self.operations

        def uniform() -> Tensor:
            return torch.rand(n, generator=rng)

        base = self.mode.removesuffix("_a_batch")
        exclusive = {"one": names, "idc": [name for name in names if name in RESAMPLING], "all": []}[base]
        choice = torch.randint(max(1, len(exclusive)), (n if base == self.mode else 1,), generator=rng).expand(n)

        def active(name: str) -> Tensor:
            return choice == exclusive.index(name) if name in exclusive else torch.full((n,), name in names)

        theta = torch.eye(2, 3).repeat(n, 1, 1)
        brightness, saturation, contrast = torch.zeros(n), torch.ones(n), torch.ones(n)
        cutout = torch.zeros(n, 4)
        if "scale" in names:
            low = 1 / SCALE_RATIO
            factors = torch.stack([uniform(), uniform()], 1) * (SCALE_RATIO - low) + low
            factors = torch.where(active("scale")[:, None], factors, torch.ones(()))
            theta[:, 0, 0], theta[:, 1, 1] = factors[:, 0], factors[:, 1]
        if "rotate" in names:
            angle = (uniform() - 0.5) * 2 * math.radians(ROTATE_DEGREES) * active("rotate")
            rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
            theta[:, :, :2] = rotation @ theta[:, :, :2]
        if "crop" in names:
            reach = int(size * CROP_RATIO + 0.5)
            shift = torch.randint(-reach, reach + 1, (n, 2), generator=rng) * active("crop")[:, None]
            theta[:, :, 2] = shift * (2.0 / size)
        if "flip" in names:
            flipped = (uniform() < 0.5) & active("flip")
            theta[flipped, :, 0] *= -1
        if "color" in names:
            on = active("color")
            brightness = (uniform() - 0.5) * BRIGHTNESS * on
            saturation = torch.where(on, uniform() * SATURATION, saturation)
            contrast = torch.where(on, uniform() + CONTRAST, contrast)
        if "cutout" in names:
            side = int(size * CUTOUT_RATIO + 0.5)
            center = torch.randint(0, size + (1 - side % 2), (n, 2), generator=rng)
            start = center - side // 2
            box = torch.cat([start, start + side], 1).clamp(0, size).float()
            cutout = box * active("cutout")[:, None]
        return AugmentParams(theta, brightness, saturation, contrast, cutout)

    def __call__(self, images: Float[Tensor, "n c h w"], params: AugmentParams) -> Float[Tensor, "n c h w"]:
        """The augmented images, in the range of the input (not clamped). Differentiable in `images`."""
        names = self.operations
        if not names:
            return images
        params = params.to(images.device)
        mean, std = (images.new_tensor(value).view(1, -1, 1, 1) for value in (self.mean, self.std))
        x = (images - mean) / std
        if "color" in names:
            x = x + params.brightness.view(-1, 1, 1, 1)
            grey = x.mean(1, keepdim=True)
            x = (x - grey) * params.saturation.view(-1, 1, 1, 1) + grey
            level = x.mean((1, 2, 3), keepdim=True)
            x = (x - level) * params.contrast.view(-1, 1, 1, 1) + level
        if {"crop", "flip", "scale", "rotate"} & set(names):
            grid = F.affine_grid(params.theta.to(x.dtype), list(x.shape), align_corners=False)
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if "cutout" in names:
            position = torch.arange(self.image_size, device=x.device)
            top, left, bottom, right = params.cutout.T[:, :, None]
            in_rows = (position >= top) & (position < bottom)
            in_columns = (position >= left) & (position < right)
            x = x * ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])
        return x * std + mean
