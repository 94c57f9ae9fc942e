"""What a condensing step costs: DM, M3D, DREAM and cached statistics at CIFAR-10 shapes, on images made here.

    python scripts/bench_step.py                                  # a table; minutes on two cores
    python scripts/bench_step.py --recipes dm cached --ipc 1 10 --real 500 2000 8000
    python scripts/bench_step.py --json                           # the last line is JSON, for scripts

Each recipe runs at its own settings but for IPC: real batches, network and augmentation are those of the paper. Seconds
are medians over steps after a warm-up in which torch compiles; the table names what a first run pays once besides.
"""

import argparse
import gc
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from gencond.assembly import check_fit, choose_representatives, new_extractors, new_pixels, new_real_side
from gencond.cli import run_cleanly
from gencond.condense import Matching
from gencond.config import load_recipe
from gencond.data import LabeledImages

RECIPES = ("dm", "m3d", "dream", "cached")
CLASSES, SIDE = 10, 32


def images_like_cifar10(images_per_class: int) -> LabeledImages:
    """Smooth coloured noise around one picture for each class."""
    rng = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, 3, 4, 4, generator=rng)
    images = []
    for mean in means:
        noise = torch.randn(images_per_class, 3, 4, 4, generator=rng)
        large = torch.nn.functional.interpolate(mean + noise, size=(SIDE, SIDE), mode="bilinear")
        images.append((large * 40 + 128).clamp(0, 255).to(torch.uint8))
    labels = torch.arange(CLASSES).repeat_interleave(images_per_class)
    return LabeledImages(torch.cat(images), labels, tuple(map(str, range(CLASSES))))


def measure(
    recipe_name: str, ipc: int, images_per_class: int, width: int, num_steps: int, overrides: list[str]
) -> dict:
    """Seconds for each step and for what comes before the first."""
    own = [f"pixels.ipc={ipc}", f"features.width={width}", "pixels.init=real", "features.num_trajectories=1"]
    recipe = load_recipe(recipe_name, [*own, "features.snapshot_steps=[1,2,3]", "features.num_random=1", *overrides])
    data = images_like_cifar10(images_per_class)
    check_fit(recipe, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    extractors, key = new_extractors(recipe, data, device)
    prepared = time.perf_counter()
    real = new_real_side(recipe, data, extractors, key, device)
    passed = time.perf_counter()
    representatives = choose_representatives(recipe, data, extractors)
    pixels = new_pixels(recipe, data, representatives, {})
    matching = Matching(recipe, data, pixels, extractors, real, representatives)
    matching.step(0)
    matching.step(1)
    warm = time.perf_counter()
    seconds = []
    for step in range(2, 2 + num_steps):
        begun = time.perf_counter()
        matching.step(step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    matching.accelerator.free_memory()
    num_nets = len(extractors.pool) if key else 0
    return {
        "recipe": recipe_name,
        "ipc": ipc,
        "real_images": len(data),
        "seconds_per_step": statistics.median(seconds),
        "first_steps_seconds": warm - passed,
        "pool_seconds": prepared - started,
        "pass_seconds_per_net": (passed - prepared) / num_nets if num_nets else 0.0,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--ipc", nargs="+", type=int, default=[10])
    parser.add_argument("--real", nargs="+", type=int, default=[500], metavar="N", help="real images of each class")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="timed, for each recipe")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all recipes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    rows = []
    print(
        f"{'recipe':<10}{'IPC':>5}{'real images':>13}{'s / step':>11}{'first steps':>13}{'pass / net':>12}{'peak MB':>10}"
    )
    with tempfile.TemporaryDirectory() as cache:
        import os

        os.environ["GENCOND_CACHE"] = cache
        for recipe in args.recipes:
            for ipc in args.ipc:
                for images_per_class in args.real:
                    row = measure(recipe, ipc, images_per_class, args.width, args.steps, args.set)
                    rows.append(row)
                    gc.collect()
                    print(
                        f"{recipe:<10}{ipc:>5}{row['real_images']:>13,}{row['seconds_per_step']:>11.4f}"
                        f"{row['first_steps_seconds']:>13.1f}{row['pass_seconds_per_net']:>12.2f}"
                        f"{row['peak_memory_mb']:>10.0f}",
                        flush=True,
                    )
    if args.json:
        first = {row["recipe"]: row["seconds_per_step"] for row in reversed(rows) if row["ipc"] == args.ipc[-1]}
        content = {f"{name}_seconds_per_step": seconds for name, seconds in first.items()}
        print(json.dumps(content | {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    run_cleanly(main)
