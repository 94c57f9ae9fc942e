"""Where encoded images lie (folders, WebDataset shards) and how they become pixels: in memory, or once into a file.

A set whose pixels are more than `MAPPED_ABOVE_BYTES` is decoded into the cache (see `mapped`), by all processes
together, and from then on read from there: no real image is decoded twice, and memory does not grow with the set.
"""

import hashlib
import io
import logging
import os
import posixpath
import re
import shutil
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8, UInt64
from torch import Tensor

from gencond.common.cache import hold
from gencond.common.distributed import from_all, from_main, rank_and_world
from gencond.common.errors import InputError, first_line
from gencond.common.files import cache_dir, free_space, is_locked, read_json, require_writable, take_lock, write_json
from gencond.common.progress import progress
from gencond.data.mapped import FACTS, MappedImages, damage_of, seal, set_aside

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
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
GREY_MODES = ("1", "L", "LA", *WIDE_MODES)
# Each process, each split and each classifier in training holds a copy: a few GB where a set is as large as this.
MAPPED_ABOVE_BYTES = 2**30
CHUNK_BYTES = 2**25  # of pixels that a process holds while it decodes, and loses when it is killed
SECONDS_BETWEEN_LOOKS = 10
# An image is read from a JPEG decoded to at least that many times its side: docs/data.md says how far that is off.
DRAFT_SIDES = 4
# What may be white in grey images of more than 8 bits: floats up to 1, or 8, 10, 12, 14 or 16 bits.
WHITES = (1, 255, 1023, 4095, 16383, 65535)
WHITE_BORNE = 1.05  # of floats, which interpolation lets go over white and as far below black
DECODING = "decoded-2"  # changes whenever the same file would become other pixels, or chunks would have another size


@dataclass(frozen=True)
class ImageSource:
    """Encoded images where they lie, training images first, then those of the test set.

    Args:
        names: of each image, a path below `root`; of an image in a shard, with its name in there.
        labels: positions in `class_names`.
        num_train: how many of them are training images.
        has_test: whether the source has a test set of its own.
        class_of: see `data.LabeledImages`.
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


# --- finding ---------------------------------------------------------------------------------------------------


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


def find_images(root: Path) -> ImageSource:
    """The images of a folder with one folder per class, or with WebDataset shards, nothing of them decoded.

    What lies there and is not taken is said in one line of the log; what could be meant in two ways is refused. The
    rules are in docs/data.md.

    Args:
        root: holds class folders, or a folder of training images and possibly one of test images (`SPLITS` has their
            names); or it, or these two, hold shards: .tar files with an image and its class index (.cls) under one
            key, and `classes.txt` beside them.
    Raises:
        InputError: no classes, classes without images, images without a class, a test set of other classes, damaged
            shards.
    """
    left_out = LeftOut(root)
    found = _find(root, left_out)
    left_out.say()
    return found


def _find(root: Path, left_out: LeftOut) -> ImageSource:
    folders, shards = _folders(root, left_out), _shards_of(root)
    if shards and not folders:
        return _find_in_shards(root, *_split_by_name(root, shards), left_out)
    for shard in shards:
        left_out.add("shard(s) beside folders", shard)
    split_of = {
        folder: split
        for folder in folders
        if (split := _split_named(folder.name)) and (_folders(folder) or _shards_of(folder))
    }
    train = [folder for folder, split in split_of.items() if split == "train"]
    held_out = [folder for split in ("test", "validation") for folder in split_of if split_of[folder] == split]
    if len(train) > 1:
        raise InputError(f"{train[0]} and {train[1]} both look like training images: rename or move one of them")
    for folder in held_out[1:]:
        logger.info("data: %s is left out, %s is the test set", folder, held_out[0])
    train_root, test_root = (train or [root])[0], (held_out or [None])[0]
    folders_of_test = [] if test_root is None else _folders(test_root, left_out)
    shards_of_test = [] if test_root is None else _shards_of(test_root)
    beside = [folder for folder in folders if folder not in split_of]
    if train:
        if test_root is None and (
            odd := next((folder for folder in beside if not _split_named(folder.name) and image_files(folder)), None)
        ):
            raise InputError(
                f"{odd} holds images and lies beside {train_root}: move it into there if it is a class, or away"
            )
        for folder in beside:
            left_out.add(f"folder(s) beside {train_root.name}", folder)
        classes = _folders(train_root, left_out)
    else:
        if flat := [folder for folder in beside if _split_named(folder.name) in ("test", "validation")]:
            raise InputError(
                f"{flat[0]} holds no class folders, so it is no test set: sort its images into classes, move it away, "
                "or rename it if it is a class"
            )
        classes = _without_copies(beside, left_out)
    if train and not classes:
        if test_root is not None and not shards_of_test:
            raise InputError(f"{test_root} holds no shards, and {train_root} does: write both in one way")
        for folder in folders_of_test:
            left_out.add("folder(s) beside shards", folder)
        return _find_in_shards(root, _shards_of(train_root), shards_of_test, left_out)
    if test_root is not None and not folders_of_test:
        raise InputError(f"{test_root} holds shards, and the training images lie in folders: write both in one way")
    for shard in [*(_shards_of(train_root) if train else ()), *shards_of_test]:
        left_out.add("shard(s) beside folders", shard)
    return _find_in_folders(root, train_root, classes, test_root, folders_of_test, left_out)


def _split_named(name: str) -> str | None:
    """Which of the values of `SPLITS` a folder's name means, in capitals or not, as in `Training_set`; or None."""
    word = re.fullmatch(r"([a-z]+?)[ _-]?(?:set|data|images|split|shards)?", name.lower())
    return SPLITS.get(word[1]) if word else None


