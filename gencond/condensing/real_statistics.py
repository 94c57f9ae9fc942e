"""One pass over the real images -> per-class statistics on disk: the real side of every later step.

A step of DM or M3D reads hundreds of real images per class to estimate means that hardly change. Here they are
computed once, over the whole set under augmentation, for every extractor of the pool; then no step touches a real
image again and its cost does not depend on how many there are.

The pass holds a batch and the sums, never the set. Processes share its batches, and its sums are saved as it goes, so
that a killed one goes on.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gencond.common.cache import read_checked, write_checked
from gencond.common.distributed import from_main, rank_and_world, wait_for_everyone
from gencond.common.errors import InputError
from gencond.common.files import all_finite, short_hash
from gencond.common.progress import progress, spoken_time
from gencond.common.ranges import to_signed
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.losses.anchor import contrast, pooled_pixels
from gencond.losses.kernels import fourier_embedding, fourier_frequencies, median_bandwidth
from gencond.networks.extractor import Extractor, embed_all

logger = logging.getLogger(__name__)

BANDWIDTH_FACTORS = (0.5, 1.0, 2.0)
BATCH_SIZE = 500
PROBE_IMAGES = BATCH_SIZE  # whose distances say how wide the kernels are
FULL_BATCH, FULL_BATCH_SIDE = 512, 64  # larger images go in smaller batches, so that a batch takes the same memory
BATCHES_BETWEEN_SUMS = 64  # after which processes add their sums: positions that depend on nothing but the data
SECONDS_BETWEEN_STATES = 60.0
FORECAST_FROM_IMAGES = 100_000
WITHOUT_FLOAT64 = ("mps",)


@dataclass(frozen=True)
class RealStatistics:
    """What a class looks like to each of K extractors; features are of augmented images.

    Args:
        mean: mean feature.
        embedding: mean random Fourier embedding of the features.
        frequencies: of that embedding; its bandwidths are .5, 1 and 2 times the median feature distance.
        gap: mean squared distance between two class means, the unit in which features of a net are compared.
        pooled: mean 4x4 thumbnail of each class, of images as they are.
        contrast: mean standard deviation over pixels, per class and channel.
    """

    mean: Float[Tensor, "k classes d"]
    embedding: Float[Tensor, "k classes r2"]
    frequencies: Float[Tensor, "k d r"]
    gap: Float[Tensor, " k"]
    pooled: Float[Tensor, "classes p"]
    contrast: Float[Tensor, "classes c"]

    def to(self, device: torch.device) -> "RealStatistics":
        return RealStatistics(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Sums:
    """What a pass adds up, in float64 on the device of `frequencies`, and how far it is: enough to go on with it.

    Args:
        frequencies: see `RealStatistics`.
        features, embeddings: of the extractors' features under augmentation, of all passes.
        pooled, contrasts: of images as they are, of the first pass.
        done: batches that are in the sums.
    """

    frequencies: Float[Tensor, "k d r"]
    features: Float64[Tensor, "k classes d"]
    embeddings: Float64[Tensor, "k classes r2"]
    pooled: Float64[Tensor, "classes p"]
    contrasts: Float64[Tensor, "classes c"]
    done: int = 0

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "done"}

    def added(self) -> list[Tensor]:
        """The tensors that grow."""
        return [tensor for name, tensor in self.tensors().items() if name != "frequencies"]

    def save(self, file: Path, done: int) -> None:
        """Whole or not at all."""
        write_checked(file, self.tensors() | {"done": torch.tensor(done)}, f"{done} batches are in it")

    @classmethod
    def read(cls, file: Path, device: torch.device) -> "Sums | None":
        """Those of a killed pass; None where there was none, or its file is damaged."""
        stored = read_checked(file)
        if stored is None:
            return None
        done = int(stored.pop("done"))
        return cls(**{name: tensor.to(device) for name, tensor in stored.items()}, done=done)


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
    """`real_statistics`, read from `cache` if they were computed before for this data, pool and augmentation.

    All processes have to call it: they share the pass, and the main one writes.
    """
    key = short_hash(
        "statistics-7",
        data.fingerprint,
        pool_key,
        augmentation.strategy,
        augmentation.mode,
        num_passes,
        num_frequencies,
        seed,
    )
    file = cache / "statistics" / f"{key}.safetensors"
    # The main process decides for all: the file may appear, from another run, between two looks at it.
    if from_main(lambda: read_checked(file) is not None):
        logger.info("statistics: reusing those of %d images (%s)", len(data), key)
        return RealStatistics(**cast("dict[str, Tensor]", read_checked(file)))  # it is there
    state = file.with_name(f"{key}.unfinished.safetensors")
    statistics = real_statistics(
        data,
        extractors,
        augmentation=augmentation,
        num_passes=num_passes,
        num_frequencies=num_frequencies,
        seed=seed,
        state=state,
    )

    def write() -> None:
        tensors = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
        if not all_finite(tensors):
            raise InputError(
                "statistics: a feature of the real images is not finite: choose other features.weights or "
                "another features.network"
            )
        write_checked(file, tensors, f"{len(extractors)} networks of {data.words}")
        state.unlink(missing_ok=True)

    from_main(write)
    return statistics


def images_at_once(side: int) -> int:
    """How many images of `side` pixels are embedded at once, so that their activations take a bounded memory."""
    return max(8, int(FULL_BATCH * min(1.0, (FULL_BATCH_SIDE / side) ** 2)))


@torch.no_grad()
def real_statistics(
    data: LabeledImages,
    extractors: Sequence[Extractor],
    *,
    augmentation: Augmentation,
    num_passes: int,
    num_frequencies: int,
    seed: int,
    batch_size: int = BATCH_SIZE,
    state: Path | None = None,
) -> RealStatistics:
    """Sums over the data in float64, a batch at a time: memory does not grow with the set.

    A random part of the images comes first: the distances of their features are the kernels' widths, too.

    Each process draws the augmentation of all batches and computes its share of them, so that the draws, and to the
    rounding of sums in another order the result, are those of one process.

    Args:
        num_passes: how often every image is seen, each time under another augmentation.
        num_frequencies: of the Fourier embedding, a multiple of 3; the embedding is twice as long.
        batch_size: at most; of images over `FULL_BATCH_SIDE` pixels fewer.
        state: a file that the sums are saved in every minute; a pass that finds it goes on from there, and a single
            process ends with the same bits.
    """
    device = next(extractors[0].parameters()).device
    rng = torch.Generator().manual_seed(seed)
    side = max(data.image_size, extractors[0].resize or 0)
    embed = extractors[0].embed.for_many(len(extractors) * num_passes * len(data) * side**2, device)
    extractors = [extractor.embedded_by(embed) for extractor in extractors]
    at_once = images_at_once(side)
    probed, batches = _batches(len(data), min(batch_size, at_once), rng)
    rank, world = rank_and_world()

    # The first batches of the first pass, which tell how wide the kernels are before anything can be embedded in them.
    params = [augmentation.draw(len(rows), rng) for rows in batches[:probed]]
    probe = [augmentation(_plain(data, rows, device), own) for rows, own in zip(batches, params, strict=False)]
    frequencies, seconds_per_net = [], []
    features_of_probe: list[list[Tensor]] = [[] for _ in probe]
    for extractor in extractors:
        started = time.monotonic()
        features = [embed_all(extractor, images, at_once) for images in probe]
        distance = median_bandwidth(torch.cat(features).to(summing_device(device)))
        seconds_per_net.append(time.monotonic() - started)  # of the first one also for compiling: the median counts
        for of_batch, own in zip(features_of_probe, features, strict=True):
            of_batch.append(own)
        bandwidths = tuple(factor * distance for factor in BANDWIDTH_FACTORS)
        frequencies.append(fourier_frequencies(extractor.feature_dim, num_frequencies, bandwidths, rng))
    total = None if state is None or rank > 0 else Sums.read(state, summing_device(device))
    total = total or _no_sums(data, torch.stack(frequencies).to(summing_device(device)))
    if world > 1:  # the main process alone reads the state, and GPUs may differ in the last bits of a median
        start = from_main(lambda: total.done)
        for tensor in total.tensors().values():
            dist.broadcast(tensor, 0)
    else:
        start = total.done
    num_batches = num_passes * len(batches)
    if rank == 0:
        if start:
            logger.info("statistics: resumed at %.0f %%", 100 * start / num_batches)
        elif len(data) >= FORECAST_FROM_IMAGES:
            logger.info(
                "statistics: %d images, %d networks, %d pass(es): about %s, sums of %.1f GB in memory and on disk",
                len(data), len(extractors), num_passes,
                spoken_time(median(seconds_per_net) * len(extractors) * num_batches / (probed * world)),
                sum(tensor.nbytes for tensor in total.tensors().values()) / 1e9,
            )  # fmt: skip
    own = total if world == 1 else _no_sums(data, total.frequencies)
    bar = progress(
        description="statistics",
        total=num_passes * len(data),
        initial=_images_in(batches, start),
        unit="image",
        disable=rank > 0,
    )
    saved = time.monotonic()
    for number in range(num_batches):
        rows, known = batches[number % len(batches)], number < probed
        drawn = None if known else augmentation.draw(len(rows), rng)
        if number >= start:
            if number % world == rank:
                plain = _plain(data, rows, device)
                if drawn is None:
                    features = features_of_probe[number]
                else:
                    images = augmentation(plain, drawn)
                    features = (embed_all(extractor, images, at_once) for extractor in extractors)
                _add(own, features, data.labels[rows], plain if number < len(batches) else None)
            bar.update(len(rows))
            done = number + 1
            if world > 1 and (done % BATCHES_BETWEEN_SUMS == 0 or done == num_batches):
                _add_up(total, own)
            together = world == 1 or done % BATCHES_BETWEEN_SUMS == 0
            if rank == 0 and state is not None and together and time.monotonic() - saved > SECONDS_BETWEEN_STATES:
                total.save(state, done)
                saved = time.monotonic()
    bar.close()
    return _averages(total, data, num_passes)


def summing_device(device: torch.device) -> torch.device:
    """Where float64 is for what is computed on `device`: there, or where it has none, as Apple's GPUs, on the CPU."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def _no_sums(data: LabeledImages, frequencies: Float[Tensor, "k d r"]) -> Sums:
    """Zeros on the device of `frequencies`."""
    num_nets, feature_dim, num_frequencies = frequencies.shape
    plain = to_signed(data.images[:1])
    sizes = (
        (num_nets, data.num_classes, feature_dim),
        (num_nets, data.num_classes, 2 * num_frequencies),
        (data.num_classes, pooled_pixels(plain).shape[1]),
        (data.num_classes, contrast(plain).shape[1]),
    )
    features, embeddings, pooled, contrasts = (
        torch.zeros(size, dtype=torch.float64, device=frequencies.device) for size in sizes
    )
    return Sums(frequencies, features, embeddings, pooled, contrasts)


