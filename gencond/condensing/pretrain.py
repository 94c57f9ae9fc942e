"""Adversarial pretraining of a BigGAN backbone, for data that no public GAN covers."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gencond.common.distributed import from_main, new_accelerator, own_share
from gencond.common.files import written_whole
from gencond.common.ranges import to_signed
from gencond.common.seeding import seeded
from gencond.condensing.backbones import has_pretraining, new_generator, published_generator, read_generator
from gencond.condensing.run_folder import RunFolder, run_stage, step_rng
from gencond.config import Recipe
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.generator.backbone import Backbone
from gencond.generator.biggan import set_standing_statistics
from gencond.generator.discriminator import ProjectionDiscriminator
from gencond.generator.packing import shrink
from gencond.losses.adversarial import discriminator_hinge_loss, generator_hinge_loss

logger = logging.getLogger(__name__)

STAGE = "pretrain"
STANDING_BATCHES, STANDING_BATCH_SIZE = 20, 200


def averaged(module: nn.Module, halflife_steps: int) -> AveragedModel:
    """An exponential moving average of a module, parameters and buffers alike.

    The buffers matter: batch-norm statistics belong to the weights that they were seen with.
    """
    decay = 0.5 ** (1 / halflife_steps)
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def pretrained_generator(
    recipe: Recipe, data: LabeledImages, run: RunFolder, pretrained: Path | None = None
) -> Backbone:
    """The generator that condensing starts from: `pretrained`, published weights, or the recipe's own pretraining.

    What was pretrained in the run folder before is taken from there.

    Raises:
        InputError: `pretrained` is no generator, or one of another shape; weights that cannot be had or do not fit.
    """
    if pretrained is not None:
        return read_generator(pretrained, recipe, data)
    if recipe.generator.weights is not None:
        return published_generator(recipe, data)
    if not has_pretraining(recipe):
        return new_generator(recipe, data).eval()
    if from_main(run.pretrained.is_dir):
        logger.info("pretrain: reusing %s", run.pretrained)
        from_main(lambda: run.drop_states(STAGE))
        return read_generator(run.pretrained, recipe, data)
    generator = pretrain(recipe, data, run)

    def write() -> None:
        with written_whole(run.pretrained) as temporary:
            generator.save_pretrained(temporary)
        run.drop_states(STAGE)

    from_main(write)
    return generator


def pretrain(recipe: Recipe, data: LabeledImages, run: RunFolder) -> Backbone:
    """Trains a generator against a projection discriminator with the hinge loss; returns its average, on the CPU."""
    part = recipe.pretrain
    accelerator = new_accelerator()
    generator = new_generator(recipe, data)
    side = generator.config.sample_size
    with seeded(recipe.seed + 1):
        discriminator = ProjectionDiscriminator(side, data.channels, data.num_classes, part.discriminator_width)
    latent_dim = generator.config.latent_dim
    generator_ema = averaged(generator.to(accelerator.device), part.ema_halflife_steps)
    generator, discriminator, generator_optimizer, discriminator_optimizer = accelerator.prepare(
        generator.train(),
        discriminator.train(),
        torch.optim.Adam(generator.parameters(), part.generator_lr, betas=(0.0, 0.9)),
        torch.optim.Adam(discriminator.parameters(), part.discriminator_lr, betas=(0.0, 0.9)),
    )
    judge = accelerator.unwrap_model(discriminator)  # the generator's step needs no gradient sync of it
    states = {
        "generator": accelerator.unwrap_model(generator),
        "discriminator": judge,
        "generator_optimizer": generator_optimizer,
        "discriminator_optimizer": discriminator_optimizer,
        "average": generator_ema,
    }
    mean, std = data.mean_std
    augmentation = Augmentation(part.augmentation, side, mean, std, mode="all")
    share = own_share(part.batch_size, accelerator.process_index, accelerator.num_processes)

    def latents_and_labels(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        latents = torch.randn(part.batch_size, latent_dim, generator=rng)
        labels = torch.randint(data.num_classes, (part.batch_size,), generator=rng)
        return latents[share].to(accelerator.device), labels[share].to(accelerator.device)

    def augmented(images: Tensor, rng: torch.Generator) -> Tensor:
        return augmentation(images, augmentation.draw(part.batch_size, rng).rows(share))

    def pretrain_step(step: int) -> Mapping[str, Tensor]:
        rng = step_rng(recipe.seed, STAGE, step)
        for _ in range(part.discriminator_steps):
            rows = torch.randint(len(data), (part.batch_size,), generator=rng)[share]
            images_real = to_signed(data.images[rows]).to(accelerator.device)
            if side < data.image_size:
                images_real = shrink(images_real, side)
            latents, labels_syn = latents_and_labels(rng)
            with torch.no_grad():
                images_syn = accelerator.unwrap_model(generator)(latents, labels_syn)
            images = torch.cat([augmented(images_real, rng), augmented(images_syn, rng)])
            labels = torch.cat([data.labels[rows].to(labels_syn), labels_syn])
            real, syn = discriminator(images, labels).split([len(images_real), len(images_syn)])
            discriminator_loss = discriminator_hinge_loss(real, syn)
            discriminator_optimizer.zero_grad()
            accelerator.backward(discriminator_loss)
            discriminator_optimizer.step()

        judge.requires_grad_(False)
        latents, labels_syn = latents_and_labels(rng)
        syn = judge(augmented(generator(latents, labels_syn), rng), labels_syn)
        generator_loss = generator_hinge_loss(syn)
        generator_optimizer.zero_grad()
        accelerator.backward(generator_loss)
        generator_optimizer.step()
        judge.requires_grad_(True)
        generator_ema.update_parameters(accelerator.unwrap_model(generator))
        return {"discriminator": discriminator_loss, "generator": generator_loss}

    run_stage(accelerator, run, STAGE, part.num_steps, pretrain_step, states, save_every_steps=recipe.save_every_steps)
    rng = step_rng(recipe.seed, f"{STAGE}/standing", 0)
    batches = []
    for _ in range(STANDING_BATCHES):
        latents = torch.randn(STANDING_BATCH_SIZE, latent_dim, generator=rng)
        labels = torch.randint(data.num_classes, (STANDING_BATCH_SIZE,), generator=rng)
        batches.append((latents.to(accelerator.device), labels.to(accelerator.device)))
    result = generator_ema.module
    set_standing_statistics(result, batches)
    accelerator.free_memory()
    return result.cpu()
