"""What is judged: a condensed set as the evaluator sees it, an artefact or anybody's images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.files import short_hash
from gencond.common.ranges import to_uint8
from gencond.config import Recipe, parse_recipe, read_recipe_file
from gencond.data.foreign import ForeignSet, side_of
from gencond.data.images import LabeledImages
from gencond.data.load import data_source
from gencond.eval.classifier import FreshImages
from gencond.eval.scoring import GENCOND
from gencond.generator.artefact import Condensed

OWN_RECIPES = ("demo", "flagship", "gencond")  # rows of others carry their recipe's name


def sampled_images(condensed: Condensed, ipc: int) -> LabeledImages:
    """`condensed.sample(ipc)` as a labelled set of 8-bit images, as real ones are."""
    images, labels = condensed.sample(ipc)
    return LabeledImages(to_uint8(images).cpu(), labels.cpu(), tuple(condensed.class_names))


def fresh_images(condensed: Condensed, batch_size: int, num_steps: int) -> FreshImages:
    """Of `condensed.stream`: every seed sees batches of its own."""
    stream = condensed.stream(-(-batch_size // condensed.images_per_slot) * condensed.images_per_slot)

    def batch(seed: int, number: int) -> tuple[Tensor, Tensor]:
        images, labels = stream.batch(seed * 2**24 + number)
        # In 8 bits, as an exported image is. A slot's last images may be left.
        return to_uint8(images[:batch_size]), labels[:batch_size].to(images.device)

    return FreshImages(batch, batch_size, num_steps)


@dataclass(frozen=True)
class JudgedSet:
    """A condensed set as the evaluator sees it, an artefact or anybody's images.

    Args:
        sample: ipc -> images of every class, class-major, fixed.
        stream: (batch size, steps) -> fresh images; None: there are none.
        num_bytes: ipc -> what must be stored of it.
        largest_ipc: above it there is nothing; None: no limit.
        factor: each stored image is cut into factor x factor.
        key: identifies it and how it is stored.
        about: for the report: stored, num_slots, images_per_slot, bytes, and whatever is known of how it was made.
    """

    sample: Callable[[int], LabeledImages]
    stream: Callable[[int, int], FreshImages] | None
    num_bytes: Callable[[int], int]
    largest_ipc: int | None
    factor: int
    key: str
    about: dict[str, Any]


def judged_artefact(condensed: Condensed) -> JudgedSet:
    """Of what gencond made."""
    about = dict(condensed.config.provenance or {}) | {
        "stored": condensed.stored,
        "num_slots": condensed.num_slots,
        "images_per_slot": condensed.images_per_slot,
        "bytes": condensed.num_bytes,
        "storage": condensed.config.storage,
    }
    return JudgedSet(
        partial(sampled_images, condensed),
        None if condensed.largest_ipc else partial(fresh_images, condensed),
        condensed.bytes_of,
        condensed.largest_ipc,
        condensed.config.factor,
        short_hash(condensed.fingerprint, condensed.config.storage),
        about,
    )


def judged_foreign(found: ForeignSet) -> JudgedSet:
    """Of what others made."""
    about = {
        "stored": found.stored,
        "num_slots": found.ipc,
        "images_per_slot": found.factor**2,
        "bytes": found.num_bytes(found.ipc),
    }
    key = short_hash(found.images.fingerprint, found.factor, found.stored)
    return JudgedSet(found.sample, None, found.num_bytes, found.ipc, found.factor, key, about)


def row_name(path: str, recipe: Recipe, condensed: Condensed | None) -> str:
    """Of the set's rows: gencond's own, another method's recipe, or the file."""
    if condensed is None:
        return f"theirs: {Path(path).name}"
    return GENCOND if recipe.name.partition(":")[0] in OWN_RECIPES else recipe.name


def recipe_of(path: str, condensed: Condensed | None, data: str | None, changes: Sequence[str] = ()) -> Recipe:
    """What a condensed set is judged by: its name, its data and how it is evaluated.

    The other parts are left alone, so that what an older version made can still be judged.

    Args:
        changes: to the recipe, as `part.field=value`.
    """
    of_artefact = condensed and (condensed.config.provenance or {}).get("recipe")
    if (recipe_file := Path(path) / "recipe.yaml").is_file():
        made = read_recipe_file(recipe_file)
    elif of_artefact:
        made = of_artefact
    elif data is None:
        raise InputError(f"{path} does not say what it was made from: name its real images with --data")
    else:
        made = {"data": {"image_size": condensed.image_size if condensed else side_of(Path(path))}}
    parts = {"name": path} | {part: made[part] for part in ("name", "data", "evaluate") if part in made}
    return parse_recipe(parts, path, changes, data_source(data))


def require_fit(condensed: Condensed, train: LabeledImages, name: str = "the artefact") -> None:
    """Raises InputError where an artefact, called `name`, and real images are not of the same classes and size."""
    if condensed.class_names != list(train.class_names):
        raise InputError(
            f"{name} has {condensed.num_classes} classes ({condensed.class_names[0]}, ...), the real images "
            f"{train.num_classes} ({train.class_names[0]}, ...): name the set it was made from with --data"
        )
    ours, theirs = (condensed.channels, condensed.image_size), (train.channels, train.image_size)
    if ours != theirs:
        raise InputError(f"{name} makes {ours[0]}x{ours[1]} px images, the real ones are {theirs[0]}x{theirs[1]}")
