"""What a condensed set has to beat: real images at the same number per class or in the same bytes, and all of them."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.ranges import as_bytes, to_signed
from gencond.data.images import LabeledImages, split_off
from gencond.data.select import (
    MOST_PASSES,
    herding,
    k_center,
    kmeans_subset,
    known_rows,
    random_subset,
    subset_of_each_class,
)
from gencond.eval.classifier import trained_on_all
from gencond.eval.codec import QUALITIES, Choice, choose_quality, encoder_version, stored_photographs
from gencond.eval.networks import build_network
from gencond.eval.protocols import PROTOCOLS
from gencond.eval.records import read_record
from gencond.generator.packing import decode, pack
from gencond.networks.convnet import automatic_depth
from gencond.networks.extractor import Extractor, embed_all, judged

logger = logging.getLogger(__name__)

RANDOM_REAL, KMEANS_REAL, WHOLE_SET = "random_real", "kmeans_real", "whole_set"
HERDING_REAL, K_CENTER_REAL, CODEC_REAL = "herding_real", "k_center_real", "codec_real"
# Of an artefact that cuts its images: real images several in one, as many as it cuts one into.
RANDOM_PACKED, KMEANS_PACKED = "random_real_packed", "kmeans_real_packed"
# Of images that a network knows after a brief training.
KMEANS_KNOWN, KMEANS_KNOWN_PACKED = "kmeans_known_real", "kmeans_known_real_packed"
PACKED = (RANDOM_PACKED, KMEANS_PACKED, KMEANS_KNOWN_PACKED)
UNPACKED = {RANDOM_PACKED: RANDOM_REAL, KMEANS_PACKED: KMEANS_REAL, KMEANS_KNOWN_PACKED: KMEANS_KNOWN}
SAME_NUMBER = (RANDOM_REAL, KMEANS_REAL, KMEANS_KNOWN, HERDING_REAL, K_CENTER_REAL, *PACKED)
BASELINES = (*SAME_NUMBER, CODEC_REAL, WHOLE_SET)
EMBEDDED_AT_ONCE = 500
UNTRAINED_WIDTH = 64  # channels of the network in whose features k-means chooses
# Of the network that herding and k-center choose with.
CHOOSING_STEPS = 200
CHOOSING = replace(PROTOCOLS["quick"], name="choosing", min_steps=CHOOSING_STEPS, max_steps=CHOOSING_STEPS)
HELD_OUT = 0.2  # of the training images, to choose the codec's quality by


@dataclass(frozen=True)
class CodecFacts:
    """How the photographs of a row were stored, and by what that was chosen.

    Args:
        qualities: of the seeds' files; where bytes were left over they are finer than the chosen one.
        held_out_top1: quality -> accuracy in [0, 1] on held-out training images; empty where nothing was to choose.
        chosen: the quality that taught best.
        encoder: with its version.
    """

    qualities: tuple[int, ...]
    held_out_top1: Mapping[str, float]
    chosen: int
    encoder: str

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CodecFacts":
        """What a report or a score holds."""
        return read_record(cls, content, qualities=tuple)


@dataclass(frozen=True)
class Photographs:
    """Photographs in a codec, at its best.

    Args:
        sets: for each seed, as they come back.
        num_bytes: of the largest file.
        qualities: of the seeds' files; where bytes were left over they are finer than the chosen one.
        choice: how the quality was chosen.
    """

    sets: list[LabeledImages]
    num_bytes: int
    qualities: list[int]
    choice: Choice

    @property
    def facts(self) -> CodecFacts:
        """For a row."""
        held_out = {str(quality): share for quality, share in self.choice.top1.items()}
        return CodecFacts(tuple(self.qualities), held_out, self.choice.quality, encoder_version())


def usual_baselines(factor: int) -> tuple[str, ...]:
    """What a condensed set is put beside where nothing else is asked: packed images only where its own are cut.

    k-means of known images likewise: it was among images that are cut that this choice was found to matter.
    """
    return tuple(name for name in BASELINES if factor > 1 or name not in (*PACKED, KMEANS_KNOWN))


class RealImages:
    """The baselines of one set of real images.

    Args:
        network: by name; herding and k-center choose in the features of one, trained on real images for a while, and
            it says which images are known. K-means chooses in those of a random ConvNet.
        augmentation: strategy of operations that leave the class as it is.
        factor: by which packed images share the place of one, as the condensed set's do.
    """

    def __init__(
        self, train: LabeledImages, network: str, augmentation: str, device: torch.device, factor: int = 1
    ) -> None:
        self.train, self.network, self.augmentation, self.device = train, network, augmentation, device
        self.factor = factor

    def draw(self, name: str, ipc: int | None, seeds: Sequence[int]) -> tuple[list[LabeledImages], int]:
        """(training images for each seed, the bytes that store one of them).

        Random subsets are redrawn for each seed and k-means clusters found anew; herding, k-center and the whole set
        stay. Packed images are as many times more as share the place of one, at a part of its side.

        Args:
            name: one of `BASELINES` but CODEC_REAL.
            ipc: images of each class as they are stored; None for the whole set.
        Raises:
            InputError: a class has fewer images.
        """
        if name == WHOLE_SET:
            drawn, num_stored = [self.train] * len(seeds), len(self.train)
        else:
            assert ipc is not None, f"only the whole set has no IPC, {name} has one"
            drawn, num_stored = self._drawn(name, ipc, seeds), ipc * self.train.num_classes
        return drawn, num_stored * self.train.images[0].numel()  # class by class as uint8, so that labels cost nothing

    def _drawn(self, name: str, ipc: int, seeds: Sequence[int]) -> list[LabeledImages]:
        """The images of a baseline that has an IPC, for each seed."""
        if name in PACKED:
            return [self._packed(images) for images in self._drawn(UNPACKED[name], ipc * self.factor**2, seeds)]
        if name == RANDOM_REAL:
            return [random_subset(self.train, ipc, seed) for seed in seeds]
        if name == KMEANS_REAL:
            return [kmeans_subset(self.train, ipc, seed, self.untrained_features) for seed in seeds]
        if name == KMEANS_KNOWN:
            rows = self.rows_of_known(ipc)
            known, features = self.train.subset(rows), self.untrained_features[rows]
            return [kmeans_subset(known, ipc, seed, features) for seed in seeds]
        choose = {HERDING_REAL: herding, K_CENTER_REAL: k_center}[name]
        return [subset_of_each_class(self.train, ipc, lambda rows: choose(self.features[rows], ipc))] * len(seeds)

    def photographs(
        self,
        num_bytes: int,
        seeds: Sequence[int],
        score: Callable[[LabeledImages, LabeledImages], float],
        qualities: Sequence[int] = QUALITIES,
    ) -> Photographs | None:
        """Random photographs in an ordinary codec at the quality that teaches best; None where nothing fits.

        Args:
            num_bytes: that none of the seeds' files may exceed.
            score: (training images, held-out images) -> accuracy in [0, 1]; asked for each quality, where there are
                several, with a fifth of the training images held out.
        """
        if len(qualities) == 1 or int(self.train.counts.min()) < 2:  # nothing to choose, or by
            choice = Choice(qualities[0], {})
        else:
            # By rank: the threshold that may have split the test set off would find nothing more here.
            rest, held_out = split_off(self.train, HELD_OUT, closed=True)
            choice = choose_quality(rest, num_bytes, lambda images: score(images, held_out), qualities)
        if choice is None or (stored := stored_photographs(self.train, num_bytes, seeds, choice.quality)) is None:
            return None
        return Photographs(
            [one.images for one in stored],
            max(one.num_bytes for one in stored),
            sorted({one.quality for one in stored}),
            choice,
        )

    def _packed(self, images: LabeledImages) -> LabeledImages:
        """Class-major images several in one, stored as bytes, and cut again as a condensed set is."""
        parts, seen = self.factor**2, []
        for some in images.images.split(EMBEDDED_AT_ONCE * parts):
            stored = as_bytes(pack(to_signed(some).unflatten(0, (-1, parts)), self.factor))
            seen.append(as_bytes(decode(to_signed(stored), self.factor)))
        return replace(images, images=torch.cat(seen))

    @cached_property
    def extractor(self) -> Extractor:
        """A network that was trained on them for 200 steps."""
        return self._trained(CHOOSING_STEPS)

    def _trained(self, num_steps: int) -> Extractor:
        protocol, described = replace(CHOOSING, min_steps=num_steps, max_steps=num_steps), "network for features"
        network = trained_on_all(self.network, self.train, protocol, self.augmentation, self.device, described)
        return Extractor(network, *self.train.mean_std).to(self.device)

    def rows_of_known(self, at_least: int) -> Int64[Tensor, " k"]:
        """Where the images are that a network knows after a brief training; says where a class has too few of them.

        Raises:
            InputError: the network diverged.
        """
        losses, is_known = self.answers
        fewest = int(torch.bincount(self.train.labels[is_known], minlength=self.train.num_classes).min())
        if fewest < at_least:
            logger.info(
                "%s: a class has %d known images where %d are needed, so that its easiest others are known ones too",
                KMEANS_KNOWN, fewest, at_least,
            )  # fmt: skip
        return known_rows(self.train, losses, is_known, at_least)

    @cached_property
    def answers(self) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """(cross-entropy of each image under a network, whether that takes it for what it is).

        The network is `extractor`, or one that has seen each of fewer images ten times: more often, and it knows all.
        """
        train = self.train
        steps = min(CHOOSING_STEPS, math.ceil(MOST_PASSES * len(train) / CHOOSING.batch_of(len(train))))
        if steps == CHOOSING_STEPS:
            losses, is_known = judged(self.extractor, self.features, train.labels)
        else:
            extractor = self._trained(steps)
            losses, is_known = judged(extractor, self._features_by(extractor), train.labels)
        if not losses.isfinite().all():
            raise InputError(f"the network that says which real images are known diverged: leave {KMEANS_KNOWN} out")
        return losses, is_known

    @cached_property
    def features(self) -> Float[Tensor, "n d"]:
        """Of all images, by `extractor`."""
        return self._features_by(self.extractor)

    @cached_property
    def untrained_features(self) -> Float[Tensor, "n d"]:
        """Of all images, by a random ConvNet.

        K-means in pixel space chooses images that teach no more than random ones (docs/flagship.md, entry 36).
        """
        train = self.train
        name = f"convnet{automatic_depth(train.image_size)}w{UNTRAINED_WIDTH}"
        network = build_network(name, train.channels, train.num_classes, train.image_size, seed=0)
        return self._features_by(Extractor(network, *train.mean_std).to(self.device))

    def _features_by(self, extractor: Extractor) -> Float[Tensor, "n d"]:
        cpu, description = torch.device("cpu"), "features of real images"
        return embed_all(
            extractor, self.train.images, EMBEDDED_AT_ONCE, fill_up=False, device=cpu, description=description
        )
