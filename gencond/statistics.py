"""One pass over the real images -> per-class statistics on disk: the real side of every later step.

A step of DM or M3D reads hundreds of real images per class to estimate means that hardly change. Here they are
computed once, over the whole set under augmentation, for every extractor of the pool; then no step touches a real
image again and its cost does not depend on how many there are.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from gencond.augment import Augmentation
from gencond.data import LabeledImages
from gencond.features import Extractor
from gencond.files import read_cache, short_hash, written_whole
from gencond.losses.anchor import contrast, pooled_pixels
from gencond.losses.kernels import fourier_embedding, fourier_frequencies, median_bandwidth
from gencond.progress import progress
from gencond.ranges import to_signed

logger = logging.getLogger(__name__)

BANDWIDTH_FACTORS = (0.5, 1.0, 2.0)
PROBE_IMAGES = 512


@dataclass(frozen=True)
class RealStatistics:
    """What a class looks like to each of K extractors; features are of augmented images.

    Args:
        mean: mean feature.
        spread: trace of the feature covariance, in squared feature units.
        embedding: mean random Fourier embedding of the features.
        frequencies: of that embedding; its bandwidths are .5, 1 and 2 times the median feature distance.
        gap: mean squared distance between two class means, the unit in which features of a net are compared.
        pooled: mean 4x4 thumbnail of each class, of images as they are.
        contrast: mean standard deviation over pixels, per class and channel.
    """

    mean: Float[Tensor, "k classes d"]
    spread: Float[Tensor, "k classes"]
    embedding: Float[Tensor, "k classes r2"]
    frequencies: Float[Tensor, "k d r"]
    gap: Float[Tensor, " k"]
    pooled: Float[Tensor, "classes p"]
    contrast: Float[Tensor, "classes c"]

    def to(self, device: torch.device) -> "RealStatistics":
        return RealStatistics(*(getattr(self, field.name).to(device) for field in fields(self)))


def cached_statistics(
    data: LabeledImages,
    extractors: Sequence[Extractor],
    pool_key: str,
    cache: Path,
    *,
    augmentation: Augmentation,
    num_passes: int,
    num_frequencies: int,
    seed: int,
) -> RealStatistics:
    """`real_statistics`, read from `cache` if they were computed before for this data, pool and augmentation."""
    key = short_hash(
        "statistics-3",
        data.fingerprint,
        pool_key,
        augmentation.strategy,
        augmentation.mode,
        num_passes,
        num_frequencies,
        seed,
    )
    file = cache / "statistics" / f"{key}.safetensors"
    stored = read_cache(file)
    if stored is not None:
        logger.info("statistics: reusing those of %d images (%s)", len(data), key)
        return RealStatistics(**stored)
    statistics = real_statistics(
        data,
        extractors,
        augmentation=augmentation,
        num_passes=num_passes,
        num_frequencies=num_frequencies,
        seed=seed,
    )
    with written_whole(file) as temporary:
        save_file({field.name: getattr(statistics, field.name) for field in fields(statistics)}, temporary)
    return statistics


@torch.no_grad()
def real_statistics(
    data: LabeledImages,
    extractors: Sequence[Extractor],
    *,
    augmentation: Augmentation,
    num_passes: int,
    num_frequencies: int,
    seed: int,
    batch_size: int = 500,
) -> RealStatistics:
    """Sums over the data in float64, a batch at a time: memory does not grow with the set.

    Args:
        num_passes: how often every image is seen, each time under another augmentation.
        num_frequencies: of the Fourier embedding, a multiple of 3; the embedding is twice as long.
    """
    device = next(extractors[0].parameters()).device
    rng = torch.Generator().manual_seed(seed)
    num_classes, num_nets, feature_dim = data.num_classes, len(extractors), extractors[0].feature_dim

    def augmented(rows: Tensor) -> Tensor:
        return augmentation(to_signed(data.images[rows]).to(device), augmentation.draw(len(rows), rng))

    probe = augmented(torch.randperm(len(data), generator=rng)[:PROBE_IMAGES])
    frequencies = torch.stack([
        fourier_frequencies(
            feature_dim, num_frequencies, tuple(factor * median for factor in BANDWIDTH_FACTORS), rng
        )
        for median in (median_bandwidth(extractor(probe)) for extractor in extractors)
    ]).to(device)  # fmt: skip
    mean = torch.zeros(num_nets, num_classes, feature_dim, dtype=torch.float64, device=device)
    square = torch.zeros(num_nets, num_classes, dtype=torch.float64, device=device)
    embedding = torch.zeros(num_nets, num_classes, 2 * num_frequencies, dtype=torch.float64, device=device)
    pooled, contrasts = None, None
    bar = progress(description="statistics", total=num_passes * len(data), unit="image")
    for number in range(num_passes):
        for rows in torch.arange(len(data)).split(batch_size):
            labels = data.labels[rows].to(device)
            images = augmented(rows)
            for k, extractor in enumerate(extractors):
                features = extractor(images)
                mean[k].index_add_(0, labels, features.double())
                square[k].index_add_(0, labels, features.double().square().sum(1))
                embedding[k].index_add_(0, labels, fourier_embedding(features, frequencies[k]).double())
            if number == 0:
                plain = to_signed(data.images[rows]).to(device)
                vectors = pooled_pixels(plain).double(), contrast(plain).double()
                if pooled is None:
                    pooled, contrasts = (vector.new_zeros(num_classes, vector.shape[1]) for vector in vectors)
                pooled.index_add_(0, labels, vectors[0])
                contrasts.index_add_(0, labels, vectors[1])
            bar.update(len(rows))
    bar.close()
    count = data.counts.to(device)
    seen = (count * num_passes).double()
    mean /= seen[:, None]
    spread = (square / seen - mean.square().sum(-1)).clamp_min(1e-12)
    # The mean over pairs of classes from sums over classes: C sum |m|^2 - |sum m|^2 is the sum over pairs.
    pairs = num_classes * mean.square().sum((1, 2)) - mean.sum(1).square().sum(1)
    gap = (pairs / (num_classes * (num_classes - 1) / 2)).clamp_min(1e-12)
    return RealStatistics(
        mean=mean.float().cpu(),
        spread=spread.float().cpu(),
        embedding=(embedding / seen[:, None]).float().cpu(),
        frequencies=frequencies.cpu(),
        gap=gap.float().cpu(),
        pooled=(pooled / count[:, None]).float().cpu(),
        contrast=(contrasts / count[:, None]).float().cpu(),
    )
