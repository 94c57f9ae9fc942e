"""Distribution matching by the maximum mean discrepancy (MMD)."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from gencond.losses.kernels import fourier_embedding, gaussian_kernel, m3d_kernel, polynomial_kernel, squared_distance
from gencond.losses.mean import mean_matching_loss

Kernel = Literal["gaussian", "linear", "polynomial", "laplace"]


def squared_mmd(real: Float[Tensor, "n d"], syn: Float[Tensor, "m d"], bandwidth: float) -> Float[Tensor, ""]:
    """Unbiased squared MMD between two feature sets under a Gaussian kernel.

        mean_{i!=j} k(r_i, r_j) + mean_{i!=j} k(s_i, s_j) - 2 mean k(r_i, s_j),
        k(a, b) = exp(-|a-b|^2 / (2 bandwidth^2))

    The population value lies in [0, 2]; this estimate averages to it and may fall slightly below 0. Gradients flow to
    both arguments; pass `real` detached. Memory grows with (n + m)^2.

    Args:
        bandwidth: kernel width in feature units, > 0. `median_bandwidth` gives a starting value.
    Raises:
        ValueError: fewer than two rows on either side, or bandwidth <= 0.
    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012, Lemma 6.
    """
    if min(len(real), len(syn)) < 2 or bandwidth <= 0:
        raise ValueError("squared_mmd needs two rows on either side and a bandwidth above 0")

    def within(rows: Tensor) -> Tensor:
        kernel, n = gaussian_kernel(squared_distance(rows, rows), bandwidth), len(rows)
        return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))

    return within(real) + within(syn) - 2 * gaussian_kernel(squared_distance(real, syn), bandwidth).mean()


def mmd_loss(
    real: Float[Tensor, "*classes n d"],
    syn: Float[Tensor, "*classes m d"],
    kernel: Kernel = "gaussian",
    sets: Float[Tensor, "sets m"] | None = None,
) -> Float[Tensor, ""]:
    """Squared MMD of each class, summed over leading (class) dimensions: the objective of M3D.

        mean k(s_j, s_j') - 2 mean k(s_j, r_i) + mean k(r_i, r_i')

    The biased estimate, diagonal included, so at least 0, and 0 for equal sets. The Gaussian kernel is a sum of five
    whose widths follow the pooled batch (`m3d_kernel`), which makes it free of the scale of the features; its value
    lies in [0, 10]. The linear kernel gives `mean_matching_loss`. Memory grows with (n + m)^2 for each class.

    Args:
        kernel: `gaussian`; `linear` <a, b>; `polynomial` (<a, b> + 1)^2; `laplace`, which M3D's code calls so:
            sum_g exp(-g |a-b|^2) over g in {0.1, 1, 5}.
        sets: weights of the synthetic rows, see `mean_matching_loss`: kernels are computed once for all sets.
    Source: Zhang et al., M3D: Dataset Condensation by Minimizing Maximum Mean Discrepancy (2312.15927), equation 6.
    """
    if kernel == "linear":
        return mean_matching_loss(real, syn, sets)
    if kernel == "polynomial":
        blocks = polynomial_kernel(syn, syn), polynomial_kernel(syn, real), polynomial_kernel(real, real)
    else:
        distances = squared_distance(syn, syn), squared_distance(syn, real), squared_distance(real, real)
        blocks = m3d_kernel(*distances, laplace=kernel == "laplace")
    if sets is None:
        within_syn, between, within_real = (block.mean((-2, -1)) for block in blocks)
        return (within_syn - 2 * between + within_real).sum()
    within_syn = ((sets @ blocks[0]) * sets).sum(-1)  # [*classes, sets]
    between = (sets @ blocks[1]).mean(-1)
    within_real = blocks[2].mean((-2, -1))[..., None]
    return (within_syn - 2 * between + within_real).sum() / len(sets)


def fourier_mmd_loss(
    embedding_real: Float[Tensor, "classes r2"],
    syn: Float[Tensor, "classes m d"],
    frequencies: Float[Tensor, "d r"],
    sets: Float[Tensor, "sets m"] | None = None,
) -> Float[Tensor, ""]:
    """Squared MMD of each class under the kernel that `frequencies` approximate, summed over classes.

        sum_c | E phi(r_c)  -  1/m sum_j phi(s_cj) |^2,    <phi(a), phi(b)> ~ k(a, b)

    The biased estimate (all pairs, the diagonal too). Every term lies in [0, 4]. The real side enters as its mean
    embedding only, so it is computed once for a whole class (`real_statistics.py`) and a step costs no real image.

    Args:
        embedding_real: mean of `fourier_embedding` over the real images of each class.
        syn: features of m synthetic images of each class.
        sets: weights of the synthetic rows, see `mean_matching_loss`.
    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012, equation 5, in the embedding of Rahimi & Recht 2007;
        the objective of M3D (2312.15927) with cached real statistics.
    """
    return mean_matching_loss(embedding_real[:, None], fourier_embedding(syn, frequencies), sets)
