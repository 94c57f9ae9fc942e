"""Class-major samples in the formats that others read."""

import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from gencond.errors import InputError
from gencond.files import require_new, written_whole
from gencond.pictures import png_bytes
from gencond.progress import progress

RESERVED_FOLDERS = ("train", "test", "val", "validation")
SHARD_IMAGES = 10_000
SUFFIXES = {"npz": ".npz", "ddranking": ".pt"}  # of the formats that are one file
DDRANKING_SETS = {(10, 3, 32): "CIFAR10", (100, 3, 32): "CIFAR100"}  # (classes, channels, side in pixels) of each
DDRANKING_MEAN, DDRANKING_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # what it normalises both by


def class_folders(class_names: Sequence[str]) -> list[str]:
    """A folder name per class whose sorted order is the order of the classes, as `data.py` reads them."""
    names = [re.sub(r"[^\w.+-]", "_", name) for name in class_names]
    misread = any(name == "" or name.startswith((".", "__")) or name.lower() in RESERVED_FOLDERS for name in names)
    if misread or names != sorted(names) or len({name.lower() for name in names}) < len(names):
        width = len(str(len(names) - 1))
        names = [f"{label:0{width}d}_{name}" for label, name in enumerate(names)]
    return names


def check_export(out: Path, format: str, num_classes: int, channels: int, image_size: int) -> Path:
    """Where exactly an export goes. Raises InputError as `export_images` does, before anything is sampled."""
    if format not in WRITERS:
        raise InputError(f"unknown format {format!r}; known: {', '.join(WRITERS)}")
    if format == "ddranking":
        ddranking_set(num_classes, channels, image_size)
    suffix = SUFFIXES.get(format, "")
    out = out if out.suffix == suffix else Path(f"{out}{suffix}")
    require_new(out)
    return out


def export_images(
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    class_names: Sequence[str],
    out: Path,
    format: str,
) -> Path:
    """Writes class-major samples in a format that others read, whole or not at all; where they are.

    Args:
        out: a folder; for npz and ddranking a file, which gets its suffix where that is missing.
        format: `imagefolder` (<class>/<slot>.png), `npz` (x_train, y_train, names), `webdataset` (tar shards of
            png + cls), `parquet` (the Hub's image-classification layout, needs pyarrow), `ddranking` (a .pt of images,
            normalised, and labels: what its hard-label scores take as `image_tensor` and `hard_labels`). Folder names
            sort as the classes and file names as the slots: who takes the first k files of each class has IPC k.
    Raises:
        InputError: an unknown format, images that it does not take, or `out` exists and is not empty.
    """
    out = check_export(out, format, len(class_names), images.shape[1], images.shape[-1])
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    with written_whole(out) as temporary:
        WRITERS[format](arrays, labels.tolist(), class_names, temporary)
    return out


def _write_imagefolder(images: np.ndarray, labels: list[int], class_names: Sequence[str], out: Path) -> None:
    folders = class_folders(class_names)
    for name in folders:
        (out / name).mkdir(parents=True)
    written = [0] * len(folders)
    bar = progress(
        zip(images, labels, strict=True),
        description="writing images",
        total=len(labels),
        unit="image",
        disable=len(labels) < 5000,
    )
    for image, label in bar:
        (out / folders[label] / f"{written[label]:06d}.png").write_bytes(png_bytes(image))
        written[label] += 1


def _write_npz(images: np.ndarray, labels: list[int], class_names: Sequence[str], out: Path) -> None:
    with out.open("wb") as file:
        np.savez(file, x_train=images, y_train=np.array(labels), names=np.array(class_names))


def _write_webdataset(images: np.ndarray, labels: list[int], class_names: Sequence[str], out: Path) -> None:
    out.mkdir(parents=True)
    for first in range(0, len(labels), SHARD_IMAGES):
        with tarfile.open(out / f"{first // SHARD_IMAGES:06d}.tar", "w") as shard:
            for row in range(first, min(first + SHARD_IMAGES, len(labels))):
                for suffix, content in (("png", png_bytes(images[row])), ("cls", str(labels[row]).encode())):
                    member = tarfile.TarInfo(f"{row:09d}.{suffix}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    (out / "classes.txt").write_text("\n".join(class_names) + "\n", encoding="utf-8")


def _write_parquet(images: np.ndarray, labels: list[int], class_names: Sequence[str], out: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        raise InputError("format parquet needs pyarrow: pip install 'gencond[parquet]'") from None
    table = pa.table({
        "image": pa.array(
            [{"bytes": png_bytes(image), "path": None} for image in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "label": pa.array(labels, pa.int64()),
    })  # fmt: skip
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    out.mkdir(parents=True)
    pyarrow.parquet.write_table(table, out / "train-00000-of-00001.parquet")


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


WRITERS = {
    "imagefolder": _write_imagefolder,
    "npz": _write_npz,
    "webdataset": _write_webdataset,
    "parquet": _write_parquet,
    "ddranking": _write_ddranking,
}
