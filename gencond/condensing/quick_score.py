"""Quick scores: a classifier trains for a moment on what is learned so far, and is tested on held-out training images.

They show whether a run gets anywhere while it runs. What they are tested on is held out before anything else sees the
images, and nothing that a run learns depends on them.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from gencond.common.quick_scores import SCORE_EVENT, quick_scores, spoken_score
from gencond.common.ranges import to_uint8
from gencond.condensing.extractors import ExtractorMaker
from gencond.condensing.run_folder import RunFolder
from gencond.config import Condense
from gencond.data.images import LabeledImages, split_off
from gencond.generator.artefact import Condensed
from gencond.networks.training import WholeBatches

logger = logging.getLogger(__name__)

NUM_STEPS, LEARNING_RATE, SMALL_BATCH = 100, 0.03, 32  # of the classifier, by a cosine
LARGEST_IPC = 10
SMALLEST_SHARE = 10  # one image in so many is held out at most


def num_held_out(part: Condense, counts: Int64[Tensor, " classes"]) -> Int64[Tensor, " classes"]:
    """Images of each class that are held out for quick scores: none without scores, or where images are too few.

    Args:
        part: what a recipe says of matching.
        counts: training images of each class.
    """
    if part.score_every_steps is None or too_few(part, counts):
        return torch.zeros_like(counts)
    share = _share(part, int(counts.sum()))
    return torch.tensor([min(max(round(count * share), 1), count - 1) for count in counts.tolist()])


def too_few(part: Condense, counts: Int64[Tensor, " classes"]) -> str | None:
    """Why no quick scores are taken although the recipe asks for them; None where they are, or it does not."""
    total, classes = int(counts.sum()), len(counts)
    if part.score_every_steps is None or (total >= SMALLEST_SHARE * classes and int(counts.min()) > 1):
        return None
    return (
        f"no quick scores: {total} training images of {classes} classes, {int(counts.min())} of the smallest, are too "
        f"few to hold some out ({SMALLEST_SHARE} a class on average, and two of each)"
    )


def _share(part: Condense, num_images: int) -> float:
    return min(part.score_images / num_images, 1 / SMALLEST_SHARE)


def hold_out(part: Condense, data: LabeledImages) -> tuple[LabeledImages, LabeledImages | None]:
    """(what is condensed, what quick scores are tested on), by the content of the images; None without scores.

    Args:
        part: what a recipe says of matching.
        data: the training images.
    """
    if not num_held_out(part, data.counts).any():
        return data, None
    return split_off(data, _share(part, len(data)), "validation", closed=True)


@dataclass(frozen=True)
class QuickScorer:
    """Trains a classifier of the extractors' architecture on samples for a moment and tests it on `held_out`.

    Args:
        held_out: real images that condensing does not see.
        maker: of the network.
        every_steps: of matching, between two scores.
        batch_size, strategy: of the training; strategy is its augmentation.
        seed: of the network and its training, the same for all scores.
    """

    held_out: LabeledImages
    maker: ExtractorMaker
    every_steps: int
    batch_size: int
    strategy: str
    seed: int

    def is_due(self, num_done: int, num_steps: int) -> bool:
        """Whether there is a score after so many of all steps."""
        return num_done % self.every_steps == 0 or num_done == num_steps

    def count(self, num_steps: int) -> int:
        """Scores in so many steps."""
        return -(-num_steps // self.every_steps)

    def ipc(self, condensed: Condensed) -> int:
        """Images of a class, before they are cut by factor, that the classifier trains on."""
        return min(LARGEST_IPC, condensed.num_slots)

    def samples(
        self, condensed: Condensed, ipc: int, classes: Sequence[int] | None = None
    ) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """`ipc` images of each class in 8 bits, as they are exported and judged, and their classes."""
        images, labels = condensed.sample(ipc, classes)
        return to_uint8(images), labels

    def trained(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], num_steps: int = NUM_STEPS
    ) -> nn.Module:
        """A new classifier after so many steps on these images, in batches of one size."""
        return self.maker.trained(
            images,
            labels,
            strategy=self.strategy,
            batch_size=self.batch_size,
            batches=WholeBatches,
            num_steps=num_steps,
            learning_rate=LEARNING_RATE,
            seed=self.seed,
        )

    def tested(self, network: nn.Module) -> float:
        """Share of the held-out images that a classifier has right, in [0, 1]; nothing is compiled for it."""
        return self.maker.top1(network, self.held_out)

    def score(self, condensed: Condensed, run: RunFolder, num_done: int, num_steps: int, stage: str) -> None:
        """Measures what is learned after so many of a stage's steps, logs it and says it in one line."""
        started, ipc = time.monotonic(), self.ipc(condensed)
        top1 = self.tested(self.trained(*self.samples(condensed, ipc)))
        before = quick_scores(run.read_log())
        measured = {"ipc": ipc, "top1": top1, "num_images": len(self.held_out)}
        run.log(stage=stage, event=SCORE_EVENT, step=num_done, **measured, seconds=round(time.monotonic() - started, 3))
        compared = f" (before: {100 * before[-1]['top1']:.1f})" if before else ""
        logger.info("%s: step %d of %d: %s%s", stage, num_done, num_steps, spoken_score(measured), compared)
