"""A recipe's words become parts, once, for one data set: below this no signature takes a recipe."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from gencond.common.files import cache_dir, short_hash, weights_hash
from gencond.common.seeding import seeded
from gencond.condensing.append import Growth
from gencond.condensing.backbones import GeneratorMaker, made_size
from gencond.condensing.difficulty import Ranking
from gencond.condensing.encode import adam
from gencond.condensing.extractors import (
    SETTLING_IMAGES,
    ExtractorMaker,
    Extractors,
    FreshExtractors,
    OnlineExtractors,
    Pool,
    PoolExtractors,
    build_pool,
    pool_of,
)
from gencond.condensing.quick_score import SMALL_BATCH, QuickScorer, hold_out
from gencond.condensing.real import BatchSide, RealSide, RepresentativeSide, StatisticsSide
from gencond.condensing.real_statistics import cached_statistics
from gencond.condensing.run_folder import provenance
from gencond.condensing.starts import CodeStarts, PixelStarts, Representatives
from gencond.config import Codes, Condense, Objective, Pixels, Pretrain, Real, Recipe, Synthesizer
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.data.select import some_of_each_class
from gencond.generator.artefact import Condensed
from gencond.generator.backbone import Backbone
from gencond.generator.dataset import CondensedDataset, backbone_config
from gencond.generator.pixels import CondensedPixels
from gencond.networks.convnet import ConvNet, automatic_depth
from gencond.networks.extractor import DTYPES, Embedding
from gencond.networks.from_timm import TimmNetwork
from gencond.networks.resnet import ResNetAP10
from gencond.networks.training import new_sgd


@dataclass(frozen=True)
class Parts:
    """What a run consists of, for one data set on one device.

    Args:
        data: the real images that are condensed.
        generators: makes what images are made with; None where pixels are learned.
        pretraining: of a generator before anything else; None where there is none.
        maker: of the extractors' networks.
        extracting: extractors that change, or what a fixed pool of them consists of.
        augmentation: what real and synthetic images go through before they are compared.
        starts: chooses what slots start from.
        scorer: takes quick scores during matching, on images that are not among `data`; None takes none.
        growth: the artefact that is appended to; None: it is a new one.
        about: the artefact's provenance, or that of what is appended, but for weights from elsewhere.
        synthesizer, pixels, codes, real, objective, condense, seed, save_every_steps: as in the recipe.
    """

    data: LabeledImages
    device: torch.device
    seed: int
    save_every_steps: int
    generators: GeneratorMaker | None
    pretraining: Pretrain | None
    maker: ExtractorMaker
    extracting: Pool | FreshExtractors | OnlineExtractors
    augmentation: Augmentation
    starts: CodeStarts | PixelStarts
    scorer: QuickScorer | None
    growth: Growth | None
    about: dict[str, Any]
    synthesizer: Synthesizer
    pixels: Pixels
    codes: Codes
    real: Real
    objective: Objective
    condense: Condense

    @property
    def pool(self) -> Pool | None:
        """What a fixed pool of extractors consists of; None where they change."""
        return self.extracting if isinstance(self.extracting, Pool) else None

    @cached_property
    def learned(self) -> Int64[Tensor, " k"]:
        """The classes that are learned, ascending; the others are there to be told from."""
        return torch.arange(self.data.num_classes) if self.growth is None else self.growth.learned

    @cached_property
    def term_weights(self) -> dict[str, float]:
        """Weights of the objective's terms, by name."""
        return {
            name.removesuffix("_weight"): weight
            for name, weight in asdict(self.objective).items()
            if name.endswith("_weight")
        }

    def new_extractors(self) -> tuple[Extractors, str]:
        """The extractors and, of a pool, the key that identifies it; a pool is trained, or read from the cache."""
        if not isinstance(self.extracting, Pool):
            return self.extracting, ""
        pool, key = build_pool(self.data, cache_dir(), self.maker, self.extracting)
        return PoolExtractors(pool), key

    def new_real_side(self, extractors: Extractors, pool_key: str) -> RealSide:
        """What stands for the real images in every step; statistics are computed, or read from the cache.

        All processes have to call it: they share the pass over the images.
        """
        data, part, kernel = self.data, self.real, self.objective.kernel
        if part.kind == "random":
            return BatchSide(data, part.batch_size, self.device, kernel)
        if part.kind == "representatives":
            return RepresentativeSide(
                data, part.batch_size, self.device, kernel, part.refresh_steps, part.candidates, self.seed
            )
        pool = pool_of(extractors)
        statistics = cached_statistics(
            data if part.candidates is None else some_of_each_class(data, part.candidates, self.seed),
            pool,
            pool_key,
            cache_dir(),
            augmentation=self.augmentation,
            num_passes=part.num_passes,
            num_frequencies=part.num_frequencies,
            seed=self.seed,
        )
        return StatisticsSide(statistics.to(self.device), pool)

    def new_condensed(
        self, generator: Backbone | None, representatives: Representatives, weights: dict[str, str] | None = None
    ) -> Condensed:
        """The artefact before anything of it is learned: around a generator, or a bank of pixels where there is none.

        Args:
            weights: what identifies those that came from elsewhere, by their part in the run.
        """
        about = self.about | representatives.about | ({"weights": dict(weights)} if weights else {})
        if self.growth is not None:
            return self._as_learned(self.growth.start(about))
        if generator is None:
            return self._new_pixels(representatives, about)
        condensed = CondensedDataset(
            self.data.class_names,
            backbone_config(generator),
            self.codes.num_slots,
            self.seed,
            self.synthesizer.factor,
            about,
            by_parts=self.synthesizer.by_parts,
            fresh=self.codes.fresh,
        )
        condensed.generator.load_state_dict(generator.state_dict())
        return self._as_learned(condensed).eval()  # batch norms stay at their statistics: an affine map a channel

    def _as_learned(self, condensed: CondensedDataset) -> CondensedDataset:
        """The same, which computes as the recipe says while it learns."""
        if self.generators is not None:
            if self.generators.part.gradient_checkpointing:
                condensed.generator.enable_gradient_checkpointing()
            condensed.learns_in = DTYPES[self.generators.part.precision]
        return condensed

    def _new_pixels(self, representatives: Representatives, about: dict[str, Any]) -> CondensedPixels:
        part, data = self.pixels, self.data
        mean, std = data.mean_std
        in_unit = (-1.0,) * data.channels, (2.0,) * data.channels
        offset, scale = (mean, std) if part.space == "normalised" else in_unit
        pixels = CondensedPixels(
            data.class_names, part.ipc, data.image_size, data.channels, self.synthesizer.factor, offset, scale, about
        )
        if part.init == "noise":
            with torch.no_grad():
                draw = torch.rand if part.space == "unit" else torch.randn
                pixels.pixels.copy_(draw(pixels.pixels.shape, generator=torch.Generator().manual_seed(self.seed)))
        else:
            pixels.fill_(representatives.images)
        return pixels

    def new_optimizer(self, condensed: Condensed) -> torch.optim.Optimizer:
        """The optimizer of matching: Adam for a generator and its codes, SGD for pixels."""
        if isinstance(condensed, CondensedDataset):
            return adam(condensed, self.condense.generator_lr, self.condense.code_lr, self.condense.class_lr)
        rate = self.pixels.learning_rate * (self.pixels.ipc if self.pixels.rate_per_ipc else 1)
        return torch.optim.SGD(condensed.parameters(), rate, momentum=self.pixels.momentum)