def _without_copies(folders: Sequence[Path], left_out: LeftOut) -> list[Path]:
    """The classes among folders: those that hold folders of the others' names are copies of the set or exports."""
    names = {folder.name for folder in folders}
    inside = {folder: {below.name for below in _folders(folder)} for folder in folders}
    classes = []
    for folder in folders:
        if len(inside[folder] & (names - {folder.name})) > 1:
            left_out.add("folder(s) that hold the classes again", folder)
        else:
            classes.append(folder)
    shared = sorted(set.intersection(*(inside[folder] for folder in classes))) if len(classes) > 1 else []
    if len(shared) > 1:
        logger.warning(
            "data: %s and the other classes all hold %s, %s, ...: if these are the classes, name what is above "
            "train and test", classes[0], *shared[:2],
        )  # fmt: skip
    return classes


def _find_in_folders(
    root: Path,
    train_root: Path,
    classes: Sequence[Path],
    test_root: Path | None,
    tested: Sequence[Path],
    left_out: LeftOut,
) -> ImageSource:
    class_names = tuple(folder.name for folder in classes)
    if not class_names:
        packed = next((path for path in _files_of(root) if PACKED.search(path.name)), None)
        raise InputError(
            _packed(packed)
            if packed
            else f"{train_root} has no class folders: expected {train_root}/<class name>/<image>"
        )
    number_of = {name: number for number, name in enumerate(class_names)}
    if strange := [folder for folder in tested if folder.name not in number_of]:
        raise InputError(f"{test_root} has class {strange[0].name!r}, which {train_root} has not")
    names: list[str] = []
    labels: list[int] = []
    ends = []
    for folders in (classes, tested):
        for folder in folders:
            found = [str(path.relative_to(root)) for path in image_files(folder, left_out)]
            if not found:
                raise InputError(
                    f"class {folder.name!r} of {folder.parent} has no images: add some or remove the folder"
                )
            names.extend(found)
            labels.extend([number_of[folder.name]] * len(found))
        ends.append(len(names))
    return ImageSource(root, class_names, names, torch.tensor(labels), ends[0], test_root is not None)


def _listed(folder: str | Path) -> list[os.DirEntry]:
    """What a folder holds, sorted by name. Raises InputError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): mend or remove it") from None


def _files_of(folder: Path) -> list[Path]:
    """Visible files, sorted by name."""
    return [Path(entry) for entry in _listed(folder) if entry.is_file() and not _is_system(entry.name)]


def _is_system(name: str) -> bool:
    """Whether a file or a folder is hidden, or lies there because of a file system, an archive or a server."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _is_ours(folder: str) -> bool:
    """Whether a folder is a run of gencond, an artefact or an evaluation, or holds nothing else."""
    if any(all(os.path.isfile(os.path.join(folder, name)) for name in names) for names in OUR_FILES):
        return True
    inside = False
    with suppress(OSError), os.scandir(folder) as entries:  # what cannot be read is named when it is listed
        for entry in entries:
            if not _is_system(entry.name):
                inside = entry.is_dir(follow_symlinks=False) and _is_ours(entry.path)
                if not inside:
                    break
    return inside


