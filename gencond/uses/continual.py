"""Continual learning: classes come a few at a time, and of those before there is a memory alone.

After each step a classifier of all classes is trained from scratch on the memory, as in GDumb, and tested on all
classes seen so far. Memories stand side by side: real images chosen in several ways, photographs in a codec, condensed
sets, and one generator that grows.

Source: the protocol of Dataset Condensation with Distribution Matching (2110.04181), released code.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gencond.common.distributed import new_accelerator
from gencond.common.errors import InputError
from gencond.common.files import alone_in, write_json
from gencond.common.progress import progress
from gencond.common.provenance import current_commit, library_versions
from gencond.condensing.checks import check_fit
from gencond.config import Recipe, load_recipe
from gencond.data.images import LabeledImages
from gencond.data.load import load_data
from gencond.data.tables import name_of_source
from gencond.eval.baselines import CODEC_REAL, HERDING_REAL, KMEANS_REAL, RANDOM_REAL, WHOLE_SET, RealImages
from gencond.eval.classifier import train_and_test
from gencond.eval.networks import build_network
from gencond.eval.protocols import check_protocol, get_protocol
from gencond.eval.records import Scores
from gencond.eval.results import EVALUATOR, GENCOND, Answer, Question
from gencond.eval.score_cache import ScoreCache
from gencond.uses.memories import (
    CodecKeeper,
    GrowingKeeper,
    Keeper,
    Memory,
    RealKeeper,
    RecipeKeeper,
    Task,
    bytes_of_run,
    in_their_order,
    of_classes,
)
from gencond.uses.result_folder import claim

logger = logging.getLogger(__name__)

GROWN = "gencond_grown"
REAL_ROWS = (RANDOM_REAL, KMEANS_REAL, HERDING_REAL)
USUAL_ROWS = (*REAL_ROWS, GENCOND, GROWN, CODEC_REAL)
COMPARISON = "continual"
LOCK, RESULT, RECIPE = ".continual.lock", f"{COMPARISON}.json", "recipe.yaml"
USUAL_STEPS, USUAL_IPC, USUAL_ORDERS, USUAL_PROTOCOL = 5, 20, 3, "dm:100"


@dataclass(frozen=True)
class ContinualWishes:
    """What is compared, and how.

    Args:
        steps: in which the classes come.
        ipc: images of each class that memories of a number hold.
        rows: baselines, `gencond` (each step's classes condensed alone), `gencond_grown` (one generator that grows),
            or recipes, whose rows are called by their names.
        orders: orders of the classes, each with its own draws: numpy's permutations of the seeds 0, 1, ..., as in DM.
        num_seeds: classifiers of each step of an order.
        network: of the classifiers; None: as the recipe says.
        protocol: of their training, a name of `eval.protocols.PROTOCOLS`.
    Raises:
        InputError: an unknown protocol, or one that learns from a teacher; numbers that cannot be; no row.
    """

    steps: int = USUAL_STEPS
    ipc: int = USUAL_IPC
    rows: Sequence[str] = USUAL_ROWS
    orders: int = USUAL_ORDERS
    num_seeds: int = 1
    network: str | None = None
    protocol: str = USUAL_PROTOCOL

    def __post_init__(self) -> None:
        check_protocol(self.protocol, from_labels=True)
        for name in ("steps", "ipc", "orders", "num_seeds"):
            if getattr(self, name) < 1:
                option = name.removeprefix("num_")
                raise InputError(f"--{option} must be at least 1, not {getattr(self, name)}")
        if not self.rows:
            raise InputError(f"--rows is empty: name some of {', '.join((*USUAL_ROWS, WHOLE_SET))}, or recipes")
        if len(set(self.rows)) < len(self.rows):
            raise InputError("--rows names a row twice")
        others = (*REAL_ROWS, CODEC_REAL, WHOLE_SET, GROWN)
        if CODEC_REAL in self.rows and set(self.rows) <= set(others):
            raise InputError(
                f"{CODEC_REAL} gets the bytes of a condensed row, of classes condensed alone: add the row {GENCOND}"
            )


@dataclass(frozen=True)
class AfterStep:
    """What a memory was worth after one step of one order.

    Args:
        row: of the table.
        order, step: numbers, from 0.
        classes_seen: so far.
        num_bytes: of the memory.
        num_images: that the classifiers train on.
        top1: on the test images of the classes seen, one score a classifier.
    """

    row: str
    order: int
    step: int
    classes_seen: int
    num_bytes: int
    num_images: int
    top1: Scores


@dataclass(frozen=True)
class Continual:
    """What continual.json holds.

    Args:
        title, command, versions, commit: of the run.
        data: fingerprints of the real images.
        judged_on: which real images classifiers are tested on.
        class_orders: names, in the order in which they come.
        rows: names, in the order of the table.
        steps, ipc, num_seeds, network, augmentation: as asked for.
        protocol: with all that it says.
        recipe: of the condensed rows.
        scores: after each step of each order.
        notes: for the report.
    """

    title: str
    command: str
    versions: dict[str, str]
    commit: str | None
    data: dict[str, str]
    judged_on: str
    class_orders: tuple[tuple[str, ...], ...]
    rows: tuple[str, ...]
    steps: int
    ipc: int
    num_seeds: int
    network: str
    augmentation: str
    protocol: dict[str, Any]
    recipe: str
    scores: tuple[AfterStep, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it stands in continual.json."""
        return asdict(self)

    def of(self, row: str, step: int) -> list[AfterStep]:
        """The scores of a row after a step, one for each order."""
        return [one for one in self.scores if (one.row, one.step) == (row, step)]

    def accuracy(self, row: str, step: int) -> Scores:
        """Of a row after a step, over the orders: each counts with the mean of its classifiers."""
        return Scores.of([one.top1.mean for one in self.of(row, step)])


def learn_continually(
    recipe: Recipe, out: Path, wishes: ContinualWishes, command: str, report: Callable[[Path, Continual], None]
) -> Continual:
    """Compares memories on a recipe's data, and writes the report after each order.

    What was condensed and every score is kept in `out`, so that a run that was killed goes on, and one of more orders
    or rows adds these alone.

    Args:
        recipe: of the rows `gencond` and `gencond_grown`.
        out: the folder of all that is made.
        command: what reproduces the report.
        report: writes it.
    Raises:
        InputError: more steps than classes, a memory larger than the data, a row that is unknown or does not fit;
            `out` holds something else, or another process works in it.
    """
    with alone_in(out, LOCK):
        train, test = load_data(recipe.data)
        found = _begun(recipe, train, test, wishes, command)
        comparison = _Comparison(recipe, train, test, wishes, found, out)
        same = {field: f"other {field}" for field in ("data", "steps", "ipc", "recipe")}
        claim(out, COMPARISON, "comparison", found.to_json(), same, besides=(RECIPE,))
        comparison.say()
        for order in range(wishes.orders):
            found = replace(found, scores=(*found.scores, *comparison.of_order(order)))
            report(out, found)
            write_json(out / RESULT, found.to_json())
        comparison.bar.close()
    return found


def _begun(
    recipe: Recipe, train: LabeledImages, test: LabeledImages, wishes: ContinualWishes, command: str
) -> Continual:
    """The comparison before anything is measured. Raises InputError for what cannot be."""
    names, network = train.class_names, wishes.network or recipe.evaluate.networks[0]
    orders = [np.random.RandomState(seed).permutation(train.num_classes).tolist() for seed in range(wishes.orders)]
    in_their_order(orders[0], wishes.steps)
    smallest, name = min(zip(train.counts.tolist(), names, strict=True))
    if wishes.ipc > smallest:
        raise InputError(f"--ipc {wishes.ipc} is more than class {name!r} has: {smallest} training images")
    build_network(network, train.channels, train.num_classes, train.image_size, seed=0)
    return Continual(
        title=f"Continual learning of {name_of_source(recipe.data.source)} in {wishes.steps} steps",
        command=command,
        versions=library_versions(),
        commit=current_commit(),
        data={"train": train.fingerprint, "test": test.fingerprint},
        judged_on=recipe.data.judge_on,
        class_orders=tuple(tuple(names[label] for label in order) for order in orders),
        rows=tuple(wishes.rows),
        steps=wishes.steps,
        ipc=wishes.ipc,
        num_seeds=wishes.num_seeds,
        network=network,
        augmentation=recipe.data.augmentation,
        protocol=get_protocol(wishes.protocol, train.num_classes, train.image_size).describe(),
        recipe=recipe.name,
    )


class _Comparison:
    """Fills the memories of one order after the other, and trains the classifiers."""

    def __init__(
        self,
        recipe: Recipe,
        train: LabeledImages,
        test: LabeledImages,
        wishes: ContinualWishes,
        begun: Continual,
        out: Path,
    ) -> None:
        self.recipe, self.train, self.test, self.wishes, self.begun, self.out = recipe, train, test, wishes, begun, out
        self.device, self.cache = new_accelerator().device, ScoreCache(folder=out / "scores")
        self.protocol = get_protocol(wishes.protocol, train.num_classes, train.image_size)
        self.keepers = self._keepers()

    @cached_property
    def bar(self) -> tqdm:
        """Counts the trainings."""
        total = len(self.wishes.rows) * self.wishes.steps * self.wishes.orders * self.wishes.num_seeds
        return progress(description="continual", total=total, unit="training")

    def say(self) -> None:
        """How much there is to do."""
        wishes = self.wishes
        of_row = wishes.steps * wishes.orders
        runs = sum(isinstance(keeper, RecipeKeeper | GrowingKeeper) for keeper in self.keepers) * of_row
        logger.info(
            "continual: %d memories, %d step(s), %d order(s): %d condensing runs, %d trainings of %s; what was made "
            "before is not made again",
            len(wishes.rows), wishes.steps, wishes.orders, runs, len(wishes.rows) * of_row * wishes.num_seeds,
            self.begun.network,
        )  # fmt: skip

    def _keepers(self) -> list[Keeper]:
        """One for each row, in an order in which each finds what it asks of others. Raises InputError as `_recipe`."""
        made: dict[str, Keeper] = {}
        wishes, network, strategy = self.wishes, self.begun.network, self.begun.augmentation
        for row in wishes.rows:
            if row in (*REAL_ROWS, WHOLE_SET):
                made[row] = RealKeeper(row, None if row == WHOLE_SET else wishes.ipc, network, strategy, self.device)
            elif row == GROWN:
                recipe = self._recipe(row)
                if recipe.synthesizer.kind == "pixels" or recipe.generator.backbone == "transform":
                    raise InputError(f"{row}: nothing can be appended to what recipe {recipe.name} makes, leave it out")
                made[row] = GrowingKeeper(row, recipe, wishes.ipc)
            elif row != CODEC_REAL:
                made[row] = RecipeKeeper(row, self._recipe(row), wishes.ipc)
        if CODEC_REAL in wishes.rows:
            first = next(one for one in made.values() if isinstance(one, RecipeKeeper))
            made[CODEC_REAL] = CodecKeeper(
                CODEC_REAL,
                partial(bytes_of_run, first),
                self._held_out_score,
                lambda data: RealImages(data, network, strategy, self.device),
            )
        return list(made.values())

    def _recipe(self, row: str) -> Recipe:
        """Of a row. Raises InputError where it is unknown or does not fit the images."""
        parts = in_their_order(range(self.train.num_classes), self.wishes.steps)
        alone = parts[0] if row == GROWN else parts[-1]  # of what grows only the first step is condensed alone
        if len(alone) == 1:
            raise InputError(f"{row}: one class cannot be condensed alone, lower --steps {self.wishes.steps}")
        if row in (GENCOND, GROWN):
            recipe = self.recipe
        else:
            pixels = [f"pixels.ipc={self.wishes.ipc}", f"data.augmentation={self.recipe.data.augmentation}"]
            recipe = load_recipe(row, pixels, self.recipe.data.source)
        recipe = replace(recipe, condense=replace(recipe.condense, score_every_steps=None))
        check_fit(recipe, of_classes(self.train, alone))
        return recipe

    def of_order(self, order: int) -> list[AfterStep]:
        """Of all rows after all steps of an order of the classes."""
        names, found = self.train.class_names, []
        parts = in_their_order([names.index(name) for name in self.begun.class_orders[order]], self.wishes.steps)
        memories: dict[str, Memory | None] = dict.fromkeys((keeper.name for keeper in self.keepers), None)
        seen: list[int] = []
        for step, classes in enumerate(parts):
            seen += classes
            task = Task(of_classes(self.train, classes), names, self.out / f"order_{order}" / f"step_{step}", order)
            task.folder.mkdir(parents=True, exist_ok=True)
            test = self.test.subset(torch.isin(self.test.labels, torch.tensor(seen)).nonzero()[:, 0])
            for keeper in self.keepers:
                self.bar.set_postfix_str(f"order {order}, step {step}, {keeper.name}")
                memory = memories[keeper.name] = keeper.after(task, memories[keeper.name])
                top1 = Scores.of([self._score(memory, test, order, seed) for seed in range(self.wishes.num_seeds)])
                count = len(memory.images)
                found.append(AfterStep(keeper.name, order, step, len(seen), memory.num_bytes, count, top1))
        return found

    def _score(self, memory: Memory, test: LabeledImages, order: int, number: int) -> float:
        """Of one classifier that is trained on a memory, with outputs for all classes from the start."""
        seed = order * self.wishes.num_seeds + number
        question = Question(
            images="memory", ipc=None, network=self.begun.network, protocol=self.protocol,
            augmentation=self.begun.augmentation, seeds=(seed,), seed=seed, train=memory.images.fingerprint,
            test=test.fingerprint, evaluator=EVALUATOR,
        )  # fmt: skip
        if (known := self.cache.get(question)) is None:
            known = Answer(top1=Scores.of(self._trained(memory.images, test, seed)), num_bytes=memory.num_bytes)
            self.cache.put(question, known)
        self.bar.update()
        return known.top1.mean

    def _trained(self, images: LabeledImages, test: LabeledImages, seed: int) -> list[float]:
        return train_and_test(
            [images], test, network=self.begun.network, protocol=self.protocol,
            augmentation=self.begun.augmentation, normalisation=self.train.mean_std, seeds=[seed], device=self.device,
        )  # fmt: skip

    def _held_out_score(self, images: LabeledImages, held_out: LabeledImages) -> float:
        """Of photographs of one task's classes, by which the codec's quality is chosen."""
        (top1,) = self._trained(images, held_out, 0)
        return top1