def build(
    recipe: Recipe,
    data: LabeledImages,
    device: torch.device,
    growth: Growth | None = None,
) -> Parts:
    """The parts of a recipe for one data set; nothing is trained, downloaded or read from the cache here.

    Args:
        data: the training images; those that quick scores are tested on are held out here, before any part sees them.
        growth: the artefact that these images are appended to.
    Raises:
        InputError: extractors that cannot be compiled on this machine, or weights that are not there; images that
            cannot be appended.
        ValueError: parts of an image that do not fill it, an unknown augmentation.
    """
    makes_images = recipe.synthesizer.kind == "generator"
    whole, (data, held_out) = data, hold_out(recipe.condense, data)
    about = provenance(recipe, whole, len(whole) - len(data))
    if growth is not None:
        data, held_out = growth.beside_replay(data), held_out and held_out.among(growth.class_names)
    maker, architecture = extractor_maker(recipe, data, device), _architecture(recipe, data)
    seen = as_ranked(recipe)
    ranks = maker, architecture
    if seen is not recipe:
        ranks = extractor_maker(seen, data, device), _architecture(seen, data)
    ranking = Ranking(*ranks, recipe.codes.ranking_steps, recipe.data.augmentation, recipe.seed)
    return Parts(
        data=data,
        device=device,
        seed=recipe.seed,
        save_every_steps=recipe.save_every_steps,
        generators=generator_maker(recipe, data) if makes_images else None,
        pretraining=recipe.pretrain if has_pretraining(recipe) else None,
        maker=maker,
        extracting=_pool(recipe, architecture) if recipe.features.kind == "pool" else _changing(recipe, data, maker),
        augmentation=Augmentation(
            recipe.condense.augmentation or recipe.data.augmentation,
            _side_seen(recipe, data),
            *data.mean_std,
            recipe.condense.augmentation_mode,
        ),
        starts=_starts(recipe, data, ranking, growth and growth.learned),
        scorer=None if held_out is None else new_scorer(recipe, maker, held_out),
        growth=growth,
        about=about,
        synthesizer=recipe.synthesizer,
        pixels=recipe.pixels,
        codes=recipe.codes,
        real=recipe.real,
        objective=recipe.objective,
        condense=recipe.condense,
    )


def _side_seen(recipe: Recipe, data: LabeledImages) -> int:
    """At which real and synthetic images are augmented: that which networks see, where it is smaller.

    Statistics were taken of whole images, and so are those that they are compared with.
    """
    seen = recipe.features.resize or data.image_size
    return data.image_size if recipe.real.kind == "statistics" else min(seen, data.image_size)