def _folders(root: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The folders that may be classes or splits, sorted by name.

    Args:
        left_out: hears of what is no class. With it, a link to nothing, which may have been a class, and two names of
            one folder are refused.
    """
    above = {os.path.realpath(path) for path in (root, *root.absolute().parents)}
    folders: dict[str, Path] = {}
    for entry in _listed(root):
        if _is_system(entry.name):
            kind = "hidden or system file(s)"
        elif not entry.is_dir():
            if left_out is None:
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise InputError(f"{entry.path} is a link to nothing: mend or remove it")
            if Path(entry).suffix.lower() not in image_extensions():
                continue
            kind = "image(s) that lie in no class folder"
        elif (real := os.path.realpath(entry.path)) in above:
            kind = LINKS_BACK
        elif _is_ours(entry.path):
            kind = OURS
        elif left_out is not None and real in folders:
            raise InputError(f"{entry.path} and {folders[real]} are one folder: remove the link")
        else:
            folders[real] = Path(entry)
            continue
        if left_out is not None:
            left_out.add(kind, entry.path)
    return list(folders.values())


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
        for entry in _listed(pending.pop()):
            if _is_system(entry.name):
                kind = "hidden or system file(s)"
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                kind = LINKS_BACK if real in seen else OURS if _is_ours(entry.path) else None
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


# --- shards ------------------------------------------------------------------------------------------------------


def _shards_of(folder: Path) -> list[Path]:
    return [path for path in _files_of(folder) if path.suffix.lower() == ".tar"]


def _packed(path: Path) -> str:
    return f"{path} is compressed, so that its images cannot be found one by one: unpack it to .tar"


def _split_by_name(root: Path, shards: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(training, test) shards of one folder, by words such as `train` and `val` in their names.

    Where no name has such a word, or all have the same, all are training shards. Raises InputError where some have one.
    """
    splits: dict[str | None, list[Path]] = {}
    for shard in shards:
        words = {SPLITS[word] for word in re.findall("[a-z]+", shard.stem.lower()) if word in SPLITS}
        splits.setdefault(words.pop() if len(words) == 1 else None, []).append(shard)
    if len(splits) == 1 or splits.keys() == {"train", None}:
        return list(shards), []
    if None in splits or "train" not in splits:
        odd, other = (splits.get(None) or shards)[0], next(iter(splits[split] for split in splits if split))[0]
        raise InputError(
            f"{odd} beside {other.name}: which shards are for training and which for testing? name all of them "
            "train-... or test-..."
        )
    test = splits.get("test") or splits["validation"]
    if test is not splits.get("validation", test):
        logger.info("data: %d shards of %s for validation are left out", len(splits["validation"]), root)
    return splits["train"], test


def _find_in_shards(root: Path, train: Sequence[Path], test: Sequence[Path], left_out: LeftOut) -> ImageSource:
    names: list[str] = []
    labels: list[int] = []
    places: list[tuple[int, int, int]] = []
    shards: list[str] = []
    ends: list[int] = []
    folders = list(dict.fromkeys(shard.parent for shard in (*train, *test)))
    for folder in folders:
        if packed := next((path for path in _files_of(folder) if PACKED.search(path.name)), None):
            raise InputError(_packed(packed))
    for part in [train, test] if test else [train]:
        for shard in part:
            for name, offset, size, label in _index_shard(shard, left_out):
                names.append(f"{shard.relative_to(root)}/{name}")
                labels.append(label)
                places.append((len(shards), offset, size))
            shards.append(str(shard.relative_to(root)))
        if len(names) == (ends[-1] if ends else 0):
            raise InputError(
                f"the shards of {part[0].parent} hold no images with a class index (.png or .jpg, and .cls)"
            )
        ends.append(len(names))
    low, high, num_train = min(labels), max(labels), ends[0]
    given = _listed_classes(root, folders)
    if given is None and 0 <= low and high < num_train:  # each class has an image: no more names than that are made
        width = len(str(high))
        given = [f"{label:0{width}d}" for label in range(high + 1)]
    if given is None or not 0 <= low <= high < len(given):
        raise InputError(
            f"{root}: class indices go from {low} to {high}, and "
            + (
                f"{len(given)} classes exist"
                if given
                else f"{num_train} training images are too few for as many classes"
            )
        )
    order = sorted(range(len(given)), key=given.__getitem__)
    rank = torch.tensor(order).argsort()
    class_names = tuple(given[label] for label in order)
    ranked = rank[torch.tensor(labels)]
    for name, count in zip(class_names, ranked[:num_train].bincount(minlength=len(given)).tolist(), strict=True):
        if count == 0:
            raise InputError(f"class {name!r} of {train[0].parent} has no images: add some or remove the class")
    return ImageSource(
        root, class_names, names, ranked, num_train, bool(test), tuple(rank.tolist()), torch.tensor(places),
        tuple(shards),
    )  # fmt: skip


def _listed_classes(root: Path, folders: Sequence[Path]) -> list[str] | None:
    """The names in `classes.txt` beside shards or in `root`, no two alike; None where there is no such file.

    Raises:
        InputError: no UTF-8, an empty line between names, two files that differ.
    """
    listed: dict[Path, list[str]] = {}
    for file in dict.fromkeys(folder / "classes.txt" for folder in (*folders, root)):
        if file.is_file():
            listed[file] = class_list(file)
    if len({tuple(lines) for lines in listed.values()}) > 1:
        raise InputError(f"{' and '.join(map(str, listed))} differ: keep the one whose lines the class indices count")
    return told_apart(next(iter(listed.values()))) if listed else None


def class_list(file: Path) -> list[str]:
    """The lines of a `classes.txt`. Raises InputError where it is no UTF-8, or has an empty line between names."""
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{file} is no UTF-8 text: write a class name on each line") from None
    if not all(line.strip() for line in lines):
        raise InputError(f"{file} has an empty line where a class name is expected: a class's index is its line")
    return lines


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


def _index_shard(shard: Path, left_out: LeftOut) -> list[tuple[str, int, int, int]]:
    """(name, first byte, bytes, class index) of each image of a .tar file, from its headers.

    An image and its class index have one key: what comes before the first dot of their names, or where keys have dots
    themselves, before the last. Links in a shard are followed.

    Raises:
        InputError: damaged or cut off, a key twice, an image without a class index or the reverse.
    """
    files, links, end = _members_of(shard, left_out)
    _require_end(shard, end)
    for name, target in links.items():
        for _ in range(len(links)):  # a link to a link
            target = links.get(target, target)
        if target not in files:
            raise InputError(f"{shard}: {name} is a link to {target}, which is not in there: write the shard anew")
        files[name] = files[target]
    images: dict[str, str] = {}
    classes: dict[str, int] = {}
    extensions = image_extensions()
    with shard.open("rb") as content:
        for name, (offset, size) in files.items():
            key, suffix = posixpath.splitext(name)
            found = images if suffix.lower() in extensions else classes if suffix.lower() == ".cls" else None
            if found is None:
                left_out.add("file(s) in shards that are no images", shard / name)
                continue
            if key in found:
                raise InputError(f"{shard}: {name} is there twice, or in two formats: write the shard anew")
            content.seek(offset)
            found[key] = name if found is images else _class_index(shard, name, content.read(min(size, 32)))
    return [(images[key], *files[images[key]], label) for key, label in _paired(shard, images, classes, left_out)]


def _members_of(shard: Path, left_out: LeftOut) -> tuple[dict[str, tuple[int, int]], dict[str, str], int]:
    """The files of a .tar (name: first byte, bytes), its links (name: name of the target) and where it ends."""
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # tarfile would keep them all
                name = posixpath.normpath(member.name)
                if member.isdir():
                    continue
                if any(map(_is_system, name.split("/"))):
                    left_out.add("hidden or system file(s)", shard / name)
                elif name in files or name in links:
                    raise InputError(f"{shard}: {name} is there twice: write the shard anew")
                elif member.islnk():
                    links[name] = posixpath.normpath(member.linkname)
                elif member.issym():
                    links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                elif member.size < 0 or not member.isreg() or member.issparse():
                    raise InputError(f"{shard}: {name} is no whole plain file: write the shard anew")
                else:
                    files[name] = member.offset_data, member.size
            return files, links, tar.offset
    except InputError:
        raise
    except Exception as error:  # whatever a damaged header makes tarfile raise
        raise InputError(f"{shard} cannot be read as a WebDataset shard ({first_line(error)}): write it anew") from None


def _require_end(shard: Path, end: int) -> None:
    """Raises InputError where a .tar does not end as one does, with two blocks of zeros and nothing behind them.

    tarfile takes a header that is cut off or damaged for the end.
    """
    with shard.open("rb") as file:
        file.seek(end)
        marker = file.read(2 * tarfile.BLOCKSIZE)
        if len(marker) < 2 * tarfile.BLOCKSIZE or any(marker):
            raise InputError(f"{shard} is cut off or damaged at byte {end}: get or write it anew")
        while behind := file.read(2**20):
            if behind.strip(b"\0"):
                raise InputError(f"{shard} goes on behind its end, as .tar files joined by cat do: write it anew")


def _class_index(shard: Path, name: str, text: bytes) -> int:
    if not re.fullmatch(rb"\s*[0-9]{1,18}\s*", text):
        raise InputError(f"{shard}: {name} holds {text!r}, which is no class index: expected a number such as 3")
    return int(text)


def _paired(
    shard: Path, images: Mapping[str, str], classes: Mapping[str, int], left_out: LeftOut
) -> Iterator[tuple[str, int]]:
    """(key, class index) of each image, in the order of the shard. Raises InputError as `_index_shard`."""
    lonely = set(classes)
    for key, name in images.items():
        folder, base = posixpath.split(key)
        whole = posixpath.join(folder, base.partition(".")[0])  # the key as WebDataset reads it
        if key in classes:
            whole = key
        elif whole in images and whole in classes:
            left_out.add("further image(s) of a key", shard / name)
            continue
        elif whole not in classes:
            raise InputError(f"{shard}: {name} has no class index: expected {key}.cls")
        elif whole not in lonely:
            raise InputError(f"{shard}: {name} is not the only image of {whole}.cls: name one of them {whole} alone")
        lonely.discard(whole)
        yield key, classes[whole]
    if lonely:
        raise InputError(f"{shard}: {min(lonely)}.cls has no image: write the shard anew")


@cache
def image_extensions() -> set[str]:
    """Of what Pillow can open, as in ".png"."""
    from PIL import Image

    Image.init()
    return {suffix for suffix, format in Image.registered_extensions().items() if format in Image.OPEN}


# --- reading ---------------------------------------------------------------------------------------------------


def short_sides(source: ImageSource, at_most: int = 1000) -> list[int]:
    """Of some images in pixels, from headers alone. Files that cannot be read are named later, when all are decoded."""
    from PIL import Image

    sides = []
    for row in range(0, len(source), max(1, len(source) // at_most)):
        with suppress(Exception), Image.open(source.open(row)) as image:
            sides.append(min(image.size))
    return sides


def any_colour(source: ImageSource) -> bool:
    """Whether any image has colour, from headers: of photographs the first says so, of a grey set all are asked."""
    from PIL import Image

    for row in range(len(source)):
        with suppress(Exception), Image.open(source.open(row)) as image:  # named when it is decoded
            if image.mode not in GREY_MODES:
                return True
    return False


def white_of(source: ImageSource) -> int | None:
    """The grey value that is white in images of more than 8 bits, one for the whole set; None where it has none.

    It is the smallest of `WHITES` that no image exceeds, which the log says. So does it of images with several frames,
    the first of which is read. Asked are the headers of all files but JPEGs; images of more than 8 bits are decoded.

    Raises:
        InputError: values that fit none of them, whole numbers beside floats.
    """
    rows = [row for row, name in enumerate(source.names) if not name.lower().endswith((".jpg", ".jpeg"))]
    looked: list[_Seen] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(rows), 10_000):  # the pool lists what it is given
            seen = pool.map(lambda row: _look(source, row), rows[start : start + 10_000])
            looked += filter(None, seen)
    if several := [seen for seen in looked if seen.frames > 1]:
        logger.info(
            "data: %d image(s) have more than one frame, of which the first is read (%s first)",
            len(several), source.names[several[0].row],
        )  # fmt: skip
    wide = [seen for seen in looked if seen.kind]
    if not wide:
        return None
    kinds = {seen.kind for seen in wide}
    darkest, lightest = min(wide, key=lambda seen: seen.low), max(wide, key=lambda seen: seen.high)
    low, high = darkest.low, lightest.high
    borne = WHITE_BORNE if kinds == {"f"} else 1
    white = next((white for white in WHITES if high <= white * borne and (white > 1 or kinds == {"f"})), None)
    of = f"grey values from {low:g} ({source.names[darkest.row]}) to {high:g} ({source.names[lightest.row]})"
    if len(kinds) > 1:
        raise InputError(f"{source.root} has {of}, floats in some images and whole numbers in others: save all alike")
    if white is None or low < (1 - borne) * white or (kinds == {"f"} and 1 < white > 10 * high):
        raise InputError(f"{source.root} has {of}, which fit none of 0..1, 0..255, 0..4095 and 0..65535: save 8 bits")
    logger.info("data: %s, of more than 8 bits: %g is taken for white in all images", of, white)
    return white


class _Seen(NamedTuple):
    """Of an image that is not one plain picture of 8 bits. `kind` is that of its grey values ("u", "i", "f") or ""."""

    row: int
    frames: int
    kind: str = ""
    low: float = 0.0
    high: float = 0.0


def _look(source: ImageSource, row: int) -> _Seen | None:
    """None for a plain image, and for one that cannot be read, which is named when it is decoded."""
    from PIL import Image

    with suppress(Exception):
        head = source.head(row, 1024)
        if head.startswith(b"\x89PNG") and head[24:26] != b"\x10\0" and b"acTL" not in head:  # 16 bits grey; frames
            return None
        with Image.open(source.open(row)) as image:
            frames = getattr(image, "n_frames", 1)
            if image.mode in WIDE_MODES:
                values = np.asarray(image)
                kind = "f" if values.dtype.kind == "f" else "i"
                if np.isfinite(values).all():
                    return _Seen(row, frames, kind, float(values.min()), float(values.max()))
            return _Seen(row, frames) if frames > 1 else None
    return None


def read_image(file: Path | io.BytesIO, image_size: int, white: int | None = None) -> np.ndarray | str:
    """[h, w] for grey images, [h, w, 3] for all others, or why the file cannot be read.

    The middle square is scaled by bicubic interpolation, upright as EXIF says; what is transparent becomes white.

    Args:
        white: see `white_of`.
    """
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            # A JPEG is decoded at a fraction of its size that leaves DRAFT_SIDES pixels for each that is wanted.
            draft = image.draft("RGB", (image_size * DRAFT_SIDES, image_size * DRAFT_SIDES))
            image.load()  # a TIFF is turned here
            width, height = draft[1][2:] if draft else image.size  # the last row and column may be partly outside
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            grey = image.mode in GREY_MODES
            if image.mode in WIDE_MODES:
                image = Image.fromarray(_wide_to_uint8(np.asarray(image), white, image.info.get("transparency")))
            if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if grey else "RGB")
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            square = (left, top, left + side, top + side)
            image = image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=square)
            if orientation:
                image.getexif()[ExifTags.Base.Orientation] = orientation
                image = ImageOps.exif_transpose(image)
            return np.asarray(image, dtype=np.uint8)
    except UnidentifiedImageError:
        return "no known image format"
    except Exception as error:  # whatever a decoder throws at a broken file: it is named and counted
        return f"{type(error).__name__}: {first_line(error)}"


