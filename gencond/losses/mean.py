"""Distribution matching by first moments."""

from jaxtyping import Float
from torch import Tensor


def mean_matching_loss(
    real: Float[Tensor, "*classes n d"],
    syn: Float[Tensor, "*classes m d"],
    sets: Float[Tensor, "sets m"] | None = None,
) -> Float[Tensor, ""]:
    """Squared distance between the mean features of real and synthetic images.

        sum_c | 1/n sum_i r_ci  -  1/m sum_j s_cj |^2

    Summed over features and over leading (class) dimensions, as DM does. A cached mean is a real side of one row.

    Args:
        sets: weights of the synthetic rows, one row of weights a set, each of sum 1: the mean over several sets of the
            same images. None is one set of all of them.
    Source: Zhao & Bilen, Dataset Condensation with Distribution Matching (2110.04181), equation 4.
    """
    if sets is None:
        return (real.mean(-2) - syn.mean(-2)).square().sum()
    return (real.mean(-2, keepdim=True) - sets @ syn).square().sum() / len(sets)
