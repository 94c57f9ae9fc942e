"""Equal storage, any number of images: artefacts beside photographs in the same bytes, after as many images seen.

    python scripts/storage_curve.py runs/gan runs/gan@int8 runs/gan@coded --data cifar10.npz --out runs/curve \
        --images-seen 1000000 --codec-bits 0.1 1 --network convnet3 --protocol idc --seeds 3 --published cifar10

A classifier sees the same number of images whatever it is trained on, in batches of the protocol's size and with its
optimiser, schedule and augmentation. Of a generator every image is fresh, where it makes fresh ones; other artefacts, a
file of photographs and the whole training set are seen again and again. `@float16`, `@int8` and `@coded` judge an
artefact as it would be stored. Beside them, for every size among the artefacts and every one asked for with
`--codec-bits`, stand random real photographs in AVIF, in no more bytes, drawn anew for each seed. Coarse qualities hold
more photographs, and which is best depends on bytes and training: of those of `--codec-quality` the one is taken that
teaches best on a fifth of the training images, held out, and its row says so.

The test set is read; `--set data.judge_on=validation` takes a slice of the training set instead, for artefacts that
were condensed without it. Whatever is measured is kept in OUT/scores and not measured again. OUT/storage_curve.png
shows accuracy over bits a class, OUT/first_images.png an image of each class as each of them stores it.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

import gencond
from gencond.cli import run_cleanly
from gencond.common.distributed import new_accelerator
from gencond.common.errors import InputError
from gencond.common.files import require_writable, written_whole
from gencond.common.progress import progress
from gencond.config import Recipe, first_difference, to_dict
from gencond.data.images import LabeledImages
from gencond.data.load import load_data
from gencond.data.overlap import notes_on_overlap
from gencond.data.select import random_subset
from gencond.eval.baselines import CODEC_REAL, WHOLE_SET, CodecFacts, RealImages
from gencond.eval.classifier import FreshImages, RepeatedImages, train_and_test
from gencond.eval.codec import QUALITIES, decode_mosaic, encode_mosaic, encoder_version
from gencond.eval.drawing import write_first_images
from gencond.eval.networks import build_network
from gencond.eval.plots import plot_any_number
from gencond.eval.protocols import check_protocol, get_protocol
from gencond.eval.published import curves_of
from gencond.eval.records import Scores
from gencond.eval.results import EVALUATOR, Answer, Question, Row, scores_of
from gencond.eval.score_cache import ScoreCache
from gencond.eval.subject import judged_artefact, notes_on_origin, recipe_of, require_fit
from gencond.eval.wording import about_codec, kinds, markdown_table, percent, spoken_seeds
from gencond.generator.artefact import Condensed
from gencond.generator.storage import check_storage

PICTURE, IMAGES = "storage_curve.png", "first_images.png"
CODEC_NAME = "real photographs in AVIF"
PICTURED_QUALITIES = (QUALITIES[0], QUALITIES[-1])
Top1 = Callable[..., list[float]]  # `train_and_test`, but for images, judges, seeds and on_share


@dataclass(frozen=True)
class Images:
    """What a row is trained on, once it is drawn.

    Args:
        train: for as many images as every other row.
        num_bytes: that store them.
        ipc: images of each class that are stored; empty where any number can be made.
        codec: of photographs, see `wording.about_codec`.
    """

    train: FreshImages | RepeatedImages
    num_bytes: int
    ipc: str
    codec: CodecFacts | None = None


@dataclass(frozen=True)
class PlannedRow:
    """A row before it is measured.

    Args:
        name: in the table.
        question: what it asks of all seeds.
        draw: -> None where not one image of each class fits; called only where a score is missing.
        num_bytes: that store it, where its score may be that of the same images in another storage.
    """

    name: str
    question: Question
    draw: Callable[[], Images | None]
    num_bytes: int | None = None

    @property
    def of_seeds(self) -> list[Question]:
        """What it asks of each seed."""
        return [replace(self.question, seed=seed) for seed in self.question.seeds]


@dataclass(frozen=True)
class MeasuredRow:
    """A row of the table.

    Args:
        name: for people.
        stored: images of each class that are stored, in words; empty where any number can be made.
    """

    name: str
    stored: str
    row: Row


def parse_run(text: str) -> tuple[str, str | None]:
    """(path, storage to round to) of `RUN@storage`; a folder may have an @ in its name. Raises InputError."""
    path, at, storage = text.rpartition("@")
    if not at or Path(text).exists():
        return text, None
    check_storage(storage)
    return path, storage


def open_runs(args: argparse.Namespace) -> tuple[list[tuple[str, Condensed]], Recipe]:
    """(path and artefact of each row, a recipe whose data part is that of all). Raises InputError where they differ."""
    asked = [parse_run(text) for text in dict.fromkeys(args.runs)]
    loaded = {path: gencond.load(path) for path, _ in asked}
    recipes = [  # a recipe may leave the side to the data, and the artefact knows what it came to
        recipe_of(path, condensed, args.data, [f"data.image_size={condensed.image_size}", *args.set])
        for path, condensed in loaded.items()
    ]
    for path, other in zip(loaded, recipes, strict=True):
        if difference := first_difference(to_dict(recipes[0])["data"], to_dict(other)["data"]):
            raise InputError(f"{asked[0][0]} and {path} differ in data.{difference}: set it for all with --set")
    rounded = [(path, loaded[path].stored_as(storage) if storage else loaded[path]) for path, storage in asked]
    rows = {(path, one.config.storage): one for path, one in rounded}  # each once, however its storage was named
    return [(path, one) for (path, _), one in rows.items()], recipes[0]


def check_numbers(args: argparse.Namespace) -> None:
    """Raises InputError for what is wrong before anything is read."""
    if args.seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {args.seeds}")
    if wrong := [bits for bits in args.codec_bits if not bits > 0]:
        raise InputError(f"--codec-bits are megabits a class, above 0, not {wrong[0]}")
    if wrong := [quality for quality in args.codec_quality if not 0 <= quality <= 100]:
        raise InputError(f"--codec-quality is 0 to 100, not {wrong[0]}")
    check_protocol(args.protocol, from_labels=True)
    if ":" in args.protocol:
        raise InputError(f"protocol {args.protocol}: --images-seen says how long is trained, leave the epochs out")


def rows_planned(
    runs: Sequence[tuple[str, Condensed]],
    real: RealImages,
    top1: Top1,
    ask: Callable[..., Question],
    args: argparse.Namespace,
) -> list[PlannedRow]:
    """The rows: artefacts, photographs from few bytes to many, the whole set.

    Args:
        top1: trains the classifiers and tests them.
        ask: what every row asks, but for its images.
    """
    train, seeds = real.train, range(args.seeds)
    batch_size, num_steps = ask(images=WHOLE_SET).budget

    def of_artefact(condensed: Condensed) -> Images:
        subject, most = judged_artefact(condensed.to(real.device)), condensed.largest_ipc
        if subject.stream is not None:
            return Images(subject.stream(batch_size, num_steps), condensed.num_bytes, "")
        stored = subject.sample(most)
        ipc = str(most * condensed.images_per_slot)
        return Images(RepeatedImages(lambda seed: stored, batch_size, num_steps), subject.num_bytes(most), ipc)

    def of_whole() -> Images:
        counts = sorted({int(train.counts.min()), int(train.counts.max())})
        sets, used = real.draw(WHOLE_SET, None, seeds)
        return Images(RepeatedImages(sets.__getitem__, batch_size, num_steps), used, " to ".join(map(str, counts)))

    def of_codec(num_bytes: int) -> Images | None:
        def score(images: LabeledImages, held_out: LabeledImages) -> float:
            return top1(RepeatedImages(lambda seed: images, batch_size, num_steps), held_out, seeds=[0])[0]

        found = real.photographs(num_bytes, seeds, score, args.codec_quality)
        if found is None:
            return None
        ipc = str(int(found.sets[0].counts.min()))
        sets = RepeatedImages(found.sets.__getitem__, batch_size, num_steps)
        return Images(sets, found.num_bytes, ipc, found.facts)

    ours = [
        PlannedRow(
            f"{path}, {one.config.storage}",
            ask(images=path, condensed=one.fingerprint),
            partial(of_artefact, one),
            one.num_bytes,
        )
        for path, one in runs
    ]
    sizes = {line.num_bytes for line in ours}
    sizes |= {int(1e6 * bits * train.num_classes / 8) for bits in args.codec_bits}
    of_codec_at = partial(
        ask, images=CODEC_REAL, qualities=tuple(args.codec_quality), encoder=encoder_version()
    )  # fmt: skip
    rivals = [PlannedRow(CODEC_NAME, of_codec_at(num_bytes=size), partial(of_codec, size)) for size in sorted(sizes)]
    return [*ours, *rivals, PlannedRow("whole training set", ask(images=WHOLE_SET), of_whole)]


def measure(
    planned: Sequence[PlannedRow], device: torch.device, top1: Top1, test: LabeledImages, cache: ScoreCache
) -> tuple[list[MeasuredRow], list[str]]:
    """(rows, notes: what was left out, and how photographs are stored). Scores that were kept are not measured."""
    batch_size, num_steps = planned[0].question.budget
    seen = batch_size * num_steps
    missing = {one.key for line in planned for one in line.of_seeds if cache.get(one) is None}
    total = seen * len(missing)
    bar = progress(description="training", total=total, unit="image", unit_scale=True, disable=not total)

    def advance(begun: int, work: int, share: float) -> None:
        bar.update(int(begun + share * work) - bar.n)

    measured: list[MeasuredRow] = []
    notes: list[str] = []
    for line in planned:
        waiting = [one for one in line.of_seeds if cache.get(one) is None]
        if waiting:
            bar.set_postfix_str(line.name)
            images = line.draw()
            if images is None:
                size = line.question.num_bytes
                notes.append(f"{line.name}: no row in {size:,} bytes, not one image of each class fits")
                bar.total -= seen * len(waiting)
                continue
            # Side by side a GPU takes little longer for all; elsewhere a kill shall cost one training.
            for together in [waiting] if device.type != "cpu" else [[one] for one in waiting]:
                seeds = [one.seed for one in together]
                bar.set_postfix_str(f"{line.name}, seed {', '.join(map(str, seeds))}")
                scores = top1(images.train, test, seeds=seeds, on_share=partial(advance, bar.n, seen * len(together)))
                for one, share in zip(together, scores, strict=True):
                    answer = Answer(
                        top1=Scores.of([share]), num_bytes=images.num_bytes, num_images=seen, codec=images.codec,
                        stored=images.ipc,
                    )  # fmt: skip
                    cache.put(one, answer, line.name)
        answers = [cache.get(one) for one in line.of_seeds]
        first = answers[0]
        whole = replace(first, top1=scores_of(answers), num_bytes=line.num_bytes or first.num_bytes)
        row = line.question.row(whole, test.num_classes)
        if first.codec:
            notes.append(f"{line.name}, {row.num_bytes:,} bytes: {about_codec(first.codec)}")
        measured.append(MeasuredRow(line.name, first.stored, row))
        print(f"{line.name}, {row.num_bytes:,} bytes: {percent(row.top1)}", flush=True)
    bar.close()
    return sorted(measured, key=lambda one: one.row.bits_per_class), notes


def first_images(runs: Sequence[tuple[str, Condensed]], train: LabeledImages) -> dict:
    """A photograph of each class, the same in the codec, and the first image of each class in every artefact."""
    real = random_subset(train, 1, seed=0).images
    as_stored = {
        f"AVIF\nquality {quality}": decode_mosaic(encode_mosaic(real, quality), tuple(real.shape))
        for quality in PICTURED_QUALITIES
    }
    rows = {name: images.float() / 255 for name, images in {"real": real, **as_stored}.items()}
    for path, one in runs:
        rows[f"{Path(path).name}\n{one.config.storage}"] = one.sample(1)[0][:: one.images_per_slot].cpu()
    return rows


def table(measured: Sequence[MeasuredRow]) -> str:
    """In Markdown, from few bits to many."""
    lines = [[one.name, one.stored or "any", _bits(one.row.bits_per_class), percent(one.row.top1)] for one in measured]
    return markdown_table(["trained on", "stored images a class", "bits a class", "top-1"], lines)


def _bits(count: float) -> str:
    """Three digits, in the unit that people would say."""
    number, unit = (count / 1e6, "Mbit") if count >= 1e6 else (count / 1e3, "kbit")
    return f"{number:,.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN[@STORAGE]", help="run folder, artefact folder or Hub id")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images-seen", type=int, required=True, help="by every classifier, cut to whole batches")
    parser.add_argument("--network", default="convnet3")
    parser.add_argument("--protocol", default="idc")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--codec-bits", type=float, nargs="+", default=[], metavar="MBIT", help="a class, more AVIF rows"
    )
    parser.add_argument(
        "--codec-quality",
        type=int,
        nargs="+",
        default=list(QUALITIES),
        metavar="Q",
        help="of AVIF, 0 to 100; of several the best on held-out training images (default: %(default)s)",
    )
    parser.add_argument("--published", help="published figures to draw: cifar10")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all artefacts' recipes")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    check_numbers(args)
    runs, recipe = open_runs(args)
    train, test = load_data(recipe.data)
    for path, condensed in runs:
        require_fit(condensed, train, path)
    build_network(args.network, train.channels, train.num_classes, train.image_size, seed=0)
    shape = train.channels, train.image_size
    published = curves_of(args.published, train.num_classes, shape) if args.published else {}
    protocol = get_protocol(args.protocol, train.num_classes, train.image_size)
    batch_size, num_steps = protocol.batch_size, args.images_seen // protocol.batch_size
    if num_steps < 1:
        raise InputError(
            f"--images-seen {args.images_seen} is less than a batch of {protocol.name}: {batch_size} images"
        )
    require_writable(args.out)
    notes = notes_on_overlap(train, test, recipe.data)
    made = {path: condensed.config.provenance or {} for path, condensed in runs}
    notes += [f"{path}: {note}" for path, about in made.items() for note in notes_on_origin(about, train)]

    real = RealImages(train, args.network, recipe.data.augmentation, new_accelerator().device)
    top1 = partial(
        train_and_test,
        network=args.network,
        protocol=protocol,
        augmentation=real.augmentation,
        normalisation=train.mean_std,
        device=real.device,
    )
    ask = partial(
        Question, ipc=None, network=args.network, protocol=protocol, augmentation=real.augmentation,
        seeds=tuple(range(args.seeds)), train=train.fingerprint, test=test.fingerprint,
        budget=(batch_size, num_steps), evaluator=EVALUATOR,
    )  # fmt: skip
    planned = rows_planned(runs, real, top1, ask, args)
    measured, notes_on_rows = measure(planned, real.device, top1, test, ScoreCache(folder=args.out / "scores"))
    rows = [one.row for one in measured]
    print(
        f"\nEqual storage, any number of images. Top-1 % of {args.network} on {len(test):,} real images of the "
        f"{recipe.data.judge_on} set, {spoken_seeds(args.seeds)}; each row after {batch_size * num_steps:,} "
        f"images seen, in {num_steps:,} batches of {batch_size} under protocol {protocol.name}\n"
    )
    print(table(measured))
    for note in [*notes, *notes_on_rows]:
        print(f"\nNote: {note}")
    names = kinds(rows) | {CODEC_REAL: CODEC_NAME}
    with written_whole(args.out / PICTURE) as temporary:
        temporary.write_bytes(plot_any_number(rows, names, published)[0])
    write_first_images(args.out / IMAGES, first_images(runs, train))
    print(f"\n{args.out / PICTURE} and {IMAGES} show them")


if __name__ == "__main__":
    run_cleanly(main)
