"""What a run will take, before it starts: a few steps of each stage on a few images, and the rest by arithmetic."""

import contextlib
import io
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gencond.common.distributed import peak_memory
from gencond.common.ranges import to_signed
from gencond.condensing.backbones import has_pretraining, new_generator, published_generator
from gencond.condensing.build import (
    Extractors,
    choose_representatives,
    extractor_maker,
    matching_augmentation,
    new_extractors,
    new_real_side,
    ranks_images,
    representative_sizes,
)
from gencond.condensing.difficulty import ranking_network
from gencond.condensing.extractors import ExtractorMaker, PoolExtractors
from gencond.condensing.pretrain import pretrain
from gencond.condensing.real import RealSide, StatisticsSide
from gencond.condensing.real_statistics import BATCH_SIZE, RealStatistics, images_at_once, real_statistics
from gencond.condensing.run import Matching, encode, new_condensed
from gencond.condensing.run_folder import RunFolder
from gencond.config import Recipe
from gencond.data.images import LabeledImages
from gencond.data.select import kmeans_representatives, nested_representatives
from gencond.generator.artefact import Condensed
from gencond.generator.dataset import CondensedDataset
from gencond.losses.anchor import contrast, pooled_pixels
from gencond.networks.extractor import Extractor

logger = logging.getLogger(__name__)

REHEARSED_SECONDS = 3.0  # of each stage, after a first step that is not counted
REHEARSED_STEPS = 5
LONGEST_STEP = 10.0  # seconds; of longer ones smaller ones are timed
FEW_CLASSES = 2
KMEANS_IMAGES = 500  # of the one class that representatives are timed with


@dataclass(frozen=True)
class Stage:
    """One line of a forecast.

    Args:
        name: as its progress bar has it.
        amount: for people, as in "600 steps".
        seconds: all of it.
    """

    name: str
    amount: str
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """What a run will take on this machine with one process.

    Args:
        notes: what it leaves out.
        memory: bytes of the process at its peak.
        gpu_memory: bytes that tensors take on the GPU at the peak; 0 without one.
        cache, out: bytes on disk, in the cache and in the run folder.
    """

    stages: tuple[Stage, ...]
    notes: tuple[str, ...]
    memory: int
    gpu_memory: int
    cache: int
    out: int

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True)
class Amount:
    """How much there is of what a few images stand for.

    Args:
        num_images: with those of the test set.
        num_train: training images of all classes; largest_class: of the class that has most.
        pixel_bytes: of all images, decoded.
        is_mapped: whether they stay in a file.
        seconds_to_read: until they are there, by what was timed; 0 where they are there.
        bytes_to_write: of them, in the cache.
    """

    num_images: int
    num_train: int
    largest_class: int
    pixel_bytes: int
    is_mapped: bool
    seconds_to_read: float
    bytes_to_write: int


class _Over(Exception):
    """A rehearsal's end."""


