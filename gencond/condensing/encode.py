"""Encoding: codes and generator are fitted to real images, so that matching starts from these."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor

from gencond.common.distributed import new_accelerator, own_share
from gencond.condensing.loop import step_rng
from gencond.condensing.run_folder import RunFolder
from gencond.condensing.starts import Representatives
from gencond.config import Codes
from gencond.generator.dataset import CondensedDataset
from gencond.losses.anchor import representative_loss


def adam(
    condensed: CondensedDataset, generator_lr: float, code_lr: float, class_lr: float | None = None
) -> torch.optim.Adam:
    """Adam with rates of their own for generator, codes and class embeddings, of weights that ask for gradients.

    A code is seen in few steps and may move far.
    """
    of_classes = condensed.generator.class_embedding.weight
    weights = [weight for weight in condensed.generator.parameters() if weight.requires_grad]
    if class_lr is None:
        groups = [{"params": weights, "lr": generator_lr}]
    else:
        others = [weight for weight in weights if weight is not of_classes]
        groups = [{"params": others, "lr": generator_lr}, {"params": [of_classes], "lr": class_lr}]
    return torch.optim.Adam([*groups, {"params": list(condensed.codes.parameters()), "lr": code_lr}])


class Encoding:
    """Fits codes and generator to the representatives by squared error, in place.

    Args:
        part: what a recipe says of codes.
        seed: of all steps.
    """

    name = "encode"
    learning_rates = "codes.encode_generator_lr or codes.encode_code_lr"

    def __init__(self, part: Codes, condensed: CondensedDataset, representatives: Representatives, seed: int) -> None:
        self.part, self.condensed, self.representatives, self.seed = part, condensed, representatives, seed
        self.num_steps, self.accelerator = part.encode_steps, new_accelerator()
        optimizer = adam(condensed, part.encode_generator_lr, part.encode_code_lr)
        self.synthesize, self.optimizer = self.accelerator.prepare(condensed, optimizer)
        self.schedule = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=0, num_training_steps=part.encode_steps
        )
        self.share = own_share(part.encode_batch_size, self.accelerator.process_index, self.accelerator.num_processes)

    def step(self, number: int) -> Mapping[str, Tensor]:
        """One update; returns the loss."""
        batch_size, tied, rng = (
            self.part.encode_batch_size,
            self.representatives,
            step_rng(self.seed, self.name, number),
        )
        rows = torch.randint(len(tied.labels), (batch_size,), generator=rng)[self.share].to(self.accelerator.device)
        images = self.synthesize(tied.labels[rows], tied.slots[rows])
        loss = representative_loss(tied.read(rows), images, batch_size)
        loss = loss * self.accelerator.num_processes  # a sum over processes, and gradients are averaged over them
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        return {"representative": loss}

    def states(self) -> Mapping[str, Any]:
        return {"condensed": self.condensed, "optimizer": self.optimizer, "schedule": self.schedule}

    def scores(self, run: RunFolder, num_done: int) -> None:
        """Nothing is measured."""

    def saves(self, run: RunFolder, num_done: int) -> None:
        """Nothing is drawn."""
