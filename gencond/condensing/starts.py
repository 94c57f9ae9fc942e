"""What learned slots start from: real images, chosen once."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from gencond.common.distributed import from_all, is_main_process, main_process_first, own_share, rank_and_world
from gencond.common.files import cache_dir
from gencond.common.ranges import to_signed
from gencond.condensing.difficulty import Ranking
from gencond.condensing.easiest import Trials, after_easiest
from gencond.condensing.extractors import Extractors
from gencond.condensing.real import embed_all
from gencond.data.images import LabeledImages
from gencond.data.mapped import CPU, MappedImages
from gencond.data.select import known_rows, nested_representatives, pixel_features
from gencond.generator.biggan import BigGANGenerator
from gencond.generator.codes import whole_numbers
from gencond.generator.dataset import CondensedDataset
from gencond.generator.packing import pack

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Representatives:
    """What a learned slot starts from: real images, `factor` squared of them packed into each.

    They stay where the real images are, and are read as they are asked for.

    Args:
        labels, slots: which slots; on `device`.
        rows: of `real`, in reading order.
        real: all real images.
        device: where images go that are read.
        about: what the artefact's provenance says of the choice.
    """

    labels: Int64[Tensor, " n"]
    slots: Int64[Tensor, " n"]
    rows: Int64[Tensor, "n k"]
    real: UInt8[Tensor, "m c h w"] | MappedImages
    factor: int = 1
    device: torch.device = CPU
    about: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Representatives":
        return replace(self, labels=self.labels.to(device), slots=self.slots.to(device), device=device)

    def read(self, which: Int64[Tensor, " k"] | slice) -> Float[Tensor, "k c h w"]:
        """Some of the images, in [-1, 1]."""
        rows = self.rows[which.cpu() if isinstance(which, Tensor) else which]
        images = to_signed(self.real[rows.flatten()])
        packed = pack(images.unflatten(0, rows.shape), self.factor) if len(rows) else images
        return packed.to(self.device)

    @property
    def images(self) -> Float[Tensor, "n c h w"]:
        """All of them, in [-1, 1]."""
        return self.read(slice(None))


COMPONENTS_OF = 2000  # images, at most
SMALLEST_SPREAD = 1e-3  # of a component, in that of the largest

# (rows of a class, a random order of them) -> the rows that its slots start from, `factor` squared for each slot
Chooser = Callable[[Int64[Tensor, " n"], Int64[Tensor, " n"]], Int64[Tensor, " k"]]


@dataclass(frozen=True)
class Starts(ABC):
    """Chooses for each class the real images that its slots start from; fewer than slots where the class is small.

    Args:
        factor: squared, the images that are packed into each slot.
        seed: of every random choice.
        learned: the classes whose slots start from images; None: all.
    """

    data: LabeledImages
    factor: int
    seed: int
    learned: Int64[Tensor, " k"] | None = field(default=None, kw_only=True)

    @property
    def per_slot(self) -> int:
        """Images in a slot."""
        return self.factor**2

    def choose(self, extractors: Extractors) -> Representatives:
        """The images of every class; all processes have to call it, since each does its share of the classes.

        K-means in a large class takes minutes.
        """
        rng = torch.Generator().manual_seed(self.seed)
        choose = self.chooser(extractors, rng)
        drawn = [  # on every process for every class, so that their generators stay alike
            (rows, torch.randperm(len(rows), generator=rng)) for rows in self.candidates()
        ]
        chosen = from_all([choose(*one) for one in drawn[own_share(len(drawn), *rank_and_world())]])
        rows = [
            of_class[: len(of_class) // self.per_slot * self.per_slot].view(-1, self.per_slot) for of_class in chosen
        ]
        labels = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(of_class) for of_class in rows]))
        slots = torch.cat([torch.arange(len(of_class)) for of_class in rows])
        return Representatives(labels, slots, torch.cat(rows), self.data.images, self.factor, about=self.about)

    @property
    def about(self) -> dict[str, Any]:
        """What the artefact's provenance says of the choice, beside the recipe."""
        return {}

    def candidates(self) -> list[Int64[Tensor, " n"]]:
        """Rows of each class that its slots may start from; none of a class that is not learned."""
        learned = set(range(self.data.num_classes) if self.learned is None else self.learned.tolist())
        none = torch.empty(0, dtype=torch.int64)
        return [self.data.rows_of(label) if label in learned else none for label in range(self.data.num_classes)]

    @abstractmethod
    def chooser(self, extractors: Extractors, rng: torch.Generator) -> Chooser:
        """How the images of a class are chosen; `rng` draws the extractor, where one is needed."""


