"""Images that are both trained on and judged with."""

import itertools

from gencond.common.errors import InputError
from gencond.config import Data
from gencond.data.find import find_images, holds_encoded
from gencond.data.images import LabeledImages, rows_seen
from gencond.data.named import NAMED_SETS
from gencond.data.tables import columns_of

SHARED_IMAGES_BORNE = 0.01  # of a test set; public sets hold a few duplicates


def notes_on_overlap(train: LabeledImages, test: LabeledImages, part: Data) -> list[str]:
    """What to say of images that are judged with and condensed from. Raises InputError where they are many."""
    shared = rows_seen(train, test).tolist()
    if not shared:
        return []
    digest = next(itertools.islice(test.digests(), shared[0], None))
    rows = next(row for row, one in enumerate(train.digests()) if one == digest), shared[0]
    files = _files_of(part, len(train), len(test))
    first, second = (
        f"{files[number][row] if files else f'number {row}'} of class {images.class_names[int(images.labels[row])]!r}"
        for number, (images, row) in enumerate(zip((train, test), rows, strict=True))
    )
    return overlap_said(len(shared), len(test), part, first, second)


def overlap_said(num_shared: int, num_test: int, part: Data, first: str, second: str) -> list[str]:
    """`notes_on_overlap`, once it is known that training image `first` is also test image `second`."""
    said = (
        f"{num_shared} of {num_test} {part.judge_on} images of {part.source} are training images too, first {second}, "
        f"which is training image {first}"
    )
    if num_shared > SHARED_IMAGES_BORNE * num_test:
        raise InputError(f"{said}: remove them from the {part.judge_on} set")
    return [said]


def _files_of(part: Data, num_train: int, num_test: int) -> tuple[list[str], list[str]] | None:
    """Names of the training and the test images, where the source has both as files."""
    if part.judge_on != "test" or part.source in NAMED_SETS or not holds_encoded(part.source):
        return None
    found = find_images(part.source, columns_of(part))
    if (found.num_train, len(found)) != (num_train, num_train + num_test):
        return None
    return found.names[:num_train], found.names[num_train:]
