"""Synthetic images should look like their class to a network trained on real ones."""

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def classification_loss(logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats, at least 0.

    Source: the class-aware regularisation of IDM (2307.09742) and DANCE: a partly trained network judges the samples.
    """
    return F.cross_entropy(logits, labels)
