"""BigGAN's class-conditional generator (Brock et al., Large Scale GAN Training, 1809.11096), 8 to 512 pixels."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gencond.common.errors import InputError
from gencond.common.regression import ridge_regression
from gencond.generator.backbone import Backbone, SelfAttention, attention_stage, doublings

BATCH_NORM_MOMENTUM = 0.1
LARGEST_PATH = 32  # pixels of a side: larger ones are halved for the linear path, while they are even
OWN_SHARE = 0.03  # of what the other layers say, once the linear path makes the images
FITTED_AT_ONCE = 128  # images
RIDGE = 1e-3  # as a share of the mean variance of a latent's number
LARGEST_VALUE = 0.97  # that a path is fitted to: a tanh is 1 at infinity only


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose gain and bias are linear functions of a condition.

    In eval mode the running statistics make it a fixed affine map of each channel.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, condition_dim: int, eps: float) -> None:
        super().__init__()
        self.gain = nn.Linear(condition_dim, channels, bias=False)
        self.bias = nn.Linear(condition_dim, channels, bias=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum, self.eps = BATCH_NORM_MOMENTUM, eps

    def forward(self, x: Float[Tensor, "n c h w"], condition: Float[Tensor, "n k"]) -> Float[Tensor, "n c h w"]:
        x = F.batch_norm(
            x, self.running_mean, self.running_var, training=self.training, momentum=self.momentum, eps=self.eps
        )
        gain, bias = self.gain(condition)[:, :, None, None], self.bias(condition)[:, :, None, None]
        return torch.addcmul(x + bias, x, gain)  # (1 + gain) x + bias


class GeneratorBlock(nn.Module):
    """norm ReLU up conv, norm ReLU conv, plus an upsampled 1x1 skip: doubles the side."""

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int, eps: float) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(in_channels, condition_dim, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = ConditionalBatchNorm(out_channels, condition_dim, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"], condition: Float[Tensor, "n k"]) -> Float[Tensor, "n c2 h2 w2"]:
        h = F.interpolate(F.relu(self.norm1(x, condition)), scale_factor=2)
        h = self.conv1(h)
        h = self.conv2(F.relu(self.norm2(h, condition)))
        return h + F.interpolate(self.skip(x), scale_factor=2)  # a 1x1 convolution commutes with nearest upsampling


class BigGANGenerator(Backbone):
    """(latents, labels) -> images in [-1, 1].

    The latent is split in one chunk for the first linear layer and one for each block ("hierarchical latents"); a
    block is conditioned on its chunk and the shared class embedding through its batch norms.

    Args:
        sample_size: side of the images in pixels; `sample_size / 2^len(block_out_channels)`, the side of the first
            feature map, must be a whole number >= 2.
        out_channels: 1 grey, 3 RGB.
        num_class_embeds: number of classes.
        latent_dim: length of a latent, a multiple of the number of chunks (blocks + 1).
        class_embed_dim: length of the class embedding. As long as there are classes and with an identity table,
            the batch norms have gains and biases of each class, as in BigGANs without a shared embedding.
        block_out_channels: one entry a block; each block doubles the side.
        norm_eps: of the conditional batch norms.
        in_channels: of the first feature map; None: as many as the first block makes.
        attention_resolution: side of the feature maps that self-attention follows, one of those that blocks make;
            None: no attention.
        hierarchical: False gives the whole latent to the first linear layer and none of it to the blocks.
        out_norm_eps: of the last batch norm, where it differs; None: `norm_eps`.
        linear_path: whether a linear function of the whole latent is added before the last tanh: an image whose side is
            halved while it is above 32 px and even, scaled up. It is 0 until `fit_path` or training changes it. The
            blocks know a place through the first feature map only, so that large images are encoded badly without it.
    Raises:
        ValueError: sizes that do not divide.
    """

    learns_statistics = True

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        out_channels: int = 3,
        num_class_embeds: int = 10,
        latent_dim: int = 64,
        class_embed_dim: int = 64,
        block_out_channels: Sequence[int] = (64, 64, 64),
        norm_eps: float = 1e-4,
        in_channels: int | None = None,
        attention_resolution: int | None = None,
        hierarchical: bool = True,
        out_norm_eps: float | None = None,
        linear_path: bool = False,
    ) -> None:
        super().__init__()
        num_blocks = len(block_out_channels)
        self.bottom = doublings(sample_size, num_blocks)
        num_chunks = num_blocks + 1 if hierarchical else 1
        if latent_dim % num_chunks:
            raise ValueError(f"latent_dim {latent_dim} is not a multiple of the {num_chunks} chunks")
        self.chunk_dim, self.hierarchical = latent_dim // num_chunks, hierarchical
        condition_dim = class_embed_dim + (self.chunk_dim if hierarchical else 0)
        widths = (in_channels or block_out_channels[0], *block_out_channels)
        self.class_embedding = nn.Embedding(num_class_embeds, class_embed_dim)
        self.linear = nn.Linear(self.chunk_dim, widths[0] * self.bottom**2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(widths[number], widths[number + 1], condition_dim, norm_eps) for number in range(num_blocks)
        )
        self.attention_after = attention_stage(self.bottom, num_blocks, attention_resolution)
        if self.attention_after is not None:
            self.attention = SelfAttention(widths[self.attention_after + 1])
        out_eps = norm_eps if out_norm_eps is None else out_norm_eps
        self.out_norm = nn.BatchNorm2d(widths[-1], eps=out_eps, momentum=BATCH_NORM_MOMENTUM)
        self.out_conv = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.apply(orthogonal_init)
        self.path_side, self.path_scale = sample_size, latent_dim**-0.5  # weights of unit size: Adam's steps fit them
        while self.path_side > LARGEST_PATH and self.path_side % 2 == 0:
            self.path_side //= 2
        self.path = nn.Linear(latent_dim, out_channels * self.path_side**2) if linear_path else None
        if self.path is not None:
            _clear(self.path)

    def forward(self, latents: Float[Tensor, "n latent_dim"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n c s s"]:
        return torch.tanh(self._before_tanh(latents, labels))

    def _before_tanh(self, latents: Tensor, labels: Tensor) -> Tensor:
        embedding = self.class_embedding(labels)  # [n, class_embed_dim]
        first, *chunks = latents.split(self.chunk_dim, dim=1) if self.hierarchical else (latents,)
        x = self.linear(first).view(len(latents), -1, self.bottom, self.bottom)
        for number, block in enumerate(self.blocks):
            condition = torch.cat([embedding, chunks[number]], dim=1) if self.hierarchical else embedding
            x = self.through(block, x, condition)
            if number == self.attention_after:
                x = self.through(self.attention, x)
        x = self.out_conv(F.relu(self.out_norm(x)))
        if self.path is None:
            return x
        straight = self.path(latents * self.path_scale).view(len(x), -1, self.path_side, self.path_side)
        if self.path_side < x.shape[-1]:
            straight = F.interpolate(straight, size=x.shape[-2:], mode="bilinear")
        return x + straight

    @torch.no_grad()
    def fit_path(
        self, latents: Float[Tensor, "n latent_dim"], labels: Int64[Tensor, " n"], images: Float[Tensor, "n c s s"]
    ) -> None:
        """Makes the linear path give these images as well as it can, by ridge regression, once.

        The other layers keep a small share of their say, which another call would shrink again.

        Args:
            latents, labels: of the images, on the CPU as the weights are; two images or more that are not of one
                latent.
            images: in [-1, 1].
        Raises:
            ValueError: there is no linear path.
        """
        if self.path is None:
            raise ValueError("this generator has no linear path")
        _clear(self.path)
        for parameter in self.out_conv.parameters():
            parameter.mul_(OWN_SHARE)
        pieces = zip(*(one.split(FITTED_AT_ONCE) for one in (latents, labels, images)), strict=True)
        wanted = torch.cat([self._left_to_path(*piece) for piece in pieces]).double()
        given = (latents * self.path_scale).double()
        found = ridge_regression(given, wanted, RIDGE)
        self.path.weight.copy_(found.weights.T)
        self.path.bias.copy_(found(torch.zeros_like(given[:1]))[0])

    def _left_to_path(self, latents: Tensor, labels: Tensor, images: Tensor) -> Float[Tensor, "n k"]:
        """What a path that gives nothing yet would have to give."""
        missing = torch.atanh(images.clamp(-LARGEST_VALUE, LARGEST_VALUE)) - self._before_tanh(latents, labels)
        return F.interpolate(missing, size=(self.path_side, self.path_side), mode="area").flatten(1)


WIDTHS = {64: (16, 8, 4, 2), 128: (16, 8, 4, 2, 1), 256: (16, 8, 8, 4, 2, 1)}  # times 96 channels


def published_config(resolution: int) -> dict[str, Any]:
    """Arguments of `BigGANGenerator` for the shape in which BigGAN-PyTorch trains it: 32 px for the 10 classes of
    CIFAR-10, else the 1000 of ImageNet.

    Raises:
        InputError: another resolution than 32, 64, 128 or 256.
    """
    if resolution == 32:
        return {
            "sample_size": 32, "num_class_embeds": 10, "latent_dim": 128, "class_embed_dim": 10,
            "block_out_channels": [256, 256, 256], "norm_eps": 1e-5, "hierarchical": False,
        }  # fmt: skip
    if resolution not in WIDTHS:
        raise InputError(f"BigGAN has 32, 64, 128 or 256 px, not {resolution}")
    widths = [96 * times for times in WIDTHS[resolution]]
    return {
        "sample_size": resolution, "num_class_embeds": 1000, "latent_dim": 20 * (len(widths) + 1),
        "class_embed_dim": 128, "block_out_channels": widths, "norm_eps": 1e-5, "attention_resolution": 64,
    }  # fmt: skip


def orthogonal_init(module: nn.Module) -> None:
    """BigGAN's initialisation: orthogonal weights, biases 0; class embeddings keep their unit normal."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.orthogonal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _clear(layer: nn.Linear) -> None:
    """Makes its outputs 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


@torch.no_grad()
def set_standing_statistics(generator: BigGANGenerator, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Replaces the batch norms' running statistics by exact averages over `batches` of (latents, labels).

    The statistics of averaged weights are not the average of statistics seen with other weights; BigGAN (1809.11096,
    section 3.1 and appendix D) computes "standing statistics" for sampling. Leaves the generator in eval mode.
    """
    norms = [module for module in generator.modules() if isinstance(module, ConditionalBatchNorm | nn.BatchNorm2d)]
    generator.train()
    for number, (latents, labels) in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 / number  # running averages become plain averages
        generator(latents, labels)
    for norm in norms:
        norm.momentum = BATCH_NORM_MOMENTUM
    generator.eval()