def new_scorer(recipe: Recipe, maker: ExtractorMaker, held_out: LabeledImages) -> QuickScorer:
    """What takes the recipe's quick scores, by networks of `maker` and on images that condensing does not see."""
    part = recipe.features
    # A batch of another size would be compiled for another half minute; without that, small ones teach as well.
    batch_size = part.batch_size if part.compile else min(SMALL_BATCH, part.batch_size)
    every_steps = recipe.condense.score_every_steps or recipe.condense.num_steps
    return QuickScorer(held_out, maker, every_steps, batch_size, recipe.data.augmentation, recipe.seed)


def has_pretraining(recipe: Recipe) -> bool:
    """Whether adversarial pretraining comes first: not of pixels, nor of a transform, which begins as the images'."""
    return (
        recipe.synthesizer.kind == "generator"
        and recipe.generator.backbone != "transform"
        and recipe.generator.weights is None
        and recipe.pretrain.num_steps > 0
    )


def generator_maker(recipe: Recipe, data: LabeledImages) -> GeneratorMaker:
    """What makes the recipe's generators for these images. Raises ValueError for parts that do not fill an image."""
    size = made_size(data.image_size, recipe.synthesizer.factor, recipe.synthesizer.by_parts)
    return GeneratorMaker(recipe.generator, size, data.image_size, data.channels, data.class_names, recipe.seed)


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

    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(recipe.seed))[:SETTLING_IMAGES]
    settle_on = None if part.weights else data.images[some]
    mean, std = data.mean_std
    return ExtractorMaker(network, mean, std, settle_on, device, part.resize, Embedding(part.precision, part.compile))


def _depth(recipe: Recipe, data: LabeledImages) -> int:
    """Blocks of the recipe's ConvNet."""
    return recipe.features.depth or automatic_depth(recipe.features.resize or data.image_size)


def _architecture(recipe: Recipe, data: LabeledImages) -> str:
    """What identifies the networks that the recipe's maker makes, and how they compute."""
    part = recipe.features
    return short_hash(
        part.network, part.weights and weights_hash(part.weights), part.resize, part.width, _depth(recipe, data),
        part.activation, part.norm, part.pooling, part.precision, bool(part.compile),
    )  # fmt: skip


def as_ranked(recipe: Recipe) -> Recipe:
    """The recipe whose extractors are the networks that rank images: itself where they see what extractors see."""
    resize = recipe.codes.ranking_resize
    if resize in (None, recipe.features.resize):
        return recipe
    return replace(recipe, features=replace(recipe.features, resize=resize))


def _pool(recipe: Recipe, architecture: str) -> Pool:
    part = recipe.features
    return Pool(
        architecture,
        part.num_trajectories,
        part.snapshot_steps,
        part.num_random,
        part.batch_size,
        part.learning_rate,
        part.cutmix,
        recipe.data.augmentation,
        recipe.seed,
    )


def _changing(recipe: Recipe, data: LabeledImages, maker: ExtractorMaker) -> FreshExtractors | OnlineExtractors:
    part = recipe.features
    fresh = FreshExtractors(maker.new, part.refresh_steps, recipe.seed)
    if part.kind == "fresh":
        return fresh

    def train(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        """One pass over a random part of the real images, as IDC and DREAM train between two steps."""
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: part.train_images]
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

    return OnlineExtractors(fresh, partial(new_sgd, learning_rate=part.learning_rate), train)


def codes_start_from_images(recipe: Recipe) -> bool:
    """Whether slots of a generator start from real images or are held to them."""
    return recipe.synthesizer.kind == "generator" and (
        recipe.generator.backbone == "transform"
        or recipe.codes.encode_steps > 0
        or recipe.objective.representative_weight > 0
    )


def starts_from_known(recipe: Recipe, largest_class: int) -> bool:
    """Whether slots start from images that a network knows: where there is one to choose for a class's first slot."""
    return (
        recipe.codes.learnable_first
        and codes_start_from_images(recipe)
        and largest_class > recipe.synthesizer.factor**2
    )


def _starts(recipe: Recipe, data: LabeledImages, ranking: Ranking, learned: Tensor | None) -> CodeStarts | PixelStarts:
    part, factor = recipe.codes, recipe.synthesizer.factor
    if recipe.synthesizer.kind == "pixels":
        return PixelStarts(data, factor, recipe.seed, recipe.pixels.ipc, recipe.pixels.init == "kmeans")
    sizes = tuple(sorted({min(size, part.num_slots) * factor**2 for size in part.representative_sizes}))
    known_first = starts_from_known(recipe, int(data.counts.max()))
    return CodeStarts(
        data, factor, recipe.seed, part.num_slots, sizes, part.representative_space, codes_start_from_images(recipe),
        ranking if part.skip_easiest is not None or known_first else None, part.skip_easiest, known_first,
        learned=learned,
    )  # fmt: skip
