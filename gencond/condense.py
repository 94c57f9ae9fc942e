"""Condensing: `condense_step` reads like the method, `condense` is the accelerate loop around it."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gencond.augment import Augmentation
from gencond.checkpoint import RunFolder, prepare_run, provenance, run_stage, step_rng, write_artefact
from gencond.config import Recipe
from gencond.data import LabeledImages, nested_representatives, pixel_features
from gencond.distributed import gather_rows, new_accelerator, own_share
from gencond.errors import InputError
from gencond.extractors import build_pool
from gencond.features import Extractor
from gencond.files import cache_dir, require_writable
from gencond.generator.card import model_card
from gencond.generator.condensed import CondensedDataset, load
from gencond.losses.anchor import pixel_anchor_loss, representative_loss
from gencond.losses.center import center_loss
from gencond.losses.classification import classification_loss
from gencond.losses.diversity import diversity_loss
from gencond.losses.total import total_loss
from gencond.networks import ConvNet, automatic_depth
from gencond.pictures import PICTURED_CLASSES, PICTURED_IMAGES, grid, screen_scale, write_png
from gencond.pretrain import averaged, new_generator, pretrained_generator
from gencond.ranges import to_signed, to_uint8
from gencond.statistics import RealStatistics, cached_statistics
from gencond.targets import CachedTargets

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draw:
    """All that is random in a step, the same on every process.

    Args:
        classes: of this step, ascending.
        first_slot, length: the slots first_slot .. first_slot + length - 1 of each class form its synthetic set.
        net: which extractor of the pool embeds.
        rng: draws the augmentation.
        anchors: rows of `Representatives` whose slots are held to their real image.
    """

    classes: Int64[Tensor, " classes"]
    first_slot: int
    length: int
    net: int
    rng: torch.Generator
    anchors: Int64[Tensor, " a"]


@dataclass(frozen=True)
class Representatives:
    """The real image that a learned slot starts from: k-means representatives, in nested order."""

    labels: Int64[Tensor, " n"]
    slots: Int64[Tensor, " n"]
    images: Float[Tensor, "n c h w"]  # [-1, 1]

    def to(self, device: torch.device) -> "Representatives":
        return Representatives(self.labels.to(device), self.slots.to(device), self.images.to(device))


def condense_step(
    synthesize: nn.Module,
    draw: Draw,
    statistics: RealStatistics,
    pool: Sequence[Extractor],
    augmentation: Augmentation,
    representatives: Representatives,
    weights: Mapping[str, float],
    *,
    center_margin: float = 1.0,
    rank: int = 0,
    num_processes: int = 1,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The objective of one step: (weighted total, unweighted parts), both with gradient.

    Each process synthesizes and embeds its own share of the step's classes; only class centers are gathered. Averaged
    over processes, parts and gradients are those of one process with all the classes. A term of weight 0 is not
    computed.

    Args:
        synthesize: (labels, slots) -> images in [-1, 1]: a `CondensedDataset`, possibly wrapped for data parallelism.
    """
    device = statistics.mean.device
    classes = draw.classes.to(device)
    share = own_share(len(classes), rank, num_processes)
    own = classes[share]
    labels = own.repeat_interleave(draw.length)
    slots = torch.arange(draw.first_slot, draw.first_slot + draw.length, device=device).repeat(len(own))
    anchors = draw.anchors[own_share(len(draw.anchors), rank, num_processes)].to(device)

    images_all = synthesize(
        torch.cat([labels, representatives.labels[anchors]]), torch.cat([slots, representatives.slots[anchors]])
    )
    images, images_anchored = images_all.split([len(labels), len(anchors)])
    params = augmentation.draw(len(classes) * draw.length, draw.rng)
    params = params.rows(slice(share.start * draw.length, share.stop * draw.length))
    extractor, real = pool[draw.net], CachedTargets.of(statistics, draw.net, own)
    features = extractor(augmentation(images, params))
    features_syn = features.view(len(own), draw.length, -1)  # [classes, ipc, d]

    on = {name for name, weight in weights.items() if weight}
    parts: dict[str, Tensor] = {}
    if "mean" in on:
        parts["mean"] = real.mean_loss(features_syn) / (len(own) * statistics.gap[draw.net])
    if "mmd" in on:
        parts["mmd"] = real.mmd_loss(features_syn) / len(own)
    if "diversity" in on:
        parts["diversity"] = diversity_loss(features_syn, real.spread)
    if "classification" in on:
        parts["classification"] = classification_loss(extractor.logits(features), labels)
    if "pixel" in on:
        images_syn = images.view(len(own), draw.length, *images.shape[1:])
        parts["pixel"] = pixel_anchor_loss(statistics.pooled[own], statistics.contrast[own], images_syn)
    # Means over own classes, weighted so that the mean over processes is the mean over all classes.
    parts = {name: part * (len(own) * num_processes / len(classes)) for name, part in parts.items()}
    if "representative" in on and len(draw.anchors):
        anchored = representatives.images[anchors]
        parts["representative"] = representative_loss(anchored, images_anchored, len(draw.anchors)) * num_processes
    if "center" in on:
        centers_syn = gather_rows(features_syn.mean(1), len(classes))
        parts["center"] = center_loss(statistics.mean[draw.net][classes], centers_syn, center_margin)
    return total_loss(parts, weights), parts


