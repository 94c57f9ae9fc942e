"""What a condensing step costs: DM, M3D, DREAM and cached statistics at CIFAR-10 shapes, on images made here.

    python scripts/bench/step.py                                  # a table; minutes on two cores
    python scripts/bench/step.py --recipes dm cached --ipc 1 10 --real 500 2000 8000
    python scripts/bench/step.py --json                           # the last line is JSON, for scripts

Each recipe runs at its own settings but for IPC and width: real batches, network and augmentation are those of the
paper. "s / step" is the median over steps after a warm-up in which torch compiles. DREAM chooses its real images anew
in every tenth step only, which the median leaves out: "s / choice" is that step's. "s / pass" is what statistics of all
real images cost for one network (a pool holds 14), the only column that grows with them for `cached`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from gencond.cli import run_cleanly
from gencond.common.distributed import new_accelerator, peak_memory
from gencond.condensing.build import build
from gencond.condensing.checks import check_fit
from gencond.condensing.run_folder import prepare_run
from gencond.condensing.stages import start
from gencond.config import Recipe, load_recipe
from gencond.data.images import LabeledImages

RECIPES = ("dm", "m3d", "dream", "cached")
CLASSES, SIDE = 10, 32
# A pool as small as it can be: how many nets there are changes no step, and each adds the same to the pass.
SMALL_POOL = ("features.num_trajectories=1", "features.snapshot_steps=[1]", "features.num_random=1")


def images_like_cifar10(images_per_class: int) -> LabeledImages:
    """Smooth coloured noise around one picture for each class."""
    rng = torch.Generator().manual_seed(0)
    images = []
    for mean in torch.randn(CLASSES, 3, 4, 4, generator=rng):
        noise = torch.randn(images_per_class, 3, 4, 4, generator=rng)
        large = torch.nn.functional.interpolate(mean + noise, size=(SIDE, SIDE), mode="bilinear")
        images.append((large * 40 + 128).clamp(0, 255).to(torch.uint8))
    labels = torch.arange(CLASSES).repeat_interleave(images_per_class)
    return LabeledImages(torch.cat(images), labels, tuple(map(str, range(CLASSES))))


def measure(name: str, ipc: int, images_per_class: int, width: int, num_steps: int, overrides: list[str]) -> dict:
    """Seconds for each step, and for the pass over the real images before the first."""
    own = [f"pixels.ipc={ipc}", f"features.width={width}", "pixels.init=real", *SMALL_POOL]
    recipe = load_recipe(name, [*own, *overrides])
    data = images_like_cifar10(images_per_class)
    check_fit(recipe, data)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GENCOND_CACHE"] = folder
        with prepare_run(Path(folder) / "run", recipe, data) as run:
            matching = start(build(recipe, data, new_accelerator().device), run)
            seconds = []
            for step in range(2 + num_steps):
                begun = time.perf_counter()
                matching.step(step)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begun)
            choice = statistics_pass = 0.0
            if recipe.real.kind == "representatives":
                begun = time.perf_counter()
                matching.step(recipe.real.refresh_steps * 1000)  # a step that chooses them
                choice = time.perf_counter() - begun
            if recipe.real.kind == "statistics":
                statistics_pass = seconds_of_a_pass(recipe, data, matching.accelerator.device)
            matching.accelerator.free_memory()
    return {
        "recipe": name,
        "ipc": ipc,
        "real_images": len(data),
        "seconds_per_step": statistics.median(seconds[2:]),
        "warm_up_seconds": sum(seconds[:2]),
        "choice_seconds": choice,
        "pass_seconds_per_net": statistics_pass,
        "peak_memory_mb": peak_memory() / 2**20,
    }


def seconds_of_a_pass(recipe: Recipe, data: LabeledImages, device: torch.device) -> float:
    """For one network of a pool, once it is compiled: another seed finds no statistics on disk."""
    parts = build(recipe, data, device)
    extractors, key = parts.new_extractors()
    again = replace(parts, seed=recipe.seed + 1)
    few = data.subset(torch.arange(len(data)).view(CLASSES, -1)[:, :50].flatten())  # 500 images: one batch, to compile
    replace(again, data=few).new_real_side(extractors, key)
    begun = time.perf_counter()
    again.new_real_side(extractors, key)
    return (time.perf_counter() - begun) / len(extractors.pool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--ipc", nargs="+", type=int, default=[10])
    parser.add_argument("--real", nargs="+", type=int, default=[500], metavar="N", help="real images of each class")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="timed, for each line")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all recipes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    titles = ("recipe", "IPC", "real images", "s / step", "warm-up s", "s / choice", "s / pass", "peak MB so far")
    print("".join(f"{title:>16}" for title in titles))
    rows = []
    for name in args.recipes:
        for ipc in args.ipc:
            for images_per_class in args.real:
                row = measure(name, ipc, images_per_class, args.width, args.steps, args.set)
                rows.append(row)
                cells = [f"{value:.4g}" if isinstance(value, float) else f"{value}" for value in row.values()]
                print("".join(f"{cell:>16}" for cell in cells), flush=True)
    if args.json:
        first = {row["recipe"]: row["seconds_per_step"] for row in reversed(rows) if row["ipc"] == args.ipc[-1]}
        content = {f"{name}_seconds_per_step": seconds for name, seconds in first.items()}
        print(json.dumps(content | {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    run_cleanly(main)