def _wide_to_uint8(values: np.ndarray, white: int | None, transparent: int | None) -> UInt8[np.ndarray, "h w"]:
    """Grey values of 16 or 32 bits or floats to 0..255; those of the value that means transparent become white."""
    if white is None:
        raise ValueError("grey of more than 8 bits in a file that is called a JPEG")
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinite grey values")
    grey = (values * (255 / white)).round().clip(0, 255).astype(np.uint8)
    return grey if transparent is None else np.where(values == transparent, np.uint8(255), grey)


def _with_channels(image: np.ndarray, channels: int) -> UInt8[np.ndarray, "c h w"]:
    """[h, w] or [h, w, 3] -> channels first, grey repeated where others have colour."""
    return image.transpose(2, 0, 1) if image.ndim == 3 else image[None].repeat(channels, 0)


def _require_whole(broken: Sequence[tuple[str, str]], source: ImageSource) -> None:
    """Raises InputError that names the images (name, why) that cannot be read."""
    if broken:
        named = ", ".join(f"{name} ({why})" for name, why in broken[:3])
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InputError(
            f"{len(broken)} of {len(source)} images in {source.root} cannot be read: {named}{more}; repair or remove "
            "them"
        )


def read_into_memory(source: ImageSource, image_size: int) -> UInt8[Tensor, "n c h w"]:
    """All images, grey if all of them are. Raises InputError as `_require_whole`."""
    white = white_of(source)
    with ThreadPoolExecutor() as pool:
        decoded = list(
            progress(
                pool.map(lambda row: read_image(source.open(row), image_size, white), range(len(source))),
                description="reading images",
                total=len(source),
                unit="image",
                disable=len(source) < 2000,
            )
        )
    _require_whole([(source.names[row], why) for row, why in enumerate(decoded) if isinstance(why, str)], source)
    return stacked(decoded)