def condense(recipe: Recipe, data: LabeledImages, out: Path, pretrained: Path | None = None) -> CondensedDataset:
    """From real images to the artefact in `out/condensed`, resuming whatever of it is done.

    Args:
        pretrained: a folder with a pretrained generator of the recipe's shape; None trains one as the recipe says.
    Raises:
        InputError: `out` holds another run, parts of the recipe that do not fit the images, more processes than
            classes.
    """
    accelerator = new_accelerator()
    check_fit(recipe, data)
    require_writable(cache_dir())
    if accelerator.num_processes > min(data.num_classes, recipe.condense.classes_per_step):
        raise InputError(
            f"{accelerator.num_processes} processes share {min(data.num_classes, recipe.condense.classes_per_step)} "
            "classes a step: use fewer processes or raise condense.classes_per_step"
        )
    with prepare_run(out, recipe, data, accelerator.is_main_process) as run:
        if run.artefact.is_dir():
            logger.info("condense: %s is complete, reusing it", run.artefact)
            return load(run.artefact)
        condensed = _condense_in(run, recipe, data, pretrained)
    return condensed


def _condense_in(run: RunFolder, recipe: Recipe, data: LabeledImages, pretrained: Path | None) -> CondensedDataset:
    """The stages, one after the other."""
    accelerator = new_accelerator()
    generator = pretrained_generator(recipe, data, run, pretrained)
    started = time.monotonic()
    with accelerator.main_process_first():
        pool, statistics = real_side(recipe, data, accelerator.device)
    if accelerator.is_main_process:
        run.log(stage="extractors and statistics", seconds=round(time.monotonic() - started, 1))
    representatives = choose_representatives(recipe, data).to(accelerator.device)
    condensed = CondensedDataset(
        data.class_names,
        {name: value for name, value in generator.config.items() if not name.startswith("_")},
        recipe.codes.num_slots,
        recipe.seed,
        provenance(recipe, data),
    )
    condensed.generator.load_state_dict(generator.state_dict())
    condensed.eval()  # batch norms stay at their statistics: a fixed affine map of each channel
    if recipe.codes.encode_steps:
        encode(recipe, condensed, representatives, run)
    condensed = match(recipe, condensed, pool, statistics, representatives, data, run)
    if accelerator.is_main_process:
        write_artefact(run.artefact, condensed, model_card(condensed))
        for stage in ("encode", "condense"):
            run.drop_state(stage)
    accelerator.wait_for_everyone()
    return condensed


