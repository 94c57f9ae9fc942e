"""Memories of continual learning: what is kept of classes once their images are gone, and in how many bytes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from gencond.common.cache import read_checked, write_checked
from gencond.common.errors import InputError
from gencond.condensing.append import growth
from gencond.condensing.run import condense
from gencond.config import Recipe
from gencond.data.images import LabeledImages
from gencond.eval.baselines import RealImages
from gencond.eval.subject import sampled_images
from gencond.generator.artefact import Condensed
from gencond.generator.dataset import CondensedDataset, load


@dataclass(frozen=True)
class Task:
    """The classes that come in one step.

    Args:
        data: their real images, with class names of their own.
        class_names: of all classes of all steps.
        folder: where whatever is made of them is kept.
        seed: of all that is drawn.
    """

    data: LabeledImages
    class_names: tuple[str, ...]
    folder: Path
    seed: int


@dataclass(frozen=True)
class Memory:
    """What is kept of all classes so far.

    Args:
        images: as a classifier sees them, labelled among all classes.
        num_bytes: that store them.
        run: of the generator that makes them all; None: there is no such one.
    """

    images: LabeledImages
    num_bytes: int
    run: Path | None = None


class Keeper(ABC):
    """One way to remember, a row of the table.

    Args:
        name: of the row.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def after(self, task: Task, before: Memory | None) -> Memory:
        """The memory once a task's classes are in it too.

        Args:
            before: what was remembered until then; None before the first task.
        """


class ClassByClass(Keeper):
    """Remembers the classes of each task apart from those before."""

    def after(self, task: Task, before: Memory | None) -> Memory:
        images, num_bytes = self.kept(task)
        images = images.among(task.class_names)
        if before is None:
            return Memory(images, num_bytes)
        both = (before.images, images)
        joined = replace(
            images, images=torch.cat([one.images[:] for one in both]), labels=torch.cat([one.labels for one in both])
        )
        return Memory(joined, before.num_bytes + num_bytes)

    @abstractmethod
    def kept(self, task: Task) -> tuple[LabeledImages, int]:
        """(images of a task's classes, the bytes that store them)."""


class RealKeeper(ClassByClass):
    """Some of the real images, as they are.

    Args:
        name: of a baseline, see `eval.baselines`.
        ipc: images of each class; None keeps all.
        network: chooses, where the baseline asks one.
        augmentation: that it is trained with.
    """

    def __init__(self, name: str, ipc: int | None, network: str, augmentation: str, device: torch.device) -> None:
        super().__init__(name)
        self.ipc, self.network, self.augmentation, self.device = ipc, network, augmentation, device

    def kept(self, task: Task) -> tuple[LabeledImages, int]:
        real = RealImages(task.data, self.network, self.augmentation, self.device)
        (images,), num_bytes = real.draw(self.name, self.ipc, [task.seed])
        return images, num_bytes


def own_storage(condensed: Condensed) -> Condensed:
    """A generator in the fewest bits that its recipe is made for; pixels as they are."""
    if not isinstance(condensed, CondensedDataset):
        return condensed
    return condensed.stored_as("coded" if condensed.generator.whole_latents else "int8")


class RecipeKeeper(ClassByClass):
    """What a recipe condenses of each task's classes alone.

    Args:
        recipe: with which every task is condensed.
        ipc: images that are taken of each class; of a set that holds a number of its own, all.
    """

    def __init__(self, name: str, recipe: Recipe, ipc: int) -> None:
        super().__init__(name)
        self.recipe, self.ipc = recipe, ipc

    def kept(self, task: Task) -> tuple[LabeledImages, int]:
        stored = own_storage(condense(replace(self.recipe, seed=task.seed), task.data, task.folder / self.name_of_run))
        images = sampled_images(stored, stored.largest_ipc or self.ipc)
        # Pixels are judged in 8 bits, as they are exported, so that this is what has to be stored of them.
        return images, stored.num_bytes if isinstance(stored, CondensedDataset) else images.images.numel()

    @cached_property
    def name_of_run(self) -> str:
        """A folder of a task's."""
        return self.name.replace(":", "-").replace("/", "-")


class GrowingKeeper(Keeper):
    """One generator that grows: what comes is appended, and what is there keeps its bits.

    Args:
        recipe: with which the first task is condensed and the others are appended.
        ipc: images that are taken of each class.
    """

    def __init__(self, name: str, recipe: Recipe, ipc: int) -> None:
        super().__init__(name)
        self.recipe, self.ipc = recipe, ipc

    def after(self, task: Task, before: Memory | None) -> Memory:
        recipe, out = replace(self.recipe, seed=task.seed), task.folder / self.name
        onto = None if before is None or before.run is None else load(before.run)
        added = onto and growth(onto, task.data, more_images=False)
        stored = own_storage(condense(recipe, task.data, out, growth=added))
        return Memory(sampled_images(stored, self.ipc).among(task.class_names), stored.num_bytes, out)


class CodecKeeper(ClassByClass):
    """Photographs in an ordinary codec at its best, in as many bytes as another memory takes for a task's classes.

    Args:
        num_bytes: of the other memory, for a task.
        score: (training images, held-out images) -> accuracy in [0, 1], by which the codec's quality is chosen.
    """

    def __init__(
        self,
        name: str,
        num_bytes: Callable[[Task], int],
        score: Callable[[LabeledImages, LabeledImages], float],
        real: Callable[[LabeledImages], RealImages],
    ) -> None:
        super().__init__(name)
        self.num_bytes, self.score, self.real = num_bytes, score, real

    def kept(self, task: Task) -> tuple[LabeledImages, int]:
        file, num_bytes = task.folder / f"{self.name}.safetensors", self.num_bytes(task)
        known = read_checked(file)
        if known is None or int(known["limit"]) != num_bytes:
            stored = self.real(task.data).photographs(num_bytes, [task.seed], self.score)
            if stored is None:
                raise InputError(f"{num_bytes} bytes hold not one photograph of each class: leave {self.name} out")
            (images,) = stored.sets
            known = {"images": images.images[:], "labels": images.labels, "limit": torch.tensor(num_bytes)}
            known["bytes"] = torch.tensor(stored.num_bytes)
            write_checked(file, known, f"{self.name}: {images.words}")
        return replace(task.data, images=known["images"], labels=known["labels"]), int(known["bytes"])


def bytes_of_run(keeper: RecipeKeeper, task: Task) -> int:
    """What a recipe's artefact of a task takes, once it is condensed."""
    return own_storage(load(task.folder / keeper.name_of_run)).num_bytes


def in_their_order(order: Sequence[int], steps: int) -> list[list[int]]:
    """The classes of each step, ascending: as even as they can be, the first steps one more.

    Raises:
        InputError: more steps than classes.
    """
    if not 1 <= steps <= len(order):
        raise InputError(f"--steps {steps} of {len(order)} classes: at least one, and no more than there are classes")
    sizes = [len(order) // steps + (step < len(order) % steps) for step in range(steps)]
    parts, first = [], 0
    for size in sizes:
        parts.append(sorted(order[first : first + size]))
        first += size
    return parts


def of_classes(data: LabeledImages, classes: Sequence[int]) -> LabeledImages:
    """The images of some classes, numbered among these."""
    rows = torch.cat([data.rows_of(label) for label in classes]).sort().values
    part = data.subset(rows)
    position = torch.full((data.num_classes,), -1)
    position[list(classes)] = torch.arange(len(classes))
    return replace(
        part,
        labels=position[part.labels],
        class_names=tuple(data.class_names[label] for label in classes),
        class_of=None,
    )
