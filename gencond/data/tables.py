"""Tables as Hugging Face has them: sets of the Hub, folders that `save_to_disk` wrote, parquet files.

`datasets` finds, downloads and opens them; what it opens lies in Arrow files that are mapped into memory, so that a set
may be larger than that.
"""

import glob
import hashlib
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from torch import Tensor

from gencond.common.distributed import main_process_first
from gencond.common.errors import InputError, first_line
from gencond.config import Data
from gencond.data.source import ImageSource, image_extensions, is_system, numbered_classes, split_named

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

HUB = "hf:"
ON_HUB = {  # named sets, as the Hub calls them
    "cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}  # fmt: skip
HUB_NAME = re.compile(r"hf:(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[^:@]+))?(@(?P<revision>[^@]+))?")
SAVED = (("dataset_dict.json",), ("dataset_info.json", "state.json"))  # by `save_to_disk` of several splits, of one
PARQUET = ".parquet"
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
TEXTS = ("string", "large_string")
UNLABELLED = -1  # the class of images whose label a set keeps to itself, as `datasets` has it


class Columns(NamedTuple):
    """Which columns of a table hold the images and their classes; None: the only one that can."""

    image: str | None = None
    label: str | None = None


THE_ONLY_ONES = Columns()


def name_of_source(source: str) -> str:
    """What a source is called where its path is nobody's business: a set of the Hub is named whole."""
    return source if source.startswith(HUB) else Path(source).name or Path(source).resolve().name


def hub_id(source: str) -> str | None:
    """The id on the Hub of the set that a source is; None where it is none of the Hub."""
    found = HUB_NAME.fullmatch(source)
    return found["name"] if found else ON_HUB.get(source)


def columns_of(part: Data) -> Columns:
    """Those that a recipe names."""
    return Columns(part.image_column, part.label_column)


@dataclass(frozen=True)
class TableSource(ImageSource):
    """Encoded images in the rows of tables; `root` is the source as it was given.

    Args:
        tables: of the training and possibly of the test images, each with the column of images alone.
    """

    tables: tuple["Dataset", ...] = ()

    @property
    def on_disk(self) -> str:
        return str(self.root) if str(self.root).startswith(HUB) else super().on_disk

    def head(self, row: int, num_bytes: int = -1) -> bytes:
        number = int(row >= self.num_train)
        cell = next(iter(self.tables[number][row - number * self.num_train].values()))
        if cell is None:
            return b""
        if cell["bytes"] is None:  # a path, from where the table lies unless it is absolute
            file = (self.root if self.root.is_dir() else self.root.parent) / (cell["path"] or "")
            content = file.read_bytes() if file.is_file() else b""
        else:
            content = cell["bytes"]
        return content if num_bytes < 0 else content[:num_bytes]

    def open(self, row: int) -> io.BytesIO:
        return io.BytesIO(self.head(row))

    def num_bytes(self, row: int) -> int:
        return len(self.head(row))

    @cached_property
    def identities(self) -> UInt64[np.ndarray, " n"]:
        digests = []
        for table in self.tables:
            of_files = hashlib.blake2b(table.column_names[0].encode(), digest_size=16)
            for file in table.cache_files:
                about = os.stat(file["filename"])
                of_files.update(os.fsencode(f"{file['filename']}\0{about.st_size}\0{about.st_mtime_ns}\0"))
            prefix = of_files.digest()
            digests += [hashlib.blake2b(prefix + b"%d" % row, digest_size=8).digest() for row in range(len(table))]
        return np.frombuffer(b"".join(digests), np.uint64)


def is_table(source: str | Path) -> bool:
    """Whether a source is a set of the Hub, a folder that `save_to_disk` wrote, or parquet files."""
    if str(source).startswith(HUB):
        return True
    path = Path(source)
    if path.is_file():
        return path.suffix.lower() == PARQUET
    return path.is_dir() and (_is_saved(path) or bool(_parquet_files(path)))


def _is_saved(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in SAVED)


def _parquet_files(folder: Path) -> list[Path]:
    """Those of a folder of tables: at any depth, sorted; none where there are images or shards in it."""
    others = (*image_extensions(), ".tar")
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_system(name))
        for name in sorted(files):
            if is_system(name):
                continue
            if name.lower().endswith(others):
                return []
            if name.lower().endswith(PARQUET):
                found.append(Path(parent, name))
    return found


