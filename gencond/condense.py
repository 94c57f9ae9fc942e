"""Condensing: `condense_step` reads like the method, `condense` is the accelerate loop around it."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.optimization import get_scheduler
from jaxtyping import Float
from torch import Tensor, nn

from gencond.assembly import (
    Extractors,
    Representatives,
    check_fit,
    choose_representatives,
    matching_augmentation,
    new_extractors,
    new_pixels,
    new_real_side,
)
from gencond.augment import Augmentation
from gencond.checkpoint import RunFolder, prepare_run, provenance, run_stage, step_rng, write_artefact
from gencond.config import Recipe
from gencond.data import LabeledImages
from gencond.distributed import gather_rows, new_accelerator, own_share
from gencond.errors import InputError
from gencond.files import cache_dir, require_writable
from gencond.generator.card import model_card
from gencond.generator.condensed import CondensedDataset, backbone_config, load
from gencond.generator.face import Condensed
from gencond.generator.packing import decode
from gencond.generator.pixels import CondensedPixels
from gencond.losses.anchor import pixel_anchor_loss, representative_loss
from gencond.losses.center import center_loss
from gencond.losses.classification import classification_loss
from gencond.losses.diversity import diversity_loss
from gencond.losses.gradient import Metric
from gencond.losses.total import total_loss
from gencond.pictures import PICTURED_CLASSES, PICTURED_IMAGES, grid, screen_scale, write_png
from gencond.pretrain import averaged, pretrained_generator
from gencond.ranges import to_uint8
from gencond.targets import Draw, RealSide, gradient_loss

logger = logging.getLogger(__name__)


def condense_step(
    synthesize: nn.Module,
    draw: Draw,
    real: RealSide,
    augmentation: Augmentation,
    representatives: Representatives,
    weights: Mapping[str, float],
    *,
    factor: int = 1,
    images_per_step: int | None = None,
    scale: Literal["relative", "sum"] = "relative",
    gradient_metric: Metric = "mse",
    center_margin: float = 1.0,
    rank: int = 0,
    num_processes: int = 1,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The objective of one step: (weighted total, unweighted parts), both with gradient.

    Each process synthesizes and embeds its own share of the step's classes; only class centers are gathered. Averaged
    over processes, parts and gradients are those of one process with all the classes. A term of weight 0 is not
    computed, nor classification by an extractor that was never trained.

    Args:
        synthesize: (labels, slots) -> images in [-1, 1]: a `Condensed`, possibly wrapped for data parallelism.
        factor: every image is cut into factor x factor before it is looked at.
        images_per_step: at most, of a class; more are drawn from at random.
        scale: of the matching terms: `relative` is a mean over classes, in gaps between real classes; `sum` adds up.
    """
    device, rng, extractor = draw.extractor.mean.device, draw.rng, draw.extractor
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
    images = decode(images, factor).unflatten(0, (len(own), -1))  # [classes, m, c, h, w]
    if images_per_step is not None and images.shape[1] > images_per_step:
        order = torch.rand(len(classes), images.shape[1], generator=rng).argsort(1)
        kept = order[share, :images_per_step].to(device)
        images = images[torch.arange(len(own), device=device)[:, None], kept]
    num_images = images.shape[1]

    drawn_for_each = 1 if real.siamese else num_images
    params = augmentation.draw(len(classes) * drawn_for_each, rng)
    params = params.rows(slice(share.start * drawn_for_each, share.stop * drawn_for_each))
    targets = real.targets(draw, share, augmentation, params)
    if real.siamese:
        params = params.rows(torch.arange(len(own)).repeat_interleave(num_images))
    augmented = augmentation(images.flatten(0, 1), params)

    on = {name for name, weight in weights.items() if weight}
    if not extractor.knows_classes:
        on -= {"classification"}
    parts: dict[str, Tensor] = {}
    if on & {"mean", "mmd", "diversity", "center", "classification"}:
        features = extractor(augmented)
        features_syn = features.unflatten(0, (len(own), num_images))
    if ("mean" in on and scale == "relative") or "center" in on:
        centers_real = gather_rows(targets.centers, len(classes))
    if "mean" in on:
        unit = real.gap(extractor, centers_real) if scale == "relative" else 1.0
        parts["mean"] = targets.mean_loss(features_syn) / (len(own) * unit)
    if "mmd" in on:
        parts["mmd"] = targets.mmd_loss(features_syn) / len(own)
    if "gradient" in on:
        images_syn = augmented.unflatten(0, (len(own), num_images))
        parts["gradient"] = gradient_loss(extractor, targets.augmented, images_syn, own, gradient_metric) / len(own)
    if scale == "sum":
        parts = {name: part * len(classes) for name, part in parts.items()}
    if "diversity" in on:
        parts["diversity"] = diversity_loss(features_syn, targets.spread)
    if "classification" in on:
        parts["classification"] = classification_loss(extractor.logits(features), own.repeat_interleave(num_images))
    if "pixel" in on:
        parts["pixel"] = pixel_anchor_loss(targets.pooled, targets.contrast, images)
    # Means over own classes, weighted so that the mean over processes is the mean over all classes.
    parts = {name: part * (len(own) * num_processes / len(classes)) for name, part in parts.items()}
    if "representative" in on and len(draw.anchors):
        anchored = representatives.images[anchors]
        parts["representative"] = representative_loss(anchored, images_anchored, len(draw.anchors)) * num_processes
    if "center" in on:
        centers_syn = gather_rows(features_syn.mean(1), len(classes))
        parts["center"] = center_loss(centers_real, centers_syn, center_margin)
    return total_loss(parts, weights), parts


