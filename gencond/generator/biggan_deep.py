"""BigGAN-deep's class-conditional generator (Brock et al., 1809.11096, appendix B), 128 to 512 pixels."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gencond.common.errors import InputError
from gencond.generator.backbone import Backbone, SelfAttention, attention_stage, doublings
from gencond.generator.biggan import orthogonal_init

BOTTLENECK = 4  # a block's inner convolutions have a fourth of its input channels
BLOCKS_PER_STAGE = 2


class StoredNorm(nn.Module):
    """Batch normalisation by stored statistics, in train mode too, and a ReLU.

        relu(gain * (x - mean) / sqrt(var + eps) + bias)

    is computed as one multiply-add over the feature map; scale and shift of each channel are small.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.eps = eps

    def normalised(
        self, x: Float[Tensor, "n c h w"], gain: Float[Tensor, "#n c"], bias: Float[Tensor, "#n c"]
    ) -> Float[Tensor, "n c h w"]:
        scale = gain * torch.rsqrt(self.running_var + self.eps)
        shift = bias - self.running_mean * scale
        # the feature map's own precision, which autocast may have lowered
        scale, shift = scale.to(x.dtype)[:, :, None, None], shift.to(x.dtype)[:, :, None, None]
        return torch.addcmul(shift, x, scale).relu_()


