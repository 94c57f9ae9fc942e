"""The Gaussian kernel and its random Fourier embedding."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def median_bandwidth(features: Float[Tensor, "n d"]) -> float:
    """The median distance between two rows: a starting value for a kernel's width, in feature units.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(features) < 2:
        raise ValueError("a median distance needs two rows or more")
    return max(float(torch.pdist(features.float()).median()), 1e-12)


def fourier_frequencies(
    feature_dim: int, num_frequencies: int, bandwidths: tuple[float, ...], rng: torch.Generator
) -> Float[Tensor, "d r"]:
    """Directions whose random Fourier embedding approximates a mean of Gaussian kernels.

    exp(-|a-b|^2 / (2 bandwidth^2)) is the Fourier transform of N(0, 1/bandwidth^2); each bandwidth gets an equal
    share of the frequencies.

    Raises:
        ValueError: `num_frequencies` is not a multiple of the number of bandwidths, or a bandwidth is not positive.
    Source: Rahimi & Recht, Random Features for Large-Scale Kernel Machines, NeurIPS 2007.
    """
    if num_frequencies % len(bandwidths) or min(bandwidths) <= 0:
        raise ValueError(f"{num_frequencies} frequencies cannot be shared by bandwidths {bandwidths}")
    share = num_frequencies // len(bandwidths)
    return torch.cat([torch.randn(feature_dim, share, generator=rng) / width for width in bandwidths], dim=1)


def fourier_embedding(features: Float[Tensor, "*n d"], frequencies: Float[Tensor, "d r"]) -> Float[Tensor, "*n r2"]:
    """[cos(f W), sin(f W)] / sqrt(r): rows of unit length whose inner products approximate the kernel."""
    phase = features @ frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=-1) / math.sqrt(frequencies.shape[1])
