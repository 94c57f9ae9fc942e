"""What a run will take, before it starts: a few steps of each of its stages on a few images, the rest by arithmetic."""

import contextlib
import io
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from gencond.common.distributed import peak_memory
from gencond.common.progress import spoken_time
from gencond.common.ranges import to_signed
from gencond.condensing.build import Parts, build, new_scorer, starts_from_known
from gencond.condensing.difficulty import Ranking
from gencond.condensing.easiest import NUM_HELD_OUT, SHARES, Trials
from gencond.condensing.extractors import Pool, PoolExtractors, pool_of
from gencond.condensing.quick_score import NUM_STEPS, QuickScorer
from gencond.condensing.real import StatisticsSide
from gencond.condensing.real_statistics import BATCH_SIZE, RealStatistics, images_at_once, real_statistics
from gencond.condensing.stages import EXTRACTORS, MATCH, REAL_SIDE, STAGES, STARTS, Work, begin_matching
from gencond.condensing.starts import CodeStarts
from gencond.config import Recipe
from gencond.data.images import LabeledImages
from gencond.data.select import kmeans_representatives, nested_representatives
from gencond.generator.sampling import LARGEST_BLOCK
from gencond.losses.anchor import contrast, pooled_pixels
from gencond.networks.extractor import Extractor

REHEARSED_SECONDS = 3.0  # of each stage, after a first step that is not counted
REHEARSED_STEPS = 5
LONGEST_STEP = 10.0  # seconds; of longer ones smaller ones are timed
FEW_CLASSES = 2
TIMED_AT_ONCE = 10  # classes; of more a step may take minutes, and each other number of classes is compiled anew
KMEANS_IMAGES = 500  # of the one class that representatives are timed with


@dataclass(frozen=True)
class Cost:
    """Of a kind of steps: seconds of each, and once for all of them (compiling)."""

    each: float
    once: float = 0.0

    def of(self, num_steps: int) -> float:
        return self.once + num_steps * self.each


@dataclass(frozen=True)
class Stage:
    """One line of a forecast.

    Args:
        name: as its progress bar has it.
        amount: for people, as in "600 steps".
        seconds: all of it.
        num_steps, cost: of a stage in steps, how many it has and what they cost; 0 of others.
    """

    name: str
    amount: str
    seconds: float
    num_steps: int = 0
    cost: Cost = Cost(0.0)


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

    def lines(self) -> list[str]:
        """A line for each stage, and one for all of it."""
        rows = [(stage.name, stage.amount, stage.seconds) for stage in self.stages]
        rows.append(("all of it", "one process, without evaluation", self.seconds))
        return [f"{name:<18}{amount:<44}{spoken_time(seconds):>10}" for name, amount, seconds in rows]


@dataclass(frozen=True)
class Amount:
    """How much there is of what a few images stand for.

    Args:
        num_images: with those of the test set.
        num_train: training images of all classes that are condensed; largest_class: of the class that has most.
        pixel_bytes: of all images, decoded.
        is_mapped: whether they stay in a file.
        seconds_to_read: until they are there, by what was timed; 0 where they are there.
        bytes_to_write: of them, in the cache.
        num_held_out: training images that quick scores are tested on; 0 where there are no scores.
    """

    num_images: int
    num_train: int
    largest_class: int
    pixel_bytes: int
    is_mapped: bool
    seconds_to_read: float
    bytes_to_write: int
    num_held_out: int = 0


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
    """Times a few steps of every stage of `recipe` on some images; nothing is kept.

    Args:
        sample: some real images, at least one of each class; their labels may be made up.
        amount: of all images.
    Raises:
        InputError: parts that do not fit.
    """
    with _quietly():
        recipe = replace(recipe, pixels=replace(recipe.pixels, init="noise"))  # the sample is too small to start from
        without_scores = replace(recipe, condense=replace(recipe.condense, score_every_steps=None))
        parts = build(without_scores, sample, device)  # the sample is too small to hold images out
        if amount.num_held_out:
            parts = replace(parts, scorer=new_scorer(recipe, parts.maker, sample))
        if isinstance(parts.starts, CodeStarts):
            known_first = starts_from_known(recipe, amount.largest_class)
            parts = replace(parts, starts=replace(parts.starts, learnable_first=known_first))
        return _Rehearsal(parts, amount).forecast()


