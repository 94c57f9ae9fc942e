"""Condensing: the accelerate loop around `CondenseStep`, and what comes before it."""

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor

from gencond.common.distributed import (
    from_main,
    main_process_first,
    memory_used,
    new_accelerator,
    own_share,
    wait_for_everyone,
)
from gencond.common.errors import InputError
from gencond.common.files import cache_dir, require_writable, state_fingerprint, weights_hash
from gencond.common.pictures import PICTURED_CLASSES, PICTURED_IMAGES, grid, screen_scale, write_png
from gencond.common.ranges import to_uint8
from gencond.condensing.backbones import read_generator
from gencond.condensing.build import (
    Extractors,
    Representatives,
    check_fit,
    choose_representatives,
    matching_augmentation,
    new_extractors,
    new_pixels,
    new_real_side,
)
from gencond.condensing.pretrain import averaged, pretrained_generator
from gencond.condensing.real import Draw, RealSide
from gencond.condensing.run_folder import RunFolder, prepare_run, provenance, run_stage, step_rng, write_artefact
from gencond.condensing.step import CondenseStep
from gencond.config import Recipe
from gencond.data.images import LabeledImages
from gencond.generator.artefact import Condensed
from gencond.generator.backbone import Backbone
from gencond.generator.card import model_card
from gencond.generator.codes import whole_numbers
from gencond.generator.dataset import CondensedDataset, backbone_config, load
from gencond.generator.pixels import CondensedPixels
from gencond.generator.transform import TransformGenerator
from gencond.losses.anchor import representative_loss
from gencond.networks.extractor import advice_on_bfloat16

logger = logging.getLogger(__name__)


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
    with prepare_run(out, recipe, data, identities_of_weights(recipe, data, pretrained)) as run:
        if from_main(run.artefact.is_dir):
            logger.info("condense: %s is complete, reusing it", run.artefact)
            from_main(run.drop_states)
            return load(run.artefact)
        condensed = _condense_in(run, recipe, data, pretrained)
    return condensed


def identities_of_weights(recipe: Recipe, data: LabeledImages, pretrained: Path | None = None) -> dict[str, str]:
    """What identifies the weights that a run takes from elsewhere: their content, whatever their path.

    One process reads them for all.

    Args:
        pretrained: see `condense`.
    Raises:
        InputError: `pretrained` is no generator, or one of another shape.
    """
    named = {"generator": recipe.generator.weights, "features": recipe.features.weights}

    def read() -> dict[str, str]:
        found = {part: weights_hash(weights) for part, weights in named.items() if weights is not None}
        if pretrained is not None:
            found["pretrained"] = state_fingerprint(read_generator(pretrained, recipe, data))
        return found

    return from_main(read)


def _condense_in(run: RunFolder, recipe: Recipe, data: LabeledImages, pretrained: Path | None) -> Condensed:
    """The stages, one after the other."""
    condensed = start(recipe, data, run, pretrained).run(run)

    def write() -> None:
        write_artefact(run.artefact, condensed, model_card(condensed))
        run.drop_states()

    from_main(write)
    return condensed


def start(recipe: Recipe, data: LabeledImages, run: RunFolder, pretrained: Path | None = None) -> "Matching":
    """All that comes before the first step of matching: pretraining, extractors, statistics, what learning starts from.

    Args:
        pretrained: see `condense`.
    """
    accelerator = new_accelerator()
    makes_images = recipe.synthesizer.kind == "generator"
    generator = None
    if makes_images:
        of_others = nullcontext() if recipe.generator.weights is None else main_process_first()
        with of_others:  # one process downloads them
            generator = pretrained_generator(recipe, data, run, pretrained)
    for advice in advice_on_bfloat16(
        accelerator.device,
        extractors=recipe.features.precision == "bfloat16",
        generator=accelerator.mixed_precision == "bf16",
    ):
        logger.warning("condense: %s", advice)
    started = time.monotonic()
    with main_process_first():
        extractors, pool_key = new_extractors(recipe, data, accelerator.device)
    real = new_real_side(recipe, data, extractors, pool_key, accelerator.device)  # all processes share the pass
    if accelerator.is_main_process:
        run.log(
            stage="extractors and statistics",
            seconds=round(time.monotonic() - started, 1),
            memory=memory_used(accelerator.device),
        )
    representatives = choose_representatives(recipe, data, extractors).to(accelerator.device)
    wait_for_everyone()  # before data parallelism compares its copies
    condensed = new_condensed(recipe, data, generator, representatives, run.weights)
    if isinstance(condensed, CondensedDataset):
        if isinstance(condensed.generator, TransformGenerator):
            start_from_transform(condensed, representatives, recipe.generator.quantization_step)
        if recipe.codes.encode_steps:
            encode(recipe, condensed, representatives, run)
    return Matching(recipe, data, condensed, extractors, real, representatives)


def new_condensed(
    recipe: Recipe,
    data: LabeledImages,
    generator: Backbone | None,
    representatives: Representatives,
    weights: Mapping[str, str] | None = None,
) -> Condensed:
    """The artefact before anything of it is learned: around a generator, or a bank of pixels where there is none.

    Args:
        weights: see `checkpoint.provenance`.
    """
    made = provenance(recipe, data, weights)
    if generator is None:
        return new_pixels(recipe, data, representatives, made)
    condensed = CondensedDataset(
        data.class_names,
        backbone_config(generator),
        recipe.codes.num_slots,
        recipe.seed,
        recipe.synthesizer.factor,
        made,
        by_parts=recipe.synthesizer.by_parts,
        fresh=recipe.codes.fresh,
    )
    condensed.generator.load_state_dict(generator.state_dict())
    if recipe.generator.gradient_checkpointing:
        condensed.generator.enable_gradient_checkpointing()
    return condensed.eval()  # batch norms stay at their statistics: a fixed affine map of each channel


