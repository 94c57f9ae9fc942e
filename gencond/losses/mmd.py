"""Distribution matching by the maximum mean discrepancy (MMD)."""

from jaxtyping import Float
from torch import Tensor

from gencond.losses.kernels import fourier_embedding
from gencond.losses.mean import mean_matching_loss


def fourier_mmd_loss(
    embedding_real: Float[Tensor, "classes r2"],
    syn: Float[Tensor, "classes m d"],
    frequencies: Float[Tensor, "d r"],
) -> Float[Tensor, ""]:
    """Squared MMD of each class under the kernel that `frequencies` approximate, summed over classes.

        sum_c | E phi(r_c)  -  1/m sum_j phi(s_cj) |^2,    <phi(a), phi(b)> ~ k(a, b)

    The biased estimate (all pairs, the diagonal too). Every term lies in [0, 4]. The real side enters as its mean
    embedding only, so it is computed once for a whole class (`statistics.py`) and a step costs no real image.

    Args:
        embedding_real: mean of `fourier_embedding` over the real images of each class.
        syn: features of m synthetic images of each class.
    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012, equation 5, in the embedding of Rahimi & Recht 2007;
        the objective of M3D (2312.15927) with cached real statistics.
    """
    return mean_matching_loss(embedding_real[:, None], fourier_embedding(syn, frequencies))
