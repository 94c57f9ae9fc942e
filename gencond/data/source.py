"""Where the encoded images of a data set lie: an `ImageSource`, as folders and shards are found to be."""

import hashlib
import io
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from torch import Tensor

from gencond.common.errors import InputError

logger = logging.getLogger(__name__)

# Words in the names of folders and shards. No class folder may have the name of a test set: see `_find`.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
}


# What file systems, archives and servers leave in folders, in lower case; anything hidden beside.
SYSTEM_NAMES = {
    "__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "#snapshot", "lost+found", "$recycle.bin",
    "system volume information", "thumbs.db", "desktop.ini",
}  # fmt: skip


# Each of these together tell a run folder, an artefact and an evaluation.
OUR_FILES = (
    ("recipe.yaml", "data.json"),
    ("config.json", "diffusion_pytorch_model.safetensors"),
    ("config.json", "diffusion_pytorch_model.safetensors.index.json"),
    ("report.json", "report.md"),
)


OURS, LINKS_BACK = "folder(s) of gencond", "link(s) to a folder that is read already"


PACKED = re.compile(r"\.(tgz|tar\.\w+)$", re.IGNORECASE)


DECODING = "decoded-2"  # changes whenever the same file would become other pixels, or chunks would have another size


@dataclass(frozen=True)
class ImageSource:
    """Encoded images where they lie, training images first, then those of the test set.

    Args:
        names: of each image, a path below `root`; of an image in a shard, with its name in there.
        labels: positions in `class_names`.
        num_train: how many of them are training images.
        has_test: whether the source has a test set of its own.
        class_of: see `images.LabeledImages`.
        places: of images in shards, the shard's number, the first byte and the number of bytes.
        shards: files below `root`.
    """

    root: Path
    class_names: tuple[str, ...]
    names: list[str]
    labels: Int64[Tensor, " n"]
    num_train: int
    has_test: bool
    class_of: tuple[int, ...] | None = None
    places: Int64[Tensor, "n 3"] | None = None
    shards: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def on_disk(self) -> str:
        """Where it lies, for people, from any working directory."""
        return os.fsencode(self.root.resolve()).decode(errors="replace")

    def head(self, row: int, num_bytes: int = -1) -> bytes:
        """The first bytes of an encoded image, or all; none of a dangling link."""
        if self.places is None:
            file, offset, size = self.root / self.names[row], 0, num_bytes
        else:
            shard, offset, size = self.places[row].tolist()
            file, size = self.root / self.shards[shard], min(size, num_bytes) if num_bytes >= 0 else size
        if not file.is_file():
            return b""
        with file.open("rb") as opened:
            opened.seek(offset)
            return opened.read(size)

    def open(self, row: int) -> Path | io.BytesIO:
        """What Pillow opens to read an image."""
        if self.places is None:
            return self.root / self.names[row]
        return io.BytesIO(self.head(row))

    def num_bytes(self, row: int) -> int:
        """Of an encoded image; 0 of a dangling link."""
        if self.places is not None:
            return int(self.places[row, 2])
        file = self.root / self.names[row]
        return file.stat().st_size if file.is_file() else 0

    @cached_property
    def identities(self) -> UInt64[np.ndarray, " n"]:
        """Of each image a number that stays while its file does: from path, size and time of change."""
        files = self.names if self.places is None else self.shards
        root, of_file = self.root.resolve(), []
        for name in files:
            try:
                about = (self.root / name).stat()
                of_file.append(f"{root}\0{name}\0{about.st_size}\0{about.st_mtime_ns}")
            except OSError:  # a dangling link: it is named when it is read
                of_file.append(f"{root}\0{name}")
        if self.places is not None:
            shards = self.places[:, 0].tolist()
            of_file = [f"{of_file[shard]}\0{name}" for shard, name in zip(shards, self.names, strict=True)]
        digests = b"".join(hashlib.blake2b(os.fsencode(text), digest_size=8).digest() for text in of_file)
        return np.frombuffer(digests, np.uint64)

    def key(self, image_size: int) -> str:
        """Identifies what decoding gives: all files, and how they are decoded."""
        digest = hashlib.sha256(os.fsencode(f"{DECODING} {image_size} {self.class_names} {self.num_train}"))
        digest.update(self.identities.data)
        return digest.hexdigest()[:16]


class LeftOut:
    """What is not read of a set, by kind: how many, and the first."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, path: str | Path, count: int = 1) -> None:
        number, first = self._found.get(kind, (0, os.path.relpath(path, self._root)))
        self._found[kind] = number + count, first

    def say(self) -> None:
        """Everything in one line of the log."""
        if self._found:
            kinds = (f"{number} {kind} ({first} first)" for kind, (number, first) in self._found.items())
            logger.info("data: left out of %s: %s", self._root, "; ".join(kinds))


def split_named(name: str) -> str | None:
    """Which of the values of `SPLITS` a folder's name means, in capitals or not, as in `Training_set`; or None."""
    word = re.fullmatch(r"([a-z]+?)[ _-]?(?:set|data|images|split|shards)?", name.lower())
    return SPLITS.get(word[1]) if word else None