def stacked(decoded: Sequence[np.ndarray]) -> UInt8[Tensor, "n c h w"]:
    """What `read_image` gave for images of one size, grey if all of them are."""
    channels = 3 if any(image.ndim == 3 for image in decoded) else 1
    images = np.empty((len(decoded), channels, *decoded[0].shape[:2]), np.uint8)
    for row, image in enumerate(decoded):
        images[row] = _with_channels(image, channels)
    return torch.from_numpy(images)


# --- decoding into a file --------------------------------------------------------------------------------------


def decode_into_cache(source: ImageSource, image_size: int) -> MappedImages:
    """All images from a file in the cache, which all processes decode their share into where it is not whole yet.

    Every `CHUNK_BYTES` of pixels are written, then noted as done: killed at any moment, the next start goes on behind
    them, with as many processes as it likes. The folder gets its name when all is there. A second run that needs the
    same images waits for the first. What was decoded before some files of a folder were mended, added or removed is
    copied.

    Raises:
        InputError: images that cannot be read, too little space.
    """
    folder = cache_dir() / "images" / source.key(image_size)
    from_main(lambda: _set_aside_if_damaged(folder, len(source)))
    with _alone(folder):
        if not from_main(folder.is_dir):
            partial = folder.with_name(f".{folder.name}.partial")
            pending, white = from_main(lambda: _prepare(partial, source, image_size))
            _require_whole(from_all(_decode_share(partial, source, image_size, pending, white)), source)
            from_main(lambda: _finish(partial, folder, source))
    hold(folder)
    return MappedImages(folder)


