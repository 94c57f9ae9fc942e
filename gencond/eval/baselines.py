"""What a condensed set has to beat: real images at the same number per class or in the same bytes, and all of them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from gencond.data import LabeledImages
from gencond.eval.classifier import trained_on_all
from gencond.eval.codec import QUALITY, codec_subsets
from gencond.eval.protocols import get_protocol
from gencond.features import Extractor
from gencond.ranges import to_signed
from gencond.selection import herding, k_center, kmeans_subset, random_subset, subset_of_each_class

RANDOM_REAL, KMEANS_REAL, WHOLE_SET = "random_real", "kmeans_real", "whole_set"
HERDING_REAL, K_CENTER_REAL, CODEC_REAL = "herding_real", "k_center_real", "codec_real"
SAME_NUMBER = (RANDOM_REAL, KMEANS_REAL, HERDING_REAL, K_CENTER_REAL)
BASELINES = (*SAME_NUMBER, CODEC_REAL, WHOLE_SET)
EMBEDDED_AT_ONCE = 500
# Of the network that herding and k-center choose with.
CHOOSING = replace(get_protocol("quick"), name="choosing", min_steps=200, max_steps=200)


class RealImages:
    """The baselines of one set of real images.

    Args:
        network: by name; herding and k-center choose in the features of one, trained on real images for a while.
        augmentation: strategy of operations that leave the class as it is.
    """

    def __init__(self, train: LabeledImages, network: str, augmentation: str, device: torch.device) -> None:
        self.train, self.network, self.augmentation, self.device = train, network, augmentation, device

    def draw(
        self, name: str, ipc: int | None, seeds: Sequence[int], num_bytes: int = 0, quality: int = QUALITY
    ) -> tuple[list[LabeledImages], int] | None:
        """(training images for each seed, the bytes that store one of them); None where nothing fits `num_bytes`.

        Random subsets are redrawn for each seed and k-means clusters found anew; herding, k-center and the whole set
        stay.

        Args:
            name: one of `BASELINES`.
            num_bytes, quality: for the codec's file.
        Raises:
            InputError: a class has fewer than `ipc` images.
        """
        if name == CODEC_REAL:
            return codec_subsets(self.train, num_bytes, seeds, quality)
        if name in (RANDOM_REAL, KMEANS_REAL):
            draw = {RANDOM_REAL: random_subset, KMEANS_REAL: kmeans_subset}[name]
            drawn = [draw(self.train, ipc, seed) for seed in seeds]
        elif name == WHOLE_SET:
            drawn = [self.train] * len(seeds)
        else:
            choose = {HERDING_REAL: herding, K_CENTER_REAL: k_center}[name]
            drawn = [subset_of_each_class(self.train, ipc, lambda rows: choose(self.features[rows], ipc))] * len(seeds)
        return drawn, drawn[0].images.numel()  # class by class as uint8, so that labels cost nothing

    @cached_property
    def features(self) -> Float[Tensor, "n d"]:
        """Of all images, by a network that was trained on them for 200 steps."""
        train, (mean, std) = self.train, self.train.mean_std
        network = trained_on_all(self.network, train, CHOOSING, self.augmentation, self.device, "network for herding")
        extractor = Extractor(network, mean, std).to(self.device)
        parts = [extractor(to_signed(images).to(self.device)).cpu() for images in train.images.split(EMBEDDED_AT_ONCE)]
        return torch.cat(parts)
