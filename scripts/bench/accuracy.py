"""Accuracy against wall time and against iterations: chosen recipes, chosen data, as JSON and a plot.

    python scripts/bench/accuracy.py dm:fashion_mnist:quick cached:fashion_mnist:quick --data DIR --out runs/race \
        --ipc 10 --at 0 10 30 100 300 --protocol dm:100 --network convnet3w64 --seeds 3

Every recipe starts from nothing, with empty caches: its clock runs through extractors, the pass over the real images
and compiling, and stands still while a classifier is trained on what there is so far. Classifiers are judged on a slice
held out of the training set. The first recipe is the one that the others are measured against: how long until they are
as accurate as it is at its best?

`"NAME=RECIPE part.field=value ..."` changes a recipe and names the line.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gencond.cli import run_cleanly
from gencond.common.distributed import new_accelerator
from gencond.common.files import read_json, require_writable, short_hash, weights_hash, write_json
from gencond.common.pictures import new_figure, write_figure
from gencond.common.provenance import library_versions
from gencond.condensing.build import build
from gencond.condensing.checks import check_fit
from gencond.condensing.run_folder import prepare_run
from gencond.condensing.stages import start
from gencond.config import Recipe, load_recipe, to_dict
from gencond.data.images import LabeledImages
from gencond.data.load import data_source, load_data
from gencond.eval.classifier import train_and_test
from gencond.eval.protocols import check_protocol, get_protocol
from gencond.eval.records import Scores
from gencond.eval.results import EVALUATOR
from gencond.eval.subject import sampled_images

STATE = "bench_accuracy.json"


def parse_line(line: str, args: argparse.Namespace) -> tuple[str, Recipe]:
    """(name, recipe) of one line of the plot."""
    first, *changes = line.split()
    name, _, recipe_name = first.rpartition("=")
    own = [f"seed={args.seed}", f"pixels.ipc={args.ipc}", "data.judge_on=validation", *args.set, *changes]
    return name or line, load_recipe(recipe_name, own, data_source(args.data))


def measure(
    name: str,
    recipe: Recipe,
    train: LabeledImages,
    held_out: LabeledImages,
    args: argparse.Namespace,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Points of one line: steps, seconds, accuracies."""
    points, protocol = [], get_protocol(args.protocol, train.num_classes, train.image_size)
    key = depends_on(recipe, train, held_out, args)
    with tempfile.TemporaryDirectory() as folder, prepare_run(Path(folder) / "run", recipe, train) as run:
        os.environ |= {"GENCOND_CACHE": folder, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}
        begun = time.perf_counter()
        matching = start(build(recipe, train, device), run, args.pretrained)
        seconds, done = time.perf_counter() - begun, 0
        for steps in sorted(step for step in set(args.at) if step <= recipe.condense.num_steps):
            begun = time.perf_counter()
            for step in range(done, steps):
                matching.step(step)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds, done = seconds + time.perf_counter() - begun, steps
            images = sampled_images(matching.learned(), args.ipc)
            scores = train_and_test(
                [images] * args.seeds,
                held_out,
                network=args.network,
                protocol=protocol,
                augmentation=recipe.data.augmentation,
                normalisation=train.mean_std,
                seeds=range(args.seeds),
                device=device,
            )
            points.append({"line": name, "key": key, "steps": steps, "seconds": round(seconds, 2), "top1": scores})
            mean = 100 * statistics.mean(scores)
            print(f"{name:<32}{steps:>8} steps{seconds:>10.1f} s{mean:>8.1f} %", flush=True)
        matching.accelerator.free_memory()
    return points


def depends_on(recipe: Recipe, train: LabeledImages, held_out: LabeledImages, args: argparse.Namespace) -> str:
    """A key of all that a line's points depend on, but for the machine."""
    weights = args.pretrained and weights_hash(args.pretrained)
    protocol = get_protocol(args.protocol, train.num_classes, train.image_size)
    return short_hash(
        EVALUATOR, to_dict(recipe), weights, protocol.describe(), args.network, args.seeds, args.ipc,
        sorted(set(args.at)), train.fingerprint, held_out.fingerprint,
    )  # fmt: skip