def check_fit(recipe: Recipe, data: LabeledImages) -> None:
    """Builds each part once, so that what does not fit the images fails before minutes of work. Raises InputError."""
    part = recipe.features
    if part.num_trajectories * len(part.snapshot_steps) + part.num_random == 0:
        raise InputError("the pool of extractors is empty: set features.num_trajectories or features.num_random")
    try:
        new_generator(recipe, data)
        ConvNet(data.channels, data.num_classes, data.image_size, part.width, pool_depth(recipe, data))
        for strategy in (recipe.data.augmentation, recipe.pretrain.augmentation):
            Augmentation(strategy, data.image_size)
    except ValueError as error:
        raise InputError(f"recipe {recipe.name} does not fit {data.image_size} px images: {error}") from None


def pool_depth(recipe: Recipe, data: LabeledImages) -> int:
    """Blocks of the extractors."""
    return recipe.features.depth or automatic_depth(data.image_size)


def real_side(recipe: Recipe, data: LabeledImages, device: torch.device) -> tuple[list[Extractor], RealStatistics]:
    """The pool of extractors and what it sees in the real images."""
    part = recipe.features
    pool, pool_key = build_pool(
        data,
        cache_dir(),
        width=part.width,
        depth=pool_depth(recipe, data),
        num_trajectories=part.num_trajectories,
        snapshot_steps=part.snapshot_steps,
        num_random=part.num_random,
        batch_size=part.batch_size,
        learning_rate=part.learning_rate,
        strategy=recipe.data.augmentation,
        seed=recipe.seed,
        device=device,
    )
    statistics = cached_statistics(
        data,
        pool,
        pool_key,
        cache_dir(),
        augmentation=Augmentation(recipe.data.augmentation, data.image_size, *data.mean_std),
        num_passes=recipe.statistics.num_passes,
        num_frequencies=recipe.statistics.num_frequencies,
        seed=recipe.seed,
    )
    return pool, statistics.to(device)


def choose_representatives(recipe: Recipe, data: LabeledImages) -> Representatives:
    """For each class its k-means representatives in nested order; fewer than slots where the class is small.

    None at all where the recipe neither encodes nor anchors: k-means in large classes takes minutes.
    """
    labels, slots, rows = [], [], []
    sizes = sorted({min(size, recipe.codes.num_slots) for size in recipe.codes.representative_sizes})
    used = recipe.codes.encode_steps or recipe.objective.representative_weight
    for label in range(data.num_classes):
        of_class = data.rows_of(label)
        chosen = of_class[:0]
        if used:
            features = pixel_features(data.images[of_class])
            chosen = of_class[nested_representatives(features, sizes, recipe.seed)]
        labels.append(torch.full_like(chosen, label))
        slots.append(torch.arange(len(chosen)))
        rows.append(chosen)
    return Representatives(torch.cat(labels), torch.cat(slots), to_signed(data.images[torch.cat(rows)]))


def adam(condensed: CondensedDataset, generator_lr: float, code_lr: float) -> torch.optim.Adam:
    """Generator and codes at rates of their own: a code is seen in few steps and may move far."""
    return torch.optim.Adam([
        {"params": list(condensed.generator.parameters()), "lr": generator_lr},
        {"params": list(condensed.codes.parameters()), "lr": code_lr},
    ])  # fmt: skip


