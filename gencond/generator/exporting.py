"""Samples in the formats that others read."""

import importlib.util
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.files import require_new, written_whole

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation")
# `datasets` of Hugging Face takes a folder for a split that has one of these between any of "-._ 0-9", and gencond one
# called `testset`.
SPLIT_WORD = re.compile(
    rf"(?<![^-._ 0-9])({'|'.join(SPLITS)})(?=(?:set|data|images|split|shards)?(?![^-._ 0-9]))", re.IGNORECASE
)
NAMES_FILE = "classes.txt"  # of shards: the name of each class on a line, in the order of their numbers
SUFFIXES = {"npz": ".npz", "ddranking": ".pt"}  # of the formats that are one file
DDRANKING_SETS = {(10, 3, 32): "CIFAR10", (100, 3, 32): "CIFAR100"}  # (classes, channels, side in pixels) of each
DDRANKING_MEAN, DDRANKING_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # what it normalises both by


def by_numbers(names: Sequence[str]) -> list[str]:
    """Sorted as people would: "2" before "10"."""
    return sorted(names, key=_parts)


def _parts(name: str) -> list[str | int]:
    """Text and numbers in turn."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def class_folders(class_names: Sequence[str]) -> list[str]:
    """A folder name per class, whose order is the order of the classes, whoever reads them.

    gencond and torchvision sort as text, timm by numbers and without regard to case: names that these would put in
    another order are numbered. Words that name splits are set in plus signs. Beside the folders lies nothing, since
    Rethinking-DC takes whatever is listed first for a class.
    """
    names = plain_folders(class_names)
    misread = any(name == "" or name.startswith((".", "__")) or name.lower() == "lost+found" for name in names)
    natural = [_parts(name.lower()) for name in names]
    if misread or names != sorted(names) or any(one >= other for one, other in pairwise(natural)):
        width = len(str(len(names) - 1))
        names = [f"{label:0{width}d}_{name}" for label, name in enumerate(names)]
    return names


def plain_folders(class_names: Sequence[str]) -> list[str]:
    """A folder name per class that every file system and reader takes, in whatever order these put them."""
    return [SPLIT_WORD.sub(r"+\1+", re.sub(r"[^\w.+-]", "_", name)) for name in class_names]


def check_export(out: Path, format: str, class_names: Sequence[str], channels: int, image_size: int) -> Path:
    """Where exactly an export goes: what is one file gets its suffix where that is missing.

    Raises:
        InputError: an unknown format, images or class names that it does not take, or `out` exists and is not empty.
    """
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError("format parquet needs pyarrow: pip install 'gencond[parquet]'")
    if format == "ddranking":
        ddranking_set(len(class_names), channels, image_size)
    if format == "webdataset" and (odd := [name for name in class_names if not _is_a_line(name)]):
        raise InputError(
            f"class {odd[0]!r} is no line of text, and {NAMES_FILE} of format webdataset holds one for each class: "
            "choose another format or rename the class"
        )
    suffix = SUFFIXES.get(format, "")
    out = out if out.suffix == suffix else Path(f"{out}{suffix}")
    require_new(out)
    return out


def _is_a_line(name: str) -> bool:
    """Whether a line holds a name, so that it comes back."""
    return name.splitlines() == [name] and name.encode(errors="ignore").decode() == name


# Front matter for `datasets` of Hugging Face, which would otherwise take a text file beside one shard for the data.
SHARDS_README = f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: "*.tar"
---

Samples of a condensed data set, by gencond. `.cls` is the class of a `.png`: the line of `{NAMES_FILE}`, from 0.
"""


# --- files of a part ---------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """What the files of a part have to know of the whole export. `folders` are those of the classes."""

    class_names: Sequence[str]
    folders: Sequence[str]
    images_per_class: int
    num_parts: int

    def file_of(self, image: "EncodedImage") -> str:
        """Its path in an ImageFolder: names sort as the numbers do."""
        digits = max(6, len(str(self.images_per_class - 1)))
        return f"{self.folders[image.label]}/{image.number:0{digits}d}.png"


