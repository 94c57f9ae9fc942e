"""ConvNets: blocks of conv, norm, activation, pool, with the literature's choices for each."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["relu", "leaky_relu", "sigmoid", "swish"]
Norm = Literal["instance", "batch", "layer", "group", "none"]
Pooling = Literal["avg", "max", "none"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": partial(F.relu, inplace=True),  # of a norm's output, which no gradient needs
    "leaky_relu": F.leaky_relu,
    "sigmoid": F.sigmoid,
    "swish": F.silu,
}


def norm_layer(norm: Norm, channels: int, side: int) -> nn.Module:
    """The normalisation of a block. Instance norm is a group norm of one channel a group: no running statistics."""
    match norm:
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "group":
            return nn.GroupNorm(4, channels)
        case "batch":
            return nn.BatchNorm2d(channels)
        case "layer":
            return nn.LayerNorm([channels, side, side])
        case "none":
            return nn.Identity()


def padded_side(channels: int, image_size: int) -> int:
    """28 px grey images are padded to 32 in the first convolution, as the literature does."""
    return 32 if (channels, image_size) == (1, 28) else image_size


POOLED_TOGETHER = 64  # pixels of neighbouring rows, in one product


@cache
def _means_of_pixels(rows: int, side: int, dtype: torch.dtype) -> Float[Tensor, "pixels means"]:
    """What takes some rows of an image, as a vector, to the means of their 2 x 2 squares."""
    quarter = torch.full((2, 2), 0.25, dtype=dtype)
    squares = torch.eye(rows // 2 * (side // 2), dtype=dtype).view(-1, rows // 2, side // 2)
    return torch.kron(squares, quarter).flatten(1).T.contiguous()


def average_pooling(images: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h2 w2"]:
    """Means of 2 x 2 squares; an odd last row or column is left out.

    On a CPU they are a product with a constant matrix, which takes a third of the time of torch's own pooling, forward
    and backward; compiled code fuses the pooling instead.
    """
    height, width = images.shape[-2:]
    rows = max(2, min(height, POOLED_TOGETHER // width))
    if images.device.type != "cpu" or torch.compiler.is_compiling() or width % 2 or height % rows or rows % 2:
        return F.avg_pool2d(images, 2)
    means = images.unflatten(-2, (-1, rows)).flatten(-2) @ _means_of_pixels(rows, width, images.dtype)
    return means.unflatten(-1, (rows // 2, width // 2)).flatten(-3, -2)


class ConvNet(nn.Module):
    """Blocks of conv 3x3, norm, activation, pool.

    `ConvNet(3, 10, 32)` is the literature's ConvNet-3: 320,010 parameters, 2048 features.

    Args:
        channels, image_size: of the images; 28 px grey ones are padded to 32, as the literature does.
        width, depth: channels of every block, number of blocks.
        activation, norm, pooling: of every block; without pooling the side stays.
    Raises:
        ValueError: more blocks than the image can be halved.
    Source: as in Dataset Condensation with Distribution Matching (2110.04181) and its architecture search.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: int,
        width: int = 128,
        depth: int = 3,
        activation: Activation = "relu",
        norm: Norm = "instance",
        pooling: Pooling = "avg",
    ) -> None:
        super().__init__()
        side = padded_side(channels, image_size)
        extra = (side - image_size) // 2
        if pooling != "none" and side >> depth < 1:
            raise ValueError(f"{depth} blocks cannot halve {image_size} px images")
        self.activation, self.pooling = ACTIVATIONS[activation], pooling
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for block in range(depth):
            padding = 1 + (0 if block else extra)
            self.convs.append(nn.Conv2d(width if block else channels, width, 3, padding=padding))
            self.norms.append(norm_layer(norm, width, side))
            side = side if pooling == "none" else side // 2
        self.feature_dim = width * side**2
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            images = self.activation(norm(conv(images)))
            if self.pooling == "avg":
                images = average_pooling(images)
            elif self.pooling == "max":
                images = F.max_pool2d(images, 2)
        return images.flatten(1)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.features(images))


def automatic_depth(image_size: int) -> int:
    """Blocks that leave a feature map of about 4x4 (2x2 at 8 px): 3 at 28 and 32 px, 4 at 64."""
    return max(2, round(math.log2(image_size / 4)))
