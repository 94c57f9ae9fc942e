"""How hard each real image is to a network that has learned the classes for a while, and which ones it knows."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gencond.common.cache import read_checked, write_checked
from gencond.common.errors import InputError
from gencond.common.files import short_hash
from gencond.condensing.extractors import ExtractorMaker
from gencond.data.images import LabeledImages
from gencond.data.select import MOST_PASSES
from gencond.networks.extractor import embed_all, judged

logger = logging.getLogger(__name__)

BATCH_SIZE, LEARNING_RATE = 128, 0.05  # of the network that says it, by a cosine


@dataclass(frozen=True)
class Ranking:
    """A network that learns the classes for a while, and says how hard each image is to it.

    Args:
        maker: of the network.
        architecture: says which networks `maker` makes, and from which weights.
        num_steps: of training.
        strategy: augmentation of the training.
        seed: of the network and its training.
    """

    maker: ExtractorMaker
    architecture: str
    num_steps: int
    strategy: str
    seed: int

    def network(self, data: LabeledImages, num_steps: int | None = None) -> nn.Module:
        """A network that knows the classes well enough to say which images are easy.

        Args:
            num_steps: of training; None takes all.
        """
        return self.maker.trained(
            data.images,
            data.labels,
            strategy=self.strategy,
            batch_size=BATCH_SIZE,
            num_steps=self.num_steps if num_steps is None else num_steps,
            learning_rate=LEARNING_RATE,
            seed=self.seed,
            description="ranking images",
        )

    def difficulties(self, data: LabeledImages, cache: Path) -> Float[Tensor, " n"]:
        """Each image's cross-entropy under a network trained on all of them.

        Args:
            cache: the folder that keeps them; what was found before is read from there.
        Raises:
            InputError: the network diverged.
        """
        return self.answers(data, cache)[0]

    def brief(self, num_images: int) -> "Ranking":
        """The same for so many images, but no longer than it takes to see each of them ten times.

        A network that sees the same few images again and again knows them all, false labels too.
        """
        return replace(self, num_steps=min(self.num_steps, math.ceil(MOST_PASSES * num_images / BATCH_SIZE)))

    def answers(self, data: LabeledImages, cache: Path) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """(each image's cross-entropy, whether the network takes it for what it is), as `difficulties`."""
        key = short_hash(
            "difficulties-3", data.fingerprint, self.architecture, self.num_steps, self.strategy, self.seed
        )
        file = cache / "difficulties" / f"{key}.safetensors"
        if (stored := read_checked(file)) is not None:
            logger.info("difficulties: reusing those of %d images (%s)", len(data), key)
            return stored["losses"], stored["right"]
        judge = self.maker.wrap(self.network(data), knows_classes=True)
        losses, right = torch.empty(len(data)), torch.empty(len(data), dtype=torch.bool)
        for label in range(data.num_classes):
            rows = data.rows_of(label)
            losses[rows], right[rows] = judged(judge, embed_all(judge, data.images[rows]), data.labels[rows])
        if not losses.isfinite().all():
            raise InputError(
                "ranking images: the network diverged: set codes.skip_easiest=null and codes.learnable_first=false, "
                "or another features.network"
            )
        write_checked(file, {"losses": losses, "right": right}, data.words)
        return losses, right
