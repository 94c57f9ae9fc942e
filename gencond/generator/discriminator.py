"""The projection discriminator that a BigGAN generator is pretrained against."""

import math

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gencond.generator.biggan import orthogonal_init


def channels_at(side: int, width: int) -> int:
    """Channels of a block whose larger side is `side` pixels: `width` up to 16, half of it for each doubling beyond.

    Both networks of a pretraining follow it; a convolution then costs about the same at every resolution.
    """
    return max(1, width >> max(0, math.ceil(math.log2(side / 16))))


class DiscriminatorBlock(nn.Module):
    """ReLU conv ReLU conv [average pool], plus a 1x1 skip; the first block of a network leaves the first ReLU out."""

    def __init__(self, in_channels: int, out_channels: int, downsample: bool, first: bool) -> None:
        super().__init__()
        self.downsample, self.first = downsample, first
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if downsample or in_channels != out_channels else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        h = self.conv1(x if self.first else F.relu(x))
        h = self.conv2(F.relu(h))
        if self.downsample:  # pooling first makes the 1x1 skip four times cheaper, with the same result
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.skip is None else self.skip(x))


class ProjectionDiscriminator(nn.Module):
    """(images, labels) -> realness logits: linear(h) + <embedding(label), h>, every weight spectrally normalised.

    Args:
        image_size: side in pixels. Blocks halve it until it is at most 4, then one block keeps it.
        channels: of the images.
        num_classes: number of classes.
        width: channels of the blocks, fewer above 16 pixels (`channels_at`).
    Source: Miyato & Koyama, cGANs with Projection Discriminator (1802.05637), as in BigGAN (1809.11096).
    """

    def __init__(self, image_size: int, channels: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        blocks, size, inputs = [], image_size, channels
        while size > 4:
            outputs = channels_at(size, width)
            blocks.append(DiscriminatorBlock(inputs, outputs, downsample=True, first=not blocks))
            size, inputs = size // 2, outputs
        blocks.append(DiscriminatorBlock(inputs, width, downsample=False, first=not blocks))
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(width, 1)
        self.class_embedding = nn.Embedding(num_classes, width)
        self.apply(orthogonal_init)
        nn.init.orthogonal_(self.class_embedding.weight)
        for module in list(self.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                spectral_norm(module, eps=1e-6)

    def forward(self, images: Float[Tensor, "n c s s"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        h = F.relu(self.blocks(images)).sum((2, 3))  # [n, width]
        return self.linear(h)[:, 0] + (self.class_embedding(labels) * h).sum(1)
