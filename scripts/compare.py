"""Recipes side by side on one data set, with random and k-means real images, under one or more protocols.

    python scripts/compare.py dm:fashion_mnist:quick m3d:fashion_mnist:quick random_real kmeans_real \
        --data DIR --out runs/compare --ipc 1 10 --protocols dm:100 idc:30 --network convnet3w64 --seeds 3

A seed is a whole run: condensing and the classifier both start from it; random real images are drawn anew, and so are
k-means centers, among all images or known ones. Pixels are condensed for each IPC, a generator once for all. Every
accuracy is that of the last iterate on the test set (`--set data.judge_on=validation` takes a slice of the training set
instead). All rows have the same split and augmentation. Packed real images are several in one as the recipes beside
them cut theirs, four where none is.

Whatever is measured is kept in OUT/scores, with all that it depends on, and not measured again; several of these can
share an OUT. At the end OUT/first_images.png shows one image of each class and recipe.
"""

import argparse
import itertools
from functools import partial
from pathlib import Path

import gencond
from gencond.cli import run_cleanly
from gencond.common.distributed import new_accelerator
from gencond.common.errors import InputError
from gencond.common.files import file_hash, require_writable, short_hash
from gencond.condensing.checks import check_fit
from gencond.condensing.run import condense
from gencond.config import Recipe, first_difference, load_recipe, to_dict
from gencond.data.images import LabeledImages
from gencond.data.load import data_source, load_data
from gencond.data.select import random_subset
from gencond.eval.baselines import KMEANS_KNOWN, KMEANS_REAL, PACKED, RANDOM_REAL, RealImages
from gencond.eval.classifier import train_and_test
from gencond.eval.drawing import write_first_images
from gencond.eval.networks import build_network
from gencond.eval.protocols import check_protocol, get_protocol
from gencond.eval.records import Scores
from gencond.eval.results import Answer, Question, evaluator_of, scores_of
from gencond.eval.score_cache import ScoreCache
from gencond.eval.subject import sampled_images
from gencond.eval.wording import markdown_table, percent, spoken_seeds

BASELINES = (RANDOM_REAL, KMEANS_REAL, KMEANS_KNOWN, *PACKED)
USUAL_FACTOR = 2  # of packed images beside no recipe that cuts its own


def recipe_of(row: str, ipc: int, seed: int, args: argparse.Namespace) -> Recipe:
    """Of one run; a bank of pixels is made for its IPC."""
    changes, source = [f"seed={seed}", *args.set], data_source(args.data)
    recipe = load_recipe(row, changes, source)
    return load_recipe(row, [*changes, f"pixels.ipc={ipc}"], source) if recipe.synthesizer.kind == "pixels" else recipe


def run_of(row: str, recipe: Recipe, args: argparse.Namespace) -> tuple[Path, Path | None]:
    """(folder of a run, named by what makes it; the pretrained generator that it starts from)."""
    values = to_dict(recipe)
    values.pop("evaluate")
    pretrained = args.pretrained if recipe.synthesizer.kind == "generator" else None
    weights = None if pretrained is None else [file_hash(file) for file in sorted(pretrained.glob("*.safetensors"))]
    name = row.replace(":", "-").replace("/", "-")
    return args.out / f"{name}-{recipe.seed}-{short_hash(values, weights)[:8]}", pretrained


def drawn_images(real: RealImages, row: str, ipc: int, seed: int) -> LabeledImages:
    """A baseline's training set."""
    (images,), _ = real.draw(row, ipc, [seed])
    return images


def factor_of(args: argparse.Namespace) -> int:
    """By which packed real images are cut: as the recipes beside them. Raises InputError where these differ."""
    recipes = [recipe_of(row, max(args.ipc), 0, args) for row in args.rows if row not in BASELINES]
    factors = sorted({recipe.synthesizer.factor for recipe in recipes} - {1})
    if len(factors) > 1 and set(PACKED) & set(args.rows):
        raise InputError(
            f"recipes cut by factors {factors[0]} and {factors[1]}: packed real images go with one of them"
        )
    return factors[0] if factors else USUAL_FACTOR


def common_data(args: argparse.Namespace) -> Recipe:
    """A recipe whose data part is that of every row. Raises InputError where rows differ."""
    recipes = [recipe_of(row, max(args.ipc), 0, args) for row in args.rows if row not in BASELINES]
    first = recipes[0] if recipes else load_recipe("cached", args.set, data_source(args.data))
    for other in recipes[1:]:
        if difference := first_difference(to_dict(first)["data"], to_dict(other)["data"]):
            raise InputError(f"{first.name} and {other.name} differ in data.{difference}: set it for all with --set")
    return first


