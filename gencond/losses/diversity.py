"""Intra-class diversity: samples of a class keep apart."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TEMPERATURE = 0.2  # of cosines


def diversity_loss(
    features: Float[Tensor, "classes m d"],
    centers_real: Float[Tensor, "classes d"],
    temperature: float = TEMPERATURE,
) -> Float[Tensor, ""]:
    """Pushes each sample away from the others of its class, by their direction from the real class center.

        temperature * mean_{c, i} log mean_{j != i} exp( cos(f_ci - r_c, f_cj - r_c) / temperature )

    In [-1, 1]; near 0 where directions are unrelated, as those of real images nearly are; 1 where all samples lie in
    one direction; 0 for one sample a class. It says nothing of distances, which matching knows, so it does not
    contradict matching. Close samples count most: the smaller the temperature, the more.

    Args:
        centers_real: mean feature of the real images of each class.
        temperature: of the cosines, above 0.
    Source: the intra-class loss of Dataset Condensation via Generative Model (2309.07698), whose formula is not
        public ("pushing each sample away from the others of the same class"); the form is that of uniformity on the
        sphere (Wang & Isola, 2005.10242), around each real class center. A hinge at the real spread hardly moves.
    """
    num_samples = features.shape[1]
    if num_samples < 2:
        return features.sum() * 0
    directions = F.normalize(features - centers_real[:, None], dim=-1)
    cosines = directions @ directions.transpose(1, 2) / temperature
    others = ~torch.eye(num_samples, dtype=torch.bool, device=features.device)
    others_of_each = cosines[:, others].view(len(features), num_samples, num_samples - 1)
    return temperature * (others_of_each.logsumexp(-1) - math.log(num_samples - 1)).mean()
