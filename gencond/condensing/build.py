"""A recipe's parts, built for one data set: extractors, the real side, what learning starts from; and whether they fit.

The only place where a recipe's words become objects, so that everything below takes plain values.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from gencond.common.distributed import from_all, main_process_first, own_share, rank_and_world
from gencond.common.errors import InputError
from gencond.common.files import cache_dir, short_hash, weights_hash
from gencond.common.ranges import to_signed
from gencond.common.room import require_memory
from gencond.common.seeding import seeded
from gencond.condensing.backbones import IMAGENET1K, new_generator
from gencond.condensing.difficulty import difficulties
from gencond.condensing.extractors import (
    SETTLING_IMAGES,
    ExtractorMaker,
    FreshExtractors,
    OnlineExtractors,
    PoolExtractors,
    build_pool,
)
from gencond.condensing.real import BatchSide, RealSide, RepresentativeSide, StatisticsSide
from gencond.condensing.real_statistics import cached_statistics
from gencond.config import Recipe
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.data.mapped import CPU, MappedImages
from gencond.data.select import nested_representatives, pixel_features, some_of_each_class
from gencond.generator.packing import pack
from gencond.generator.pixels import CondensedPixels
from gencond.networks.convnet import ConvNet, automatic_depth
from gencond.networks.extractor import Embedding, embed_all
from gencond.networks.from_timm import TimmNetwork
from gencond.networks.resnet import ResNetAP10
from gencond.networks.training import new_sgd

logger = logging.getLogger(__name__)

Extractors = PoolExtractors | FreshExtractors | OnlineExtractors


@dataclass(frozen=True)
class Representatives:
    """What a learned slot starts from: real images, `factor` squared of them packed into each.

    They stay where the real images are, and are read as they are asked for.

    Args:
        labels, slots: which slots; on `device`.
        rows: of `real`, in reading order.
        real: all real images.
        device: where images go that are read.
    """

    labels: Int64[Tensor, " n"]
    slots: Int64[Tensor, " n"]
    rows: Int64[Tensor, "n k"]
    real: UInt8[Tensor, "m c h w"] | MappedImages
    factor: int = 1
    device: torch.device = CPU

    def to(self, device: torch.device) -> "Representatives":
        return replace(self, labels=self.labels.to(device), slots=self.slots.to(device), device=device)

    def read(self, which: Int64[Tensor, " k"] | slice) -> Float[Tensor, "k c h w"]:
        """Some of the images, in [-1, 1]."""
        rows = self.rows[which.cpu() if isinstance(which, Tensor) else which]
        images = to_signed(self.real[rows.flatten()])
        packed = pack(images.unflatten(0, rows.shape), self.factor) if len(rows) else images
        return packed.to(self.device)

    @property
    def images(self) -> Float[Tensor, "n c h w"]:
        """All of them, in [-1, 1]."""
        return self.read(slice(None))


# --- whether parts fit ---------------------------------------------------------------------------------------------


def check_fit(recipe: Recipe, data: LabeledImages) -> None:
    """Holds a recipe's parts against each other and builds each once for the images, before minutes of work.

    Raises:
        InputError: a combination that means nothing, or a part that does not fit the images.
    """
    check_parts(recipe)
    check_networks(recipe, data)
    check_counts(recipe, *min(zip(data.counts.tolist(), data.class_names, strict=True)))


def check_networks(recipe: Recipe, data: LabeledImages) -> None:
    """Builds the recipe's networks for images of the data's size, channels and classes. Raises as `check_fit`."""
    check_sizes(recipe, data)
    try:
        if recipe.synthesizer.kind == "generator" and recipe.generator.weights is None:
            new_generator(recipe, data)
        extractor_maker(recipe, data, torch.device("cpu")).network(0)
        for strategy in (recipe.data.augmentation, recipe.pretrain.augmentation, recipe.condense.augmentation):
            Augmentation(strategy or "none", data.image_size)
    except InputError:
        raise  # it says already what is wrong
    except ValueError as error:
        raise InputError(f"recipe {recipe.name} does not fit {data.image_size} px images: {error}") from None
    if recipe.synthesizer.factor > data.image_size // 2:
        raise InputError(
            f"synthesizer.factor={recipe.synthesizer.factor} leaves nothing of {data.image_size} px images"
        )


def check_sizes(recipe: Recipe, data: LabeledImages) -> None:
    """Raises InputError for a number that alone asks for more memory than there is, before any of it is allocated."""
    of_step = min(data.num_classes, recipe.condense.classes_per_step)
    image = 4 * data.channels * data.image_size**2  # bytes
    of_kernel = 9 * 4  # of a convolution's weight between two channels
    nets = recipe.features.num_trajectories * len(recipe.features.snapshot_steps) + recipe.features.num_random
    at_least = {"features.width": of_kernel * recipe.features.width**2}
    if recipe.features.kind == "pool":
        at_least["features.num_trajectories and num_random"] = nets * recipe.features.width * of_kernel
    if recipe.real.kind == "statistics":
        at_least["real.num_frequencies"] = 16 * nets * data.num_classes * recipe.real.num_frequencies
    else:
        at_least["real.batch_size"] = of_step * recipe.real.batch_size * image
    if recipe.synthesizer.kind == "pixels":
        at_least["pixels.ipc"] = 2 * data.num_classes * recipe.pixels.ipc * image
    else:
        part = recipe.generator
        code = {
            "biggan": 2 * part.chunk_dim,  # or more
            "biggan_deep": part.latent_dim,
            "transform": min(part.chunk_dim, data.channels * data.image_size**2),
        }[part.backbone]
        at_once = recipe.condense.images_at_once is None and recipe.condense.images_per_step is None
        of_slot = image if at_once else 12  # its number and its place in a random order
        longest = max(recipe.condense.prefix_lengths or (recipe.codes.num_slots,))
        at_least |= {
            "generator.width": of_kernel * part.width**2,
            "generator.chunk_dim and latent_dim": 4 * code * part.width,
            "generator.class_embed_dim": 4 * max(data.num_classes, part.width) * part.class_embed_dim,
            "codes.num_slots": 16 * data.num_classes * recipe.codes.num_slots * code,  # gradient and two moments too
            "codes.encode_batch_size": recipe.codes.encode_batch_size * image * bool(recipe.codes.encode_steps),
            "condense.prefix_lengths": of_step * longest * of_slot,
            "condense.stream_length": of_step * recipe.condense.stream_length * of_slot,
            "pretrain.batch_size": recipe.pretrain.batch_size * image * bool(recipe.pretrain.num_steps),
            "pretrain.discriminator_width": of_kernel * recipe.pretrain.discriminator_width**2,
        }
    if recipe.evaluate.ipc:
        at_least["evaluate.ipc"] = data.num_classes * max(recipe.evaluate.ipc) * image
    for field, num_bytes in at_least.items():
        require_memory(num_bytes, f"recipe {recipe.name}: {field} alone would", "lower it")


def check_counts(recipe: Recipe, smallest: int, name: str) -> None:
    """Whether the smallest class, of that name, has the images that learning starts from. Raises as `check_fit`."""
    per_slot = recipe.synthesizer.factor**2
    needed = recipe.pixels.ipc * per_slot
    if _codes_start_from_images(recipe) and smallest < per_slot and per_slot > 1:
        raise InputError(
            f"codes start from {per_slot} real images each (synthesizer.factor={recipe.synthesizer.factor}), and class "
            f"{name!r} has {smallest}: lower the factor"
        )
    of_slots = recipe.codes.num_slots * per_slot
    if recipe.synthesizer.kind == "generator" and recipe.generator.backbone == "transform" and smallest < of_slots:
        raise InputError(
            f"codes.num_slots={recipe.codes.num_slots} of a transform start from {of_slots} real images a class, and "
            f"class {name!r} has {smallest}: lower it"
        )
    if recipe.synthesizer.kind == "pixels" and recipe.pixels.init != "noise" and smallest < needed:
        raise InputError(
            f"pixels.ipc={recipe.pixels.ipc} starts from {needed} real images a class, and class {name!r} has "
            f"{smallest}: lower it or set pixels.init=noise"
        )


def check_parts(recipe: Recipe) -> None:
    """Raises InputError, with what to change, for parts that mean nothing together."""
    objective, features, real = recipe.objective, recipe.features, recipe.real
    has_pool, has_statistics = features.kind == "pool", real.kind == "statistics"
    is_pixels = recipe.synthesizer.kind == "pixels"
    trained = features.kind == "online" or (has_pool and features.num_trajectories > 0)
    makes_images = not is_pixels
    # Images of a class that there are, where no others are made.
    held = recipe.pixels.ipc if is_pixels else recipe.codes.num_slots if recipe.codes.fresh == "none" else None
    holder = "pixels.ipc" if is_pixels else "codes.fresh=none and codes.num_slots"
    judged = max(recipe.evaluate.ipc or (1,))
    longest = max(recipe.condense.prefix_lengths or (1,))
    wrong: dict[str, bool] = {
        "the objective is empty: give one of its terms a weight": not any(
            value for name, value in asdict(objective).items() if name.endswith("_weight")
        ),
        "the pool of extractors is empty: set features.num_trajectories or features.num_random": has_pool
        and features.num_trajectories + features.num_random == 0,
        f"statistics cannot be kept for extractors that change: real.kind=statistics needs features.kind=pool, not "
        f"{features.kind}; set real.kind=random for those": has_statistics and not has_pool,
        "gradients have no statistics: objective.gradient_weight needs real.kind=random or representatives": bool(
            objective.gradient_weight
        )
        and has_statistics,
        f"statistics are kept for the Gaussian kernel: objective.kernel={objective.kernel} needs real.kind=random or "
        "representatives": objective.kernel != "gaussian" and has_statistics and bool(objective.mmd_weight),
        "a network that was never trained knows no classes: objective.classification_weight needs features.kind=online "
        "or a pool with num_trajectories": bool(objective.classification_weight) and not trained,
        "pixels make no fresh images: set condense.stream_probability=0": is_pixels
        and recipe.condense.stream_probability > 0,
        "pixels start from their images and are not encoded: set codes.encode_steps=0": is_pixels
        and recipe.codes.encode_steps > 0,
        f"condense.prefix_lengths asks for {longest} slots of {holder}={held}": held is not None and longest > held,
        "pixels that start from noise have no representatives: set objective.representative_weight=0": is_pixels
        and recipe.pixels.init == "noise"
        and bool(objective.representative_weight),
        "squared distances have no unit with a single class of real images: raise condense.classes_per_step or set "
        "objective.scale=sum": objective.scale == "relative"
        and bool(objective.mean_weight)
        and not has_statistics
        and recipe.condense.classes_per_step == 1,
        "a single class a step has no other centers: raise condense.classes_per_step or set "
        "objective.center_weight=0": bool(objective.center_weight) and recipe.condense.classes_per_step == 1,
        "all images of a class but the first are anchored: objective.representative_weight needs pixels.ipc above "
        "1": is_pixels and recipe.pixels.ipc == 1 and bool(objective.representative_weight),
        "networks of the same features.weights are one network: set features.kind=pool, features.num_random=1 and "
        "features.num_trajectories=0 for it, or train it (online, num_trajectories)": features.weights is not None
        and (features.kind == "fresh" or (has_pool and features.num_random > 1)),
        "generator.weights are pretrained already: set pretrain.num_steps=0": makes_images
        and recipe.generator.weights is not None
        and recipe.pretrain.num_steps > 0,
        "BigGAN-deep is not pretrained here: give generator.weights, or start from random ones with "
        "pretrain.num_steps=0": makes_images
        and recipe.generator.backbone == "biggan_deep"
        and recipe.generator.weights is None
        and recipe.pretrain.num_steps > 0,
        "generator.weights=imagenet1k are those of BigGAN-deep: set generator.backbone=biggan_deep": (
            recipe.generator.weights == IMAGENET1K and recipe.generator.backbone != "biggan_deep"
        ),
        "no weights of a transform are known: set generator.weights to null": makes_images
        and recipe.generator.backbone == "transform"
        and recipe.generator.weights is not None,
        "there is nothing to match past the learned slots: set condense.stream_probability=0 or codes.fresh=mixed": (
            makes_images and recipe.codes.fresh == "none" and recipe.condense.stream_probability > 0
        ),
        "pixels are learned whole: set synthesizer.by_parts=false": is_pixels and recipe.synthesizer.by_parts,
        "a transform knows no prior: set codes.fresh to none or mixed": makes_images
        and recipe.generator.backbone == "transform"
        and recipe.codes.fresh == "prior",
        "batch norm learns nothing from one image at a time: set features.batch_size to 2 or more": trained
        and features.batch_size == 1
        and (features.norm == "batch" or features.network not in ("convnet", "resnet_ap10")),
        "synthesizer.by_parts needs parts: set synthesizer.factor to 2 or more": makes_images
        and recipe.synthesizer.by_parts
        and recipe.synthesizer.factor == 1,
        "only biggan_deep has a generator.truncation: set it to null": makes_images
        and recipe.generator.truncation is not None
        and recipe.generator.backbone != "biggan_deep",
        f"features.weights belong to a timm network, and features.network is {features.network}": (
            features.weights is not None and features.network in ("convnet", "resnet_ap10")
        ),
        f"evaluate.ipc asks for {judged} images of {holder}={held}": held is not None and judged > held,
    }
    for message, applies in wrong.items():
        if applies:
            raise InputError(f"recipe {recipe.name}: {message}")


# --- extractors ----------------------------------------------------------------------------------------------------


def extractor_maker(recipe: Recipe, data: LabeledImages, device: torch.device) -> ExtractorMaker:
    """The recipe's architecture for these images."""
    part = recipe.features
    size, depth = part.resize or data.image_size, _depth(recipe, data)

    def network(seed: int) -> nn.Module:
        with seeded(seed):
            if part.network == "convnet":
                return ConvNet(
                    data.channels, data.num_classes, size, part.width, depth, part.activation, part.norm, part.pooling
                )
            if part.network == "resnet_ap10":
                return ResNetAP10(data.channels, data.num_classes, size, part.width, part.norm)
            return TimmNetwork(part.network, data.channels, data.num_classes, size, part.weights)

    some = torch.randperm(len(data), generator=_rng(recipe.seed))[:SETTLING_IMAGES]
    settle_on = None if part.weights else data.images[some]
    mean, std = data.mean_std
    return ExtractorMaker(network, mean, std, settle_on, device, part.resize, Embedding(part.precision, part.compile))


