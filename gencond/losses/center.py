"""Inter-class centers: a class keeps its center, and no other class's."""

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from gencond.losses.kernels import pair_distances, squared_distance

TEMPERATURE = 0.2  # in gaps between classes


def center_loss(
    centers_real: Float[Tensor, "all d"],
    centers_syn: Float[Tensor, "classes sets d"],
    labels: Int64[Tensor, " classes"],
    temperature: float = TEMPERATURE,
) -> Float[Tensor, ""]:
    """Draws the center of a synthetic class to the real center of its class, and away from those of all others.

        mean_{c, p} -log softmax_k( -|s_cp - r_k|^2 / (temperature g) )[c],    g = mean_{k < k'} |r_k - r_k'|^2

    Cross-entropy in nats, at least 0; free of the scale of the features; 0 for a single class. Where two real classes
    lie close together it pushes beyond the real gap: the closer, the farther.

    Args:
        centers_real: of all real classes that a center may be taken for.
        centers_syn: of several sets of images of each class.
        labels: which of the real centers is the own one.
        temperature: in mean squared gaps between real classes, above 0. Small ones ask only that the own center is the
            nearest; large ones push on.
    Source: the inter-class loss of Dataset Condensation via Generative Model (2309.07698), whose formula is not
        public ("widening the gap between the centers of different classes"); the softmax over real centers is ours,
        that of prototypical networks (Snell et al., 1703.05175). A hinge at the real gaps is 0 from the first step,
        since synthetic centers lie further apart than real ones.
    """
    if len(centers_real) < 2:
        return centers_syn.sum() * 0
    gap = pair_distances(centers_real).square().mean().clamp_min(1e-12)
    distances = squared_distance(centers_syn.flatten(0, 1), centers_real)
    return F.cross_entropy(-distances / (temperature * gap), labels.repeat_interleave(centers_syn.shape[1]))
