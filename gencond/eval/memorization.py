"""Whether samples are copies: how near each lies to a training image, against how near held-out real images lie."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gencond.common.ranges import to_signed
from gencond.data.images import LabeledImages
from gencond.data.select import some_of_each_class

AT_ONCE = 2000  # training images: memory follows the samples, not the real set
HELD_OUT = 2000


@dataclass(frozen=True)
class Nearest:
    """For each image its nearest training image.

    Args:
        distance: root mean squared difference of pixels, in units of the range of an image, in [0, 1].
        row: of the training set.
    """

    distance: Float[Tensor, " n"]
    row: Int64[Tensor, " n"]


@dataclass(frozen=True)
class Memorisation:
    """Whether samples are copies.

    Args:
        num_syn, num_held_out: images that were looked at.
        median_syn, median_held_out: of the distances to the nearest training image, see `Nearest`.
        share_nearer: of samples that lie nearer to a training image than all but a twentieth of held-out images do;
            near 0.05 where samples are as new as other real images.
    """

    num_syn: float
    num_held_out: float
    median_syn: float
    median_held_out: float
    share_nearer: float


def nearest_training_images(images: LabeledImages, train: LabeledImages) -> Nearest:
    """Among all classes, in pixel space."""
    points = to_signed(images.images[:]).flatten(1)
    distance, row = torch.full((len(points),), torch.inf), torch.zeros(len(points), dtype=torch.int64)
    for start in range(0, len(train), AT_ONCE):
        nearest = torch.cdist(points, to_signed(train.images[start : start + AT_ONCE]).flatten(1)).min(1)
        row = torch.where(nearest.values < distance, nearest.indices + start, row)
        distance = torch.minimum(distance, nearest.values)
    return Nearest(distance / (2 * points.shape[1] ** 0.5), row)


def memorisation(
    syn: LabeledImages, train: LabeledImages, held_out: LabeledImages, seed: int = 0
) -> tuple[Memorisation, Nearest]:
    """(what was measured, the samples' nearest training images).

    Args:
        held_out: real images that were not condensed; up to 2000 random ones are looked at.
    """
    of_syn = nearest_training_images(syn, train)
    others = some_of_each_class(held_out, -(-HELD_OUT // held_out.num_classes), seed)
    of_real = nearest_training_images(others, train).distance
    measured = Memorisation(
        num_syn=float(len(syn)),
        num_held_out=float(len(others)),
        median_syn=float(of_syn.distance.median()),
        median_held_out=float(of_real.median()),
        share_nearer=float((of_syn.distance < of_real.quantile(0.05)).float().mean()),
    )
    return measured, of_syn