def adam(
    condensed: CondensedDataset, generator_lr: float, code_lr: float, class_lr: float | None = None
) -> torch.optim.Adam:
    """Generator, codes and class embeddings at rates of their own: a code is seen in few steps and may move far."""
    of_classes = condensed.generator.class_embedding.weight
    if class_lr is None:
        groups = [{"params": list(condensed.generator.parameters()), "lr": generator_lr}]
    else:
        others = [weight for weight in condensed.generator.parameters() if weight is not of_classes]
        groups = [{"params": others, "lr": generator_lr}, {"params": [of_classes], "lr": class_lr}]
    return torch.optim.Adam([*groups, {"params": list(condensed.codes.parameters()), "lr": code_lr}])


def encode(recipe: Recipe, condensed: CondensedDataset, representatives: Representatives, run: RunFolder) -> None:
    """Fits codes and generator to the representatives by squared error, in place: matching starts from real images."""
    part = recipe.codes
    accelerator = new_accelerator()
    optimizer = adam(condensed, part.encode_generator_lr, part.encode_code_lr)
    synthesize, optimizer = accelerator.prepare(condensed, optimizer)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=part.encode_steps)
    states = {"condensed": condensed, "optimizer": optimizer, "schedule": schedule}
    share = own_share(part.encode_batch_size, accelerator.process_index, accelerator.num_processes)

    def encode_step(step: int) -> Mapping[str, Tensor]:
        rng = step_rng(recipe.seed, "encode", step)
        rows = torch.randint(len(representatives.labels), (part.encode_batch_size,), generator=rng)[share]
        rows = rows.to(accelerator.device)
        images = synthesize(representatives.labels[rows], representatives.slots[rows])
        loss = representative_loss(representatives.read(rows), images, part.encode_batch_size)
        loss = loss * accelerator.num_processes  # a sum over processes, and gradients are averaged over them
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        return {"representative": loss}

    run_stage(
        accelerator, run, "encode", part.encode_steps, encode_step, states, save_every_steps=recipe.save_every_steps
    )
    accelerator.free_memory()


@torch.no_grad()
def start_from_transform(condensed: CondensedDataset, representatives: Representatives, step: float) -> None:
    """Makes the generator the transform of what the slots are to make, and their codes its numbers, in place.

    Args:
        condensed: on the CPU, as new ones are.
        step: by which an image changes where a number changes by 1.
    """
    squares = condensed.cut(representatives.images.cpu())  # the same on any device
    numbers = whole_numbers(condensed.generator.fit(squares, step))
    of_part = condensed.generator.squares_in_a_row**2
    numbers = numbers.unflatten(0, (-1, of_part)).transpose(1, 2)  # as feature maps lie
    rows = (representatives.labels * condensed.num_slots + representatives.slots).cpu()
    condensed.codes.learned[rows] = numbers.reshape(len(rows), -1)


def new_optimizer(recipe: Recipe, condensed: Condensed) -> torch.optim.Optimizer:
    """Of matching: Adam for a generator and its codes, SGD for pixels."""
    if isinstance(condensed, CondensedDataset):
        part = recipe.condense
        return adam(condensed, part.generator_lr, part.code_lr, part.class_lr)
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
        condense_step = CondenseStep(
            self.synthesize,
            self.draw(step),
            self.real,
            self.augmentation,
            self.representatives,
            self.weights,
            factor=self.recipe.synthesizer.factor,
            images_per_step=part.images_per_step,
            images_at_once=part.images_at_once,
            scale=objective.scale,
            gradient_metric=objective.gradient_metric,
            center_margin=objective.center_margin,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        self.optimizer.zero_grad()
        seen: dict[str, Tensor] = {}
        for chunk in condense_step.chunks:
            # Gradients are averaged over processes once, with the last chunk.
            waits = chunk is not condense_step.chunks[-1]
            with self.accelerator.no_sync(self.synthesize) if waits else nullcontext():
                loss, parts = condense_step.objective(chunk)
                # Nothing to learn where classification is all there is and the extractor knows no classes, or where
                # diversity is and each class has one image.
                if parts and loss.requires_grad:
                    self.accelerator.backward(loss)
            for name, value in ({"loss": loss} | parts if parts else {}).items():
                seen[name] = seen[name] + value.detach() if name in seen else value.detach()
        if part.max_grad_norm is not None and seen:
            self.accelerator.clip_grad_norm_(self.synthesize.parameters(), part.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.extractors.after(step)
        if self.average is not None:
            self.average.update_parameters(self.condensed)
        if condense_step.wire_bytes:
            seen["wire_bytes"] = torch.tensor(float(condense_step.wire_bytes), device=self.accelerator.device)
        return seen

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
            {
                "condensed": self.condensed,
                "optimizer": self.optimizer,
                "schedule": self.schedule,
                "average": self.average,
                "extractors": self.extractors,
                "real": self.real,
            },
            save_every_steps=self.recipe.save_every_steps,
            on_save=lambda step: self.picture(run.samples / f"step_{step:06d}.png"),
        )
        self.accelerator.free_memory()
        condensed = self.result().cpu().eval()
        if isinstance(condensed, CondensedDataset):
            condensed.codes.settle_()
        return condensed