def encode(recipe: Recipe, condensed: CondensedDataset, representatives: Representatives, run: RunFolder) -> None:
    """Fits codes and generator to the representatives by squared error, in place: matching starts from real images."""
    part = recipe.codes
    accelerator = new_accelerator()
    optimizer = adam(condensed, part.encode_generator_lr, part.encode_code_lr)
    synthesize, optimizer = accelerator.prepare(condensed, optimizer)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, part.encode_steps)
    accelerator.register_for_checkpointing(schedule)
    share = own_share(part.encode_batch_size, accelerator.process_index, accelerator.num_processes)

    def encode_step(step: int) -> Mapping[str, Tensor]:
        rng = step_rng(recipe.seed, "encode", step)
        rows = torch.randint(len(representatives.labels), (part.encode_batch_size,), generator=rng)[share]
        rows = rows.to(accelerator.device)
        images = synthesize(representatives.labels[rows], representatives.slots[rows])
        loss = representative_loss(representatives.images[rows], images, part.encode_batch_size)
        loss = loss * accelerator.num_processes  # a sum over processes, and gradients are averaged over them
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        return {"representative": loss}

    run_stage(accelerator, run, "encode", part.encode_steps, encode_step, save_every_steps=recipe.save_every_steps)
    accelerator.free_memory()


def match(
    recipe: Recipe,
    condensed: CondensedDataset,
    pool: Sequence[Extractor],
    statistics: RealStatistics,
    representatives: Representatives,
    data: LabeledImages,
    run: RunFolder,
) -> CondensedDataset:
    """Matches the synthetic sets of all prefix lengths to the real statistics; returns the average, on the CPU."""
    part = recipe.condense
    accelerator = new_accelerator()
    condensed = condensed.to(accelerator.device)
    optimizer = adam(condensed, part.generator_lr, part.code_lr)
    condensed_ema = averaged(condensed, part.ema_halflife_steps)
    synthesize, optimizer = accelerator.prepare(condensed, optimizer)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, part.num_steps)
    accelerator.register_for_checkpointing(schedule, condensed_ema)
    augmentation = Augmentation(recipe.data.augmentation, data.image_size, *data.mean_std)
    objective = asdict(recipe.objective)
    weights = {name.removesuffix("_weight"): w for name, w in objective.items() if name.endswith("_weight")}
    anchored = (representatives.slots > 0).nonzero()[:, 0].cpu()
    num_anchors = min(part.representative_batch_size, len(anchored)) if weights["representative"] else 0

    def draw(step: int) -> Draw:
        rng = step_rng(recipe.seed, "condense", step)
        fresh = bool(torch.rand((), generator=rng) < part.stream_probability)
        choice = int(torch.randint(len(part.prefix_lengths), (), generator=rng))
        return Draw(
            classes=torch.randperm(data.num_classes, generator=rng)[: part.classes_per_step].sort().values,
            first_slot=recipe.codes.num_slots + step * part.stream_length if fresh else 0,
            length=part.stream_length if fresh else part.prefix_lengths[choice],
            net=int(torch.randint(len(pool), (), generator=rng)),
            anchors=anchored[torch.randperm(len(anchored), generator=rng)[:num_anchors]],
            rng=rng,
        )

    def step_fn(step: int) -> Mapping[str, Tensor]:
        loss, parts = condense_step(
            synthesize,
            draw(step),
            statistics,
            pool,
            augmentation,
            representatives,
            weights,
            center_margin=recipe.objective.center_margin,
            rank=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(synthesize.parameters(), part.max_grad_norm)
        optimizer.step()
        schedule.step()
        condensed_ema.update_parameters(condensed)
        return {"loss": loss, **parts}

    def picture(step: int) -> None:
        classes = range(min(data.num_classes, PICTURED_CLASSES))
        images, _ = condensed_ema.module.sample(PICTURED_IMAGES, classes)
        rows = to_uint8(images).cpu().unflatten(0, (len(classes), -1))
        write_png(run.samples / f"step_{step:06d}.png", grid(rows, screen_scale(data.image_size)))

    run_stage(
        accelerator,
        run,
        "condense",
        part.num_steps,
        step_fn,
        save_every_steps=recipe.save_every_steps,
        on_save=picture,
    )
    result: Any = condensed_ema.module if part.num_steps else condensed
    accelerator.free_memory()
    return result.cpu().eval()