def checked_data(args: argparse.Namespace) -> tuple[Recipe, LabeledImages, LabeledImages]:
    """(a recipe whose data part is that of every row, training images, test images).

    Raises:
        InputError: whatever would end the comparison later: rows that differ in their data, a recipe that does not fit
            the images at one of the IPC, an unknown protocol or network.
    """
    for name in args.protocols:
        check_protocol(name, from_labels=True)
    shared = common_data(args)
    factor_of(args)
    train, test = load_data(shared.data)
    build_network(args.network, train.channels, train.num_classes, train.image_size, seed=0)
    for row, ipc in itertools.product(args.rows, args.ipc):
        if row not in BASELINES:
            check_fit(recipe_of(row, ipc, 0, args), train)
    return shared, train, test


def draw_first_images(real: LabeledImages, args: argparse.Namespace) -> None:
    """OUT/first_images.png: a real image of each class, and below it the first one that each recipe made of it."""
    rows = {"real": random_subset(real, 1, seed=0).images.float() / 255}
    for row in args.rows:
        if row not in BASELINES:
            condensed = gencond.load(run_of(row, recipe_of(row, max(args.ipc), 0, args), args)[0])
            rows[row] = condensed.sample(1)[0][:: condensed.images_per_slot]
    write_first_images(
        args.out / "first_images.png", {name.replace(":", "\n"): images for name, images in rows.items()}
    )


def build_parser() -> argparse.ArgumentParser:
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
    return parser


def main() -> None:
    args = build_parser().parse_args()
    require_writable(args.out)
    shared, train, test = checked_data(args)
    protocols = [get_protocol(name, train.num_classes, train.image_size) for name in args.protocols]
    device = new_accelerator().device
    real = RealImages(train, args.network, shared.data.augmentation, device, factor_of(args))
    cache = ScoreCache(folder=args.out / "scores")

    cells: dict[tuple[str, int, str], list[Answer]] = {}
    for seed, row, ipc in itertools.product(range(args.seeds), args.rows, args.ipc):
        if row in BASELINES:
            made, key, make = row, None, partial(drawn_images, real, row, ipc, seed)
        else:
            recipe = recipe_of(row, ipc, seed, args)
            folder, pretrained = run_of(row, recipe, args)
            condensed = condense(recipe, train, folder, pretrained)
            made, key, make = folder.name, condensed.fingerprint, partial(sampled_images, condensed, ipc)
        images: LabeledImages | None = None  # made only where a score is missing
        for protocol in protocols:
            question = Question(
                images=made, ipc=ipc, network=args.network, protocol=protocol, augmentation=real.augmentation,
                seeds=(seed,), seed=seed, train=train.fingerprint, test=test.fingerprint, condensed=key,
                factor=real.factor, evaluator=evaluator_of(made),
            )  # fmt: skip
            answer, again = cache.get(question), ""
            if answer is None:
                if cache.has_file(question):
                    again = ", measured again: what was kept is another evaluator's, or of what was condensed before"
                images = images or make()
                scores = train_and_test(
                    [images],
                    test,
                    network=args.network,
                    protocol=protocol,
                    augmentation=shared.data.augmentation,
                    normalisation=train.mean_std,
                    seeds=[seed],
                    device=device,
                )
                answer = Answer(top1=Scores.of(scores))
                cache.put(question, answer, row)
            cells.setdefault((row, ipc, protocol.name), []).append(answer)
            print(f"seed {seed}  {row}  IPC {ipc}  {protocol.name}: {100 * answer.top1.mean:.2f}{again}", flush=True)
    print(f"\n{args.network}, top-1 %, {spoken_seeds(args.seeds)}\n")
    columns = [(protocol, ipc) for protocol in args.protocols for ipc in args.ipc]
    header = ["trained on", *(f"{protocol}, IPC {ipc}" for protocol, ipc in columns)]
    lines = [[row, *(percent(scores_of(cells[row, ipc, protocol])) for protocol, ipc in columns)] for row in args.rows]
    print(markdown_table(header, lines))
    draw_first_images(train, args)
    print(f"\n{args.out}/first_images.png shows them")


if __name__ == "__main__":
    run_cleanly(main)