def find_in_tables(source: str | Path, columns: Columns = THE_ONLY_ONES) -> TableSource:
    """The images of tables, nothing of them decoded; the log says which columns are read.

    Args:
        source: `hf:owner/name[:config][@revision]`, a folder that `save_to_disk` wrote, a parquet file, or a folder
            of these with words such as `train` and `test` in the names of files or folders.
        columns: where more than one could be meant.
    Raises:
        InputError: `datasets` is not installed or does not open the source; no column of images or of classes, or
            several; images without a class; a test set of other classes.
    """
    if find_spec("datasets") is None:
        raise InputError(f"{source} is read by `datasets`, which is not installed: pip install 'gencond[hf]'")
    with main_process_first():  # one process downloads and converts, the others find it
        splits = _opened(source)
    train, held_out = _parts(str(source), splits)
    image, label = _columns_of(str(source), splits[train], columns)
    _say_columns(str(source), image, label)
    names_of, tables, labels, names, looked_at, read_from = None, [], [], [], [], []
    for split in (train, *held_out):
        looked_at.append(split)
        table, where = splits[split], f"{source}: split {split!r}"
        if image not in table.features or not _holds_images(table.features[image]):
            raise InputError(f"{where} has no images in column {image!r}, as {train!r} has")
        read, given = _labels_of(where, table, label) if label in table.features else (None, None)
        if tables and (read is None or (read == UNLABELLED).all()):
            logger.info("data: split %r of %s is left out: its images have no labels", split, source)
            continue
        missing = len(table) if read is None else int((read == UNLABELLED).sum())
        if read is None or missing:
            raise InputError(f"{where}: {missing} of {len(table)} rows have no {label!r}")
        if not tables:
            names_of = given
        elif given != names_of:
            read = _renumbered(where, read, given, names_of)
        read_from.append(split)
        tables.append(_encoded(table, image))
        labels.append(read)
        names += _names_of_rows(split, tables[-1], image)
        if len(tables) == 2:
            break
    if left := [split for split in splits if split not in looked_at]:
        logger.info("data: of %s only splits %s are read, not %s", source, ", ".join(read_from), left)
    num_train = len(labels[0])
    class_names, rank = numbered_classes(torch.cat(labels), names_of, num_train, str(source))
    return TableSource(
        Path(source), class_names, names, rank[torch.cat(labels)], num_train, len(tables) > 1, tuple(rank.tolist()),
        tables=tuple(tables),
    )  # fmt: skip


@cache
def _say_columns(source: str, image: str, label: str) -> None:
    """What is read: once, though a plan looks at a set before a run."""
    logger.info("data: columns %r and %r of %s are its images and classes", image, label, source)


def _opened(source: str | Path) -> Mapping[str, "Dataset"]:
    """The splits of a source, by name. Raises InputError where `datasets` does not open it."""
    import datasets

    path = Path(source)
    hub = HUB_NAME.fullmatch(str(source))
    if str(source).startswith(HUB) and not hub:
        raise InputError(f"{source} names no set of the Hub: expected {HUB}owner/name[:config][@revision]")
    handlers = logging.getLogger("datasets").handlers
    for handler in handlers:
        handler.addFilter(_is_no_error)
    try:
        if hub:
            opened = datasets.load_dataset(hub["name"], hub["config"], revision=hub["revision"])
        elif path.is_dir() and _is_saved(path):
            opened = datasets.load_from_disk(str(path))
        else:
            opened = datasets.load_dataset(
                "parquet",
                data_files={
                    split: [glob.escape(str(file)) for file in files]  # which `datasets` takes for patterns
                    for split, files in _files_by_split(path).items()
                },
            )
    except InputError:
        raise
    except Exception as error:  # whatever damaged files, other formats and the network make it raise
        why = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        config = f": name one, {HUB}{hub['name']}:CONFIG" if hub and "onfig name is missing" in str(error) else ""
        raise InputError(f"{source} cannot be read by `datasets` ({type(error).__name__}: {why}){config}") from None
    finally:
        for handler in handlers:
            handler.removeFilter(_is_no_error)
    if isinstance(opened, datasets.Dataset):
        opened = {str(opened.split or "train"): opened}
    return {str(split): table for split, table in opened.items()}


def _is_no_error(record: logging.LogRecord) -> bool:
    """Keeps what `datasets` says of an error to itself: it raises it too, and that becomes our one line."""
    return record.levelno < logging.ERROR


def _files_by_split(path: Path) -> dict[str, list[Path]]:
    """Parquet files by the split that words in their names, or in those of their folders, tell.

    Raises:
        InputError: a split in several folders, which may be several configurations; names that tell none beside others.
    """
    if path.is_file():
        return {"train": [path]}
    found: dict[str | None, list[Path]] = {}
    for file in _parquet_files(path):
        words = re.findall("[a-z]+", str(file.relative_to(path).with_suffix("")).lower())
        told = {split for word in words if (split := split_named(word))}
        found.setdefault(told.pop() if len(told) == 1 else None, []).append(file)
    for files in found.values():
        if odd := next((file for file in files if file.parent != files[0].parent), None):
            raise InputError(
                f"{path}: {files[0].relative_to(path)} and {odd.relative_to(path)} lie in two folders: is each a set "
                "of its own? name the folder that is meant"
            )
    if None in found and len(found) > 1:
        raise InputError(
            f"{found[None][0]} lies beside files of split {next(split for split in found if split)!r}: which images "
            "are for training and which for testing? name all of them train-... or test-..."
        )
    return {split or "train": files for split, files in found.items()}