def condense(recipe: Recipe, data: LabeledImages, out: Path, pretrained: Path | None = None) -> Condensed:
    """From real images to the artefact in `out/condensed`, resuming whatever of it is done.

    Args:
        pretrained: a folder with a pretrained generator of the recipe's shape; None trains one as the recipe says.
    Raises:
        InputError: `out` holds another run, parts of the recipe that do not fit the images or each other, more
            processes than classes.
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


def _condense_in(run: RunFolder, recipe: Recipe, data: LabeledImages, pretrained: Path | None) -> Condensed:
    """The stages, one after the other."""
    accelerator = new_accelerator()
    condensed = start(recipe, data, run, pretrained).run(run)
    if accelerator.is_main_process:
        write_artefact(run.artefact, condensed, model_card(condensed))
        for stage in ("encode", "condense"):
            run.drop_state(stage)
    accelerator.wait_for_everyone()
    return condensed


def start(recipe: Recipe, data: LabeledImages, run: RunFolder, pretrained: Path | None = None) -> "Matching":
    """All that comes before the first step of matching: pretraining, extractors, statistics, what learning starts from.

    Args:
        pretrained: see `condense`.
    """
    accelerator = new_accelerator()
    makes_images = recipe.synthesizer.kind == "generator"
    generator = pretrained_generator(recipe, data, run, pretrained) if makes_images else None
    started = time.monotonic()
    with accelerator.main_process_first():
        extractors, pool_key = new_extractors(recipe, data, accelerator.device)
        real = new_real_side(recipe, data, extractors, pool_key, accelerator.device)
    if accelerator.is_main_process:
        run.log(stage="extractors and statistics", seconds=round(time.monotonic() - started, 1))
    representatives = choose_representatives(recipe, data, extractors).to(accelerator.device)
    if generator is None:
        condensed: Condensed = new_pixels(recipe, data, representatives, provenance(recipe, data))
    else:
        condensed = CondensedDataset(
            data.class_names,
            backbone_config(generator),
            recipe.codes.num_slots,
            recipe.seed,
            recipe.synthesizer.factor,
            provenance(recipe, data),
        )
        condensed.generator.load_state_dict(generator.state_dict())
        condensed.eval()  # batch norms stay at their statistics: a fixed affine map of each channel
        if recipe.codes.encode_steps:
            encode(recipe, condensed, representatives, run)
    return Matching(recipe, data, condensed, extractors, real, representatives)


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
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=part.encode_steps)
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


def new_optimizer(recipe: Recipe, condensed: Condensed) -> torch.optim.Optimizer:
    """Of matching: Adam for a generator and its codes, SGD for pixels."""
    if isinstance(condensed, CondensedDataset):
        return adam(condensed, recipe.condense.generator_lr, recipe.condense.code_lr)
    part = recipe.pixels
    rate = part.learning_rate * (part.ipc if part.rate_per_ipc else 1)
    return torch.optim.SGD(condensed.parameters(), rate, momentum=part.momentum)


class Matching:
    """The matching stage: everything a step needs, and the artefact as it changes.

    Args:
        condensed: what is learned, in place.
        representatives: what its slots start from and may be held to, on the same device.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: LabeledImages,
        condensed: Condensed,
        extractors: Extractors,
        real: RealSide,
        representatives: Representatives,
    ) -> None:
        part = recipe.condense
        self.recipe, self.num_classes, self.real, self.extractors = recipe, data.num_classes, real, extractors
        self.accelerator = new_accelerator()
        self.condensed = condensed.to(self.accelerator.device)
        self.representatives = representatives
        optimizer = new_optimizer(recipe, self.condensed)
        self.average = averaged(self.condensed, part.ema_halflife_steps) if part.ema_halflife_steps else None
        self.synthesize, self.optimizer = self.accelerator.prepare(self.condensed, optimizer)
        self.schedule = get_scheduler(
            part.schedule, self.optimizer, num_warmup_steps=0, num_training_steps=part.num_steps
        )
        states = (self.schedule, self.average, extractors, real)
        self.accelerator.register_for_checkpointing(*(state for state in states if hasattr(state, "state_dict")))
        self.augmentation = matching_augmentation(recipe, data)
        objective = asdict(recipe.objective)
        self.weights = {name.removesuffix("_weight"): w for name, w in objective.items() if name.endswith("_weight")}
        self.anchored = (self.representatives.slots > 0).nonzero()[:, 0].cpu()
        at_most = part.representative_batch_size if self.weights["representative"] else 0
        self.num_anchors = min(at_most, len(self.anchored))
        self.lengths = part.prefix_lengths or (condensed.num_slots,)
        self.clamp_every = recipe.pixels.clamp_every_steps if isinstance(condensed, CondensedPixels) else 0

    def draw(self, step: int) -> Draw:
        """All that is random in step number `step`."""
        part, rng = self.recipe.condense, step_rng(self.recipe.seed, "condense", step)
        fresh = bool(torch.rand((), generator=rng) < part.stream_probability)
        choice = int(torch.randint(len(self.lengths), (), generator=rng))
        return Draw(
            step=step,
            classes=torch.randperm(self.num_classes, generator=rng)[: part.classes_per_step].sort().values,
            first_slot=self.condensed.num_slots + step * part.stream_length if fresh else 0,
            length=part.stream_length if fresh else self.lengths[choice],
            extractor=self.extractors.at(step, rng),
            anchors=self.anchored[torch.randperm(len(self.anchored), generator=rng)[: self.num_anchors]],
            rng=rng,
        )

    def step(self, step: int) -> Mapping[str, Tensor]:
        """One update; returns the loss and its unweighted parts."""
        part, objective = self.recipe.condense, self.recipe.objective
        if self.clamp_every and step % self.clamp_every == 0:
            self.condensed.clamp_()
        loss, parts = condense_step(
            self.synthesize,
            self.draw(step),
            self.real,
            self.augmentation,
            self.representatives,
            self.weights,
            factor=self.recipe.synthesizer.factor,
            images_per_step=part.images_per_step,
            scale=objective.scale,
            gradient_metric=objective.gradient_metric,
            center_margin=objective.center_margin,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        self.optimizer.zero_grad()
        # Nothing to learn where classification is all there is and the extractor knows no classes, or where diversity
        # is and each class has one image.
        if parts and loss.requires_grad:
            self.accelerator.backward(loss)
            if part.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(self.synthesize.parameters(), part.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.extractors.after(step)
        if self.average is not None:
            self.average.update_parameters(self.condensed)
        return {"loss": loss, **parts} if parts else {}

    def result(self) -> Any:
        """The artefact so far: the average of the iterates, or the last one."""
        return self.average.module if self.average is not None and self.recipe.condense.num_steps else self.condensed

    def picture(self, path: Path) -> None:
        """A grid of samples as a PNG."""
        condensed = self.result()
        classes = range(min(self.num_classes, PICTURED_CLASSES))
        images, _ = condensed.sample(min(PICTURED_IMAGES, condensed.largest_ipc or PICTURED_IMAGES), classes)
        rows = to_uint8(images).cpu().unflatten(0, (len(classes), -1))[:, :PICTURED_IMAGES]
        write_png(path, grid(rows, screen_scale(condensed.image_size)))

    def run(self, run: RunFolder) -> Condensed:
        """All steps, from the last saved state; returns the artefact on the CPU."""
        run_stage(
            self.accelerator,
            run,
            "condense",
            self.recipe.condense.num_steps,
            self.step,
            save_every_steps=self.recipe.save_every_steps,
            on_save=lambda step: self.picture(run.samples / f"step_{step:06d}.png"),
        )
        self.accelerator.free_memory()
        return self.result().cpu().eval()
