"""Matching: the stage in which synthetic images become like the real ones to the extractors."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor

from gencond.common.distributed import from_main, new_accelerator
from gencond.condensing.build import Parts
from gencond.condensing.extractors import Extractors
from gencond.condensing.loop import step_rng
from gencond.condensing.pretrain import averaged
from gencond.condensing.real import Draw, RealSide
from gencond.condensing.run_folder import RunFolder
from gencond.condensing.starts import Representatives
from gencond.condensing.step import Objective
from gencond.generator.artefact import Condensed
from gencond.generator.dataset import CondensedDataset
from gencond.generator.pixels import CondensedPixels
from gencond.losses.own import own_term


class Matching:
    """The matching stage: everything a step needs, and the artefact as it changes.

    Args:
        condensed: what is learned, in place.
        representatives: what its slots start from and may be held to, on the same device.
    """

    name = "condense"
    learning_rates = (
        "condense.generator_lr or condense.code_lr (pixels.learning_rate of pixels, features.learning_rate where "
        "networks learn along the way)"
    )

    def __init__(
        self,
        parts: Parts,
        condensed: Condensed,
        extractors: Extractors,
        real: RealSide,
        representatives: Representatives,
    ) -> None:
        self.parts, self.extractors, self.num_steps = parts, extractors, parts.condense.num_steps
        self.accelerator = new_accelerator()
        self.condensed = condensed.to(self.accelerator.device)
        optimizer = parts.new_optimizer(self.condensed)
        halflife = parts.condense.ema_halflife_steps
        self.average = averaged(self.condensed, halflife) if halflife else None
        self.synthesize, self.optimizer = self.accelerator.prepare(self.condensed, optimizer)
        self.schedule = get_scheduler(
            parts.condense.schedule, self.optimizer, num_warmup_steps=0, num_training_steps=self.num_steps
        )
        self.objective = Objective(
            self.synthesize,
            real,
            parts.augmentation,
            representatives,
            parts.term_weights,
            own=None if parts.objective.own_term is None else own_term(parts.objective.own_term),
            factor=parts.synthesizer.factor,
            images_per_step=parts.condense.images_per_step,
            images_at_once=parts.condense.images_at_once,
            scale=parts.objective.scale,
            gradient_metric=parts.objective.gradient_metric,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        self.anchored = (representatives.slots > 0).nonzero()[:, 0].cpu()
        at_most = parts.condense.representative_batch_size if parts.term_weights["representative"] else 0
        self.num_anchors = min(at_most, len(self.anchored))
        lengths = parts.condense.prefix_lengths or (condensed.num_slots,)
        at_once = parts.condense.prefixes_at_once
        # Of which a step takes one.
        self.lengths = (tuple(sorted(set(lengths))),) if at_once else tuple((length,) for length in lengths)
        self.clamp_every = parts.pixels.clamp_every_steps if isinstance(condensed, CondensedPixels) else 0

    def draw(self, number: int) -> Draw:
        """All that is random in the step of a number."""
        part, rng = self.parts.condense, step_rng(self.parts.seed, self.name, number)
        fresh = bool(torch.rand((), generator=rng) < part.stream_probability)
        choice = int(torch.randint(len(self.lengths), (), generator=rng))
        return Draw(
            step=number,
            classes=self.parts.learned[
                torch.randperm(len(self.parts.learned), generator=rng)[: part.classes_per_step].sort().values
            ],
            first_slot=self.condensed.num_slots + number * part.stream_length if fresh else 0,
            lengths=(part.stream_length,) if fresh else self.lengths[choice],
            extractor=self.extractors.at(number, rng),
            anchors=self.anchored[torch.randperm(len(self.anchored), generator=rng)[: self.num_anchors]],
            rng=rng,
        )

    def step(self, number: int) -> Mapping[str, Tensor]:
        """One update; returns the loss and its unweighted parts."""
        if self.clamp_every and number % self.clamp_every == 0:
            self.condensed.clamp_()
        of_step = self.objective.at(self.draw(number))
        self.optimizer.zero_grad()
        seen: dict[str, Tensor] = {}
        for chunk in of_step.chunks:
            # Gradients are averaged over processes once, with the last chunk.
            waits = chunk is not of_step.chunks[-1]
            with self.accelerator.no_sync(self.synthesize) if waits else nullcontext():
                loss, parts = of_step.loss(chunk)
                # Nothing to learn where classification is all there is and the extractor knows no classes, or where
                # diversity is and each class has one image.
                if parts and loss.requires_grad:
                    self.accelerator.backward(loss)
            for name, value in ({"loss": loss} | parts if parts else {}).items():
                seen[name] = seen[name] + value.detach() if name in seen else value.detach()
        if (most := self.parts.condense.max_grad_norm) is not None and seen:
            self.accelerator.clip_grad_norm_(self.synthesize.parameters(), most)
        self.optimizer.step()
        self.schedule.step()
        self.extractors.after(number)
        if self.average is not None:
            self.average.update_parameters(self.condensed)
        if of_step.wire_bytes:
            seen["wire_bytes"] = torch.tensor(float(of_step.wire_bytes), device=self.accelerator.device)
        return seen

    def states(self) -> Mapping[str, Any]:
        return {
            "condensed": self.condensed,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "average": self.average,
            "extractors": self.extractors,
            "real": self.objective.real,
        }

    def scores(self, run: RunFolder, num_done: int) -> None:
        """Has the main process take a quick score of what is learned so far, where it is time for one."""
        scorer = self.parts.scorer
        if scorer is not None and scorer.is_due(num_done, self.num_steps):
            from_main(lambda: scorer.score(self.learned(), run, num_done, self.num_steps, self.name))

    def saves(self, run: RunFolder, num_done: int) -> None:
        """Draws what is learned so far."""
        file = run.samples / f"step_{num_done:06d}.png"
        self.picture(file)
        run.show(self.name, num_done, file)

    def learned(self) -> Condensed:
        """The artefact so far: the average of the iterates, or the last one."""
        if self.average is None or not self.num_steps:
            return self.condensed
        return cast("Condensed", self.average.module)

    def picture(self, path: Path) -> None:
        """Writes a grid of samples as a PNG."""
        self.learned().draw(path, self.parts.learned.tolist())

    def result(self) -> Condensed:
        """The artefact once all steps are done, on the CPU."""
        condensed = self.learned().cpu().eval()
        if isinstance(condensed, CondensedDataset):
            condensed.codes.settle_()
        return condensed