class _Rehearsal(RunFolder):
    """A run folder that lets a stage do its last few steps and keeps nothing but what they took."""

    def __init__(self, path: Path, num_steps: int, rehearsed: int) -> None:
        super().__init__(path)
        self.start, self.rehearsed = max(0, num_steps - rehearsed), min(rehearsed, num_steps)
        self.seconds, self.memory = 0.0, 0

    def load_state(self, accelerator: Any, stage: str) -> int:
        return self.start

    def log(self, **entry: Any) -> None:
        self.seconds += entry.get("seconds", 0.0)
        self.memory = max(self.memory, entry.get("memory", 0))

    def save_state(self, accelerator: Any, stage: str, step: int) -> None:
        if step >= self.start + self.rehearsed:
            raise _Over

    def _forget_log(self, stage: str, after_step: int) -> None:
        """There is none."""


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No progress bars and no word of resumed stages."""
    package = logging.getLogger("gencond")
    level = package.level
    package.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        package.setLevel(level)


@dataclass(frozen=True)
class Cost:
    """Of a kind of steps: seconds of each, and once for all of them (compiling)."""

    each: float
    once: float = 0.0

    def of(self, num_steps: int) -> float:
        return self.once + num_steps * self.each


def cost_of(run: Callable[[int], float], compiles: bool = False) -> Cost:
    """Of a step, by several after a first one, in which caches fill and code is compiled.

    Args:
        run: number of steps -> seconds that they took.
        compiles: the first step says nothing of the others, and what it takes beyond them is spent once.
    """
    first = run(1)
    if not compiles and first > REHEARSED_SECONDS * 5:  # long enough to tell without another
        return Cost(first)
    second = run(1) if compiles else first
    count = max(1, min(REHEARSED_STEPS, int(REHEARSED_SECONDS / max(second, 1e-3))))
    each = run(count) / count
    return Cost(each, max(0.0, first - each) if compiles else 0.0)


def _timed(step: Callable[[int], object], device: torch.device) -> Callable[[int], float]:
    """(number of steps) -> their seconds, of `step(number)`; steps go on where the last call ended."""
    done = 0

    def run(count: int) -> float:
        nonlocal done
        started = time.perf_counter()
        for _ in range(count):
            step(done)
            done += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return run


def forecast(recipe: Recipe, sample: LabeledImages, amount: Amount, device: torch.device) -> Forecast:
    """Rehearses every stage of `recipe` on a few images.

    Args:
        sample: some real images, at least one of each class; their labels may be made up.
        amount: of all images.
    Raises:
        InputError: parts that do not fit.
    """
    with _quietly(), tempfile.TemporaryDirectory() as folder:
        return _Case(recipe, sample, amount, device, Path(folder)).forecast()


class _Case:
    """A recipe, some images, and what its stages are found to take, one after the other."""

    def __init__(
        self, recipe: Recipe, sample: LabeledImages, amount: Amount, device: torch.device, folder: Path
    ) -> None:
        self.recipe, self.sample, self.amount, self.device, self.folder = recipe, sample, amount, device, folder
        self.maker = extractor_maker(recipe, sample, device)
        self.makes_images = recipe.synthesizer.kind == "generator"
        self.num_nets, self.pool_bytes, self.statistics_bytes = 1, 0, 0
        self.stages = [Stage("reading images", f"{amount.num_images:,} images", amount.seconds_to_read)]
        self.notes: list[str] = []
        self.peaks = [0]  # of a GPU, which the log of a stage starts anew

    def forecast(self) -> Forecast:
        """All stages, in a run's order."""
        if has_pretraining(self.recipe):
            self._in_stage("pretrain", self.recipe.pretrain.num_steps, partial(pretrain, self._unsaved, self.sample))
        if self.recipe.features.kind == "pool":
            self._pool()
        extractors = _some_extractors(self.recipe, self.sample, self.maker)
        side = self._real_side(extractors)
        condensed = self._matching(extractors, side)
        weights = sum(parameter.nbytes for parameter in condensed.parameters())
        held = 0 if self.amount.is_mapped else 2 * self.amount.pixel_bytes  # its parts beside the whole, to split it
        kept = self.pool_bytes + 3 * self.statistics_bytes  # the sums have twice the bits
        of_gpu = 0
        if self.device.type == "cuda":
            of_gpu = max(*self.peaks, torch.cuda.max_memory_allocated(self.device)) + kept
            if self.recipe.features.kind == "pool" and self.recipe.features.num_trajectories and held:
                of_gpu += self.amount.pixel_bytes  # which a pool's network trains on
        return Forecast(
            tuple(self.stages),
            tuple(self.notes),
            memory=peak_memory() + held + kept,
            gpu_memory=of_gpu,
            cache=self.amount.bytes_to_write + kept,
            out=8 * weights,  # artefact, pretrained, and a state of weights, average and two moments, for a moment two
        )

    @property
    def _unsaved(self) -> Recipe:
        """The recipe without states in the midst of a stage."""
        return replace(self.recipe, save_every_steps=10**9)

    def _add(self, name: str, amount: str, seconds: float) -> None:
        self.stages.append(Stage(name, amount, seconds))

    def _in_stage(self, name: str, num_steps: int, stage: Callable[[RunFolder], object]) -> None:
        """A stage that `run_stage` runs."""

        def run(count: int) -> float:
            rehearsal = _Rehearsal(self.folder, num_steps, count)
            with contextlib.suppress(_Over):
                stage(rehearsal)
            self.peaks.append(rehearsal.memory)
            return rehearsal.seconds * count / rehearsal.rehearsed  # a stage may have fewer steps

        self._add(name, f"{num_steps} steps", cost_of(run).of(num_steps))

    def _pool(self) -> None:
        part = self.recipe.features
        self.num_nets = part.num_trajectories * len(part.snapshot_steps) + part.num_random
        self.pool_bytes = self.num_nets * sum(t.nbytes for t in self.maker.network(0).state_dict().values())
        if num_steps := part.num_trajectories * max(part.snapshot_steps):
            training = partial(_training_seconds, self.recipe, self.sample, self.maker)
            seconds = cost_of(training, self.recipe.features.compile).of(num_steps)
            self._add("extractors", f"{num_steps} steps, {self.num_nets} networks", seconds)

    def _real_side(self, extractors: Extractors) -> RealSide:
        part = self.recipe.real
        if part.kind != "statistics":
            return new_real_side(self.recipe, self.sample, extractors, "", self.device)
        extractor = extractors.pool[0]
        statistics = _blank_statistics(self.recipe, self.sample, extractor.feature_dim).to(self.device)
        of_net = (statistics.mean, statistics.spread, statistics.embedding, statistics.frequencies)
        self.statistics_bytes = self.num_nets * sum(tensor.nbytes for tensor in of_net)
        probe, of_image = _pass_seconds(self.recipe, self.sample, extractors.pool)
        passes = f", {part.num_passes} passes" if part.num_passes > 1 else ""
        self._add(
            "statistics",
            f"{self._seen:,} images, {self.num_nets} networks{passes}",
            self.num_nets * (probe + part.num_passes * self._seen * of_image),
        )
        return StatisticsSide(statistics, extractors.pool)

    def _cost_of_steps(self, time_step: Callable[[int, int], Cost], num_slots: int) -> Cost:
        """Of steps as they come, from steps of the longest and the shortest prefix; what lies between is in proportion.

        Of steps that are too long, smaller ones are timed: with two and with four classes, which tells what grows with
        the classes from what does not (an optimizer's update, the training of the step's network).

        Args:
            time_step: (classes, slots of each) -> what such steps cost.
            num_slots: learned ones of each class.
        """
        part = self.recipe.condense
        num_classes = min(self.sample.num_classes, part.classes_per_step)
        fixed = part.prefix_lengths or (num_slots,)
        shares = [(length, (1 - part.stream_probability) / len(fixed)) for length in fixed]
        shares += [(part.stream_length, part.stream_probability)] * (part.stream_probability > 0)
        shortest, longest = (choose(length for length, _ in shares) for choose in (min, max))
        few, more = FEW_CLASSES, 2 * FEW_CLASSES
        is_small = num_classes <= more
        if not is_small:
            of_few, of_more = time_step(few, longest), time_step(more, longest)
            of_class = max(0.0, of_more.each - of_few.each) / (more - few)
            full = Cost(of_more.each + (num_classes - more) * of_class, of_more.once)
        if is_small or full.each < LONGEST_STEP:
            full = time_step(num_classes, longest)
            short = time_step(num_classes, shortest) if shortest < longest else full
        else:
            self.notes.append("a step is so long here that smaller ones were timed; its memory is not in the forecast")
            short = full
            if shortest < longest:
                of_slots = max(0.0, of_few.each - time_step(few, shortest).each) / few
                short = Cost(max(full.each - num_classes * of_slots, 0.0), full.once)
        span = max(1, longest - shortest)
        each = sum(share * (short.each + (full.each - short.each) * (n - shortest) / span) for n, share in shares)
        return Cost(each, len({n for n, _ in shares}) * (short.once + full.once) / 2)

    @property
    def _seen(self) -> int:
        """Real images that are looked at."""
        candidates, most = self.recipe.real.candidates, self.amount.num_train
        return most if candidates is None else min(most, candidates * self.sample.num_classes)

    def _matching(self, extractors: Extractors, side: RealSide) -> Condensed:
        """What learning starts from, and the learning; returns what is learned."""
        recipe, sample = self.recipe, self.sample
        recipe = replace(recipe, pixels=replace(recipe.pixels, init="noise"))  # the sample is too small to start from
        if ranks_images(recipe):
            cost = cost_of(partial(_ranking_seconds, recipe, sample, self.maker), recipe.features.compile)
            self._add("ranking", f"{recipe.codes.ranking_steps} steps", cost.of(recipe.codes.ranking_steps))
            recipe = replace(recipe, codes=replace(recipe.codes, skip_easiest=None))
        representatives = choose_representatives(recipe, sample, extractors).to(self.device)
        if self.makes_images and len(representatives.labels):
            seconds = _choice_seconds(recipe, sample, self.amount) * sample.num_classes
            self._add("representatives", f"{sample.num_classes} classes, k-means", seconds)
        make = new_generator if recipe.generator.weights is None else published_generator
        generator = make(recipe, sample) if self.makes_images else None
        condensed = new_condensed(recipe, sample, generator, representatives)
        if isinstance(condensed, CondensedDataset) and recipe.codes.encode_steps:
            stage = partial(encode, self._unsaved, condensed, representatives)
            self._in_stage("encode", recipe.codes.encode_steps, stage)
        if num_steps := recipe.condense.num_steps:

            def time_step(num_classes: int, length: int) -> Cost:
                part = replace(recipe.condense, classes_per_step=num_classes, stream_probability=0.0)
                one = replace(recipe, condense=part)
                matching = Matching(one, sample, condensed, extractors, side, representatives)
                matching.lengths = (length,)
                cost = cost_of(_timed(matching.step, self.device), recipe.features.compile)
                matching.accelerator.free_memory()
                return cost

            cost = self._cost_of_steps(time_step, condensed.num_slots)
            self._add("condense", f"{num_steps} steps", cost.of(num_steps))
            if recipe.real.kind == "representatives":
                choices = -(-num_steps // recipe.real.refresh_steps)
                extractor = extractors.at(0, torch.Generator())
                seconds = choices * _refresh_seconds(recipe, sample, self.amount, extractor, self._seen)
                self._add("representatives", f"{choices} choices", seconds)
        return condensed


def _training_seconds(recipe: Recipe, sample: LabeledImages, maker: ExtractorMaker, count: int) -> float:
    """Of `count` steps of training a network of the pool."""
    part = recipe.features
    network = maker.network(recipe.seed).to(maker.device)
    train = partial(
        maker.train,
        network,
        sample.images,
        sample.labels,
        strategy=recipe.data.augmentation,
        batch_size=part.batch_size,
        num_steps=count,
        learning_rate=part.learning_rate,
        cutmix=part.cutmix,
        seed=recipe.seed,
    )
    return _timed(lambda _: train(), maker.device)(1)


def _ranking_seconds(recipe: Recipe, sample: LabeledImages, maker: ExtractorMaker, count: int) -> float:
    """Of `count` steps of training the network that ranks images."""
    train = partial(ranking_network, sample, maker, count, recipe.data.augmentation, recipe.seed)
    return _timed(lambda _: train(), maker.device)(1)


def _some_extractors(recipe: Recipe, sample: LabeledImages, maker: ExtractorMaker) -> Extractors:
    """One network in place of a pool, which counts as trained."""
    if recipe.features.kind == "pool":
        return PoolExtractors([maker.wrap(maker.network(recipe.seed), recipe.features.num_trajectories > 0)])
    return new_extractors(recipe, sample, maker.device)[0]


def _blank_statistics(recipe: Recipe, sample: LabeledImages, feature_dim: int) -> RealStatistics:
    """Of one network, in the shapes of real ones: a step takes as long on them."""
    classes, length, plain = sample.num_classes, recipe.real.num_frequencies, to_signed(sample.images[:1])
    rng = torch.Generator().manual_seed(0)
    return RealStatistics(
        mean=torch.zeros(1, classes, feature_dim),
        spread=torch.ones(1, classes),
        embedding=torch.zeros(1, classes, 2 * length),
        frequencies=torch.randn(1, feature_dim, length, generator=rng),
        gap=torch.ones(1),
        pooled=pooled_pixels(plain).expand(classes, -1),
        contrast=contrast(plain).expand(classes, -1),
    )


def _pass_seconds(recipe: Recipe, sample: LabeledImages, pool: list) -> tuple[float, float]:
    """Of one network: of the probe before its passes, and of an image in a pass."""
    at_once = min(BATCH_SIZE, images_at_once(max(sample.image_size, pool[0].resize or 0)))
    few = sample.subset(torch.arange(min(len(sample), at_once)))

    def run(count: int) -> float:
        started = time.perf_counter()
        real_statistics(
            few, pool, augmentation=matching_augmentation(recipe, sample), num_passes=count,
            num_frequencies=recipe.real.num_frequencies, seed=0,
        )  # fmt: skip
        return time.perf_counter() - started

    first = run(1)  # a probe of as many images comes before the passes
    if first > REHEARSED_SECONDS * 5 and not recipe.features.compile:
        return first / 2, first / (2 * len(few))
    one, three = run(1), run(3)
    of_pass = max((three - one) / 2, one / 4)  # a probe takes no more than a pass, but for noise
    return max(one - of_pass, 0.0), of_pass / len(few)


def _class_of_noise(amount: Amount, width: int) -> np.ndarray:
    """Features of some images of a class, [n, width]."""
    return np.random.default_rng(0).normal(size=(min(amount.largest_class, KMEANS_IMAGES), width)).astype(np.float32)


def _choice_seconds(recipe: Recipe, sample: LabeledImages, amount: Amount) -> float:
    """Of choosing the images of one class that its slots start from."""
    sizes = representative_sizes(recipe)
    rows = _class_of_noise(amount, math.prod(sample.images.shape[1:]))
    started = time.perf_counter()
    nested_representatives(rows, [size for size in sizes if size <= len(rows)] or [len(rows)], recipe.seed)
    return (time.perf_counter() - started) * amount.largest_class / len(rows)


def _refresh_seconds(recipe: Recipe, sample: LabeledImages, amount: Amount, extractor: Extractor, seen: int) -> float:
    """Of choosing the representatives of all classes once: embedding the `seen` candidates, then k-means."""
    device = extractor.mean.device
    some = to_signed(sample.images[: images_at_once(max(sample.image_size, extractor.resize or 0))]).to(device)
    with torch.no_grad():
        each = cost_of(_timed(lambda step: extractor(some), device), extractor.embed.compile).each / len(some)
    rows = _class_of_noise(amount, extractor.feature_dim)
    started = time.perf_counter()
    kmeans_representatives(rows, min(recipe.real.batch_size, len(rows)), recipe.seed, distinct=False)
    return each * seen + (time.perf_counter() - started) * seen / len(rows)
