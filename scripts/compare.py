"""Recipes side by side on one data set, with random and k-means real images, under one or more protocols.

    python scripts/compare.py dm:fashion_mnist:quick m3d:fashion_mnist:quick gencond:quick random_real kmeans_real \
        --data DIR --out runs/compare --ipc 1 10 --protocols dm:200 idc:100 --network convnet3w64 --seeds 3

A seed is a whole run: condensing and the classifier both start from it; random real images are drawn anew, and so are
k-means centers. Pixels are condensed for each IPC, a generator once for all. Every accuracy is that of the last iterate
on the test set (`--set data.judge_on=validation` takes a slice of the training set instead).

Whatever is measured is kept in OUT/scores and not measured again; several of these can share an OUT. At the end
OUT/first_images.png shows one image of each class and recipe.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

import gencond
from gencond.cli import run_cleanly
from gencond.condense import condense
from gencond.config import load_recipe
from gencond.data import LabeledImages, random_subset
from gencond.eval.baselines import KMEANS_REAL, RANDOM_REAL, WHOLE_SET, draw_baseline
from gencond.eval.classifier import train_and_test
from gencond.eval.protocols import get_protocol
from gencond.files import short_hash, write_json
from gencond.judge import data_source, load_data
from gencond.ranges import to_uint8

BASELINES = (RANDOM_REAL, KMEANS_REAL, WHOLE_SET)


def training_set(
    row: str, ipc: int, seed: int, args: argparse.Namespace
) -> tuple[LabeledImages, LabeledImages, LabeledImages, str]:
    """(what to train on, all real training images, test images, augmentation)."""
    source = data_source(args.data)
    if row in BASELINES:
        recipe = load_recipe("cached", args.set, source)
        train, test = load_data(recipe)
        return draw_baseline(row, train, ipc, seed), train, test, recipe.data.augmentation
    recipe = load_recipe(row, [f"seed={seed}", *args.set], source)
    is_pixels = recipe.synthesizer.kind == "pixels"
    if is_pixels:
        recipe = load_recipe(row, [f"seed={seed}", f"pixels.ipc={ipc}", *args.set], source)
    train, test = load_data(recipe)
    condensed = condense(recipe, train, args.out / _folder(row, ipc if is_pixels else None, seed), args.pretrained)
    images, labels = condensed.sample(ipc)
    return LabeledImages(to_uint8(images), labels, train.class_names), train, test, recipe.data.augmentation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="ROW", help=f"a recipe, or one of {', '.join(BASELINES)}")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--protocols", nargs="+", default=["quick"])
    parser.add_argument("--network", default="convnet3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrained", type=Path, help="a pretrained generator for the recipes that have one")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all recipes")
    args = parser.parse_args()
    cells: dict[tuple[str, int, str], list[float]] = {}
    for seed in range(args.seeds):
        for row in args.rows:
            for ipc in args.ipc:
                missing = [p for p in args.protocols if _file(args, row, ipc, p, seed).is_file() is False]
                if missing:
                    images, train, test, augmentation = training_set(row, ipc, seed, args)
                for protocol in args.protocols:
                    file = _file(args, row, ipc, protocol, seed)
                    if protocol in missing:
                        top1 = train_and_test(
                            images,
                            test,
                            network=args.network,
                            protocol=get_protocol(protocol),
                            augmentation=augmentation,
                            normalisation=train.mean_std,
                            seed=seed,
                            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
                        )
                        file.parent.mkdir(parents=True, exist_ok=True)
                        write_json(file, {"top1": top1, "images": len(images)})
                    top1 = json.loads(file.read_text())["top1"]
                    cells.setdefault((row, ipc, protocol), []).append(top1)
                    print(f"seed {seed}  {row}  IPC {ipc}  {protocol}: {100 * top1:.2f}", flush=True)
    print(f"\n{args.network}, {args.seeds} seeds, top-1 %, mean ± std\n")
    columns = [(protocol, ipc) for protocol in args.protocols for ipc in args.ipc]
    print("| trained on | " + " | ".join(f"{protocol}, IPC {ipc}" for protocol, ipc in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for row in args.rows:
        values = [cells[row, ipc, protocol] for protocol, ipc in columns]
        print(f"| {row} | " + " | ".join(_cell(value) for value in values) + " |")
    draw_first_images(args)
    print(f"\n{args.out}/first_images.png shows them")


def _folder(row: str, ipc: int | None, seed: int) -> str:
    """Of a run; a generator's serves every IPC."""
    return f"{row.replace(':', '-').replace('/', '-')}-{f'ipc{ipc}-' if ipc else ''}{seed}"


def draw_first_images(args: argparse.Namespace) -> None:
    """OUT/first_images.png: a real image of each class, and below it the first one that each recipe made of it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    train, _ = load_data(load_recipe("cached", args.set, data_source(args.data)))
    rows = {"real": random_subset(train, 1, seed=0).images.float() / 255}
    for row in args.rows:
        folders = [args.out / _folder(row, ipc, 0) for ipc in (None, max(args.ipc))]
        for folder in (folder for folder in folders if folder.is_dir()):
            condensed = gencond.load(folder)
            rows[row] = condensed.sample(1)[0][:: condensed.images_per_slot]
    columns = min(train.num_classes, 10)
    figure, panels = plt.subplots(len(rows), columns, figsize=(columns + 1.6, len(rows)), squeeze=False, layout="tight")
    for line, (name, images) in zip(panels, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name.replace(":", "\n"), rotation=0, ha="right", va="center")
    figure.savefig(args.out / "first_images.png", dpi=80)
    plt.close(figure)


def _file(args: argparse.Namespace, row: str, ipc: int, protocol: str, seed: int) -> Path:
    """Where one accuracy is kept."""
    key = short_hash(row, ipc, protocol, seed, args.network, args.data, list(args.set), str(args.pretrained))
    return args.out / "scores" / f"{key}.json"


def _cell(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


if __name__ == "__main__":
    run_cleanly(main)