def listed(folder: str | Path) -> list[os.DirEntry]:
    """What a folder holds, sorted by name. Raises InputError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): mend or remove it") from None


def files_of(folder: Path) -> list[Path]:
    """Visible files, sorted by name."""
    return [Path(entry) for entry in listed(folder) if entry.is_file() and not is_system(entry.name)]


def is_system(name: str) -> bool:
    """Whether a file or a folder is hidden, or lies there because of a file system, an archive or a server."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_ours(folder: str) -> bool:
    """Whether a folder is a run of gencond, an artefact or an evaluation, or holds nothing else."""
    if any(all(os.path.isfile(os.path.join(folder, name)) for name in names) for names in OUR_FILES):
        return True
    inside = False
    with suppress(OSError), os.scandir(folder) as entries:  # what cannot be read is named when it is listed
        for entry in entries:
            if not is_system(entry.name):
                inside = entry.is_dir(follow_symlinks=False) and is_ours(entry.path)
                if not inside:
                    break
    return inside


def image_files(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """Visible image files at any depth, sorted. Links are followed, and each folder is read once.

    Args:
        left_out: hears of everything else.
    """
    extensions = image_extensions()
    seen = {os.path.realpath(path) for path in (folder, *folder.absolute().parents)}
    found: list[Path] = []
    pending = [folder]
    while pending:
        for entry in listed(pending.pop()):
            if is_system(entry.name):
                kind = "hidden or system file(s)"
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                kind = LINKS_BACK if real in seen else OURS if is_ours(entry.path) else None
                if kind is None:
                    seen.add(real)
                    pending.append(Path(entry))
                    continue
            elif Path(entry).suffix.lower() not in extensions:
                kind = "file(s) that are no images"
            elif entry.is_file() or not os.path.exists(entry.path):  # a link to nothing is named when it is read
                found.append(Path(entry))
                continue
            else:
                kind = "pipe(s) and devices"
            if left_out is not None:
                left_out.add(kind, entry.path)
    return sorted(found)


def unpack_first(path: Path) -> str:
    return f"{path} is compressed, so that its images cannot be found one by one: unpack it to .tar"


def class_list(file: Path) -> list[str]:
    """The lines of a `classes.txt`. Raises InputError where it is no UTF-8, or has an empty line between names."""
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{file} is no UTF-8 text: write a class name on each line") from None
    if not all(line.strip() for line in lines):
        raise InputError(f"{file} has an empty line where a class name is expected: a class's index is its line")
    return lines


def numbered_classes(
    labels: Int64[Tensor, " n"], given: Sequence[str] | None, num_train: int, where: str
) -> tuple[tuple[str, ...], Int64[Tensor, " classes"]]:
    """(class names, sorted; of each number that images are labelled with, the position of its class among these).

    Args:
        labels: numbers of classes, those of the training images first.
        given: names of the classes by their numbers; None makes names of the numbers.
        where: what the images are of, for messages.
    Raises:
        InputError: numbers without a name, a class without training images.
    """
    low, high = int(labels.min()), int(labels.max())
    if given is None and low == 1:
        raise InputError(f"{where}: class indices go from 1 to {high}: number the classes from 0")
    if given is not None and (empty := next((n for n, name in enumerate(given) if not name.strip()), None)) is not None:
        raise InputError(f"{where}: class number {empty} has an empty name: give it one")
    if given is None and 0 <= low and high < num_train:  # each class has an image: no more names than that are made
        width = len(str(high))
        given = [f"{label:0{width}d}" for label in range(high + 1)]
    if given is None or not 0 <= low <= high < len(given):
        known = f"{len(given)} classes exist" if given else f"{num_train} training images are too few"
        raise InputError(f"{where}: class indices go from {low} to {high}, and {known}")
    names = told_apart(given)
    order = sorted(range(len(names)), key=names.__getitem__)
    for label, count in enumerate(labels[:num_train].bincount(minlength=len(names)).tolist()):
        if count == 0:
            raise InputError(f"class {names[label]!r} of {where} has no images: add some or remove the class")
    return tuple(names[label] for label in order), torch.tensor(order).argsort()


def told_apart(names: Sequence[str]) -> list[str]:
    """Class names, no two alike: ImageNet's second `crane` becomes `crane (2)`, which the log says."""
    taken, apart = set(names), []
    for place, name in enumerate(names):
        unlike, number = name, 1
        while unlike in apart or (number > 1 and unlike in taken):
            number += 1
            unlike = f"{name} ({number})"
        apart.append(unlike)
        if unlike != name:
            logger.info("data: two classes are called %r: number %d is %r here", name, place, unlike)
    return apart


@cache
def image_extensions() -> set[str]:
    """Of what Pillow can open, as in ".png"."""
    from PIL import Image

    Image.init()
    return {suffix for suffix, format in Image.registered_extensions().items() if format in Image.OPEN}