class _Rehearsal:
    """Parts for some images, and what the stages of a run of them are found to take, one after the other."""

    def __init__(self, parts: Parts, amount: Amount) -> None:
        self.parts, self.amount, self.work = parts, amount, Work()
        self.compiles = bool(parts.maker.embed.compile)
        self.num_nets = parts.pool.num_networks if parts.pool else 1
        self.pool_bytes = self.statistics_bytes = 0
        self.stages = [Stage("reading images", f"{amount.num_images:,} images", amount.seconds_to_read)]
        self.notes: list[str] = []

    def forecast(self) -> Forecast:
        """All stages that a run would go through, in its order; each leaves a stand-in of what it makes."""
        in_one_piece = {EXTRACTORS: self._extractors, REAL_SIDE: self._real_side, STARTS: self._starts}
        for entry in STAGES:
            if not entry.is_needed(self.parts, self.work):
                continue
            if entry in in_one_piece:
                in_one_piece[entry]()
            elif entry is MATCH:
                self._matching()
            elif entry.begin is not None:
                stage = entry.begin(self.parts, self.work)
                cost = cost_of(_timed(stage.step, self.parts.device))
                stage.accelerator.free_memory()
                self._add_steps(stage.name, stage.num_steps, cost)
        weights = sum(parameter.nbytes for parameter in self.work.condensed.parameters())
        held = 0 if self.amount.is_mapped else 2 * self.amount.pixel_bytes  # its parts beside the whole, to split it
        kept = self.pool_bytes + 3 * self.statistics_bytes  # the sums have twice the bits
        of_gpu = 0
        if self.parts.device.type == "cuda":
            of_gpu = torch.cuda.max_memory_allocated(self.parts.device) + kept
            if self.parts.pool and self.parts.pool.num_trajectories and held:
                of_gpu += self.amount.pixel_bytes  # which a pool's network trains on
        return Forecast(
            tuple(self.stages),
            tuple(self.notes),
            memory=peak_memory() + held + kept,
            gpu_memory=of_gpu,
            cache=self.amount.bytes_to_write + kept,
            out=8 * weights,  # artefact, pretrained, and a state of weights, average and two moments, for a moment two
        )

    def _add(self, name: str, amount: str, seconds: float) -> None:
        self.stages.append(Stage(name, amount, seconds))

    def _add_steps(self, name: str, num_steps: int, cost: Cost) -> None:
        self.stages.append(Stage(name, f"{num_steps} steps", cost.of(num_steps), num_steps, cost))

    def _extractors(self) -> None:
        """Training a pool; one network stands in for it, which counts as trained."""
        parts, pool = self.parts, self.parts.pool
        if pool is None:
            self.work.extractors, _ = parts.new_extractors()
            return
        self.pool_bytes = self.num_nets * sum(t.nbytes for t in parts.maker.network(0).state_dict().values())
        if pool.num_steps:
            seconds = cost_of(partial(_training_seconds, parts, pool), self.compiles).of(pool.num_steps)
            self._add("extractors", f"{pool.num_steps} steps, {self.num_nets} networks", seconds)
        network = parts.maker.network(parts.seed)
        self.work.extractors = PoolExtractors([parts.maker.wrap(network, pool.num_trajectories > 0)])

    def _real_side(self) -> None:
        """The pass over the real images; blank statistics stand in for theirs."""
        part, extractors = self.parts.real, self.work.extractors
        if part.kind != "statistics":
            self.work.real = self.parts.new_real_side(extractors, "")
            return
        pool = pool_of(extractors)
        statistics = _blank_statistics(self.parts, pool[0].feature_dim).to(self.parts.device)
        of_net = (statistics.mean, statistics.embedding, statistics.frequencies)
        self.statistics_bytes = self.num_nets * sum(tensor.nbytes for tensor in of_net)
        probe, of_image, once = _pass_seconds(self.parts, pool, self.num_nets * part.num_passes * self._seen)
        passes = f", {part.num_passes} passes" if part.num_passes > 1 else ""
        self._add(
            "statistics",
            f"{self._seen:,} images, {self.num_nets} networks{passes}",
            once + self.num_nets * (probe + part.num_passes * self._seen * of_image),
        )
        self.work.real = StatisticsSide(statistics, pool)

    def _starts(self) -> None:
        """Choosing what slots start from, around a generator that was not trained."""
        parts, starts = self.parts, self.parts.starts
        if isinstance(starts, CodeStarts) and starts.are_needed and starts.ranking is not None:
            tries = starts.skip_easiest == "held_out" and self.amount.largest_class > starts.count
            if tries or isinstance(starts.skip_easiest, float):
                self._ranking(starts.ranking)
            if tries:
                self._trials(Trials(starts.ranking, parts.data, starts.count))
            if starts.learnable_first:
                self._ranking(starts.ranking.brief(self.amount.num_train))
            starts = replace(starts, ranking=None)
        representatives = starts.choose(self.work.extractors).to(parts.device)
        if isinstance(starts, CodeStarts) and len(representatives.labels):
            seconds = self._choice_seconds(starts) * parts.data.num_classes
            self._add("representatives", f"{parts.data.num_classes} classes, k-means", seconds)
        generator = parts.generators.make() if parts.generators else None
        self.work.representatives = representatives
        self.work.condensed = parts.new_condensed(generator, representatives)

    def _choice_seconds(self, starts: CodeStarts) -> float:
        """Of choosing the images of one class that its slots start from."""
        amount, each, width = self.amount, 0.0, math.prod(starts.data.images.shape[1:])
        if starts.space == "features":
            extractor = self.work.extractors.at(0, torch.Generator())
            each, width = _embedding_seconds(self.parts, extractor), extractor.feature_dim
        rows = _class_of_noise(amount, width)
        started = time.perf_counter()
        sizes = [size for size in starts.sizes if size <= len(rows)]
        nested_representatives(rows, sizes or [len(rows)], starts.seed)
        return (each + (time.perf_counter() - started) / len(rows)) * amount.largest_class

    def _ranking(self, ranking: Ranking) -> None:
        """Training the network that ranks, and asking it about every image."""
        train = partial(ranking.network, self.parts.data)
        cost = cost_of(lambda count: _seconds(partial(train, count), self.parts.device), self.compiles)
        judge = ranking.maker.wrap(ranking.maker.network(0), knows_classes=True)
        asking = self.amount.num_train * _embedding_seconds(self.parts, judge)
        self._add("ranking", f"{ranking.num_steps} steps", cost.of(ranking.num_steps) + asking)

    def _trials(self, trials: Trials) -> None:
        """Trainings that choose which share of the easiest images is skipped, and their tests on what is held out."""
        data, device, maker = self.parts.data, self.parts.device, trials.ranking.maker
        rows = torch.arange(len(data))
        train = partial(trials.trained, rows, seed=0)
        cost = cost_of(lambda count: _seconds(partial(train, num_steps=count), device), self.compiles)
        network = train(num_steps=1)
        testing = _seconds(lambda: maker.top1(network, data), device) / len(data)
        started = min(self.amount.num_train, trials.count * data.num_classes)
        steps, num_seeds = trials.steps_and_seeds(started)
        count = len(SHARES) * num_seeds
        tests = count * self.amount.num_train / NUM_HELD_OUT * testing
        self._add("trying what to skip", f"{count}, of {steps} steps", cost.of(count * steps) + tests)

    def _matching(self) -> None:
        """Steps of matching as they come, and the real images that are chosen along the way."""
        parts, work, num_steps = self.parts, self.work, self.parts.condense.num_steps
        if not num_steps:
            return

        def time_step(num_classes: int, length: int) -> Cost:
            part = replace(parts.condense, classes_per_step=num_classes, stream_probability=0.0)
            if not part.prefixes_at_once:
                part = replace(part, prefix_lengths=(length,))
            stage = begin_matching(replace(parts, condense=part), work)
            cost = cost_of(_timed(stage.step, parts.device), self.compiles)
            stage.accelerator.free_memory()
            return cost

        cost = self._cost_of_steps(time_step, work.condensed.num_slots)
        self._add_steps(MATCH.name, num_steps, cost)
        if parts.real.kind == "representatives":
            choices = -(-num_steps // parts.real.refresh_steps)
            extractor = work.extractors.at(0, torch.Generator())
            seconds = choices * _refresh_seconds(parts, self.amount, extractor, self._seen)
            self._add("representatives", f"{choices} choices", seconds)
        if parts.scorer is not None:
            self._quick_scores(parts.scorer)

    def _quick_scores(self, scorer: QuickScorer) -> None:
        """Sampling for a few classes, some steps of training, and a test on the sample of real images."""
        condensed, device, classes = self.work.condensed, self.parts.device, self.parts.data.num_classes
        few = range(min(classes, LARGEST_BLOCK))
        sampling = _seconds(lambda: scorer.samples(condensed, 1, few), device) / len(few)
        images, labels = scorer.samples(condensed, 1, few)
        training = cost_of(lambda count: _seconds(lambda: scorer.trained(images, labels, count), device), self.compiles)
        network = scorer.trained(images, labels, 1)
        testing = _seconds(lambda: scorer.tested(network), device) / len(scorer.held_out)
        each = sampling * classes * scorer.ipc(condensed) + testing * self.amount.num_held_out
        count = scorer.count(self.parts.condense.num_steps)
        self._add("quick scores", f"{count}, of {NUM_STEPS} steps", count * each + training.of(count * NUM_STEPS))

    def _cost_of_steps(self, time_step: Callable[[int, int], Cost], num_slots: int) -> Cost:
        """Of steps as they come, from steps of the longest and the shortest prefix; what lies between is in proportion.

        Of steps of many classes smaller ones are timed first, with two and with four, which tells what grows with the
        classes from what does not (an optimizer's update, the training of the step's network); where the whole step is
        too long, they stand for it.

        Args:
            time_step: (classes, slots of each) -> what such steps cost.
            num_slots: learned ones of each class.
        """
        part = self.parts.condense
        num_classes = min(self.parts.data.num_classes, part.classes_per_step)
        fixed = part.prefix_lengths or (num_slots,)
        if part.prefixes_at_once:
            fixed = (max(fixed),)
        shares = [(length, (1 - part.stream_probability) / len(fixed)) for length in fixed]
        shares += [(part.stream_length, part.stream_probability)] * (part.stream_probability > 0)
        shortest, longest = (choose(length for length, _ in shares) for choose in (min, max))
        few, more = FEW_CLASSES, 2 * FEW_CLASSES
        of_few = full = Cost(0.0)
        if num_classes > TIMED_AT_ONCE:
            of_few, of_more = time_step(few, longest), time_step(more, longest)
            of_class = max(0.0, of_more.each - of_few.each) / (more - few)
            full = Cost(of_more.each + (num_classes - more) * of_class, of_more.once)
        if num_classes <= TIMED_AT_ONCE or full.each < LONGEST_STEP:
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
        candidates, most = self.parts.real.candidates, self.amount.num_train
        return most if candidates is None else min(most, candidates * self.parts.data.num_classes)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """What one call takes."""
    return _timed(lambda number: run(), device)(1)


def _training_seconds(parts: Parts, pool: Pool, count: int) -> float:
    """Of `count` steps of training a network of the pool."""
    network = parts.maker.network(parts.seed).to(parts.device)
    return _seconds(partial(pool.train, parts.maker, network, parts.data, count), parts.device)


def _blank_statistics(parts: Parts, feature_dim: int) -> RealStatistics:
    """Of one network, in the shapes of real ones: a step takes as long on them."""
    classes, length, plain = parts.data.num_classes, parts.real.num_frequencies, to_signed(parts.data.images[:1])
    rng = torch.Generator().manual_seed(0)
    return RealStatistics(
        mean=torch.zeros(1, classes, feature_dim),
        embedding=torch.zeros(1, classes, 2 * length),
        frequencies=torch.randn(1, feature_dim, length, generator=rng),
        gap=torch.ones(1),
        pooled=pooled_pixels(plain).expand(classes, -1),
        contrast=contrast(plain).expand(classes, -1),
    )


def _pass_seconds(parts: Parts, pool: list[Extractor], num_images: int) -> tuple[float, float, float]:
    """Of one network: to find how wide its kernels are, and of an image in a pass; and once, to compile.

    Args:
        num_images: that go through networks in all, which decides whether they are compiled.
    """
    side = max(parts.data.image_size, pool[0].resize or 0)
    embed = pool[0].embed.for_many(num_images * side**2, parts.device)
    pool = [extractor.embedded_by(embed) for extractor in pool]
    few = parts.data.subset(torch.arange(min(len(parts.data), BATCH_SIZE, images_at_once(side))))

    def run(count: int) -> float:
        started = time.perf_counter()
        real_statistics(
            few, pool, augmentation=parts.augmentation, num_passes=count,
            num_frequencies=parts.real.num_frequencies, seed=0,
        )  # fmt: skip
        return time.perf_counter() - started

    first = run(1)
    if first > REHEARSED_SECONDS * 5 and not embed.compile:
        return 0.0, first / len(few), 0.0
    one, three = run(1), run(3)
    of_pass = max((three - one) / 2, one / 4)  # the kernels' widths take no more than a pass, but for noise
    return max(one - of_pass, 0.0), of_pass / len(few), max(first - one, 0.0) if embed.compile else 0.0


def _class_of_noise(amount: Amount, width: int) -> np.ndarray:
    """Features of some images of a class, [n, width]."""
    return np.random.default_rng(0).normal(size=(min(amount.largest_class, KMEANS_IMAGES), width)).astype(np.float32)


def _refresh_seconds(parts: Parts, amount: Amount, extractor: Extractor, seen: int) -> float:
    """Of choosing the representatives of all classes once: embedding the `seen` candidates, then k-means."""
    each = _embedding_seconds(parts, extractor)
    rows = _class_of_noise(amount, extractor.feature_dim)
    started = time.perf_counter()
    kmeans_representatives(rows, min(parts.real.batch_size, len(rows)), parts.seed, distinct=False)
    return each * seen + (time.perf_counter() - started) * seen / len(rows)


def _embedding_seconds(parts: Parts, extractor: Extractor) -> float:
    """Of embedding an image."""
    device = extractor.mean.device
    at_once = images_at_once(max(parts.data.image_size, extractor.resize or 0))
    some = to_signed(parts.data.images[:at_once]).to(device)
    with torch.no_grad():
        return cost_of(_timed(lambda step: extractor(some), device), bool(extractor.embed.compile)).each / len(some)