def time_to(points: list[dict[str, Any]], top1: float) -> float | None:
    """Seconds until a line is first as accurate as `top1`, between two points on a straight line; None: it never is."""
    before = None
    for point in points:
        mean = statistics.mean(point["top1"])
        if mean >= top1:
            if before is None:
                return point["seconds"]
            seconds, reached = before
            return seconds + (point["seconds"] - seconds) * (top1 - reached) / (mean - reached)
        before = point["seconds"], mean
    return None


def plot(points: list[dict[str, Any]], title: str, path: Path) -> None:
    """Two panels side by side, with the spread over classifiers."""
    figure, panels = new_figure(1, 2, (10, 4), sharey=True)
    for axes, key, label in zip(panels[0], ("seconds", "steps"), ("wall time, seconds", "iterations"), strict=True):
        for name in dict.fromkeys(point["line"] for point in points):
            own = [point for point in points if point["line"] == name]
            reached = [Scores.of(point["top1"]) for point in own]
            means, spreads = [100 * scores.mean for scores in reached], [100 * scores.std for scores in reached]
            axes.errorbar(
                [point[key] for point in own], means, spreads, marker="o", markersize=4, capsize=2, label=name
            )
        axes.set_xscale("symlog", linthresh=10)  # a line may begin at zero
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("top-1 % on held-out images")
    panels[0, 1].legend(frameon=False)
    figure.suptitle(title)
    write_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="+", metavar="LINE", help="RECIPE, or 'NAME=RECIPE part.field=value ...'")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--at", type=int, nargs="+", default=[0, 10, 30, 100, 300, 1000], help="iterations to judge at")
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--network", default="convnet3")
    parser.add_argument("--seeds", type=int, default=2, help="classifiers for each point")
    parser.add_argument("--seed", type=int, default=0, help="of condensing")
    parser.add_argument("--pretrained", type=Path, help="a pretrained generator, whose training is not counted")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all recipes")
    args = parser.parse_args()
    device = new_accelerator().device
    require_writable(args.out)
    file = args.out / STATE
    lines = [parse_line(line, args) for line in args.lines]
    check_protocol(args.protocol, from_labels=True)
    cases = [(name, recipe, *load_data(recipe.data)) for name, recipe in lines]
    for _, recipe, train, _ in cases:
        check_fit(recipe, train)
    points = read_json(file)["points"] if file.is_file() else []  # what was measured before is kept
    for name, *case in cases:
        key = depends_on(*case, args)
        kept = [point for point in points if point["line"] == name]
        if not kept or any(point.get("key") != key for point in kept):
            if kept:
                print(f"{name}: measured again, what was kept is of other settings or another evaluator", flush=True)
            points = [point for point in points if point["line"] != name] + measure(name, *case, args, device)
            content = {"threads": torch.get_num_threads(), "versions": library_versions()}
            write_json(file, content | {"points": points})
    title = f"{Path(args.data).stem}, IPC {args.ipc}, {args.network}, {args.protocol}"
    plot([point for point in points if point["line"] in dict(lines)], title, args.out / "bench_accuracy.png")
    names = [name for name, _ in lines]
    reference = [point for point in points if point["line"] == names[0]]
    best = max(statistics.mean(point["top1"]) for point in reference)
    base = time_to(reference, best)
    print(f"\nseconds until {100 * best:.1f} %, the best of {names[0]}:")
    for name in names:
        own = time_to([point for point in points if point["line"] == name], best)
        told = "never in these steps" if own is None else f"{own:8.1f} s  ({base / max(own, 1e-9):.1f}x)"
        print(f"  {name:<32}{told}")
    print(f"\n{file} and bench_accuracy.png are written")


if __name__ == "__main__":
    run_cleanly(main)
