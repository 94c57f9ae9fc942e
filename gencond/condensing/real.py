"""The real side of a step: what the synthetic images of some classes are matched to, as one extractor sees it.

Cached statistics of the whole set and batches of real images answer the same questions, so that an objective is
written once; what only batches can answer (gradients) is asked of them alone. Their MMDs have other kernels: statistics
hold a mean of three Gaussians around the median distance of the whole set, M3D sums five around each batch's own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import functional_call

from gencond.common.distributed import gather_rows, own_share, rank_and_world, wait_for_everyone
from gencond.common.ranges import to_signed
from gencond.condensing.real_statistics import RealStatistics
from gencond.data.augment import Augmentation, AugmentParams
from gencond.data.images import LabeledImages
from gencond.data.select import class_batches, kmeans_representatives
from gencond.losses.anchor import contrast, pooled_pixels
from gencond.losses.gradient import Metric, gradient_matching_loss
from gencond.losses.kernels import pair_distances
from gencond.losses.mean import mean_matching_loss
from gencond.losses.mmd import Kernel, fourier_mmd_loss, mmd_loss
from gencond.networks.extractor import Extractor, embed_all, resized

# --- a step --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """All that is random in a step, the same on every process.

    Args:
        step: its number.
        classes: of this step, ascending.
        first_slot, lengths: for each of the lengths, ascending, the slots first_slot .. first_slot + length - 1 of each
            class form a synthetic set.
        extractor: embeds.
        rng: draws the augmentation and real images.
        anchors: rows of the representatives whose slots are held to their real image.
    """

    step: int
    classes: Int64[Tensor, " classes"]
    first_slot: int
    lengths: tuple[int, ...]
    extractor: Extractor
    rng: torch.Generator
    anchors: Int64[Tensor, " a"]

    @property
    def length(self) -> int:
        """Of the longest set."""
        return self.lengths[-1]


# --- what the real images of some classes look like to an extractor ------------------------------------------------


Sets = Float[Tensor, "sets m"] | None  # weights of the synthetic rows, see `losses.mean_matching_loss`


@dataclass(frozen=True)
class CachedTargets:
    """Rows of `RealStatistics` for one extractor: no real image is touched.

    Losses are summed over classes; `syn` holds the features of m synthetic images of each.
    """

    centers: Float[Tensor, "classes d"]
    embedding: Float[Tensor, "classes r2"]
    frequencies: Float[Tensor, "d r"]
    pooled: Float[Tensor, "classes p"]
    contrast: Float[Tensor, "classes c"]

    @classmethod
    def of(cls, statistics: RealStatistics, net: int, classes: Int64[Tensor, " classes"]) -> "CachedTargets":
        return cls(
            statistics.mean[net][classes],
            statistics.embedding[net][classes],
            statistics.frequencies[net],
            statistics.pooled[classes],
            statistics.contrast[classes],
        )

    def mean_loss(self, syn: Float[Tensor, "classes m d"], sets: Sets = None) -> Float[Tensor, ""]:
        return mean_matching_loss(self.centers[:, None], syn, sets)

    def mmd_loss(self, syn: Float[Tensor, "classes m d"], sets: Sets = None) -> Float[Tensor, ""]:
        return fourier_mmd_loss(self.embedding, syn, self.frequencies, sets)


@dataclass(frozen=True)
class BatchTargets:
    """As many real images of each class, before and after augmentation; losses as those of `CachedTargets`.

    They are embedded when a feature is first asked for, without gradient, over all classes.

    Args:
        kernel: of the MMD, see `losses.mmd.mmd_loss`.
    """

    images: Float[Tensor, "classes n c h w"]
    augmented: Float[Tensor, "classes n c h w"]
    extractor: Extractor
    kernel: Kernel = "gaussian"

    @cached_property
    def features(self) -> Float[Tensor, "classes n d"]:
        return embed_all(self.extractor, self.augmented.flatten(0, 1)).unflatten(0, self.augmented.shape[:2])

    @property
    def centers(self) -> Float[Tensor, "classes d"]:
        return self.features.mean(1)

    @property
    def pooled(self) -> Float[Tensor, "classes p"]:
        return pooled_pixels(self.images).mean(1)

    @property
    def contrast(self) -> Float[Tensor, "classes c"]:
        return contrast(self.images).mean(1)

    def mean_loss(self, syn: Float[Tensor, "classes m d"], sets: Sets = None) -> Float[Tensor, ""]:
        return mean_matching_loss(self.features, syn, sets)

    def mmd_loss(self, syn: Float[Tensor, "classes m d"], sets: Sets = None) -> Float[Tensor, ""]:
        return mmd_loss(self.features, syn, self.kernel, sets)


Targets = CachedTargets | BatchTargets


# --- where they come from ------------------------------------------------------------------------------------------


class StatisticsSide:
    """Cached statistics: each synthetic image is augmented by a draw of its own."""

    siamese = False
    images_of_class = 0  # that a step looks at

    def __init__(self, statistics: RealStatistics, pool: Sequence[Extractor]) -> None:
        self.statistics, self.pool = statistics, list(pool)

    def at(self, draw: Draw, augmentation: Augmentation) -> Callable[[slice, AugmentParams], CachedTargets]:
        """(some of a step's classes, their augmentation) -> targets; the statistics hold the augmentation already."""
        net, device = self._number(draw.extractor), self.statistics.mean.device
        return lambda some, params: CachedTargets.of(self.statistics, net, draw.classes[some].to(device))

    def gap(self, extractor: Extractor, centers: Float[Tensor, "classes d"]) -> Float[Tensor, ""]:
        """Mean squared distance between the centers of two classes, of all classes."""
        return self.statistics.gap[self._number(extractor)]

    def _number(self, extractor: Extractor) -> int:
        return next(number for number, one in enumerate(self.pool) if one is extractor)


class BatchSide:
    """Real images in every step: random ones, drawn anew each time.

    All images of a class, real and synthetic, go through one draw of the augmentation ("siamese", DM and IDC).

    Args:
        batch_size: of each class.
        device: of the step.
        kernel: of the MMD.
    """

    siamese = True

    def __init__(self, data: LabeledImages, batch_size: int, device: torch.device, kernel: Kernel = "gaussian") -> None:
        self.data, self.batch_size, self.device = data, batch_size, device
        self.kernel: Kernel = kernel

    @property
    def images_of_class(self) -> int:
        """That a step looks at."""
        return self.batch_size

    def rows(self, draw: Draw) -> Int64[Tensor, "classes n"]:
        """Which real images stand for each class of a step."""
        return class_batches(self.data, draw.classes, self.batch_size, draw.rng)

    def at(self, draw: Draw, augmentation: Augmentation) -> Callable[[slice, AugmentParams], BatchTargets]:
        """(some of a step's classes, a row of augmentation for each) -> targets; which images is drawn here, once."""
        rows = self.rows(draw)

        def targets(some: slice, params: AugmentParams) -> BatchTargets:
            images = self.data.images[rows[some]].to(self.device)
            shared = params.rows(torch.arange(len(images)).repeat_interleave(images.shape[1]))
            seen = resized(to_signed(images.flatten(0, 1)), augmentation.image_size)
            augmented, shape = augmentation(seen, shared), images.shape[:2]
            return BatchTargets(seen.unflatten(0, shape), augmented.unflatten(0, shape), draw.extractor, self.kernel)

        return targets

    def gap(self, extractor: Extractor, centers: Float[Tensor, "classes d"]) -> Float[Tensor, ""]:
        """Mean squared distance between the centers of two classes, of the step's classes."""
        return pair_distances(centers).square().sum().div(max(1, math.comb(len(centers), 2))).clamp_min(1e-12)


class RepresentativeSide(BatchSide):
    """The images nearest to k-means centers of each class in the current features, chosen again every some steps.

    Source: DREAM (2302.14416), section 3.2. As in its code an image nearest to two centers counts twice and images are
        looked at without augmentation; they are normalised here, which its code leaves out.

    Args:
        refresh_steps: between two choices.
        candidates: how many random images of a class are looked at; None looks at all.
        seed: of k-means.
    """

    def __init__(
        self,
        data: LabeledImages,
        batch_size: int,
        device: torch.device,
        kernel: Kernel = "gaussian",
        refresh_steps: int = 10,
        candidates: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(data, batch_size, device, kernel)
        self.refresh_steps, self.candidates, self.seed = refresh_steps, candidates, seed
        self.chosen = torch.zeros(data.num_classes, batch_size, dtype=torch.int64)  # part of a run's state

    def rows(self, draw: Draw) -> Int64[Tensor, "classes n"]:
        if draw.step % self.refresh_steps == 0:
            self.chosen = self._choose(draw.extractor, draw.rng)
        return self.chosen[draw.classes]

    def _choose(self, extractor: Extractor, rng: torch.Generator) -> Int64[Tensor, "classes n"]:
        """For all classes; each process does its share of them."""
        drawn = [  # on every process for every class, so that their generators stay alike
            rows if self.candidates is None else rows[torch.randperm(len(rows), generator=rng)[: self.candidates]]
            for rows in map(self.data.rows_of, range(self.data.num_classes))
        ]
        rank, world = rank_and_world()
        chosen = []
        for rows in drawn[own_share(len(drawn), rank, world)]:
            features = embed_all(extractor, self.data.images[rows])
            num_clusters = min(self.batch_size, len(rows))
            nearest = kmeans_representatives(features.cpu().numpy(), num_clusters, self.seed, distinct=False)
            chosen.append(rows[nearest[torch.arange(self.batch_size) % num_clusters]])
        wait_for_everyone()  # k-means of some classes takes minutes longer than of others
        return gather_rows(torch.stack(chosen).to(self.device), len(drawn)).cpu()

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": self.chosen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.chosen = state["chosen"]


RealSide = StatisticsSide | BatchSide


# --- gradients -----------------------------------------------------------------------------------------------------


def class_gradients(
    extractor: Extractor,
    images: Float[Tensor, "classes n c h w"],
    labels: Int64[Tensor, " classes"],
    create_graph: bool,
) -> list[list[Float[Tensor, "..."]]]:
    """For each class, the gradient of its mean cross-entropy with respect to the convolution weights.

    Args:
        images: augmented.
        create_graph: keeps the graph, so that the gradients can be differentiated with respect to the images.
    Source: IDC (2205.14959) and DREAM (2302.14416): biases, norms and the head are not compared.
    """
    network = extractor.network
    fixed = dict(network.named_parameters())
    compared = {name: weight.detach().requires_grad_() for name, weight in fixed.items() if weight.dim() == 4}
    gradients = []
    for of_class, label in zip(images, labels, strict=True):
        logits = functional_call(network, fixed | compared, (extractor.normalise(of_class),))
        loss = F.cross_entropy(logits, label.expand(len(of_class)))
        gradients.append(list(torch.autograd.grad(loss, list(compared.values()), create_graph=create_graph)))
    return gradients


def gradient_loss(
    extractor: Extractor,
    real: Float[Tensor, "classes n c h w"],
    syn: Float[Tensor, "classes m c h w"],
    labels: Int64[Tensor, " classes"],
    metric: Metric = "mse",
) -> Float[Tensor, ""]:
    """`gradient_matching_loss` of each class between augmented real and synthetic images, summed over classes."""
    targets: Sequence = class_gradients(extractor, real, labels, create_graph=False)
    sources: Sequence = class_gradients(extractor, syn, labels, create_graph=True)
    losses = [gradient_matching_loss(one, other, metric) for one, other in zip(targets, sources, strict=True)]
    return torch.stack(losses).sum()