class ConditionalStoredNorm(StoredNorm):
    """Gain - 1 and bias are linear functions of a condition."""

    def __init__(self, channels: int, condition_dim: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.gain = nn.Linear(condition_dim, channels, bias=False)
        self.bias = nn.Linear(condition_dim, channels, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"], condition: Float[Tensor, "n k"]) -> Float[Tensor, "n c h w"]:
        return self.normalised(x, 1 + self.gain(condition), self.bias(condition))


class AffineStoredNorm(StoredNorm):
    """Gain and bias are learned for each channel."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.normalised(x, self.weight[None], self.bias[None])


class DeepBlock(nn.Module):
    """A bottleneck of 1x1, 3x3, 3x3 and 1x1 convolutions beside a skip that drops channels; may double the side."""

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int, eps: float, doubles: bool) -> None:
        super().__init__()
        if out_channels > in_channels or in_channels % BOTTLENECK:
            raise ValueError(
                f"a block of BigGAN-deep keeps or drops channels, in multiples of {BOTTLENECK}: not "
                f"{in_channels} -> {out_channels}"
            )
        inner = in_channels // BOTTLENECK
        self.out_channels, self.doubles = out_channels, doubles
        self.norm1 = ConditionalStoredNorm(in_channels, condition_dim, eps)
        self.conv1 = nn.Conv2d(in_channels, inner, 1)
        self.norm2 = ConditionalStoredNorm(inner, condition_dim, eps)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1)
        self.norm3 = ConditionalStoredNorm(inner, condition_dim, eps)
        self.conv3 = nn.Conv2d(inner, inner, 3, padding=1)
        self.norm4 = ConditionalStoredNorm(inner, condition_dim, eps)
        self.conv4 = nn.Conv2d(inner, out_channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"], condition: Float[Tensor, "n k"]) -> Float[Tensor, "n c2 h2 w2"]:
        h = self.norm2(self.conv1(self.norm1(x, condition)), condition)
        skip = x[:, : self.out_channels]
        if self.doubles:
            h, skip = F.interpolate(h, scale_factor=2), F.interpolate(skip, scale_factor=2)
        h = self.norm3(self.conv2(h), condition)
        h = self.norm4(self.conv3(h), condition)
        return self.conv4(h) + skip


class BigGANDeepGenerator(Backbone):
    """(latents, labels) -> images in [-1, 1].

    Class embedding and latent together condition the first linear layer and every batch norm. A stage is a block that
    keeps the side and one that doubles it. Batch norms always use their stored statistics, in train mode too: this
    generator is for pretrained weights, and what normalises them belongs to them.

    Args:
        sample_size: side of the images in pixels; `sample_size / 2^len(block_out_channels)`, the side of the first
            feature map, must be a whole number >= 2.
        out_channels: 1 grey, 3 RGB.
        num_class_embeds: number of classes.
        latent_dim: length of a latent.
        class_embed_dim: length of the class embedding.
        block_out_channels: one entry a stage, none larger than the one before.
        norm_eps: of the batch norms.
        in_channels: of the first feature map; None: as many as the first stage makes.
        attention_resolution: side of the feature maps that self-attention follows, one of those that stages make;
            None: no attention.
        truncation: t in (0, 1] of the latents that the statistics belong to, t * truncated normal(-2, 2); None:
            standard normal latents.
    Raises:
        ValueError: sizes that do not divide.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        out_channels: int = 3,
        num_class_embeds: int = 1000,
        latent_dim: int = 128,
        class_embed_dim: int = 128,
        block_out_channels: Sequence[int] = (2048, 1024, 512, 256, 128),
        norm_eps: float = 1e-4,
        in_channels: int | None = None,
        attention_resolution: int | None = None,
        truncation: float | None = None,
    ) -> None:
        super().__init__()
        num_stages = len(block_out_channels)
        self.bottom = doublings(sample_size, num_stages)
        condition_dim = class_embed_dim + latent_dim
        widths = (in_channels or block_out_channels[0], *block_out_channels)
        self.class_embedding = nn.Embedding(num_class_embeds, class_embed_dim)
        self.linear = nn.Linear(condition_dim, widths[0] * self.bottom**2)
        self.blocks = nn.ModuleList()
        for stage in range(num_stages):
            self.blocks.append(DeepBlock(widths[stage], widths[stage], condition_dim, norm_eps, doubles=False))
            self.blocks.append(DeepBlock(widths[stage], widths[stage + 1], condition_dim, norm_eps, doubles=True))
        stage = attention_stage(self.bottom, num_stages, attention_resolution)
        self.attention_after = None if stage is None else BLOCKS_PER_STAGE * stage + 1
        if stage is not None:
            self.attention = SelfAttention(widths[stage + 1])
        self.out_norm = AffineStoredNorm(widths[-1], norm_eps)
        self.out_conv = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.apply(orthogonal_init)

    def forward(self, latents: Float[Tensor, "n latent_dim"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n c s s"]:
        condition = torch.cat([self.class_embedding(labels), latents], dim=1)  # [n, class_embed_dim + latent_dim]
        x = self.linear(condition).view(len(latents), -1, self.bottom, self.bottom)
        for number, block in enumerate(self.blocks):
            x = self.through(block, x, condition)
            if number == self.attention_after:
                x = self.through(self.attention, x)
        return torch.tanh(self.out_conv(self.out_norm(x)))


WIDTHS = {128: (16, 8, 4, 2, 1), 256: (16, 8, 8, 4, 2, 1), 512: (16, 8, 8, 4, 2, 1, 1)}  # times 128 channels


def stage_widths(num_stages: int) -> tuple[int, ...]:
    """Channels of each stage, in units of the last stage's, as the published net of as many stages has them.

    Fewer stages than the smallest has are its first ones.

    Raises:
        ValueError: more stages than the largest has.
    """
    widths = next((widths for widths in WIDTHS.values() if len(widths) >= num_stages), None)
    if widths is None:
        raise ValueError(f"BigGAN-deep has up to {max(map(len, WIDTHS.values()))} doubling stages, not {num_stages}")
    return widths[:num_stages]


def published_config(resolution: int) -> dict[str, Any]:
    """Arguments of `BigGANDeepGenerator` for the shape in which it is published, for the 1000 classes of ImageNet.

    Raises:
        InputError: another resolution than 128, 256 or 512.
    """
    if resolution not in WIDTHS:
        raise InputError(f"BigGAN-deep has 128, 256 or 512 px, not {resolution}")
    widths = [128 * times for times in WIDTHS[resolution]]
    return {"sample_size": resolution, "block_out_channels": widths, "attention_resolution": 64}