class Learnable(NamedTuple):
    """Which images slots start from before others.

    Args:
        is_first: the known ones and, of a class of which fewer are known than its first set has, its easiest ones.
        num_known: images of the classes that are learned that the network knows.
        num_asked: of how many.
        num_steps: of the network's training.
    """

    is_first: Bool[Tensor, " n"]
    num_known: int
    num_asked: int
    num_steps: int


@dataclass(frozen=True)
class CodeStarts(Starts):
    """Starts of codes: k-means representatives in nested order, then random images.

    Args:
        num_slots: of each class.
        sizes: how many images of a class stand for its first slots, in nested order, `factor` squared for each slot.
        space: of the k-means: pixels, or features of the first step's extractor.
        are_needed: whether anything starts from images or is held to them; without, none are chosen.
        ranking: says how easy each image is; None lets slots start from any.
        skip_easiest: the share of each class, the easiest images, that is skipped; "held_out": the one that is found
            best on held-out images; None skips none.
        learnable_first: whether slots start from images that a network knows after a brief training, as long as there
            are some.
    """

    num_slots: int = 1
    sizes: tuple[int, ...] = ()
    space: Literal["pixels", "features"] = "pixels"
    are_needed: bool = True
    ranking: Ranking | None = None
    skip_easiest: float | Literal["held_out"] | None = None
    learnable_first: bool = False

    @property
    def count(self) -> int:
        """Images of a class that its slots start from, where it has as many."""
        return self.num_slots * self.per_slot

    @property
    def trials(self) -> Trials | None:
        """What finds the share that is skipped; None where it is given, or no class has more images than are needed."""
        chooses = self.skip_easiest == "held_out" and self.are_needed and int(self.data.counts.max()) > self.count
        return Trials(self.ranking, self.data, self.count) if chooses and self.ranking is not None else None

    @cached_property
    def skipped(self) -> float | None:
        """The share of each class that is skipped; None where slots start from any images.

        Where it has to be found all processes have to ask for it, and the main one finds it for all.

        Raises:
            InputError: a network diverged.
        """
        if self.ranking is None or not self.are_needed:
            return None
        if self.skip_easiest != "held_out":
            return self.skip_easiest
        share = None
        if (trials := self.trials) is not None:
            with main_process_first():
                share = trials.best(cache_dir())
        return share

    @cached_property
    def learnable(self) -> Learnable | None:
        """The images that come first; None where any may.

        All processes have to ask for it, and the main one finds it for all.

        Raises:
            InputError: the network diverged.
        """
        if not self.learnable_first or self.ranking is None:
            return None
        ranking, asked = self.ranking.brief(len(self.data)), torch.cat(super().candidates())
        with main_process_first():
            losses, is_known = ranking.answers(self.data, cache_dir())
        is_first = torch.zeros(len(self.data), dtype=torch.bool)
        is_first[known_rows(self.data, losses, is_known, at_least=min(self.sizes, default=0))] = True
        return Learnable(is_first, int(is_known[asked].sum()), len(asked), ranking.num_steps)

    @property
    def about(self) -> dict[str, Any]:
        skipped = {"skip_easiest": self.skipped} if self.are_needed and self.skip_easiest == "held_out" else {}
        if self.learnable is None:
            return skipped
        return skipped | {"num_known": self.learnable.num_known, "num_asked": self.learnable.num_asked}

    def candidates(self) -> list[Int64[Tensor, " n"]]:
        rows, share = super().candidates(), self.skipped
        if self.ranking is None or share is None:
            return rows
        with main_process_first():  # which finds them for all
            losses = self.ranking.difficulties(self.data, cache_dir())
        return [after_easiest(of_class, losses[of_class], share, self.count) for of_class in rows]

    def chooser(self, extractors: Extractors, rng: torch.Generator) -> Chooser:
        if not self.are_needed:
            return lambda rows, order: rows[:0]
        extractor = extractors.at(0, rng) if self.space == "features" else None
        learnable = self.learnable
        if learnable is not None and is_main_process():
            logger.info(
                "representatives: codes start from images that a network knows after %d step(s), %d of %d, and from "
                "others where these do not suffice",
                learnable.num_steps, learnable.num_known, learnable.num_asked,
            )  # fmt: skip

        def nested_then_random(rows: Tensor, order: Tensor) -> Tensor:
            if not len(rows):
                return rows
            is_first = torch.ones(len(rows), dtype=torch.bool) if learnable is None else learnable.is_first[rows]
            first = is_first.nonzero()[:, 0]
            images = self.data.images[rows[first]]
            seen = pixel_features(images) if extractor is None else embed_all(extractor, images).cpu().numpy()
            chosen = first[nested_representatives(seen, self.sizes, self.seed)]
            others = order[~torch.isin(order, chosen)]
            others = others[(~is_first[others]).to(torch.uint8).argsort(stable=True)]
            return rows[torch.cat([chosen, others[: self.count - len(chosen)]])]

        return nested_then_random