def _batches(count: int, batch_size: int, rng: torch.Generator) -> tuple[int, list[Tensor]]:
    """(how many batches come first that hold a random part of the images, the rows of all batches of a pass)."""
    drawn = torch.randperm(count, generator=rng)[:PROBE_IMAGES].sort().values
    others = torch.ones(count, dtype=torch.bool)
    others[drawn] = False
    first, rest = drawn.split(batch_size), others.nonzero()[:, 0]
    return len(first), [*first, *(rest.split(batch_size) if len(rest) else ())]


def _plain(data: LabeledImages, rows: Tensor, device: torch.device) -> Float[Tensor, "n c h w"]:
    """Images as they are, in [-1, 1]."""
    return to_signed(data.images[rows]).to(device)


def _images_in(batches: Sequence[Tensor], count: int) -> int:
    """How many images the first `count` batches of all passes hold."""
    passes, rest = divmod(count, len(batches))
    return passes * sum(map(len, batches)) + sum(map(len, batches[:rest]))


def _add(
    sums: Sums,
    features: Iterable[Float[Tensor, "n d"]],
    labels: Int64[Tensor, " n"],
    plain: Float[Tensor, "n c h w"] | None,
) -> None:
    """A batch, in place.

    Args:
        features: of each extractor, under augmentation.
        plain: the images as they are; None after the first pass, which alone sums them.
    """
    device = sums.frequencies.device
    labels = labels.to(device)
    for k, of_net in enumerate(features):
        own = of_net.to(device)
        sums.features[k].index_add_(0, labels, own.double())
        sums.embeddings[k].index_add_(0, labels, fourier_embedding(own, sums.frequencies[k]).double())
    if plain is not None:
        sums.pooled.index_add_(0, labels, pooled_pixels(plain).to(device).double())
        sums.contrasts.index_add_(0, labels, contrast(plain).to(device).double())


def _add_up(total: Sums, own: Sums) -> None:
    """Adds what the processes have summed since the last time to the total of each, and empties it."""
    wait_for_everyone()  # who reads from a slow disk
    for whole, part in zip(total.added(), own.added(), strict=True):
        dist.all_reduce(part)
        whole += part
        part.zero_()


def _averages(sums: Sums, data: LabeledImages, num_passes: int) -> RealStatistics:
    count = data.counts.to(sums.features.device)
    seen = (count * num_passes).double()
    mean = sums.features / seen[:, None]
    # The mean over pairs of classes from sums over classes: C sum |m|^2 - |sum m|^2 is the sum over pairs.
    num_classes = data.num_classes
    pairs = num_classes * mean.square().sum((1, 2)) - mean.sum(1).square().sum(1)
    gap = (pairs / (num_classes * (num_classes - 1) / 2)).clamp_min(1e-12)
    return RealStatistics(
        mean=mean.float().cpu(),
        embedding=(sums.embeddings / seen[:, None]).float().cpu(),
        frequencies=sums.frequencies.cpu(),
        gap=gap.float().cpu(),
        pooled=(sums.pooled / count[:, None]).float().cpu(),
        contrast=(sums.contrasts / count[:, None]).float().cpu(),
    )