def _set_aside_if_damaged(folder: Path, num_images: int) -> None:
    if folder.is_dir() and (why := damage_of(folder, num_images)):
        logger.warning("%s is damaged (%s) and will be made again", folder, why)
        set_aside(folder)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name.removeprefix('.').removesuffix('.partial')}.lock")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other run decodes into `folder` meanwhile: the main process holds its lock, or waits for it."""
    lock = None
    if rank_and_world()[0] == 0 and not folder.is_dir():
        require_writable(folder.parent)
        while (lock := take_lock(_lock_of(folder))) is None:
            logger.info("data: another run decodes these images: waiting for it")
            time.sleep(SECONDS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def rows_of_chunk(shape: Sequence[int], chunk: int) -> range:
    """The images of a chunk of a set of `shape` [n, c, h, w]."""
    length = max(1, CHUNK_BYTES // int(np.prod(shape[1:])))
    return range(chunk * length, min((chunk + 1) * length, shape[0]))


def _prepare(partial: Path, source: ImageSource, image_size: int) -> tuple[list[int], int | None]:
    """Makes the files in their full size where there are none.

    Returns:
        The numbers of the chunks that are left, and what `white_of` says.
    """
    require_writable(partial)
    if not (partial / "about.json").is_file():
        shape, white = [len(source), 3 if any_colour(source) else 1, image_size, image_size], white_of(source)
        num_chunks = -(-shape[0] // len(rows_of_chunk(shape, 0)))
        sizes = {"pixels": int(np.prod(shape)), "facts": len(source) * FACTS.itemsize, "done": num_chunks}
        if (free := free_space(partial)) < sum(sizes.values()):
            raise InputError(
                f"{len(source)} decoded images need {sum(sizes.values()) / 1e9:.1f} GB in {partial.parent}, and "
                f"{free / 1e9:.1f} GB are free: make space or set GENCOND_CACHE to another disk"
            )
        for name, size in sizes.items():
            with (partial / name).open("wb") as file:
                file.truncate(size)
        (partial / "identities").write_bytes(source.identities.tobytes())
        write_json(partial / "about.json", {"shape": shape, "decoding": DECODING, "white": white})
        logger.info(
            "data: %d images are decoded once, into %.1f GB of %s", shape[0], sizes["pixels"] / 1e9, partial.parent
        )
        for about in sorted(partial.parent.glob("*/about.json")):  # hidden folders too
            if about.parent != partial:
                _adopt(partial, about.parent)
    done = (partial / "done").read_bytes()
    if any(done):
        logger.info("data: decoding goes on, %d of %d parts are done", sum(done), len(done))
    left = [chunk for chunk, is_done in enumerate(done) if not is_done]
    return left, read_json(partial / "about.json")["white"]


def _adopt(partial: Path, other: Path) -> None:
    """Copies what was decoded of the same files, before some were mended, added or removed, where it is whole."""
    about = read_json(partial / "about.json")
    shape = about["shape"]
    try:
        others = read_json(other / "about.json")
        old_shape = others["shape"]
        if shape[1:] != old_shape[1:] or any(about[fact] != others.get(fact) for fact in ("decoding", "white")):
            return
        there = np.fromfile(other / "identities", np.uint64)
        sizes = {"pixels": int(np.prod(old_shape)), "facts": old_shape[0] * FACTS.itemsize}
        if len(there) != old_shape[0] or any((other / name).stat().st_size != size for name, size in sizes.items()):
            return
    except (InputError, KeyError, TypeError, IndexError, OSError):  # damaged
        return
    wanted = np.fromfile(partial / "identities", np.uint64)
    order = there.argsort()
    place = order[np.searchsorted(there, wanted, sorter=order).clip(max=len(there) - 1)]
    is_there = there[place] == wanted
    if (other / "done").is_file():
        done = np.fromfile(other / "done", np.uint8).astype(bool)
        is_there &= done[place // len(rows_of_chunk(old_shape, 0))]
    if not is_there.any():
        return
    old = MappedImages(other)
    images, known = old.pixels, old.known
    with (
        (partial / "pixels").open("r+b") as pixels,
        (partial / "facts").open("r+b") as facts,
        (partial / "done").open("r+b") as done_file,
    ):
        for chunk in range((partial / "done").stat().st_size):
            rows = rows_of_chunk(shape, chunk)
            span = slice(rows.start, rows.stop)
            if is_there[span].all():
                some, about_some = images[place[span]], known[place[span]]
                if all(
                    _facts_of(image).tobytes() == one.tobytes() for image, one in zip(some, about_some, strict=True)
                ):
                    _write_chunk(pixels, facts, done_file, chunk, rows, some, about_some)
    if other.name.startswith(".") and not is_locked(_lock_of(other)):  # of the files as they were, and never whole
        shutil.rmtree(other)


def _decode_share(
    partial: Path, source: ImageSource, image_size: int, pending: Sequence[int], white: int | None
) -> list[tuple[str, str]]:
    """Decodes this process's part of the chunks that are left; returns the images (name, why) that cannot be read.

    A chunk with such an image stays undone.
    """
    shape = MappedImages(partial).shape
    rank, world = rank_and_world()
    broken: list[tuple[str, str]] = []
    bar = progress(
        description="decoding images",
        total=len(source),
        initial=len(source) - sum(len(rows_of_chunk(shape, chunk)) for chunk in pending),
        unit="image",
        disable=rank > 0,
    )
    with (
        ThreadPoolExecutor() as pool,
        (partial / "pixels").open("r+b") as pixels,
        (partial / "facts").open("r+b") as facts,
        (partial / "done").open("r+b") as done,
    ):
        for chunk in pending[rank::world]:
            rows = rows_of_chunk(shape, chunk)
            images = np.empty((len(rows), *shape[1:]), np.uint8)
            known = np.zeros(len(rows), FACTS)

            def read(place: int, rows: range = rows, images: np.ndarray = images, known: np.ndarray = known) -> str:
                """Reads one image into its place; returns why it cannot be read, or nothing."""
                image = read_image(source.open(rows[place]), image_size, white)
                if isinstance(image, str):
                    return image
                images[place] = _with_channels(image, shape[1])
                known[place] = _facts_of(images[place])
                return ""

            why = list(pool.map(read, range(len(rows))))
            broken += [(source.names[row], reason) for row, reason in zip(rows, why, strict=True) if reason]
            if not any(why):
                _write_chunk(pixels, facts, done, chunk, rows, images, known)
            bar.update(min(len(rows) * world, len(source) - bar.n))  # the others are as fast
    bar.close()
    return broken


def _facts_of(image: UInt8[np.ndarray, "c h w"]) -> np.ndarray:
    """An entry of `FACTS`."""
    facts = np.zeros((), FACTS)
    facts["digest"] = np.frombuffer(hashlib.sha256(image.tobytes()).digest(), np.uint8)
    values = image.reshape(len(image), -1).astype(np.int64)
    facts["sum"][: len(image)], facts["square"][: len(image)] = values.sum(1), np.square(values).sum(1)
    return facts


def _write_chunk(
    pixels: io.BufferedRandom,
    facts: io.BufferedRandom,
    done: io.BufferedRandom,
    chunk: int,
    rows: range,
    images: UInt8[np.ndarray, "n c h w"],
    known: np.ndarray,
) -> None:
    """Images and what is known of them, then that they are there: what is noted is on disk by then."""
    _write_at(pixels, rows.start * images[0].nbytes, images)
    _write_at(facts, rows.start * FACTS.itemsize, known)
    _write_at(done, chunk, np.ones(1, np.uint8))


def _write_at(file: io.BufferedRandom, position: int, array: np.ndarray) -> None:
    """Writes and flushes to the disk."""
    file.seek(position)
    file.write(array.data)
    file.flush()
    os.fsync(file.fileno())


def _finish(partial: Path, folder: Path, source: ImageSource) -> None:
    where = os.fsencode(source.root.resolve()).decode(errors="replace")
    seal(partial, f"{len(source):,} images of {where}, {len(source.class_names):,} classes")
    partial.rename(folder)
    (folder / "done").unlink()
