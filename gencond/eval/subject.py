"""What is judged: a condensed set as the evaluator sees it, an artefact or anybody's images."""

import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gencond
from gencond.common.errors import InputError
from gencond.common.files import read_json, short_hash
from gencond.common.provenance import current_commit, library_versions
from gencond.common.ranges import to_uint8
from gencond.common.room import require_place, require_text
from gencond.config import Recipe, column_overrides, parse_recipe, read_recipe_file
from gencond.data.foreign import ForeignSet, is_foreign, read_foreign, side_of
from gencond.data.images import LabeledImages, rows_seen
from gencond.data.load import data_source, load_data
from gencond.data.overlap import notes_on_overlap
from gencond.data.tables import name_of_source
from gencond.eval.classifier import FreshImages
from gencond.eval.results import GENCOND, Evaluation
from gencond.generator.artefact import Condensed

logger = logging.getLogger(__name__)

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
class Subject:
    """A condensed set as the evaluator sees it, an artefact or anybody's images.

    Args:
        sample: ipc -> images of every class, class-major, fixed.
        stream: (batch size, steps) -> fresh images; None: there are none.
        num_bytes: ipc -> what must be stored of it.
        largest_ipc: above it there is nothing; None: no limit.
        factor: each stored image is cut into factor x factor.
        key: identifies it and how it is stored.
        about: for the report: stored, num_slots, images_per_slot, bytes, and whatever is known of how it was made.
        name: of its rows: GENCOND, another method's recipe, or the file.
    """

    sample: Callable[[int], LabeledImages]
    stream: Callable[[int, int], FreshImages] | None
    num_bytes: Callable[[int], int]
    largest_ipc: int | None
    factor: int
    key: str
    about: dict[str, Any]
    name: str = GENCOND


def judged_artefact(condensed: Condensed, name: str = GENCOND) -> Subject:
    """What gencond made, as a subject whose rows are called `name`."""
    about = dict(condensed.config.provenance or {}) | {
        "stored": condensed.stored,
        "num_slots": condensed.num_slots,
        "images_per_slot": condensed.images_per_slot,
        "bytes": condensed.num_bytes,
        "storage": condensed.config.storage,
    }
    return Subject(
        partial(sampled_images, condensed),
        None if condensed.largest_ipc else partial(fresh_images, condensed),
        condensed.bytes_of,
        condensed.largest_ipc,
        condensed.config.factor,
        short_hash(condensed.fingerprint, condensed.config.storage),
        about,
        name,
    )


def judged_foreign(found: ForeignSet, name: str) -> Subject:
    """What others made, as a subject whose rows are called `name`."""
    about = {
        "stored": found.stored,
        "num_slots": found.ipc,
        "images_per_slot": found.factor**2,
        "bytes": found.num_bytes(found.ipc),
    }
    key = short_hash(found.images.fingerprint, found.factor, found.stored)
    return Subject(found.sample, None, found.num_bytes, found.ipc, found.factor, key, about, name)


def name_of_rows(recipe: Recipe) -> str:
    """What an artefact's rows are called: GENCOND, or the recipe where that is another's method."""
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


# --- a condensed set and the real images ---------------------------------------------------------------------------


@dataclass(frozen=True)
class SubjectAt:
    """Where a condensed set lies and how it is read.

    Args:
        path: run folder, artefact folder or Hub id; or anybody's images, see `foreign.read_foreign`.
        data: the real images, where they are not those the recipe names or have moved.
        normalised_by, factor: of anybody's images, see `foreign.read_foreign`.
        image_column, label_column: of the real images, where they are read from tables; None: as the recipe says.
    Raises:
        InputError: a mean and a standard deviation that no images were normalised with.
    """

    path: str
    data: str | None = None
    normalised_by: tuple[Sequence[float], Sequence[float]] | None = None
    factor: int = 1
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        given = self.normalised_by
        if given is not None and not (
            all(math.isfinite(mean) for mean in given[0]) and all(0 < std < math.inf for std in given[1])
        ):
            raise InputError(
                f"--normalised-by {' '.join(','.join(map(str, one)) for one in given)}: means are finite numbers, "
                "standard deviations are above 0"
            )

    def command(self, out: Path, options: Mapping[str, Sequence | None], name: str = "evaluate") -> str:
        """What reproduces a report in `out`, by the command `name`; options without a value are left out."""
        own = {
            "data": self.data and [self.data],
            "image-column": self.image_column and [self.image_column],
            "label-column": self.label_column and [self.label_column],
            "normalised-by": self.normalised_by and [",".join(map(str, one)) for one in self.normalised_by],
            "factor": None if self.factor == 1 else [self.factor],
            "out": [out],
        }
        words = ["gencond", name, self.path]
        for option, values in {**options, **own}.items():
            words += [] if values is None else [f"--{option}", *map(str, values)]
        return shlex.join(words)


