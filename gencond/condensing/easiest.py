"""Which share of each class, its easiest images, slots had better not start from: tried on held-out training images.

Whether easy images are worth storing is a property of the set. After the easiest 30 % of a class come photographs that
teach more than random ones on CIFAR-10, and much less on FashionMNIST: a share is good for the set it was found on.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gencond.common.cache import read_checked, write_checked
from gencond.common.distributed import is_main_process
from gencond.common.errors import InputError
from gencond.common.files import all_finite, short_hash
from gencond.common.progress import progress
from gencond.condensing.difficulty import BATCH_SIZE, LEARNING_RATE, Ranking
from gencond.data.images import LabeledImages, rows_split_off
from gencond.networks.training import WholeBatches

logger = logging.getLogger(__name__)

SHARES = (None, 0.0, 0.15, 0.3, 0.45)  # that are tried; None: random images, which the others have to beat
NUM_HELD_OUT = 5  # one image in so many
PASSES = 20  # over the images of a trial: as of a classifier that sees 100,000 of 5000
FEWEST_STEPS, MOST_SEEDS = 100, 3

Share = float | None


def after_easiest(
    rows: Int64[Tensor, " n"], losses: Float[Tensor, " n"], share: float, count: int
) -> Int64[Tensor, " k"]:
    """The `count` easiest rows of a class that come after its easiest ones; all where there are no more.

    Args:
        losses: of each row; low is easy.
        share: of the class that is skipped, in [0, 1); less where fewer than `count` would be left.
    """
    count = min(count, len(rows))
    first = min(int(share * len(rows)), len(rows) - count)
    return rows[losses.argsort(stable=True)[first : first + count]]


def taken(top1: Mapping[Share, float], num_held_out: int) -> Share:
    """The share that has the highest top-1, or None where none is ahead of random images by more than chance.

    It has to be ahead by more than the standard error of a top-1 on so many images. The best of several is ahead by
    some luck even where all are alike, and random images are the safe choice: they show a class as it is, at any
    number, while the shares were tried with a brief training alone.

    Args:
        top1: in [0, 1], of each share that was tried; None among them. Of equal ones the first is taken.
    """
    best = max(top1, key=lambda share: top1[share])
    return best if top1[best] > top1[None] + standard_error(top1[None], num_held_out) else None


def standard_error(top1: float, num_images: int) -> float:
    """Of a top-1 in [0, 1] that was found on so many images: that of a binomial share."""
    return math.sqrt(top1 * (1 - top1) / num_images)


@dataclass(frozen=True)
class Trials:
    """Brief trainings on the photographs that slots would start from, tested on photographs that are held out.

    A trial takes `PASSES` over its images, in batches of the ranking, but never more than half of the ranking's steps;
    where it takes fewer, several seeds share those. So all trials together cost two and a half rankings at most.

    The ranking is that of all images, as used in the end. It has seen what is held out; the classifiers have not.

    Args:
        ranking: says how easy each image is; its networks are those of the trials.
        data: all images that may be started from.
        count: images of a class that its slots start from.
    """

    ranking: Ranking
    data: LabeledImages
    count: int

    def steps_and_seeds(self, num_started: int) -> tuple[int, int]:
        """Steps of a training, and trainings of each share.

        Args:
            num_started: images of all classes that slots start from.
        """
        most = max(1, self.ranking.num_steps // 2)
        num_images = num_started * (NUM_HELD_OUT - 1) / NUM_HELD_OUT
        steps = min(max(math.ceil(PASSES * num_images / BATCH_SIZE), FEWEST_STEPS), most)
        return steps, min(most // steps, MOST_SEEDS)

    def best(self, cache: Path) -> Share:
        """The share to skip, None for random images; says in one line how each did.

        Args:
            cache: the folder that keeps what was found; what was found before is read from there.
        Raises:
            InputError: a network diverged, a class has a single image.
        """
        ranking = self.ranking
        key = short_hash(
            "skip-easiest-1", self.data.fingerprint, self.count, ranking.architecture, ranking.num_steps,
            ranking.strategy, ranking.seed,
        )  # fmt: skip
        file = cache / "difficulties" / f"{key}.safetensors"
        rest, held_out = rows_split_off(self.data, 1 / NUM_HELD_OUT, closed=True)
        found = read_checked(file)
        if found is None:
            found = {"top1": self._tried(rest, self.data.subset(held_out), ranking.difficulties(self.data, cache))}
            write_checked(file, found, f"shares of the easiest images, tried: {self.data.words}")
        pairs = zip(SHARES, found["top1"].tolist(), strict=True)
        top1 = {share: one for share, one in pairs if math.isfinite(one)}
        best = taken(top1, len(held_out))
        if is_main_process():
            logger.info(
                "representatives: top-1 on %d held-out training images after skipping the easiest: %s (random is left "
                "for what is ahead by more than %.1f): %s",
                len(held_out),
                ", ".join(f"{_said(share)} {100 * one:.1f}" for share, one in top1.items()),
                100 * standard_error(top1[None], len(held_out)),
                "random images are taken" if best is None else f"{_said(best)} are skipped",
            )
        return best

    def _tried(
        self, rest: Int64[Tensor, " n"], held_out: LabeledImages, losses: Float[Tensor, " all"]
    ) -> Float[Tensor, " shares"]:
        """Mean top-1 of each of `SHARES`, in [0, 1]; not a number where a smaller share takes the same images.

        Args:
            rest: rows of `data` that are not held out.
            losses: of each row of `data`.
        """
        steps, num_seeds = self.steps_and_seeds(int(self.data.counts.clamp(max=self.count).sum()))
        windows: dict[Share, Tensor] = {}
        for share in SHARES:
            if share is not None:
                rows = self.photographs(rest, losses, share)
                if not any(torch.equal(rows, others) for others in windows.values()):
                    windows[share] = rows
        top1 = torch.full((len(SHARES),), math.nan, dtype=torch.float64)
        total = (1 + len(windows)) * num_seeds * steps
        with progress(description="trying what to skip", total=total) as bar:
            for share in (None, *windows):
                each = []
                for seed in range(self.ranking.seed + 1, self.ranking.seed + 1 + num_seeds):
                    rows = self.random_photographs(rest, seed) if share is None else windows[share]
                    network = self.trained(rows, steps, seed, on_step=lambda step: bar.update())
                    each.append(self.ranking.maker.top1(network, held_out))
                top1[SHARES.index(share)] = sum(each) / num_seeds
        return top1

    def photographs(
        self, rest: Int64[Tensor, " n"], losses: Float[Tensor, " all"], share: float
    ) -> Int64[Tensor, " k"]:
        """Rows of `rest` that slots would start from if this share of each class, its easiest images, were skipped.

        Args:
            losses: of each row of `data`.
        """
        return torch.cat([after_easiest(rows, losses[rows], share, count) for rows, count in self._classes(rest)])

    def random_photographs(self, rest: Int64[Tensor, " n"], seed: int) -> Int64[Tensor, " k"]:
        """As many rows of `rest`, drawn at random."""
        rng = torch.Generator().manual_seed(seed)
        return torch.cat(
            [rows[torch.randperm(len(rows), generator=rng)[:count]] for rows, count in self._classes(rest)]
        )

    def _classes(self, rest: Int64[Tensor, " n"]) -> list[tuple[Int64[Tensor, " k"], int]]:
        """(rows of a class, how many of them stand for the images that its slots start from).

        A class is smaller without what is held out, and so is their number: they are the same part of it.
        """
        labels, counts = self.data.labels[rest], self.data.counts.tolist()
        sizes = torch.bincount(labels, minlength=len(counts)).tolist()
        of_class = rest[labels.argsort(stable=True)].split(sizes)
        return [
            (rows, max(1, round(min(self.count, of_all) * len(rows) / of_all)))
            for rows, of_all in zip(of_class, counts, strict=True)
        ]

    def trained(
        self, rows: Int64[Tensor, " k"], num_steps: int, seed: int, on_step: Callable[[int], object] | None = None
    ) -> nn.Module:
        """A new network after so many steps on these images, as they are.

        Args:
            rows: of `data`.
            seed: of the network and its training.
            on_step: called with the number of steps done.
        Raises:
            InputError: it diverged.
        """
        network = self.ranking.maker.trained(
            self.data.images[rows],
            self.data.labels[rows],
            strategy=self.ranking.strategy,
            batch_size=BATCH_SIZE,
            batches=WholeBatches,  # of the size that the ranking's were compiled for, however few images there are
            num_steps=num_steps,
            learning_rate=LEARNING_RATE,
            seed=seed,
            on_step=on_step,
        )
        if not all_finite(network.state_dict()):
            raise InputError(
                "trying what to skip: the network diverged: set codes.skip_easiest to null or a number, or another "
                "features.network"
            )
        return network


def _said(share: Share) -> str:
    """For people."""
    return "random" if share is None else f"{100 * share:g} %"
