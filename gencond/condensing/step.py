"""The objective of one step of condensing, which reads like the method; in chunks of classes, so that memory stays.

All terms are sums over classes, so a chunk of classes has its share of the objective and of the gradient, and its graph
is gone before the next chunk begins. What classes know of each other are the centers of the real ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gencond.common.distributed import gather_rows, own_share
from gencond.condensing.real import BatchTargets, Draw, RealSide, Targets, gradient_loss
from gencond.condensing.starts import Representatives
from gencond.data.augment import Augmentation, AugmentParams
from gencond.generator.packing import decode
from gencond.losses.anchor import pixel_anchor_loss, representative_loss
from gencond.losses.center import center_loss
from gencond.losses.classification import classification_loss
from gencond.losses.diversity import diversity_loss
from gencond.losses.gradient import Metric
from gencond.losses.own import Seen, Term, value_of
from gencond.losses.total import total_loss

OF_FEATURES = frozenset(("mean", "mmd", "diversity", "center", "classification", "own"))


@dataclass(frozen=True)
class Objective:
    """What synthetic images are held to, made once for all steps of a run; `at` is a step of it.

    Each process synthesizes and embeds its own share of a step's classes; only centers of real classes are gathered.
    Averaged over processes and summed over chunks, parts and gradients are those of one process with all the classes at
    once. A term of weight 0 is not computed, nor classification by an extractor that was never trained.

    Args:
        synthesize: (labels, slots) -> images in [-1, 1]: a `Condensed`, possibly wrapped for data parallelism.
        real: the real side of every step.
        augmentation: what real and synthetic images go through before they are compared.
        representatives: what slots start from and may be held to.
        weights: of the terms by name: mean, mmd, gradient, diversity, center, classification, pixel, representative,
            own.
        own: the term of that name, see `losses.own`.
        factor: every image is cut into factor x factor before it is looked at.
        images_per_step: at most, of a class; more are drawn from at random. None takes all.
        images_at_once: bounds memory: a chunk holds as many classes as have this many images together, synthetic ones
            or real ones of a batch. Where one class has more synthetic ones, they are made again, so many at a time,
            when the gradient of its images is known (`torch.utils.checkpoint`); the extractor sees a class's images at
            once all the same. None takes all classes at once.
        scale: of the matching terms: `relative` is a mean over classes, in gaps between real classes; `sum` adds up.
        gradient_metric: of the gradient term, see `losses.gradient`.
        rank, num_processes: which process this is, and of how many.
    """

    synthesize: nn.Module
    real: RealSide
    augmentation: Augmentation
    representatives: Representatives
    weights: Mapping[str, float]
    own: Term | None = None
    factor: int = 1
    images_per_step: int | None = None
    images_at_once: int | None = None
    scale: Literal["relative", "sum"] = "relative"
    gradient_metric: Metric = "mse"
    rank: int = 0
    num_processes: int = 1

    def at(self, draw: Draw) -> "CondenseStep":
        """The objective for what a step draws."""
        return CondenseStep(self, draw)


class CondenseStep:
    """The objective of one step: what a step's classes, slots, extractor and augmentation say of the synthetic images.

    `chunks` are this process's classes, some at a time; `loss` is the objective of one chunk.
    """

    def __init__(self, objective: Objective, draw: Draw) -> None:
        self.draw, self.num_processes = draw, objective.num_processes
        self.synthesize, self.real, self.augmentation = objective.synthesize, objective.real, objective.augmentation
        self.representatives, self.weights, self.factor = objective.representatives, objective.weights, objective.factor
        self.scale, self.own_term = objective.scale, objective.own
        self.gradient_metric: Metric = objective.gradient_metric
        self.images_at_once = objective.images_at_once
        self.extractor, self.device = draw.extractor, draw.extractor.mean.device
        self.num_classes = len(draw.classes)
        self.on = {name for name, weight in objective.weights.items() if weight}
        if not self.extractor.knows_classes:
            self.on -= {"classification"}
        real, factor, images_at_once = objective.real, objective.factor, objective.images_at_once

        # All that is random is drawn for all classes, on every process and for every chunk alike.
        of_class, at_most = draw.length * factor**2, objective.images_per_step
        self.num_images = of_class if at_most is None else min(of_class, at_most)
        self.sets: Float[Tensor, "sets m"] | None = None  # weights of the images that are looked at in each set
        slots = torch.arange(draw.length).repeat(self.num_classes, 1)
        self.kept: Int64[Tensor, "classes m"] | None = None  # of the images that the slots are cut into
        if len(draw.lengths) > 1:
            shares = shares_of(draw.lengths, None if at_most is None else at_most // factor**2)
            slots = _some_of_each_stretch(draw, shares)
            self.sets = weights_of_sets(draw.lengths, shares, factor**2).to(self.device)
            self.num_images = slots.shape[1] * factor**2
        elif self.num_images < of_class:
            order = torch.rand(self.num_classes, of_class, generator=draw.rng).argsort(1)
            looked_at = order[:, : self.num_images]
            if factor == 1:
                slots = looked_at  # the others are not even made
            else:
                self.kept = looked_at.to(self.device)
        self.slots: Int64[Tensor, "classes k"] = (draw.first_slot + slots).to(self.device)
        self.most_of_class = max(self.slots.shape[1], self.num_images)  # at once: as made, or as looked at
        self.params = objective.augmentation.draw(self.num_classes * (1 if real.siamese else self.num_images), draw.rng)
        self.targets_of = real.at(draw, objective.augmentation)
        self.kept_targets: tuple[int, Targets] | None = None

        share = own_share(self.num_classes, objective.rank, objective.num_processes)
        classes_at_once = -(-self.num_classes // objective.num_processes)
        if images_at_once is not None:
            classes_at_once = max(1, images_at_once // max(self.most_of_class, real.images_of_class))
        self.chunks: list[slice] = [
            slice(first, min(first + classes_at_once, share.stop))
            for first in range(share.start, share.stop, classes_at_once)
        ]
        anchors = draw.anchors[own_share(len(draw.anchors), objective.rank, objective.num_processes)]
        self.anchors = dict(
            zip((chunk.start for chunk in self.chunks), anchors.tensor_split(len(self.chunks)), strict=True)
        )
        self.wire_bytes = 0  # of centers, gathered
        self.centers_real = self._centers()

    def loss(self, chunk: slice) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """(weighted total, unweighted parts) of the classes of one of `chunks`, both with gradient."""
        on, own, targets = self.on, self._classes(chunk), self._targets(chunk)
        anchors = self.anchors[chunk.start].to(self.device)
        images, images_anchored = self._images(own, chunk, anchors)
        augmented = self._augmented(images, chunk)
        share_of_mean = len(own) * self.num_processes / self.num_classes  # the mean over processes is over all classes
        parts: dict[str, Tensor] = {}
        features = features_syn = augmented[:0]  # where no term looks at them
        if on & OF_FEATURES:
            features = self.extractor(augmented)
            features_syn = features.unflatten(0, (len(own), self.num_images))
        if "mean" in on:
            unit = self.real.gap(self.extractor, self.centers_real) if self.scale == "relative" else 1.0
            parts["mean"] = targets.mean_loss(features_syn, self.sets) / (len(own) * unit)
        if "mmd" in on:
            parts["mmd"] = targets.mmd_loss(features_syn, self.sets) / len(own)
        if "gradient" in on:
            if not isinstance(targets, BatchTargets):
                raise TypeError("gradients have no statistics")
            images_syn = augmented.unflatten(0, (len(own), self.num_images))
            loss = gradient_loss(self.extractor, targets.augmented, images_syn, own, self.gradient_metric)
            parts["gradient"] = loss / len(own)
        if self.scale == "sum":
            parts = {name: part * self.num_classes for name, part in parts.items()}
        if "diversity" in on:
            parts["diversity"] = diversity_loss(features_syn, targets.centers)
        if "center" in on:
            centers = features_syn.mean(1, keepdim=True) if self.sets is None else self.sets @ features_syn
            own_rows = torch.arange(chunk.start, chunk.stop, device=self.device)
            parts["center"] = center_loss(self.centers_real, centers, own_rows)
        if "classification" in on:
            labels = own.repeat_interleave(self.num_images)
            parts["classification"] = classification_loss(self.extractor.logits(features), labels)
        if "pixel" in on:
            parts["pixel"] = pixel_anchor_loss(targets.pooled, targets.contrast, images)
        if "own" in on and self.own_term is not None:
            real = targets.features if isinstance(targets, BatchTargets) else None
            parts["own"] = value_of(self.own_term, Seen(images, features_syn, targets.centers, real, own))
        parts = {name: part * share_of_mean for name, part in parts.items()}
        if "representative" in on and len(self.draw.anchors):
            anchored = self.representatives.read(anchors)
            loss = representative_loss(anchored, images_anchored, len(self.draw.anchors))
            parts["representative"] = loss * self.num_processes
        return total_loss(parts, self.weights), parts

    # --- what the classes of a chunk are -----------------------------------------------------------------------------

    def _classes(self, chunk: slice) -> Int64[Tensor, " classes"]:
        return self.draw.classes[chunk].to(self.device)

    def _params(self, chunk: slice) -> AugmentParams:
        """Of the augmentation: a row a class where it is shared with the real images, otherwise a row an image."""
        of_class = 1 if self.real.siamese else self.num_images
        return self.params.rows(slice(chunk.start * of_class, chunk.stop * of_class))

    def _targets(self, chunk: slice) -> Targets:
        """Kept until those of another chunk are asked for: real images are embedded once where there is one chunk."""
        if self.kept_targets is None or self.kept_targets[0] != chunk.start:
            self.kept_targets = chunk.start, self.targets_of(chunk, self._params(chunk))
        return self.kept_targets[1]

    def _images(
        self, own: Tensor, chunk: slice, anchors: Tensor
    ) -> tuple[Float[Tensor, "classes m c h w"], Float[Tensor, "a c s s"]]:
        """The synthetic images that are looked at, and those that are held to their real image."""
        tied = self.representatives
        labels, slots = own.repeat_interleave(self.slots.shape[1]), self.slots[chunk].flatten()
        made = self._synthesized(torch.cat([labels, tied.labels[anchors]]), torch.cat([slots, tied.slots[anchors]]))
        images, images_anchored = made.split([len(labels), len(anchors)])
        images = decode(images, self.factor, self.augmentation.image_size).unflatten(0, (len(own), -1))
        if self.kept is not None:
            images = images[torch.arange(len(own), device=self.device)[:, None], self.kept[chunk]]
        return images, images_anchored

    def _synthesized(self, labels: Tensor, slots: Tensor) -> Tensor:
        if self.images_at_once is None or self.most_of_class <= self.images_at_once or not torch.is_grad_enabled():
            return self.synthesize(labels, slots)  # of classes that fit, with their part of the anchored images
        pairs = zip(labels.split(self.images_at_once), slots.split(self.images_at_once), strict=True)
        return torch.cat([
            checkpoint(self.synthesize, *some, use_reentrant=False, preserve_rng_state=False) for some in pairs
        ])  # fmt: skip

    def _augmented(self, images: Float[Tensor, "classes m c h w"], chunk: slice) -> Tensor:
        params = self._params(chunk)
        if self.real.siamese:
            params = params.rows(torch.arange(len(images)).repeat_interleave(self.num_images))
        return self.augmentation(images.flatten(0, 1), params)

    @torch.no_grad()
    def _centers(self) -> Float[Tensor, "classes d"]:
        """Centers of all real classes of the step, where they are needed."""
        if "center" not in self.on and not ("mean" in self.on and self.scale == "relative"):
            return torch.empty(0, 0)  # nobody asks
        own = torch.cat([self._targets(chunk).centers for chunk in self.chunks])
        everywhere = gather_rows(own, self.num_classes)
        if self.num_processes > 1:
            self.wire_bytes += everywhere.nbytes
        return everywhere


# --- several prefixes in one step ----------------------------------------------------------------------------------


def _stretches(lengths: Sequence[int]) -> list[range]:
    """The slots up to the first length, from there to the second, and so on."""
    return [range(start, stop) for start, stop in pairwise((0, *lengths))]


def shares_of(lengths: Sequence[int], at_most: int | None) -> list[int]:
    """How many slots are looked at of each stretch: up to the first length, from there to the second, and so on.

    Args:
        lengths: ascending.
        at_most: slots in all, but at least one of each stretch. Earlier stretches come first, since their images are
            part of more sets, as long as each later one has half of an equal share. None takes all.
    """
    stretches = _stretches(lengths)
    if at_most is None:
        return [len(stretch) for stretch in stretches]
    shares, left, least = [], at_most, max(1, at_most // (2 * len(stretches)))
    for number, stretch in enumerate(stretches, start=1):
        kept = least * (len(stretches) - number)  # for those after it
        shares.append(min(len(stretch), max(1, left - kept)))
        left -= shares[-1]
    return shares


def weights_of_sets(lengths: Sequence[int], shares: Sequence[int], images_of_slot: int) -> Float[Tensor, "sets m"]:
    """What each image that is looked at weighs in the set of each length: those of a stretch stand for all of it.

    Args:
        shares: see `shares_of`.
    Returns:
        Rows of sum 1, a row a length.
    """
    looked_at = torch.tensor(shares)
    stretch = torch.arange(len(lengths)).repeat_interleave(looked_at * images_of_slot)  # that each image is of
    stands_for = torch.tensor([len(one) for one in _stretches(lengths)]) / looked_at
    within = stretch <= torch.arange(len(lengths))[:, None]
    return stands_for[stretch] * within / (torch.tensor(lengths)[:, None] * images_of_slot)


def _some_of_each_stretch(draw: Draw, shares: Sequence[int]) -> Int64[Tensor, "classes k"]:
    """Slots that stand for the stretches, anew for each class."""
    slots = [
        stretch.start + torch.rand(len(draw.classes), len(stretch), generator=draw.rng).argsort(1)[:, :share]
        for stretch, share in zip(_stretches(draw.lengths), shares, strict=True)
    ]
    return torch.cat(slots, 1)
