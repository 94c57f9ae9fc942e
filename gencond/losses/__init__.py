"""The terms of an objective: features, images, gradients or logits go in, a scalar comes out; one term, one file."""

from gencond.losses.adversarial import discriminator_hinge_loss, generator_hinge_loss
from gencond.losses.anchor import pixel_anchor_loss, representative_loss
from gencond.losses.center import center_loss
from gencond.losses.classification import classification_loss
from gencond.losses.diversity import diversity_loss
from gencond.losses.gradient import gradient_matching_loss
from gencond.losses.mean import mean_matching_loss
from gencond.losses.mmd import fourier_mmd_loss, mmd_loss, squared_mmd
from gencond.losses.own import Seen, register_term
from gencond.losses.total import total_loss

__all__ = [
    "Seen",
    "center_loss",
    "classification_loss",
    "discriminator_hinge_loss",
    "diversity_loss",
    "fourier_mmd_loss",
    "generator_hinge_loss",
    "gradient_matching_loss",
    "mean_matching_loss",
    "mmd_loss",
    "pixel_anchor_loss",
    "register_term",
    "representative_loss",
    "squared_mmd",
    "total_loss",
]
