"""Distribution matching by first moments."""

from jaxtyping import Float
from torch import Tensor


def mean_matching_loss(real: Float[Tensor, "*classes n d"], syn: Float[Tensor, "*classes m d"]) -> Float[Tensor, ""]:
    """Squared distance between the mean features of real and synthetic images.

        sum_c | 1/n sum_i r_ci  -  1/m sum_j s_cj |^2

    Summed over features and over leading (class) dimensions, as DM does. A cached mean is a real side of one row.
    Source: Zhao & Bilen, Dataset Condensation with Distribution Matching (2110.04181), equation 4.
    """
    return (real.mean(-2) - syn.mean(-2)).square().sum()
