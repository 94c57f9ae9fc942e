"""The hinge game of GAN training (Lim & Ye, 1705.02894), as SAGAN and BigGAN play it."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def discriminator_hinge_loss(real: Float[Tensor, " n"], syn: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """mean max(0, 1 - real) + mean max(0, 1 + syn), over the discriminator's logits. At least 0."""
    return F.relu(1 - real).mean() + F.relu(1 + syn).mean()


def generator_hinge_loss(syn: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """-mean syn: the generator wants high logits, without a bound."""
    return -syn.mean()
