"""Anybody's condensed set: a folder of images, shards, an .npz or files of tensors -> images to train on."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gencond.common.errors import InputError, first_line
from gencond.common.files import numpy_scalars
from gencond.common.ranges import from_unit, to_signed
from gencond.data.decode import read_into_memory, short_sides
from gencond.data.find import find_images, holds_encoded
from gencond.data.images import LabeledImages
from gencond.data.source import class_list, told_apart
from gencond.data.tables import PARQUET, is_table
from gencond.generator.exporting import NAMES_FILE, by_numbers, class_folders, plain_folders
from gencond.generator.packing import decode

logger = logging.getLogger(__name__)

TENSOR_FILES = (".pt", ".pth", ".safetensors", ".npz")
IMAGE_NAMES = ("images", "image", "x_train", "x", "data", "imgs")
LABEL_NAMES = ("labels", "label", "y_train", "y", "targets", "target")
CLASS_NAMES = ("names", "class_names")


@dataclass(frozen=True)
class ForeignSet:
    """A condensed set as it was stored.

    Args:
        images: class-major, the first `ipc` of each class; bytes, or floats in [-1, 1] where the set stores floats,
            which may lie outside.
        num_found: images of the set, of which classes larger than the smallest lose some.
        factor: each is cut into factor x factor before anybody is trained on it.
        image_bytes: of one stored image.
        stored: what is stored, for people.
    """

    images: LabeledImages
    num_found: int
    ipc: int
    factor: int
    image_bytes: float
    stored: str

    def sample(self, ipc: int) -> LabeledImages:
        """The first `ipc` stored images of each class, cut by `factor`, class-major."""
        kept = torch.arange(len(self.images)) % self.ipc < ipc
        chosen = self.images.subset(kept.nonzero()[:, 0])
        if self.factor == 1:
            return chosen
        cut = decode(to_signed(chosen.images[:]), self.factor)
        return LabeledImages(cut, chosen.labels.repeat_interleave(self.factor**2), chosen.class_names)

    def num_bytes(self, ipc: int) -> int:
        """What must be stored of `ipc` images of each class; labels cost nothing, class by class."""
        return math.ceil(self.image_bytes * ipc * self.images.num_classes)


def is_foreign(path: Path) -> bool:
    """Whether a path holds images or tensors rather than an artefact of gencond."""
    if path.is_file():
        return path.suffix in (*TENSOR_FILES, PARQUET)
    return path.is_dir() and not any((path / name).exists() for name in ("config.json", "condensed", "recipe.yaml"))


def read_foreign(
    path: Path,
    real: LabeledImages,
    normalised_by: tuple[Sequence[float], Sequence[float]] | None = None,
    factor: int = 1,
) -> ForeignSet:
    """A condensed set of the classes of `real`.

    Args:
        path: a folder with one folder of images per class, of WebDataset shards or of parquet files, a parquet file, or
            one that `save_to_disk` wrote; or a file of tensors: .npz,
            .safetensors, .pt with (images, labels), a mapping with such names, or {"data": [[images, labels], ...]} as
            the code of DC and DM writes it (the first of them is taken); or images alone, images_best.pt, with
            labels_best.pt beside it, as the code of MTT and what came from it writes them, and a folder that has these
            two. Images are bytes, or floats in [0, 1] or normalised. Labels are numbers of the classes as the file
            names them (`names`), as a list beside it does (classes.txt, one a line), or as the real set's source does.
        real: the training set that it stands for.
        normalised_by: mean and standard deviation per channel, of images in [0, 1], that floats were normalised with.
        factor: the set cuts each image into factor x factor (IDC's multi-formation).
    Raises:
        InputError: nothing there, or what is there cannot be trained on; one line that says why.
    """
    if not 1 <= factor <= real.image_size // 2:
        raise InputError(f"--factor {factor} does not cut {real.image_size} px images: it has to be at least 1")
    given, path = path, _images_file(path)
    if path != given:
        logger.info("data: of %s the set is %s", given, path.name)
    if holds_encoded(path):
        images, labels, image_bytes, stored = _read_folder(path, real)
    elif path.suffix in TENSOR_FILES and path.is_file():
        images, labels, names = _read_tensors(path)
        _check_shape(path, images, labels, real)
        labels = _as_classes(path, labels.long(), names, real)
        image_bytes, stored = float(images[0].numel() * images.element_size()), f"images as {str(images.dtype)[6:]}"
    else:
        raise InputError(f"{path} is no condensed set: expected a folder of images, {', '.join(TENSOR_FILES)}")
    if images.dtype != torch.uint8:
        images = _signed(path, images.float(), normalised_by)
    elif normalised_by is not None:
        raise InputError(f"{path} holds bytes, which are not normalised: leave --normalised-by out")
    ipc = int(torch.bincount(labels, minlength=real.num_classes).min())
    if ipc * real.num_classes > len(real):
        raise InputError(
            f"{path} holds {ipc} images of each class, more than the {len(real)} real ones: nothing was condensed"
        )
    rows = [(labels == label).nonzero()[:ipc, 0] for label in range(real.num_classes)]
    order = torch.cat(rows)
    kept = LabeledImages(images[order].contiguous(), labels[order], real.class_names)
    return ForeignSet(kept, len(labels), ipc, factor, image_bytes, stored)


def side_of(path: Path) -> int | None:
    """The side of a foreign set's images in pixels, so that real ones are brought to it; None where it has none."""
    path = _images_file(path)
    if holds_encoded(path):
        return next(iter(short_sides(find_images(path), at_most=1)), None)
    images = _read_tensors(path)[0]
    return images.shape[-1] if images.ndim == 4 else None


def _images_file(path: Path) -> Path:
    """The file of images in a folder that has one with its labels beside it; any other path as it is."""
    if not path.is_dir():
        return path
    found = [file for file in sorted(path.glob("*image*")) if file.suffix in TENSOR_FILES and _labels_file(file)]
    chosen = next((file for file in found if file.stem == "images_best"), found[0] if found else path)
    if len(found) > 1 and chosen.stem != "images_best":
        raise InputError(
            f"{path} holds {found[0].name}, {found[1].name} and labels of each: name the file that is meant"
        )
    return chosen


def _labels_file(images: Path) -> Path | None:
    """labels_best.pt beside images_best.pt; None where there is none."""
    file = images.with_name(images.name.replace("image", "label"))
    return file if file != images and images.is_file() and file.is_file() else None


def _read_folder(root: Path, real: LabeledImages) -> tuple[Tensor, Tensor, float, str]:
    """(images, labels, bytes of one, what is stored) of folders, shards or tables, matched by the names of classes."""
    found = find_images(root)
    if (label_of := _places(found.class_names, real.class_names)) is None:
        odd = min(set(real.class_names) ^ set(found.class_names), default="a class twice")
        how, mend = "class folders", "name the folders as the real classes are named"
        if is_table(root):
            how, mend = "classes", "the classes of both have to have the same names"
        elif found.shards:
            how, mend = "classes", f"list these in the order of the class indices, one a line, in {root / NAMES_FILE}"
        raise InputError(
            f"{root} has {len(found.class_names)} {how}, the real images {real.num_classes} classes; {odd!r} is in one "
            f"of them only: {mend}"
        )
    images = read_into_memory(found, real.image_size)
    if images.shape[1] != real.channels:
        raise InputError(f"{root} holds images of {images.shape[1]} channels, the real ones have {real.channels}")
    count = found.num_train
    return (
        images[:count],
        label_of[found.labels[:count]],
        sum(map(found.num_bytes, range(count))) / count,
        "image files",
    )


def _places(names: Sequence[str], real: tuple[str, ...]) -> Int64[Tensor, " classes"] | None:
    """Where a folder's classes stand among the real ones, by name; None where they are others."""
    if tuple(names) in (real, tuple(class_folders(real))):
        return torch.arange(len(real))
    plain = [name.partition("_") for name in names]  # of an export whose classes have an order of their own: 0_cat
    own = plain_folders(real)
    if all(number.isdecimal() for number, *_ in plain) and sorted(name for *_, name in plain) == sorted(set(own)):
        return torch.tensor([own.index(name) for *_, name in plain])
    return None


def _read_tensors(path: Path) -> tuple[Tensor, Tensor, list[str] | None]:
    """(images, labels, class names where they are listed) of a file, as they are stored, channels first."""
    content, names = _load(path), None
    if torch.is_tensor(content) and (beside := _labels_file(path)):
        content = content, _load(beside)
    if isinstance(content, Mapping):
        names = next((content[name] for name in CLASS_NAMES if content.get(name) is not None), None)
    if isinstance(content, Mapping) and isinstance(content.get("data"), list | tuple) and content["data"]:
        content = content["data"][0]  # DC, DSA and DM: one pair for each experiment
    if isinstance(content, Mapping):
        found = [
            next((content[name] for name in known if name in content), None) for known in (IMAGE_NAMES, LABEL_NAMES)
        ]
        if any(one is None for one in found):
            raise InputError(f"{path} holds {', '.join(map(str, content)) or 'nothing'}; expected images and labels")
        content = found
    pair = [one for one in content[:2] if torch.is_tensor(one)] if isinstance(content, list | tuple) else []
    if len(pair) < 2:
        raise InputError(
            f"{path} does not hold a pair of tensors, images and labels"
            + (f", and no {path.name.replace('image', 'label')} is beside it" if "image" in path.name else "")
        )
    images, labels = pair[0].detach(), pair[1]
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[-1] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    return images, labels, _class_names(path, names)


def _load(path: Path) -> Any:
    """What a file holds. Nothing that could run code is unpickled: whatever is no number, text or tensor is refused."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                known = {
                    name: arrays[name] if name in (*IMAGE_NAMES, *LABEL_NAMES, *CLASS_NAMES) else None
                    for name in arrays.files
                }
            return {
                name: torch.from_numpy(array) if array is not None and array.dtype.kind in "biuf" else array
                for name, array in known.items()
            }
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(numpy_scalars()):  # the accuracies in the files of DC and DM
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file, or one with other objects, makes torch and numpy raise
        raise InputError(
            f"{path} cannot be read as tensors ({first_line(error)[:120]}): save images and labels alone, as with "
            "torch.save((images, labels), path)"
        ) from None


def _class_names(path: Path, names: Any) -> list[str] | None:
    """The classes in the order of the labels: those of the file (text, bytes or numbers), else of a list beside it."""
    try:
        if names is not None:
            names = names.tolist() if isinstance(names, np.ndarray | Tensor) else names
            return [name.decode() if isinstance(name, bytes) else str(name) for name in np.atleast_1d(names).tolist()]
    except UnicodeDecodeError:
        raise InputError(f"{path}: the names of the classes are no UTF-8 text: write them anew") from None
    return class_list(listed) if (listed := path.with_name(NAMES_FILE)).is_file() else None


def _as_classes(
    path: Path, labels: Int64[Tensor, " n"], names: list[str] | None, real: LabeledImages
) -> Int64[Tensor, " n"]:
    """A file's labels as positions in `real.class_names`: by its names, else in the order of the real set's source.

    Classes of one name are told apart by their order.

    Raises:
        InputError: other classes; no order, where that of names as text and that of the numbers in them differ.
    """
    _check_labels(path, labels, real)
    if names is None and real.class_of is None:
        for label, (name, other) in enumerate(zip(real.class_names, by_numbers(real.class_names), strict=True)):
            if name != other:
                raise InputError(
                    f"{path}: is label {label} class {name!r} (names sorted as text) or {other!r} (as numbers)? List "
                    f"the classes in the order of the labels, one a line, in {path.with_name(NAMES_FILE)}"
                )
        return labels
    if names is None:
        return torch.tensor(real.class_of)[labels]
    if sorted(names := told_apart(names)) != sorted(real.class_names):
        odd = min(set(names) ^ set(real.class_names))
        raise InputError(f"{path} names other classes than the real images have: {odd!r}")
    return torch.tensor([real.class_names.index(name) for name in names])[labels]


def _check_shape(path: Path, images: Tensor, labels: Tensor, real: LabeledImages) -> None:
    expected = (real.channels, real.image_size, real.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected or len(images) == 0:
        raise InputError(f"{path} holds images of shape {list(images.shape)}, the real ones are {list(expected)} each")
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise InputError(f"{path} holds images of type {images.dtype}: expected bytes (uint8) or floats")
    if labels.ndim != 1 or len(labels) != len(images) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"{path} holds {len(images)} images and labels of shape {list(labels.shape)} and type {labels.dtype}: "
            "expected one class index for each image (soft labels are not read)"
        )


def _check_labels(path: Path, labels: Tensor, real: LabeledImages) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= real.num_classes:
        raise InputError(
            f"{path} has label {low if low < 0 else high}; the real classes are 0 .. {real.num_classes - 1}"
            + (": subtract 1 where labels start at 1" if low == 1 else "")
        )
    counts = torch.bincount(labels, minlength=real.num_classes)
    if empty := (counts == 0).nonzero()[:, 0].tolist():
        raise InputError(f"{path} has no image of class {real.class_names[empty[0]]!r} ({len(empty)} classes lack any)")


def _signed(
    path: Path, images: Float[Tensor, "n c h w"], normalised_by: tuple[Sequence[float], Sequence[float]] | None
) -> Float[Tensor, "n c h w"]:
    """Floats of a file in [-1, 1], not clamped."""
    bad = ~images.isfinite().flatten(1).all(1)
    if bad.any():
        raise InputError(
            f"{path}: {int(bad.sum())} images hold NaN or infinity, the first is number {int(bad.nonzero()[0])}"
        )
    channels = images.shape[1]
    if normalised_by is not None:
        if any(len(value) not in (1, channels) for value in normalised_by):
            raise InputError(f"--normalised-by needs a mean and a standard deviation for each of {channels} channels")
        mean, std = (torch.tensor(value, dtype=torch.float32).view(1, -1, 1, 1) for value in normalised_by)
        images = images * std + mean
    elif float(images.min()) < -1e-3 or float(images.max()) > 1 + 1e-3:
        raise InputError(
            f"{path} holds floats from {float(images.min()):.2f} to {float(images.max()):.2f}, not in [0, 1]: say what "
            "they were normalised with, --normalised-by MEAN STD (0.5 0.5 where they are in [-1, 1]); what ZCA "
            "whitened is not read"
        )
    return from_unit(images)
