"""Adversarial pretraining of a BigGAN backbone, for data that no public GAN covers."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gencond.common.distributed import new_accelerator, own_share
from gencond.common.ranges import to_signed
from gencond.common.seeding import seeded
from gencond.condensing.loop import step_rng
from gencond.condensing.run_folder import RunFolder
from gencond.config import Pretrain
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.generator.backbone import Backbone
from gencond.generator.biggan import BigGANGenerator, set_standing_statistics
from gencond.generator.discriminator import ProjectionDiscriminator
from gencond.generator.packing import shrink
from gencond.losses.adversarial import discriminator_hinge_loss, generator_hinge_loss

STANDING_BATCHES, STANDING_BATCH_SIZE = 20, 200


def averaged(module: nn.Module, halflife_steps: int) -> AveragedModel:
    """An exponential moving average of a module, parameters and buffers alike.

    The buffers matter: batch-norm statistics belong to the weights that they were seen with.
    """
    decay = 0.5 ** (1 / halflife_steps)
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class Pretraining:
    """Trains a generator against a projection discriminator with the hinge loss.

    Args:
        part: what a recipe says of it.
        generator: with random weights, changed in place.
        data: the real images; a generator of parts sees them at the side of a part.
        seed: of the discriminator and of all steps.
    """

    name = "pretrain"
    learning_rates = "pretrain.generator_lr or pretrain.discriminator_lr"

    def __init__(self, part: Pretrain, generator: Backbone, data: LabeledImages, seed: int) -> None:
        self.part, self.data, self.seed, self.num_steps = part, data, seed, part.num_steps
        self.accelerator = new_accelerator()
        self.side, self.latent_dim = generator.config.sample_size, generator.config.latent_dim
        with seeded(seed + 1):
            discriminator = ProjectionDiscriminator(
                self.side, data.channels, data.num_classes, part.discriminator_width
            )
        if isinstance(generator, BigGANGenerator) and generator.path is not None:
            generator.path.requires_grad_(False)  # it stays 0: it is there for learned codes, not for drawn latents
        self.average = averaged(generator.to(self.accelerator.device), part.ema_halflife_steps)
        self.generator, self.discriminator, self.generator_optimizer, self.discriminator_optimizer = (
            self.accelerator.prepare(
                generator.train(),
                discriminator.train(),
                torch.optim.Adam(generator.parameters(), part.generator_lr, betas=(0.0, 0.9)),
                torch.optim.Adam(discriminator.parameters(), part.discriminator_lr, betas=(0.0, 0.9)),
            )
        )
        self.bare_generator = self.accelerator.unwrap_model(self.generator)
        self.judge = self.accelerator.unwrap_model(self.discriminator)  # the generator's step needs no sync of it
        mean, std = data.mean_std
        self.augmentation = Augmentation(part.augmentation, self.side, mean, std, mode="all")
        self.share = own_share(part.batch_size, self.accelerator.process_index, self.accelerator.num_processes)

    def step(self, number: int) -> Mapping[str, Tensor]:
        """Some updates of the discriminator and one of the generator; returns both losses."""
        part, rng = self.part, step_rng(self.seed, self.name, number)
        discriminator_loss = torch.zeros(())
        for _ in range(part.discriminator_steps):
            rows = torch.randint(len(self.data), (part.batch_size,), generator=rng)[self.share]
            images_real = to_signed(self.data.images[rows]).to(self.accelerator.device)
            if self.side < self.data.image_size:
                images_real = shrink(images_real, self.side)
            latents, labels_syn = self._latents_and_labels(rng)
            with torch.no_grad():
                images_syn = self.bare_generator(latents, labels_syn)
            images = torch.cat([self._augmented(images_real, rng), self._augmented(images_syn, rng)])
            labels = torch.cat([self.data.labels[rows].to(labels_syn), labels_syn])
            real, syn = self.discriminator(images, labels).split([len(images_real), len(images_syn)])
            discriminator_loss = discriminator_hinge_loss(real, syn)
            self.discriminator_optimizer.zero_grad()
            self.accelerator.backward(discriminator_loss)
            self.discriminator_optimizer.step()

        self.judge.requires_grad_(False)
        latents, labels_syn = self._latents_and_labels(rng)
        syn = self.judge(self._augmented(self.generator(latents, labels_syn), rng), labels_syn)
        generator_loss = generator_hinge_loss(syn)
        self.generator_optimizer.zero_grad()
        self.accelerator.backward(generator_loss)
        self.generator_optimizer.step()
        self.judge.requires_grad_(True)
        self.average.update_parameters(self.bare_generator)
        return {"discriminator": discriminator_loss, "generator": generator_loss}

    def states(self) -> Mapping[str, Any]:
        return {
            "generator": self.bare_generator,
            "discriminator": self.judge,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
            "average": self.average,
        }

    def scores(self, run: RunFolder, num_done: int) -> None:
        """Nothing is measured."""

    def saves(self, run: RunFolder, num_done: int) -> None:
        """Nothing is drawn."""

    def result(self) -> Backbone:
        """The average of the generator, with standing statistics, on the CPU."""
        rng = step_rng(self.seed, f"{self.name}/standing", 0)
        batches = []
        for _ in range(STANDING_BATCHES):
            latents = torch.randn(STANDING_BATCH_SIZE, self.latent_dim, generator=rng)
            labels = torch.randint(self.data.num_classes, (STANDING_BATCH_SIZE,), generator=rng)
            batches.append((latents.to(self.accelerator.device), labels.to(self.accelerator.device)))
        generator = cast("BigGANGenerator", self.average.module)
        set_standing_statistics(generator, batches)
        return generator.cpu()

    def _latents_and_labels(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """This process's share of a batch."""
        latents = torch.randn(self.part.batch_size, self.latent_dim, generator=rng)
        labels = torch.randint(self.data.num_classes, (self.part.batch_size,), generator=rng)
        return latents[self.share].to(self.accelerator.device), labels[self.share].to(self.accelerator.device)

    def _augmented(self, images: Tensor, rng: torch.Generator) -> Tensor:
        return self.augmentation(images, self.augmentation.draw(self.part.batch_size, rng).rows(self.share))
