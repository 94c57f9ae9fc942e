"""Kernels between feature sets, and the random Fourier embedding of the Gaussian one."""

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def squared_distance(a: Float[Tensor, "*c n d"], b: Float[Tensor, "*c m d"]) -> Float[Tensor, "*c n m"]:
    """|a_i - b_j|^2, at least 0. Gradients stay finite where two rows coincide, as those of a distance would not."""
    inner = a @ b.transpose(-2, -1)
    return (a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :] - 2 * inner).clamp_min(0)


def gaussian_kernel(distance: Float[Tensor, "*c n m"], bandwidth: float) -> Float[Tensor, "*c n m"]:
    """exp(-distance / (2 bandwidth^2)) of squared distances; in (0, 1]."""
    return torch.exp(distance / (-2 * bandwidth**2))


def polynomial_kernel(a: Float[Tensor, "*c n d"], b: Float[Tensor, "*c m d"]) -> Float[Tensor, "*c n m"]:
    """(<a_i, b_j> + 1)^2."""
    return (a @ b.transpose(-2, -1) + 1).square()


M3D_MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)
LAPLACE_RATES = (0.1, 1.0, 5.0)


def m3d_kernel(
    within_syn: Float[Tensor, "*c m m"],
    between: Float[Tensor, "*c m n"],
    within_real: Float[Tensor, "*c n n"],
    laplace: bool = False,
) -> tuple[Float[Tensor, "*c m m"], Float[Tensor, "*c m n"], Float[Tensor, "*c n n"]]:
    """Squared distances -> the kernel of M3D: five Gaussians, summed, of the pooled batch's own width.

        k = sum_{q=-2..2} exp(-distance / (2^q w)),    w = mean of the squared distances between two rows of the batch

    w counts the off-diagonal pairs of all n + m rows, for each class, without gradient.

    Args:
        laplace: the fixed rates of M3D's `laplace` option instead, without w.
    Source: 2312.15927, section 4.1, and its released code (n_kernels 5, mul_factor 2).
    """
    if laplace:

        def kernel(block: Tensor) -> Tensor:
            return functools.reduce(torch.add, (torch.exp(-rate * block) for rate in LAPLACE_RATES))

        return kernel(within_syn), kernel(between), kernel(within_real)
    rows = within_syn.shape[-1] + within_real.shape[-1]
    pooled = within_syn.sum((-2, -1)) + 2 * between.sum((-2, -1)) + within_real.sum((-2, -1))
    width = (pooled.detach() / (rows**2 - rows)).clamp_min(1e-12)[..., None, None]

    def gaussians(block: Tensor) -> Tensor:
        return functools.reduce(torch.add, (torch.exp(-block / (width * factor)) for factor in M3D_MULTIPLIERS))

    return gaussians(within_syn), gaussians(between), gaussians(within_real)


def pair_distances(points: Float[Tensor, "n d"]) -> Float[Tensor, " pairs"]:
    """Distances of all pairs of rows, with gradient; on the CPU for Apple's GPUs, which have no kernel for them."""
    return F.pdist(points.cpu()).to(points.device) if points.device.type == "mps" else F.pdist(points)


def median_bandwidth(features: Float[Tensor, "n d"]) -> float:
    """The median distance between two rows: a starting value for a kernel's width, in feature units.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(features) < 2:
        raise ValueError("a median distance needs two rows or more")
    return max(float(pair_distances(features.float()).median()), 1e-12)


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
