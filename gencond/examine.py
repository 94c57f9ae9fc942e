"""What a data set holds, found by counting its images and reading a few: before a run, nothing is decoded for it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.files import cache_dir
from gencond.condensing.forecast import Amount
from gencond.condensing.quick_score import num_held_out
from gencond.config import Condense, Data, Recipe
from gencond.data.decode import read_image, stacked, white_of
from gencond.data.find import find_images, holds_encoded
from gencond.data.images import LabeledImages, require_classes, split_off
from gencond.data.load import is_mapped, load_real, size_of
from gencond.data.mapped import FACTS
from gencond.data.named import NAMED_SETS
from gencond.data.overlap import notes_on_overlap, overlap_said
from gencond.data.source import ImageSource
from gencond.data.tables import columns_of

SAMPLE_IMAGES = 512
MOST_COMPARED = 10_000  # test images that are looked for among the training images
HEAD_BYTES = 4096  # of a file that are compared before all of it


@dataclass(frozen=True)
class Patient:
    """The data as a run would see it, of which a few images were read.

    Args:
        sample: images that repeat until each class has one; their classes are made up.
        counts: training images of each class, without those that are held out as the test set or to choose settings.
        num_test: images that are held out, or come apart.
        held_from: images of each class before some are held out, each time.
        overlap: what to say of test images among the training images; raises InputError where they are many.
    """

    sample: LabeledImages
    counts: Int64[Tensor, " classes"]
    num_test: int
    amount: Amount
    held_from: tuple[Int64[Tensor, " classes"], ...] = ()
    overlap: Callable[[], list[str]] = list

    def amount_beside_scores(self, part: Condense) -> Amount:
        """What is condensed of it, where quick scores hold some out as a recipe says.

        Args:
            part: what the recipe says of matching.
        """
        held = num_held_out(part, self.counts)
        left = self.counts - held
        return replace(
            self.amount, num_train=int(left.sum()), largest_class=int(left.max()), num_held_out=int(held.sum())
        )


def examine(recipe: Recipe) -> Patient:
    """Counts the images and reads a few. Raises InputError as `load_real`, but for images that are not read."""
    part = recipe.data
    if part.source in NAMED_SETS or not holds_encoded(part.source):
        started = time.perf_counter()
        train, test = load_real(part.source, part.image_size, part.test_fraction, columns=columns_of(part))
        seconds = time.perf_counter() - started
        if part.judge_on == "validation":
            train, test = split_off(train, part.validation_fraction, "validation", part.source in NAMED_SETS)
        counts, num_test = train.counts, len(test)
        images, names, num_bytes = train.images[:SAMPLE_IMAGES], train.class_names, train.images.numel()
        to_write, mapped, held_from, num_images = 0, False, [], len(train) + num_test
        overlap = partial(notes_on_overlap, train, test, part)
    else:
        source = find_images(part.source, columns_of(part))
        require_classes(source.class_names, part.source)
        side = part.image_size or size_of(source)
        images, seconds_each = _read_some(source, side)
        counts = source.labels[: source.num_train].bincount(minlength=len(source.class_names))
        num_test, held_from = len(source) - source.num_train, []
        for held_out in _fractions(recipe, source.has_test):
            held_from.append(counts)
            num_test = int(counts.sum())
            counts = counts - (counts * held_out).round().long().clamp(1).minimum((counts - 1).clamp(0))
            num_test -= int(counts.sum())
        num_images, names, num_bytes = len(source), source.class_names, len(source) * images[0].nbytes
        mapped = is_mapped(source, side)
        is_there = mapped and (cache_dir() / "images" / source.key(side)).is_dir()
        to_write = 0 if is_there or not mapped else num_bytes + len(source) * FACTS.itemsize
        seconds = 0.0 if is_there else seconds_each * len(source)
        overlap = partial(_same_files, source, part)
    trained_on = min(recipe.features.train_images, int(counts.sum())) * (recipe.features.kind == "online")
    wanted = max(SAMPLE_IMAGES, len(names), trained_on)
    rows = torch.arange(wanted)
    sample = LabeledImages(images[rows % len(images)], rows % len(names), names)
    amount = Amount(num_images, int(counts.sum()), int(counts.max()), num_bytes, mapped, seconds, to_write)
    patient = Patient(sample, counts, num_test, amount, tuple(held_from), overlap)
    return replace(patient, amount=patient.amount_beside_scores(recipe.condense))


def _same_files(source: ImageSource, part: Data) -> list[str]:
    """`notes_on_overlap` from encoded images, before any is decoded: copies are files of the same bytes."""
    test = range(source.num_train, len(source))[: MOST_COMPARED * (part.judge_on == "test")]
    if not test:
        return []
    sizes = [source.num_bytes(row) for row in range(len(source))]
    wanted = {sizes[row] for row in test}
    of_train: dict[tuple[int, bytes], list[int]] = {}
    for row in range(source.num_train):
        if sizes[row] in wanted:
            of_train.setdefault((sizes[row], source.head(row, HEAD_BYTES)), []).append(row)
    shared = []
    for row in test:
        for other in of_train.get((sizes[row], source.head(row, HEAD_BYTES)), ()):
            if source.head(row) == source.head(other):
                shared.append((other, row))
                break
    if not shared:
        return []
    first, second = (
        f"{source.names[row]} of class {source.class_names[int(source.labels[row])]!r}" for row in shared[0]
    )
    return overlap_said(len(shared), len(test), part, first, second)


def _fractions(recipe: Recipe, has_test: bool) -> list[float]:
    """What is held out of each class, one after the other."""
    part = recipe.data
    return [part.test_fraction] * (not has_test) + [part.validation_fraction] * (part.judge_on == "validation")


def _read_some(source: ImageSource, side: int) -> tuple[UInt8[Tensor, "n c h w"], float]:
    """(images from all over a source, seconds for each with all threads). Raises InputError for a broken one."""
    chosen = torch.linspace(0, len(source) - 1, min(len(source), SAMPLE_IMAGES)).long().unique().tolist()
    white = white_of(source)
    started = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(lambda row: read_image(source.open(row), side, white), chosen))
    seconds = (time.perf_counter() - started) / len(chosen)
    broken = [(source.names[row], why) for row, why in zip(chosen, read, strict=True) if isinstance(why, str)]
    if broken:
        raise InputError(
            f"{len(broken)} of {len(chosen)} images that were tried cannot be read, {broken[0][0]} ({broken[0][1]}) "
            "first: repair or remove them"
        )
    return stacked([image for image in read if not isinstance(image, str)]), seconds
