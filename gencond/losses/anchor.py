"""Anchors: what keeps images in pixel space while features are matched.

Instance-normalised extractors under strong colour augmentation are nearly blind to brightness, contrast and colour,
so a generator that only matches their features drifts there (saturated, tinted images). Both anchors are cheap.
"""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

POOLED_SIZE = 4


def representative_loss(
    real: Float[Tensor, "n c h w"], syn: Float[Tensor, "n c h w"], num_images: int | None = None
) -> Float[Tensor, ""]:
    """Mean squared error in pixels of [-1, 1] between a slot's image and the real image it is tied to; in [0, 4].

    Args:
        num_images: that the mean is over, where these n are a share of them (possibly an empty one).
    """
    num_images = len(real) if num_images is None else num_images
    return F.mse_loss(syn, real, reduction="sum") / (num_images * math.prod(real.shape[1:]))


def pooled_pixels(images: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n d"]:
    """A 4x4 thumbnail as a vector."""
    return F.adaptive_avg_pool2d(images.flatten(0, -4), POOLED_SIZE).view(*images.shape[:-3], -1)


def contrast(images: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c"]:
    """Standard deviation over the pixels of each channel."""
    return (images.var((-2, -1), unbiased=False) + 1e-8).sqrt()


def pixel_anchor_loss(
    pooled_real: Float[Tensor, "classes d"],
    contrast_real: Float[Tensor, "classes c"],
    images_syn: Float[Tensor, "classes m c h w"],
) -> Float[Tensor, ""]:
    """Holds the classes' mean thumbnails and mean contrasts at the real ones.

        mean_c [ mean_d (p_cd - E p(s_c)_d)^2 + mean_ch (q_c,ch - E q(s_c)_ch)^2 ]

    Args:
        pooled_real: mean of `pooled_pixels` over each real class.
        contrast_real: mean of `contrast` over each real class.
    """
    pooled = pooled_pixels(images_syn).mean(1)
    contrasts = contrast(images_syn).mean(1)
    return F.mse_loss(pooled, pooled_real) + F.mse_loss(contrasts, contrast_real)
