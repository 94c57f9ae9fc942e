"""Inter-class centers: classes keep their gaps."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gencond.losses.kernels import pair_distances


def center_loss(
    centers_real: Float[Tensor, "classes d"], centers_syn: Float[Tensor, "classes d"], margin: float = 1.0
) -> Float[Tensor, ""]:
    """Widens the gap between the centers of two synthetic classes to `margin` times the gap of the real ones.

        mean_{c < c'} max(0, margin |r_c - r_c'| - |s_c - s_c'|)^2  /  mean_{c < c'} |r_c - r_c'|^2

    In [0, margin^2]; free of the scale of the features; 0 for a single class.

    Args:
        margin: 1 asks for the real gaps, more for wider ones.
    Source: the inter-class loss of Dataset Condensation via Generative Model (2309.07698), whose formula is not
        public ("widening the gap between the centers of different classes"); margins tied to the real gaps are
        ours, since an unbounded push would contradict matching.
    """
    num_classes = len(centers_real)
    if num_classes < 2:
        return centers_syn.new_zeros(())
    # Distances of pairs and no differences: of 1000 classes there are half a million. Two coinciding centers get a
    # gradient of 0, not NaN.
    gap_real, gap_syn = pair_distances(centers_real), pair_distances(centers_syn)
    return F.relu(margin * gap_real - gap_syn).square().mean() / gap_real.square().mean().clamp_min(1e-12)
