"""What a condensing step takes of memory as its classes grow: all at once, and in chunks (`condense.images_at_once`).

    python scripts/bench/memory.py                                # a table; minutes on two cores
    python scripts/bench/memory.py --classes 10 100 1000 --at-once none 10 --recipe imagenet1k-128:narrow

One step over all classes with one image of each, forward and backward, on images made here. "before" is the process
with model, optimizer and statistics, "peak" the most it held during the step; on a GPU both are what tensors took. Each
line is a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from gencond.cli import run_cleanly
from gencond.common.distributed import memory_used, new_accelerator, peak_memory
from gencond.condensing.build import build
from gencond.condensing.run_folder import prepare_run
from gencond.condensing.stages import start
from gencond.config import load_recipe
from gencond.data.images import LabeledImages

ONE_IMAGE = ("condense.prefix_lengths=[1]", "condense.stream_probability=0", "codes.num_slots=1")


def peak(device: torch.device) -> int:
    """Bytes at most, since the process began or, on a GPU, since this was last asked."""
    if device.type == "cuda":
        return memory_used(device)
    return peak_memory()


def measure(recipe_name: str, num_classes: int, at_once: str, side: int, overrides: list[str]) -> dict:
    """One line, in this process."""
    own = [f"condense.classes_per_step={num_classes}", f"condense.images_at_once={at_once}", f"data.image_size={side}"]
    recipe = load_recipe(recipe_name, [*ONE_IMAGE, *own, *overrides])
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_classes, 3, side, side), dtype=torch.uint8, generator=rng)
    data = LabeledImages(images, torch.arange(num_classes), tuple(f"{label:04d}" for label in range(num_classes)))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GENCOND_CACHE"] = folder
        with prepare_run(Path(folder) / "run", recipe, data) as run:
            matching = start(build(recipe, data, new_accelerator().device), run)
            device = matching.accelerator.device
            matching.optimizer.zero_grad()
            before = memory_used(device)
            begun = time.perf_counter()
            matching.step(0)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begun
            return {"before_mb": before / 2**20, "peak_mb": peak(device) / 2**20, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="imagenet1k-128:narrow")
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--at-once", nargs="+", default=["none", "10"], metavar="N", help="images; none takes all")
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value")
    parser.add_argument("--one", action="store_true", help="a single line in this process, as JSON")
    args = parser.parse_args()
    if args.one:
        at_once = args.at_once[0].replace("none", "null")
        print(json.dumps(measure(args.recipe, args.classes[0], at_once, args.side, args.set)))
        return
    print("".join(f"{title:>16}" for title in ("classes", "images at once", "before MB", "peak MB", "s / step")))
    for at_once in args.at_once:
        for num_classes in args.classes:
            command = [
                sys.executable, __file__, "--one", "--recipe", args.recipe, "--classes", str(num_classes), "--at-once",
                at_once, "--side", str(args.side), "--set", *args.set,
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{num_classes:>16}{at_once:>16}   {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            cells = [f"{row['before_mb']:.0f}", f"{row['peak_mb']:.0f}", f"{row['seconds']:.1f}"]
            print("".join(f"{cell:>16}" for cell in (num_classes, at_once, *cells)), flush=True)


if __name__ == "__main__":
    run_cleanly(main)