def _parts(source: str, splits: Mapping[str, "Dataset"]) -> tuple[str, list[str]]:
    """(training split, those that may be the test set, the likeliest first). Raises InputError where none is train."""
    if len(splits) == 1:
        return next(iter(splits)), []
    meant = {name: split_named(name) for name in splits}
    train = [name for name, split in meant.items() if split == "train"]
    if len(train) != 1:
        raise InputError(f"{source} has splits {', '.join(splits)}: one of them has to be called train")
    return train[0], [name for split in ("test", "validation") for name in splits if meant[name] == split]


def _columns_of(source: str, table: "Dataset", columns: Columns) -> tuple[str, str]:
    """(column of images, column of classes). Raises InputError where none can be, several can, or another is named."""
    from datasets import ClassLabel, Value

    images = [name for name, feature in table.features.items() if _holds_images(feature)]
    classes = [name for name, feature in table.features.items() if isinstance(feature, ClassLabel)]
    plain = [
        name
        for name, feature in table.features.items()
        if isinstance(feature, Value) and feature.dtype in (*INTEGERS, *TEXTS, "bool")
    ]
    return (
        _chosen(source, table, "image", columns.image, images, images),
        _chosen(source, table, "label", columns.label, classes or plain, [*classes, *plain]),
    )


def _holds_images(feature: Any) -> bool:
    """Whether a column can hold encoded images: what `datasets` knows as such, bytes, or a pair of bytes and path."""
    from datasets import Image, Value

    return (
        isinstance(feature, Image)
        or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))
        or (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys())
    )


def _chosen(
    source: str, table: "Dataset", kind: str, given: str | None, likely: Sequence[str], possible: Sequence[str]
) -> str:
    what = {"image": "images", "label": "classes"}[kind]
    if given is not None:
        if given not in possible:
            why = "is no column" if given not in table.features else f"cannot hold {what}"
            raise InputError(f"{source}: {given!r} {why}; these can: {', '.join(possible) or 'none'} (--{kind}-column)")
        return given
    if len(likely) != 1:
        found = f"columns {', '.join(likely)} can all hold {what}" if likely else f"no column holds {what}"
        has = ", ".join(f"{name} ({getattr(feature, 'dtype', feature)})" for name, feature in table.features.items())
        mend = f": name one with --{kind}-column" if likely else f": it has {has or 'none'}"
        raise InputError(f"{source}: {found}{mend}")
    return likely[0]


def _labels_of(where: str, table: "Dataset", column: str) -> tuple[Int64[Tensor, " n"], list[str] | None]:
    """(class indices, names of the classes in that order or None where there are only numbers); -1: no label."""
    from datasets import ClassLabel

    feature = table.features[column]
    cells = _cells(table, column)
    if isinstance(feature, ClassLabel) or feature.dtype in INTEGERS:
        numbers = torch.from_numpy(cells.cast("int64").fill_null(UNLABELLED).to_numpy().copy())
        names = list(feature.names) if isinstance(feature, ClassLabel) and feature.names else None
        end = len(names) if names else torch.iinfo(numbers.dtype).max
        if len(odd := numbers[(numbers < UNLABELLED) | (numbers >= end)]):
            known = f"0 to {end - 1}" if names else "0 and more"
            raise InputError(f"{where} has {column!r} {int(odd[0])}: classes are numbered {known}")
        return numbers, names
    texts = [None if text is None else str(text) for text in cells.to_pylist()]
    names = sorted({text for text in texts if text is not None})
    if any(not name.strip() for name in names):
        raise InputError(f"{where} has an empty {column!r} where the name of a class is expected")
    number_of = {name: number for number, name in enumerate(names)}
    return torch.tensor([UNLABELLED if text is None else number_of[text] for text in texts]), names


def _cells(table: "Dataset", column: str) -> Any:
    """A column as Arrow has it, a chunked array; nothing is copied."""
    return cast(Any, table.select_columns([column]).with_format("arrow")[:]).column(column)


def _renumbered(
    where: str, labels: Int64[Tensor, " n"], own: Sequence[str] | None, names: Sequence[str] | None
) -> Int64[Tensor, " n"]:
    """Class indices among `own` names as indices among others. Raises InputError for a class that these lack."""
    if own is None or names is None:
        raise InputError(f"{where} names its classes and the training images do not, or the reverse: save both alike")
    number_of = {name: number for number, name in enumerate(names)}
    used = [own[number] for number in labels.unique().tolist()]
    if odd := next((name for name in used if name not in number_of), None):
        raise InputError(f"{where} has class {odd!r}, which the training images have not")
    return torch.tensor([number_of.get(name, UNLABELLED) for name in own])[labels]


def _encoded(table: "Dataset", image: str) -> "Dataset":
    """The column of images alone, which `datasets` is not to decode."""
    from datasets import Image

    return table.select_columns([image]).with_format(None).cast_column(image, Image(decode=False))


def _names_of_rows(split: str, table: "Dataset", image: str) -> list[str]:
    """Of each image its row, and the name that its file had where that is known."""
    paths = [path for chunk in _cells(table, image).chunks for path in chunk.field("path").to_pylist()]
    return [f"{split}/{row}/{os.path.basename(path)}" if path else f"{split}/{row}" for row, path in enumerate(paths)]