@dataclass(frozen=True)
class SubjectAndReal:
    """A condensed set and the real images that it is judged with.

    Args:
        path: where the set lies.
        recipe: what it is judged by.
        condensed: the artefact; None: anybody's images.
        subject: the set as the evaluator sees it.
        train, test: the real images.
        notes: for the report.
    """

    path: str
    recipe: Recipe
    condensed: Condensed | None
    subject: Subject
    train: LabeledImages
    test: LabeledImages
    notes: tuple[str, ...]

    @property
    def measured(self) -> dict[str, str]:
        """What a result is of."""
        return {"train": self.train.fingerprint, "test": self.test.fingerprint, "condensed": self.subject.key}

    def choose_ipcs(self, ipcs: Sequence[int] | None) -> Sequence[int]:
        """Those asked for, else the recipe's, else what there is. Raises InputError for more than the set holds."""
        largest = self.subject.largest_ipc
        ipcs = ipcs or self.recipe.evaluate.ipc or ((largest,) if largest else (1, 10, 50))
        if min(ipcs) < 1:
            raise InputError("--ipc and --seeds must be at least 1")
        if largest and max(ipcs) > largest:
            raise InputError(f"{self.path} holds {largest} images of each class: lower --ipc {max(ipcs)}")
        return ipcs

    def to(self, device: torch.device) -> None:
        """Takes an artefact to where it is sampled."""
        if self.condensed is not None:
            self.condensed.to(device)

    def earlier(self, out: Path) -> Evaluation | None:
        """The report in `out` where it is of the same images."""
        file = out / "report.json"
        if not file.is_file() or (content := read_json(file)).get("measured") != self.measured:
            return None
        try:
            return Evaluation.from_json(content)
        except InputError as error:
            logger.warning("evaluation: %s is written anew: %s", file, error)
            return None

    def evaluation(self, command: str) -> Evaluation:
        """A report before anything is measured."""
        return Evaluation(
            title=f"{name_of_source(self.recipe.data.source)}, condensed"
            + (f" by recipe {self.recipe.name}" if self.condensed else f": {Path(self.path).name}"),
            notes=(*self.notes, *notes_on_origin(self.subject.about, self.train)),
            measured=self.measured,
            judged_on=self.recipe.data.judge_on,
            num_test_images=len(self.test),
            class_names=tuple(self.train.class_names),
            condensed=self.subject.about,
            versions=library_versions(),
            commit=current_commit(),
            command=command,
        )


def open_subject(at: SubjectAt, out: Path) -> SubjectAndReal:
    """What `judge` and `judge_outside` are asked to judge. Raises InputError as they do."""
    if out.is_file():
        raise InputError(f"{out} is a file: choose a folder for the report")
    for one in (at.path, out):
        require_text(one, "path")
    require_place(out)
    condensed = None if is_foreign(Path(at.path)) else gencond.load(at.path)
    if condensed is not None and (at.normalised_by is not None or at.factor != 1):
        raise InputError(
            f"{at.path} is an artefact, which knows how it is read: leave --normalised-by and --factor out"
        )
    recipe = recipe_of(at.path, condensed, at.data, column_overrides(at.image_column, at.label_column))
    if condensed is not None and at.data is None and (condensed.config.provenance or {}).get("appended"):
        raise InputError(f"{at.path} was appended to: name images of all its {condensed.num_classes} classes by --data")
    train, test = load_data(recipe.data)
    notes = notes_on_overlap(train, test, recipe.data)
    if condensed is None:
        subject, found_out = _open_foreign(at, train, test)
        notes += found_out
    else:
        if set(condensed.class_names) == set(train.class_names):  # appended classes come last, whatever their names
            train, test = train.in_order(condensed.class_names), test.in_order(condensed.class_names)
        require_fit(condensed, train)
        subject = judged_artefact(condensed, name_of_rows(recipe))
    return SubjectAndReal(at.path, recipe, condensed, subject, train, test, tuple(notes))


def _open_foreign(at: SubjectAt, train: LabeledImages, test: LabeledImages) -> tuple[Subject, list[str]]:
    """(anybody's images, notes). Raises InputError where test images are among them."""
    found = read_foreign(Path(at.path), train, at.normalised_by, at.factor)
    if rows := sorted(set(rows_seen(found.images, test).tolist()) - set(rows_seen(train, test).tolist())):
        raise InputError(f"{at.path} holds {len(rows)} test images, number {rows[0]} of the test set first")
    dropped, notes = found.num_found - len(found.images), []
    if dropped:
        notes.append(f"{dropped} of its {found.num_found} images are left out: classes are cut to the smallest")
    return judged_foreign(found, f"theirs: {Path(at.path).name}"), notes


def notes_on_origin(made: Mapping[str, Any], train: LabeledImages) -> list[str]:
    """What to say where a set was condensed from other real images than those it is judged with.

    Args:
        made: its provenance.
    """
    of_data = made.get("data", {}).get("fingerprint")
    if of_data in (None, train.fingerprint):
        return []
    return [
        f"the real images (fingerprint {train.fingerprint}) are not those this set was condensed from ({of_data}): "
        "test images may have been trained on"
    ]