@dataclass(frozen=True)
class PixelStarts(Starts):
    """Starts of pixels: random images, or k-means representatives in the features of the first step's extractor.

    Args:
        ipc: images of each class.
        by_kmeans: chooses representatives.
    Source: of the representatives, DREAM (2302.14416), section 3.3.
    """

    ipc: int = 1
    by_kmeans: bool = False

    def chooser(self, extractors: Extractors, rng: torch.Generator) -> Chooser:
        needed = self.ipc * self.per_slot
        if not self.by_kmeans:
            return lambda rows, order: rows[order[:needed]]
        extractor = extractors.at(0, rng)

        def nearest_to_centers(rows: Tensor, order: Tensor) -> Tensor:
            features = embed_all(extractor, self.data.images[rows])
            return rows[nested_representatives(features.cpu().numpy(), [needed], self.seed)]

        return nearest_to_centers


def rows_of_codes(condensed: CondensedDataset, representatives: Representatives) -> Int64[Tensor, " n"]:
    """Which learned codes are those of the slots that start from images."""
    return (representatives.labels * condensed.num_slots + representatives.slots).cpu()


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
    rows = rows_of_codes(condensed, representatives)
    condensed.codes.learned[rows] = numbers.reshape(len(rows), -1)


@torch.no_grad()
def start_from_components(condensed: CondensedDataset, representatives: Representatives, seed: int) -> None:
    """Makes codes the principal components of the images that their slots start from, each of unit variance, in place.

    Codes of like images are then alike, and a generator learns to make the images in half the steps or less that it
    takes from codes drawn at random. One with a linear path makes them from the start, as well as so many components
    can. Where there are fewer components than a code has numbers, the rest stay as drawn.

    Args:
        condensed: on the CPU, as new ones are.
        seed: of the choice of images that the components are those of.
    """
    images = condensed.cut(representatives.images.cpu())
    parts = images.flatten(1)
    some = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed))[:COMPONENTS_OF]
    center = parts[some].mean(0)
    components = torch.linalg.svd(parts[some] - center, full_matrices=False).Vh[: condensed.generator.config.latent_dim]
    scores = (parts - center) @ components.T
    spread = scores.std(0)
    known = spread > SMALLEST_SPREAD * spread.max()  # beyond the rank of the images are none
    codes = condensed.codes.learned.view(-1, condensed.parts, condensed.generator.config.latent_dim)
    rows = rows_of_codes(condensed, representatives)
    of_image = (scores[:, known] / spread[known]).unflatten(0, (-1, condensed.parts))
    started = codes[rows]
    started[..., : of_image.shape[-1]] = of_image
    codes[rows] = started
    if isinstance(condensed.generator, BigGANGenerator) and condensed.generator.path is not None:
        of_parts, labels = started.flatten(0, 1), representatives.labels.cpu().repeat_interleave(condensed.parts)
        condensed.generator.fit_path(of_parts[some], labels[some], images[some])
