"""Encoded images -> pixels of one size: in memory or, where the set is large, in a file, once."""

import hashlib
import io
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from gencond.common.cache import hold
from gencond.common.distributed import from_all, from_main, rank_and_world
from gencond.common.errors import InputError, first_line
from gencond.common.files import cache_dir, free_space, is_locked, read_json, require_writable, take_lock, write_json
from gencond.common.progress import progress
from gencond.data.mapped import FACTS, MappedImages, damage_of, seal, set_aside
from gencond.data.source import DECODING, ImageSource

logger = logging.getLogger(__name__)

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
    seal(partial, f"{len(source):,} images of {source.on_disk}, {len(source.class_names):,} classes")
    partial.rename(folder)
    (folder / "done").unlink()
