"""Whether `gencond doctor` tells the truth: its forecast of each stage beside real steps, on images made here.

    python scripts/bench/forecast.py                                    # all recipes; an hour or two on two cores
    python scripts/bench/forecast.py gencond:cifar10:quick dm:cifar10:quick --classes 10 100 --cpu

"measured" is the time of real steps after a warm-up, in which torch compiles, times their number: of pretraining,
extractors and encoding ten steps, of matching two of each prefix length that is drawn, weighted by how often the run
draws it; of statistics the pass of one network over all images. What compiling takes is in neither column (the forecast
adds it to a stage, once). With `--cpu` both are seconds of this process on the processor instead of the wall clock,
which tells the same on a machine that others use too; set OMP_NUM_THREADS=1 then. A forecast is good where the ratio is
within 0.7 .. 1.3.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from gencond.cli import run_cleanly
from gencond.common.distributed import new_accelerator
from gencond.condensing import forecast as forecasting
from gencond.condensing.build import build
from gencond.condensing.loop import step_rng
from gencond.condensing.match import Matching
from gencond.condensing.real_statistics import real_statistics
from gencond.condensing.run_folder import RunFolder
from gencond.condensing.stages import start
from gencond.config import Recipe, load_recipe
from gencond.data.images import LabeledImages
from gencond.examine import SAMPLE_IMAGES

RECIPES = (
    "dm:cifar10:quick", "m3d:cifar10:quick", "dream:cifar10:quick", "cached:cifar10:quick", "generative:cifar10:quick",
    "gencond:cifar10:quick", "gencond:stream-small", "demo",
)  # fmt: skip
IMAGES, SIDE = 100, 32  # of each class, in pixels
SHORT = 20  # steps of a stage, of which the last half is timed


def made_images(num_classes: int, side: int) -> LabeledImages:
    """Noise: what a step takes does not depend on what images show."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_classes * IMAGES, 3, side, side), generator=rng, dtype=torch.uint8)
    names = tuple(f"{label:03d}" for label in range(num_classes))
    return LabeledImages(images, torch.arange(num_classes).repeat_interleave(IMAGES), names)


def foretold(recipe: Recipe, data: LabeledImages) -> dict[str, float]:
    """Seconds of each stage as the doctor says them, without compiling."""
    rows = torch.arange(max(SAMPLE_IMAGES, data.num_classes, recipe.features.train_images))
    order = torch.arange(len(data)).view(data.num_classes, -1).T.flatten()  # a class after the other
    sample = data.subset(order[rows % len(data)])
    forecasting.Cost.of = lambda cost, num_steps: cost.each * num_steps
    amount = forecasting.Amount(len(data), len(data), IMAGES, data.images.nbytes, False, 0.0, 0)
    found = forecasting.forecast(recipe, sample, amount, new_accelerator().device)
    return {stage.name: stage.seconds for stage in found.stages if stage.name != "reading images"}


def clocked(run: Callable[[], object]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def of_lengths(matching: Matching, recipe: Recipe) -> float:
    """Mean seconds of a step of matching, by two of each length, or lengths at once, after a first one."""
    part, seconds = recipe.condense, {}
    drawn: Counter[tuple[int, ...]] = Counter()
    for step in range(part.num_steps):  # as `Matching.draw` begins
        rng = step_rng(recipe.seed, "condense", step)
        fresh = bool(torch.rand((), generator=rng) < part.stream_probability)
        choice = int(torch.randint(len(matching.lengths), (), generator=rng))
        drawn[(part.stream_length,) if fresh else matching.lengths[choice]] += 1
    matching.parts = replace(matching.parts, condense=replace(part, stream_probability=0.0))
    for lengths in drawn:
        matching.lengths = (lengths,)
        matching.step(1)
        seconds[lengths] = (clocked(lambda: matching.step(2)) + clocked(lambda: matching.step(3))) / 2
    return sum(seconds[lengths] * count for lengths, count in drawn.items()) / drawn.total()


def measured(recipe: Recipe, data: LabeledImages) -> dict[str, float]:
    """Seconds of each stage by real steps."""
    part, device, found = recipe.features, new_accelerator().device, {}
    parts = build(recipe, data, device)
    maker, pool = parts.maker, parts.pool
    if pool is not None:
        train = partial(pool.train, maker, maker.network(0).to(device), data)
        train(SHORT // 2)  # compiles, and is as long as what is timed
        found["extractors"] = clocked(lambda: train(SHORT // 2)) * pool.num_steps / (SHORT // 2)
    if recipe.real.kind == "statistics":
        one = [maker.wrap(maker.network(0), knows_classes=False)]
        take = partial(
            real_statistics, extractors=one, augmentation=parts.augmentation, num_passes=1,
            num_frequencies=recipe.real.num_frequencies, seed=0,
        )  # fmt: skip
        take(data.subset(torch.arange(min(len(data), 500))))
        found["statistics"] = clocked(lambda: take(data)) * pool.num_networks * recipe.real.num_passes
    short = replace(
        recipe,
        save_every_steps=SHORT // 2,
        pretrain=replace(recipe.pretrain, num_steps=min(recipe.pretrain.num_steps, SHORT)),
        codes=replace(recipe.codes, encode_steps=min(recipe.codes.encode_steps, SHORT), ranking_steps=2),
        features=replace(part, num_trajectories=min(part.num_trajectories, 1), snapshot_steps=(1,), num_random=1),
        real=replace(recipe.real, candidates=8 if recipe.real.kind == "statistics" else recipe.real.candidates),
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GENCOND_CACHE"] = folder
        run = RunFolder(Path(folder) / "run")
        run.path.mkdir()
        matching = start(build(short, data, device), run)
        for stage, num_steps in (("pretrain", recipe.pretrain.num_steps), ("encode", recipe.codes.encode_steps)):
            if of_stage := [entry["seconds"] for entry in run.read_log() if entry.get("stage") == stage]:
                found[stage] = of_stage[-1] * num_steps / (SHORT // 2)
        found["condense"] = of_lengths(matching, recipe) * recipe.condense.num_steps
        matching.accelerator.free_memory()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--side", type=int, default=SIDE, help="of the images, in pixels")
    parser.add_argument("--cpu", action="store_true", help="seconds on the processor instead of the wall clock")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all recipes")
    args = parser.parse_args()
    if args.cpu:
        time.perf_counter = time.monotonic = time.process_time
    print(f"{'recipe':<28}{'classes':>8}  {'stage':<14}{'forecast s':>12}{'measured s':>12}{'ratio':>8}")
    for name in args.recipes:
        for num_classes in args.classes:
            recipe = load_recipe(name, args.set)
            data = made_images(num_classes, args.side)
            real, told = measured(recipe, data), foretold(recipe, data)
            for stage, seconds in real.items():
                print(
                    f"{name:<28}{num_classes:>8}  {stage:<14}{told[stage]:>12.1f}{seconds:>12.1f}"
                    f"{told[stage] / seconds:>8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    run_cleanly(main)
