"""Images in a file: a set that does not fit in memory, whose rows are read as they are asked for.

A folder `images/<key>` of the cache holds `pixels` (uint8, one image after the other, channels first), `facts` (what
is known of each image, see `FACTS`), `identities` (of the files) and `about.json`. `sources` writes it, and it never
changes: facts are held to a checksum when the folder is opened, and each image to its own when it is read.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from gencond.common.errors import InputError, first_line
from gencond.common.files import file_sha256, read_json, write_json

# Of each image: SHA-256 of its pixels; their sum and sum of squares in each channel (the first only where it is grey).
FACTS = np.dtype([("digest", "u1", 32), ("sum", "i8", 3), ("square", "i8", 3)])
AT_ONCE = 100_000  # rows of facts in memory
CPU = torch.device("cpu")


def seal(folder: Path, about: str) -> None:
    """Notes the checksum of the facts, once all are there; `about` is what the images are, for people."""
    write_json(folder / "about.json", read_json(folder / "about.json") | {
        "facts": file_sha256(folder / "facts"), "about": about,
    })  # fmt: skip


def damage_of(folder: Path, num_images: int) -> str:
    """Why a sealed folder is not what was written, or empty. Pixels are looked at when they are read."""
    try:
        about = read_json(folder / "about.json")
        shape = about["shape"]
        if shape[0] != num_images or (folder / "pixels").stat().st_size != int(np.prod(shape)):
            return f"it holds other images than {num_images} of {shape[1:]}"
        return "" if file_sha256(folder / "facts") == about["facts"] else "facts are not what was written"
    except (InputError, KeyError, TypeError, IndexError, ValueError, OSError) as error:
        return first_line(error)


def set_aside(folder: Path) -> None:
    """Takes a damaged folder out of the way; what of it is whole is taken over when the images are decoded again."""
    aside = folder.with_name(f".{folder.name}.damaged")
    with suppress(OSError):  # another process was faster
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


class MappedImages:
    """Rows of a decoded set on disk. Indexing reads them into memory; `at` and `to` read nothing.

    Args:
        folder: see this module.
        rows: which images, in which order; None takes all.
        device: where rows that are read go.
    """

    dtype = torch.uint8

    def __init__(self, folder: Path, rows: Int64[Tensor, " n"] | None = None, device: torch.device = CPU) -> None:
        about = read_json(folder / "about.json")
        self.folder, self.device = folder, device
        self._stored = tuple(about["shape"])
        self._rows = torch.arange(self._stored[0]) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        """[n, c, h, w]"""
        return torch.Size((len(self), *self._stored[1:]))

    @property
    def image_bytes(self) -> int:
        """Of one image."""
        return int(np.prod(self._stored[1:]))

    def numel(self) -> int:
        """Bytes of all images."""
        return len(self) * self.image_bytes

    @cached_property
    def pixels(self) -> np.memmap:
        """All images that are stored, [n, c, h, w]."""
        return np.memmap(self.folder / "pixels", np.uint8, "r", shape=self._stored)

    @cached_property
    def known(self) -> np.memmap:
        """What is known of all images that are stored, see `FACTS`."""
        return np.memmap(self.folder / "facts", FACTS, "r", shape=self._stored[:1])

    def __getitem__(self, index: int | slice | Int64[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        """The images at some positions, as a tensor of their shape: [c, h, w], [k, c, h, w] or more.

        Raises:
            InputError: one that is not what was written; it is decoded again by the next start.
        """
        rows = self._rows[index.cpu() if isinstance(index, Tensor) else index]
        listed = rows.flatten().numpy()
        images, digests = self.pixels[listed], self.known[listed]["digest"]  # numpy copies what is listed
        for row, image, digest in zip(listed, images, digests, strict=True):
            if hashlib.sha256(image).digest() != digest.tobytes():
                set_aside(self.folder)
                raise InputError(
                    f"{self.folder} is damaged (image {row}) and will be made again: give the same command once more"
                )
        return torch.from_numpy(images).view(*rows.shape, *self._stored[1:]).to(self.device)

    def split(self, size: int) -> Iterator[UInt8[Tensor, "k c h w"]]:
        """All images in order, `size` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def at(self, index: Int64[Tensor, " k"]) -> "MappedImages":
        """Some of the images, still on disk."""
        return MappedImages(self.folder, self._rows[index], self.device)

    def to(self, device: torch.device) -> "MappedImages":
        """The same images, whose rows go to `device` when they are read."""
        return MappedImages(self.folder, self._rows, device)

    def facts(self) -> Iterator[np.ndarray]:
        """What is known of each image, in order, some at a time; no pixel is read."""
        for rows in self._rows.split(AT_ONCE):
            yield self.known[rows.numpy()]
