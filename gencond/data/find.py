"""Where the encoded images of a source lie: in class folders, WebDataset shards or tables."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from gencond.common.errors import InputError
from gencond.data.shards import find_in_shards, shards_of, split_by_name
from gencond.data.source import (
    LINKS_BACK,
    OURS,
    PACKED,
    ImageSource,
    LeftOut,
    files_of,
    image_extensions,
    image_files,
    is_ours,
    is_system,
    listed,
    split_named,
    unpack_first,
)
from gencond.data.tables import PARQUET, THE_ONLY_ONES, Columns, find_in_tables, is_table

logger = logging.getLogger(__name__)


def holds_encoded(source: str | Path) -> bool:
    """Whether `find_images` is to look for images in a source: a folder or tables."""
    return Path(source).is_dir() or is_table(source)


def find_images(source: str | Path, columns: Columns = THE_ONLY_ONES) -> ImageSource:
    """The images of a folder with one folder per class, of WebDataset shards or of tables, nothing of them decoded.

    What lies there and is not taken is said in one line of the log; what could be meant in two ways is refused. The
    rules are in docs/data.md.

    Args:
        source: a folder that holds class folders, or a folder of training images and possibly one of test images
            (`SPLITS` has their names); or it, or these two, hold shards: .tar files with an image and its class index
            (.cls) under one key, and `classes.txt` beside them. Or tables, see `tables.find_in_tables`.
        columns: of images and classes, in tables.
    Raises:
        InputError: no classes, classes without images, images without a class, a test set of other classes, damaged
            shards; columns of what is no table; whatever `tables.find_in_tables` raises.
    """
    if is_table(source):
        return find_in_tables(source, columns)
    if any(columns):
        raise InputError(f"{source} has no columns: leave --image-column and --label-column out")
    root = Path(source)
    left_out = LeftOut(root)
    found = _find(root, left_out)
    left_out.say()
    return found


def _find(root: Path, left_out: LeftOut) -> ImageSource:
    folders, shards = _folders(root, left_out), shards_of(root)
    if shards and not folders:
        return find_in_shards(root, *split_by_name(root, shards), left_out)
    for shard in shards:
        left_out.add("shard(s) beside folders", shard)
    split_of = {
        folder: split
        for folder in folders
        if (split := split_named(folder.name)) and (_folders(folder) or shards_of(folder))
    }
    train = [folder for folder, split in split_of.items() if split == "train"]
    held_out = [folder for split in ("test", "validation") for folder in split_of if split_of[folder] == split]
    if len(train) > 1:
        raise InputError(f"{train[0]} and {train[1]} both look like training images: rename or move one of them")
    for folder in held_out[1:]:
        logger.info("data: %s is left out, %s is the test set", folder, held_out[0])
    train_root, test_root = (train or [root])[0], (held_out or [None])[0]
    folders_of_test = [] if test_root is None else _folders(test_root, left_out)
    shards_of_test = [] if test_root is None else shards_of(test_root)
    beside = [folder for folder in folders if folder not in split_of]
    if train:
        if test_root is None and (
            odd := next((folder for folder in beside if not split_named(folder.name) and image_files(folder)), None)
        ):
            raise InputError(
                f"{odd} holds images and lies beside {train_root}: move it into there if it is a class, or away"
            )
        for folder in beside:
            left_out.add(f"folder(s) beside {train_root.name}", folder)
        classes = _folders(train_root, left_out)
    else:
        if flat := [folder for folder in beside if split_named(folder.name) in ("test", "validation")]:
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
        return find_in_shards(root, shards_of(train_root), shards_of_test, left_out)
    if test_root is not None and not folders_of_test:
        raise InputError(f"{test_root} holds shards, and the training images lie in folders: write both in one way")
    for shard in [*(shards_of(train_root) if train else ()), *shards_of_test]:
        left_out.add("shard(s) beside folders", shard)
    return _find_in_folders(root, train_root, classes, test_root, folders_of_test, left_out)


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
        packed = next((path for path in files_of(root) if PACKED.search(path.name)), None)
        raise InputError(
            unpack_first(packed)
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


def _folders(root: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The folders that may be classes or splits, sorted by name.

    Args:
        left_out: hears of what is no class. With it, a link to nothing, which may have been a class, and two names of
            one folder are refused.
    """
    above = {os.path.realpath(path) for path in (root, *root.absolute().parents)}
    folders: dict[str, Path] = {}
    for entry in listed(root):
        if is_system(entry.name):
            kind = "hidden or system file(s)"
        elif not entry.is_dir():
            if left_out is None:
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise InputError(f"{entry.path} is a link to nothing: mend or remove it")
            suffix = Path(entry).suffix.lower()
            if suffix not in (*image_extensions(), PARQUET):
                continue
            kind = "parquet file(s) beside folders" if suffix == PARQUET else "image(s) that lie in no class folder"
        elif (real := os.path.realpath(entry.path)) in above:
            kind = LINKS_BACK
        elif is_ours(entry.path):
            kind = OURS
        elif left_out is not None and real in folders:
            raise InputError(f"{entry.path} and {folders[real]} are one folder: remove the link")
        else:
            folders[real] = Path(entry)
            continue
        if left_out is not None:
            left_out.add(kind, entry.path)
    return list(folders.values())
