"""Intra-class diversity: samples of a class keep apart."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gencond.losses.kernels import squared_distance


def diversity_loss(features: Float[Tensor, "classes m d"], spread: Float[Tensor, " classes"]) -> Float[Tensor, ""]:
    """Pushes each sample away from the others of its class, up to the distance real images have.

        mean_c mean_{i != j} max(0, 1 - |f_ci - f_cj|^2 / (2 spread_c))^2

    Two real images of class c lie 2 spread_c apart on average (squared), so the push ends where the class is as wide
    as the real one: an unbounded push would contradict matching. In [0, 1]; 0 for one sample a class.

    Args:
        spread: trace of the real class covariance, in squared feature units, > 0.
    Source: the intra-class loss of Dataset Condensation via Generative Model (2309.07698), whose formula is not
        public ("pushing each sample away from the others of the same class"); the margin is ours.
    """
    num_samples = features.shape[1]
    if num_samples < 2:
        return features.new_zeros(())
    row, column = torch.triu_indices(num_samples, num_samples, offset=1, device=features.device)
    # From inner products, since the differences of all pairs take num_samples / 2 times the memory of the features;
    # around the class's center, so that rounding is relative to the distances and not to where the class lies.
    centered = features - features.detach().mean(1, keepdim=True)
    distance = squared_distance(centered, centered)[:, row, column]  # [classes, pairs]
    return F.relu(1 - distance / (2 * spread[:, None])).square().mean()
