"""What every backbone shares: its face, drawing from it, gradient checkpointing, and self-attention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gencond.common.errors import InputError
from gencond.common.ranges import to_unit
from gencond.generator.loading import FiniteModel

ATTENTION_REDUCTION = 8  # of the channels in queries and keys; values are halved


class Backbone(FiniteModel):
    """A class-conditional generator: calling it with (latents, labels) gives images in [-1, 1], with gradient.

    Its config holds at least `sample_size`, `out_channels`, `num_class_embeds` and `latent_dim`. Latents are standard
    normal unless it has a `truncation` t: then they are t times a normal truncated to [-2, 2].

    `enable_gradient_checkpointing()` keeps block inputs only and computes the rest anew in the backward pass. In train
    mode it does nothing to blocks whose batch norms learn statistics, which the second forward would count twice.
    """

    _supports_gradient_checkpointing = True
    whole_latents = False  # whole numbers, see `codes.whole_numbers`
    squares_in_a_row = 1  # of an image, each of which a piece of the latent stands for
    _gradient_checkpointing_func: Any  # diffusers sets it where checkpointing is enabled
    learns_statistics = False  # its batch norms take part in training, instead of staying as they are

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def through(self, block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`block(*inputs)`, checkpointed where that is asked for."""
        counts = self.learns_statistics and self.training
        if self.gradient_checkpointing and torch.is_grad_enabled() and not counts:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    @torch.no_grad()
    def sample(
        self, labels: Sequence[int] | Tensor, truncation: float | None = None, rng: torch.Generator | None = None
    ) -> Float[Tensor, "n c h w"]:
        """An image for each class index, in [0, 1], in eval mode and without gradient.

        Args:
            labels: one a wanted image, in 0 .. num_class_embeds - 1.
            truncation: t of latents t * truncated normal(-2, 2), in (0, 1]; None takes the backbone's own law.
            rng: on the CPU, so that every device gets the same latents; None draws from torch's global one.
        Raises:
            InputError: an unknown class, or a truncation out of range.
        """
        labels = torch.as_tensor(labels, dtype=torch.int64)
        if labels.ndim != 1 or (len(labels) and not 0 <= labels.min() <= labels.max() < self.config.num_class_embeds):
            raise InputError(f"labels must be a list of class indices in 0 .. {self.config.num_class_embeds - 1}")
        truncation = own_truncation(self, truncation)
        latents = torch.empty(len(labels), self.config.latent_dim)
        if truncation is None:
            latents.normal_(generator=rng)
        else:
            nn.init.trunc_normal_(latents, a=-2, b=2, generator=rng).mul_(truncation)
        images = self.eval()(latents.to(self.device, self.dtype), labels.to(self.device))
        return to_unit(images.float()).clamp(0, 1)


def own_truncation(backbone: Backbone, truncation: float | None) -> float | None:
    """The truncation asked for, or else the one that a backbone was made for; None: standard normal latents.

    Raises:
        InputError: out of (0, 1].
    """
    return check_truncation(backbone.config.get("truncation") if truncation is None else truncation)


def check_truncation(truncation: float | None) -> float | None:
    """It, or InputError where it is out of (0, 1]."""
    if truncation is not None and not 0 < truncation <= 1:
        raise InputError(f"truncation must be above 0 and at most 1, not {truncation}")
    return truncation


class SelfAttention(nn.Module):
    """x + gamma * out(softmax(query key^T) value), unscaled, with keys and values max-pooled to half the side.

    gamma starts at 0: at first the layer is the identity.

    Args:
        channels: a multiple of 8.
    Raises:
        ValueError: it is not.
    Source: Zhang et al., Self-Attention Generative Adversarial Networks (1805.08318), as in BigGAN (1809.11096).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % ATTENTION_REDUCTION:
            raise ValueError(f"attention needs a multiple of {ATTENTION_REDUCTION} channels, not {channels}")
        self.query = nn.Conv2d(channels, channels // ATTENTION_REDUCTION, 1, bias=False)
        self.key = nn.Conv2d(channels, channels // ATTENTION_REDUCTION, 1, bias=False)
        self.value = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.out = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        query = _rows(self.query(x))  # [n, 1, h w, c / 8]
        key = _rows(F.max_pool2d(self.key(x), 2))  # [n, 1, h w / 4, c / 8]
        value = _rows(F.max_pool2d(self.value(x), 2))  # [n, 1, h w / 4, c / 2]
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        attended = attended[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])  # [n, c / 2, h, w]
        return torch.addcmul(x, self.gamma, self.out(attended))


def _rows(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 hw c"]:
    """One row a place, for a single head."""
    return x.flatten(2).transpose(1, 2)[:, None]


def doublings(sample_size: int, num_stages: int) -> int:
    """The side of the first feature map from which `num_stages` doublings make `sample_size`.

    Raises:
        ValueError: no whole number of at least 2.
    """
    bottom, rest = divmod(sample_size, 2**num_stages)
    if rest or bottom < 2:
        raise ValueError(f"{num_stages} doubling blocks cannot make {sample_size} px images")
    return bottom


def attention_stage(bottom: int, num_stages: int, resolution: int | None) -> int | None:
    """After which doubling attention sits, counted from 0; None without it.

    Raises:
        ValueError: no doubling makes feature maps of that side.
    """
    if resolution is None:
        return None
    sides = [bottom << stage + 1 for stage in range(num_stages)]
    if resolution not in sides:
        raise ValueError(f"attention_resolution {resolution} is none of the sides that blocks make: {sides}")
    return sides.index(resolution)
