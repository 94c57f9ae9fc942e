"""ConvNets: blocks of conv, norm, activation, pool, with the literature's choices for each."""

import math
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["relu", "leaky_relu", "sigmoid", "swish"]
Norm = Literal["instance", "batch", "layer", "group", "none"]
Pooling = Literal["avg", "max", "none"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
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
                images = F.avg_pool2d(images, 2)
            elif self.pooling == "max":
                images = F.max_pool2d(images, 2)
        return images.flatten(1)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.features(images))


def automatic_depth(image_size: int) -> int:
    """Blocks that leave a feature map of about 4x4 (2x2 at 8 px): 3 at 28 and 32 px, 4 at 64."""
    return max(2, round(math.log2(image_size / 4)))