def _depth(recipe: Recipe, data: LabeledImages) -> int:
    """Blocks of the recipe's ConvNet."""
    return recipe.features.depth or automatic_depth(recipe.features.resize or data.image_size)


def _architecture(recipe: Recipe, data: LabeledImages) -> str:
    """What identifies the networks that an `extractor_maker` makes, and how they compute."""
    part = recipe.features
    return short_hash(
        part.network, part.weights and weights_hash(part.weights), part.resize, part.width, _depth(recipe, data),
        part.activation, part.norm, part.pooling, part.precision, part.compile,
    )  # fmt: skip


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def new_extractors(recipe: Recipe, data: LabeledImages, device: torch.device) -> tuple[Extractors, str]:
    """The extractors and, of a pool, the key that identifies it."""
    part, maker = recipe.features, extractor_maker(recipe, data, device)
    if part.kind == "pool":
        pool, key = build_pool(
            data,
            cache_dir(),
            maker,
            architecture=_architecture(recipe, data),
            num_trajectories=part.num_trajectories,
            snapshot_steps=part.snapshot_steps,
            num_random=part.num_random,
            batch_size=part.batch_size,
            learning_rate=part.learning_rate,
            cutmix=part.cutmix,
            strategy=recipe.data.augmentation,
            seed=recipe.seed,
        )
        return PoolExtractors(pool), key
    fresh = FreshExtractors(maker.new, part.refresh_steps, recipe.seed)
    if part.kind == "fresh":
        return fresh, ""

    def train(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        """One pass over a random part of the real images, as IDC and DREAM train between two steps."""
        rows = torch.randperm(len(data), generator=_rng(seed))[: part.train_images]
        maker.train(
            network,
            data.images[rows],
            data.labels[rows],
            strategy=recipe.data.augmentation,
            batch_size=part.batch_size,
            num_steps=-(-len(rows) // part.batch_size),
            learning_rate=part.learning_rate,
            cutmix=part.cutmix,
            seed=seed,
            optimizer=optimizer,
        )

    return OnlineExtractors(fresh, partial(new_sgd, learning_rate=part.learning_rate), train), ""


# --- the real side -------------------------------------------------------------------------------------------------


def matching_augmentation(recipe: Recipe, data: LabeledImages) -> Augmentation:
    """What real and synthetic images go through before they are compared."""
    part = recipe.condense
    strategy = part.augmentation or recipe.data.augmentation
    return Augmentation(strategy, data.image_size, *data.mean_std, part.augmentation_mode)


def new_real_side(
    recipe: Recipe, data: LabeledImages, extractors: Extractors, pool_key: str, device: torch.device
) -> RealSide:
    """What stands for the real images in every step; statistics are computed, or read where they were before.

    All processes have to call it: they share the pass over the images.
    """
    part, kernel = recipe.real, recipe.objective.kernel
    if part.kind == "random":
        return BatchSide(data, part.batch_size, device, kernel)
    if part.kind == "representatives":
        return RepresentativeSide(
            data, part.batch_size, device, kernel, part.refresh_steps, part.candidates, recipe.seed
        )
    statistics = cached_statistics(
        data if part.candidates is None else some_of_each_class(data, part.candidates, recipe.seed),
        extractors.pool,
        pool_key,
        cache_dir(),
        augmentation=matching_augmentation(recipe, data),
        num_passes=part.num_passes,
        num_frequencies=part.num_frequencies,
        seed=recipe.seed,
    )
    return StatisticsSide(statistics.to(device), extractors.pool)


# --- what learning starts from -------------------------------------------------------------------------------------


def choose_representatives(recipe: Recipe, data: LabeledImages, extractors: Extractors) -> Representatives:
    """For each class the images that its slots start from; fewer than slots where the class is small.

    Of codes, k-means representatives in nested order, in pixel space, and past `codes.representative_sizes` random
    images; of pixels, what `pixels.init` says, with the features of the first step's extractor for k-means (DREAM,
    section 3.3). None where nothing uses them: k-means in large classes takes minutes, so each process does its share
    of the classes, and all processes have to call this.
    """
    per_slot, rng = recipe.synthesizer.factor**2, _rng(recipe.seed)
    choose = _chooser(recipe, data, extractors, rng)
    drawn = [  # on every process for every class, so that their generators stay alike
        (rows, torch.randperm(len(rows), generator=rng)) for rows in _candidates(recipe, data, extractors)
    ]
    chosen = from_all([choose(*one) for one in drawn[own_share(len(drawn), *rank_and_world())]])
    rows = [of_class[: len(of_class) // per_slot * per_slot].view(-1, per_slot) for of_class in chosen]
    labels = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(of_class) for of_class in rows]))
    slots = torch.cat([torch.arange(len(of_class)) for of_class in rows])
    return Representatives(labels, slots, torch.cat(rows), data.images, recipe.synthesizer.factor)


def ranks_images(recipe: Recipe) -> bool:
    """Whether a network chooses what slots start from."""
    return recipe.codes.skip_easiest is not None and _codes_start_from_images(recipe)


def _candidates(recipe: Recipe, data: LabeledImages, extractors: Extractors) -> list[Tensor]:
    """Rows of each class that its slots may start from: all, or as many as there are slots from some ease on."""
    rows = [data.rows_of(label) for label in range(data.num_classes)]
    share = recipe.codes.skip_easiest
    if share is None or not ranks_images(recipe):
        return rows
    device = extractors.at(0, _rng(recipe.seed)).mean.device
    with main_process_first():  # which finds them for all
        losses = difficulties(
            data,
            cache_dir(),
            extractor_maker(recipe, data, device),
            architecture=_architecture(recipe, data),
            num_steps=recipe.codes.ranking_steps,
            strategy=recipe.data.augmentation,
            seed=recipe.seed,
        )

    def from_there_on(of_class: Tensor) -> Tensor:
        count = min(recipe.codes.num_slots * recipe.synthesizer.factor**2, len(of_class))
        first = min(int(share * len(of_class)), len(of_class) - count)
        return of_class[losses[of_class].argsort(stable=True)[first : first + count]]

    return [from_there_on(of_class) for of_class in rows]


def _codes_start_from_images(recipe: Recipe) -> bool:
    return recipe.synthesizer.kind == "generator" and (
        recipe.generator.backbone == "transform"
        or recipe.codes.encode_steps > 0
        or recipe.objective.representative_weight > 0
    )


def representative_sizes(recipe: Recipe) -> list[int]:
    """How many images of a class stand for its first slots, in nested order, `factor` squared for each slot."""
    per_slot = recipe.synthesizer.factor**2
    return sorted({min(size, recipe.codes.num_slots) * per_slot for size in recipe.codes.representative_sizes})


def _chooser(
    recipe: Recipe, data: LabeledImages, extractors: Extractors, rng: torch.Generator
) -> Callable[[Tensor, Tensor], Tensor]:
    """(rows of a class, a random order of them) -> those that its slots start from; `rng` draws the extractor."""
    per_slot = recipe.synthesizer.factor**2
    if recipe.synthesizer.kind == "generator":
        sizes = representative_sizes(recipe)
        if not _codes_start_from_images(recipe):
            return lambda rows, order: rows[:0]

        def nested_then_random(rows: Tensor, order: Tensor) -> Tensor:
            chosen = nested_representatives(pixel_features(data.images[rows]), sizes, recipe.seed)
            others = order[~torch.isin(order, chosen)]
            return rows[torch.cat([chosen, others[: recipe.codes.num_slots * per_slot - len(chosen)]])]

        return nested_then_random
    needed = recipe.pixels.ipc * per_slot
    if recipe.pixels.init != "kmeans":
        return lambda rows, order: rows[order[:needed]]
    extractor = extractors.at(0, rng)

    def nearest_to_centers(rows: Tensor, order: Tensor) -> Tensor:
        features = embed_all(extractor, data.images[rows])
        return rows[nested_representatives(features.cpu().numpy(), [needed], recipe.seed)]

    return nearest_to_centers


def new_pixels(
    recipe: Recipe, data: LabeledImages, representatives: Representatives, provenance: dict[str, Any]
) -> CondensedPixels:
    """The bank of pixels before the first step."""
    part = recipe.pixels
    mean, std = data.mean_std
    offset, scale = (mean, std) if part.space == "normalised" else ((-1.0,) * data.channels, (2.0,) * data.channels)
    pixels = CondensedPixels(
        data.class_names, part.ipc, data.image_size, data.channels, recipe.synthesizer.factor, offset, scale, provenance
    )
    if part.init == "noise":
        with torch.no_grad():
            draw = partial(torch.rand if part.space == "unit" else torch.randn, generator=_rng(recipe.seed))
            pixels.pixels.copy_(draw(pixels.pixels.shape))
    else:
        pixels.fill_(representatives.images)
    return pixels