class EncodedImage(NamedTuple):
    """A PNG file; `number` counts the images of its class."""

    label: int
    number: int
    png: bytes


def lay_out(format: str, folder: Path, layout: Layout) -> None:
    """Writes what belongs to no part; doing it again changes nothing."""
    if format == "imagefolder":
        for name in layout.folders:
            (folder / name).mkdir(exist_ok=True)
    if format == "webdataset":
        (folder / NAMES_FILE).write_text("\n".join(layout.class_names) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(SHARDS_README, encoding="utf-8")


@contextmanager
def _placed(file: Path) -> Iterator[Path]:
    """Yields a path outside of the folder that is exported; what was written there becomes `file`."""
    temporary = file.parent.with_name(file.name)
    yield temporary
    os.replace(temporary, file)


def _write_imagefolder(images: Iterable[EncodedImage], folder: Path, layout: Layout, part: int) -> None:
    for image in images:
        (folder / layout.file_of(image)).write_bytes(image.png)


def _write_webdataset(images: Iterable[EncodedImage], folder: Path, layout: Layout, part: int) -> None:
    with _placed(folder / f"{part:06d}.tar") as temporary, tarfile.open(temporary, "w") as shard:
        for image in images:
            key = image.label * layout.images_per_class + image.number
            for suffix, content in (("png", image.png), ("cls", str(image.label).encode())):
                member = tarfile.TarInfo(f"{key:09d}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def _write_parquet(images: Iterable[EncodedImage], folder: Path, layout: Layout, part: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    images = list(images)
    table = pa.table({
        "image": pa.array(
            [{"bytes": image.png, "path": layout.file_of(image)} for image in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "label": pa.array([image.label for image in images], pa.int64()),
    })  # fmt: skip
    features = {"image": {"_type": "Image"}, "label": {"names": list(layout.class_names), "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with _placed(folder / f"train-{part:05d}-of-{layout.num_parts:05d}.parquet") as temporary:
        pyarrow.parquet.write_table(table, temporary)


# --- one file ----------------------------------------------------------------------------------------------------


def export_images(
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    class_names: Sequence[str],
    out: Path,
    format: str,
) -> Path:
    """Writes class-major samples as one file of `FILE_WRITERS`, whole or not at all; where it is.

    Raises:
        InputError: as `check_export`.
    """
    out = check_export(out, format, class_names, images.shape[1], images.shape[-1])
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    with written_whole(out) as temporary:
        FILE_WRITERS[format](arrays, labels.tolist(), class_names, temporary)
    return out


def _write_npz(images: np.ndarray, labels: list[int], class_names: Sequence[str], out: Path) -> None:
    with out.open("wb") as file:
        np.savez(file, x_train=images, y_train=np.array(labels), names=np.array(class_names))


def ddranking_set(num_classes: int, channels: int, image_size: int) -> str:
    """DD-Ranking's name for the set that such images are of. Raises InputError where it knows none by hard labels."""
    if (shape := (num_classes, channels, image_size)) not in DDRANKING_SETS:
        raise InputError(
            "DD-Ranking scores hard labels of CIFAR-10 and CIFAR-100, 10 or 100 classes of 3x32x32 px; these are "
            f"{num_classes} classes of {channels}x{image_size}x{image_size} px"
        )
    return DDRANKING_SETS[shape]


def normalised_for_ddranking(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """[0, 1] -> as DD-Ranking normalises the real images that it trains and tests on."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (DDRANKING_MEAN, DDRANKING_STD))
    return (images - mean) / std


def _write_ddranking(images: np.ndarray, labels: list[int], class_names: Sequence[str], out: Path) -> None:
    unit = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
    with out.open("wb") as file:
        torch.save({"images": normalised_for_ddranking(unit), "labels": torch.tensor(labels)}, file)


PART_WRITERS = {"imagefolder": _write_imagefolder, "webdataset": _write_webdataset, "parquet": _write_parquet}
FILE_WRITERS = {"npz": _write_npz, "ddranking": _write_ddranking}
FORMATS = (*PART_WRITERS, *FILE_WRITERS)
