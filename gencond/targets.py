"""The real side of a step: what the synthetic images of some classes are matched to, as one extractor sees it.

Cached statistics of the whole set and batches of real images answer the same questions, so that an objective is
written once; what only batches can answer (gradients) is asked of them alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.func import functional_call

from gencond.augment import Augmentation, AugmentParams
from gencond.features import Extractor
from gencond.losses.gradient import Metric, gradient_matching_loss
from gencond.losses.mean import mean_matching_loss
from gencond.losses.mmd import Kernel, fourier_mmd_loss, mmd_loss
from gencond.ranges import to_signed
from gencond.statistics import RealStatistics


@dataclass(frozen=True)
class CachedTargets:
    """Rows of `RealStatistics` for one extractor: no real image is touched.

    Losses are summed over classes; `syn` holds the features of m synthetic images of each.
    """

    centers: Float[Tensor, "classes d"]
    spread: Float[Tensor, " classes"]
    embedding: Float[Tensor, "classes r2"]
    frequencies: Float[Tensor, "d r"]

    @classmethod
    def of(cls, statistics: RealStatistics, net: int, classes: Int64[Tensor, " classes"]) -> "CachedTargets":
        return cls(
            statistics.mean[net][classes],
            statistics.spread[net][classes],
            statistics.embedding[net][classes],
            statistics.frequencies[net],
        )

    def mean_loss(self, syn: Float[Tensor, "classes m d"]) -> Float[Tensor, ""]:
        return mean_matching_loss(self.centers[:, None], syn)

    def mmd_loss(self, syn: Float[Tensor, "classes m d"]) -> Float[Tensor, ""]:
        return fourier_mmd_loss(self.embedding, syn, self.frequencies)


@dataclass(frozen=True)
class BatchTargets:
    """Features of as many real images of each class, without gradient; losses as those of `CachedTargets`."""

    features: Float[Tensor, "classes n d"]
    kernel: Kernel = "gaussian"

    @property
    def centers(self) -> Float[Tensor, "classes d"]:
        return self.features.mean(1)

    @property
    def spread(self) -> Float[Tensor, " classes"]:
        return self.features.var(1, unbiased=False).sum(1).clamp_min(1e-12)

    def mean_loss(self, syn: Float[Tensor, "classes m d"]) -> Float[Tensor, ""]:
        return mean_matching_loss(self.features, syn)

    def mmd_loss(self, syn: Float[Tensor, "classes m d"]) -> Float[Tensor, ""]:
        return mmd_loss(self.features, syn, self.kernel)


@torch.no_grad()
def embed_batch(
    images: UInt8[Tensor, "classes n c h w"],
    extractor: Extractor,
    augmentation: Augmentation,
    params: AugmentParams,
    kernel: Kernel = "gaussian",
) -> BatchTargets:
    """Real images, augmented and embedded in one forward over all classes.

    Args:
        params: one row for each image, class-major; the same row for all of a class is DM's siamese augmentation.
    """
    num_classes, num_images = images.shape[:2]
    signed = augmentation(to_signed(images.flatten(0, 1)), params)
    return BatchTargets(extractor(signed).view(num_classes, num_images, -1), kernel)


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
