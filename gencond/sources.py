"""Where encoded images lie (folders, WebDataset shards) and how they become pixels: in memory, or once into a file.

A set whose pixels are more than `MAPPED_ABOVE_BYTES` is decoded into the cache (see `mapped`), by all processes
together, and from then on read from there: no real image is decoded twice, and memory does not grow with the set.
"""

import hashlib
import io
import logging
import os
import shutil
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8, UInt64
from torch import Tensor

from gencond.distributed import from_all, from_main, rank_and_world
from gencond.errors import InputError
from gencond.files import cache_dir, free_space, is_locked, read_json, require_writable, take_lock, write_json
from gencond.mapped import FACTS, MappedImages
from gencond.progress import progress

logger = logging.getLogger(__name__)

TEST_FOLDERS = ("test", "val", "validation")
HIDDEN = (".", "__")
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
GREY_MODES = ("1", "L", "LA", *WIDE_MODES)
# Each process, each split and each classifier in training holds a copy: a few GB where a set is as large as this.
MAPPED_ABOVE_BYTES = 2**30
CHUNK_BYTES = 2**25  # of pixels that a process holds while it decodes, and loses when it is killed
SECONDS_BETWEEN_LOOKS = 10
DECODING = "decoded-1"  # changes whenever the same file would become other pixels, or chunks would have another size


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

    def open(self, row: int) -> Path | io.BytesIO:
        """What Pillow opens to read an image."""
        if self.places is None:
            return self.root / self.names[row]
        shard, offset, size = self.places[row].tolist()
        with (self.root / self.shards[shard]).open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

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


def find_images(root: Path) -> ImageSource:
    """The images of a folder with one folder per class, or with WebDataset shards, nothing of them decoded.

    Args:
        root: holds class folders, or `train/` and possibly a test folder of that kind; or it, or these two, hold
            shards: .tar files with an image and its class index (.cls) under one name, with `classes.txt` beside them.
    Raises:
        InputError: no classes, classes without images, images without a class, a test set of other classes.
    """
    shards = {folder.name.lower(): folder for folder in visible_folders(root) if any(folder.glob("*.tar"))}
    if any(root.glob("*.tar")) and not visible_folders(root):
        return _find_in_shards(root, root, None)
    if "train" in shards and not visible_folders(shards["train"]):
        test = next((shards[name] for name in TEST_FOLDERS if name in shards), None)
        beside = [folder for folder in visible_folders(root) if folder.name.lower() in TEST_FOLDERS]
        if test is None and beside:
            raise InputError(f"{beside[0]} holds no shards, and {shards['train']} does: write both in one way")
        return _find_in_shards(root, shards["train"], test)
    if of_test := [shards[name] for name in TEST_FOLDERS if name in shards and not visible_folders(shards[name])]:
        raise InputError(f"{of_test[0]} holds shards, and the training images lie in folders: write both in one way")
    return _find_in_folders(root)


def _find_in_folders(root: Path) -> ImageSource:
    splits = {folder.name.lower(): folder for folder in visible_folders(root) if visible_folders(folder)}
    train_root = splits.get("train", root)
    held_out = [splits[name] for name in TEST_FOLDERS if name in splits]
    test_root = held_out[0] if held_out else None
    for folder in held_out[1:]:
        logger.info("data: %s is left out, %s is the test set", folder, test_root)
    candidates = visible_folders(train_root)
    if train_root == root:
        candidates = [folder for folder in candidates if folder not in held_out]
        if flat := [folder for folder in candidates if folder.name.lower() in TEST_FOLDERS]:
            raise InputError(
                f"{flat[0]} holds no class folders, so it is no test set: sort its images into classes or move it away"
            )
    class_names = tuple(folder.name for folder in candidates)
    if not class_names:
        packed = next((path for path in root.glob("*.t*gz")), None)
        raise InputError(
            f"{packed} is compressed, so that its images cannot be found one by one: unpack it to .tar"
            if packed
            else f"{train_root} has no class folders: expected {train_root}/<class name>/<image>"
        )
    number_of = {name: number for number, name in enumerate(class_names)}
    names: list[str] = []
    labels: list[int] = []

    def take(split_root: Path, folders: Iterable[str]) -> None:
        for name in folders:
            found = [str(path.relative_to(root)) for path in image_files(split_root / name)]
            if not found:
                raise InputError(f"class {name!r} of {split_root} has no images: add some or remove the folder")
            names.extend(found)
            labels.extend([number_of[name]] * len(found))

    take(train_root, class_names)
    num_train = len(names)
    if test_root is not None:
        tested = [folder.name for folder in visible_folders(test_root)]
        if strange := sorted(set(tested) - set(class_names)):
            raise InputError(f"{test_root} has class {strange[0]!r}, which {train_root} has not")
        take(test_root, tested)
    return ImageSource(root, class_names, names, torch.tensor(labels), num_train, test_root is not None)


def visible_folders(root: Path) -> list[Path]:
    """Visible folders, sorted by name; none where `root` is no folder."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN))


def image_files(folder: Path) -> list[Path]:
    """Visible image files at any depth, links followed, sorted. Files of other kinds are counted in the log."""
    extensions = image_extensions()
    found, others = [], []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        for name in sorted(files):
            if not name.startswith(HIDDEN):
                path = Path(parent, name)
                (found if path.suffix.lower() in extensions else others).append(path)
    if others:
        logger.info("data: %d file(s) in %s are no images and left out, %s first", len(others), folder, others[0].name)
    return sorted(found)


def _find_in_shards(root: Path, train: Path, test: Path | None) -> ImageSource:
    names: list[str] = []
    labels: list[int] = []
    places: list[tuple[int, int, int]] = []
    shards: list[str] = []
    ends: list[int] = []
    for folder in [train] if test is None else [train, test]:
        for shard in sorted(folder.glob("*.tar")):
            for name, offset, size, label in _index_shard(shard):
                names.append(f"{shard.relative_to(root)}/{name}")
                labels.append(label)
                places.append((len(shards), offset, size))
            shards.append(str(shard.relative_to(root)))
        ends.append(len(names))
        if len(names) == (ends[-2] if len(ends) > 1 else 0):
            raise InputError(f"the shards of {folder} hold no images with a class index (.png or .jpg, and .cls)")
    num_train = ends[0]
    listed = next((file for file in (train / "classes.txt", root / "classes.txt") if file.is_file()), None)
    if listed is not None:
        try:
            given = [line for line in listed.read_text(encoding="utf-8").splitlines() if line]
        except UnicodeDecodeError:
            raise InputError(f"{listed} is no UTF-8 text: write a class name on each line") from None
    else:
        count = max(labels[:num_train]) + 1
        given = [f"{label:0{len(str(count - 1))}d}" for label in range(count)]
    if not 0 <= min(labels) <= max(labels) < len(given):
        raise InputError(
            f"{root}: class indices go from {min(labels)} to {max(labels)}, and {len(given)} classes exist"
        )
    order = sorted(range(len(given)), key=given.__getitem__)
    rank = torch.tensor(order).argsort()
    class_names = tuple(given[label] for label in order)
    ranked = rank[torch.tensor(labels)]
    for name, count in zip(class_names, ranked[:num_train].bincount(minlength=len(given)).tolist(), strict=True):
        if count == 0:
            raise InputError(f"class {name!r} of {train} has no images: add some or remove the class")
    return ImageSource(
        root, class_names, names, ranked, num_train, test is not None, tuple(rank.tolist()), torch.tensor(places),
        tuple(shards),
    )  # fmt: skip


def _index_shard(shard: Path) -> list[tuple[str, int, int, int]]:
    """(name, first byte, bytes, class index) of each image of a .tar file, from its headers. Raises InputError."""
    extensions = image_extensions()
    found: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # tarfile would keep them all
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key = f"{folder}/{stem}"
                if not member.isfile() or base.startswith(HIDDEN):
                    continue
                if f".{suffix.lower()}" in extensions:
                    found[key] = member.name, member.offset_data, member.size
                elif suffix == "cls":
                    classes[key] = int(tar.extractfile(member).read())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"{shard} cannot be read as a WebDataset shard ({error}): write it anew") from None
    if lacking := sorted(found.keys() - classes.keys()):
        raise InputError(f"{shard}: {found[lacking[0]][0]} has no class index: expected {lacking[0].strip('/')}.cls")
    return [(*place, classes[key]) for key, place in found.items()]


def image_extensions() -> set[str]:
    """Of what Pillow can open, as in ".png"."""
    from PIL import Image

    Image.init()
    return {suffix for suffix, format in Image.registered_extensions().items() if format in Image.OPEN}


# --- reading ---------------------------------------------------------------------------------------------------


def short_sides(source: ImageSource, at_most: int = 1000) -> list[int]:
    """Of some images in pixels, from headers alone. Files that cannot be read are named later, when all are decoded."""
    from PIL import Image, UnidentifiedImageError

    sides = []
    for row in range(0, len(source), max(1, len(source) // at_most)):
        try:
            with Image.open(source.open(row)) as image:
                sides.append(min(image.size))
        except (OSError, UnidentifiedImageError):
            continue
    return sides


def any_colour(source: ImageSource) -> bool:
    """Whether any image has colour, from headers: of photographs the first says so, of a grey set all are asked."""
    from PIL import Image, UnidentifiedImageError

    for row in range(len(source)):
        try:
            with Image.open(source.open(row)) as image:
                if image.mode not in GREY_MODES:
                    return True
        except (OSError, UnidentifiedImageError):  # named when it is decoded
            continue
    return False


def read_image(file: Path | io.BytesIO, image_size: int) -> np.ndarray | str:
    """[h, w] for grey images, [h, w, 3] for all others, or why the file cannot be read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            image.draft("RGB", (image_size * 2, image_size * 2))  # JPEGs decode at a fraction of their size
            grey = image.mode in GREY_MODES
            if image.mode in WIDE_MODES:
                image = Image.fromarray(_wide_to_uint8(np.asarray(image)))
            if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
            side = (image_size, image_size)
            return np.asarray(ImageOps.fit(image, side, Image.Resampling.BICUBIC), dtype=np.uint8)
    except UnidentifiedImageError:
        return "no known image format"
    except Exception as error:  # whatever a decoder throws at a broken file: it is named and counted
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _wide_to_uint8(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 or 32 bits or floats to 0..255, by the smallest usual range that holds them."""
    largest = values.max()
    if values.min() < 0 or largest > 65535:
        raise ValueError(f"grey values from {values.min()} to {largest}: expected 0..1, 0..255 or 0..65535")
    if values.dtype.kind == "f" and largest <= 1:
        return (values * 255).round().astype(np.uint8)
    return (values if largest <= 255 and values.dtype.itemsize > 2 else values / 257).round().astype(np.uint8)


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
    with ThreadPoolExecutor() as pool:
        decoded = list(
            progress(
                pool.map(lambda row: read_image(source.open(row), image_size), range(len(source))),
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
    with _alone(folder):
        if not from_main(folder.is_dir):
            partial = folder.with_name(f".{folder.name}.partial")
            pending = from_main(lambda: _prepare(partial, source, image_size))
            _require_whole(from_all(_decode_share(partial, source, image_size, pending)), source)
            from_main(lambda: _finish(partial, folder))
    return MappedImages(folder)


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


def _prepare(partial: Path, source: ImageSource, image_size: int) -> list[int]:
    """Makes the files in their full size where there are none; returns the numbers of the chunks that are left."""
    require_writable(partial)
    if not (partial / "about.json").is_file():
        shape = [len(source), 3 if any_colour(source) else 1, image_size, image_size]
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
        write_json(partial / "about.json", {"shape": shape, "decoding": DECODING})
        logger.info(
            "data: %d images are decoded once, into %.1f GB of %s", shape[0], sizes["pixels"] / 1e9, partial.parent
        )
        for about in sorted(partial.parent.glob("*/about.json")):  # hidden folders too
            if about.parent != partial:
                _adopt(partial, about.parent)
    done = (partial / "done").read_bytes()
    if any(done):
        logger.info("data: decoding goes on, %d of %d parts are done", sum(done), len(done))
    return [chunk for chunk, is_done in enumerate(done) if not is_done]


def _adopt(partial: Path, other: Path) -> None:
    """Copies what was decoded of the same files, before some were mended, added or removed."""
    about, others = read_json(partial / "about.json"), read_json(other / "about.json")
    shape, old_shape = about["shape"], others["shape"]
    if shape[1:] != old_shape[1:] or about["decoding"] != others["decoding"]:
        return
    wanted, there = (np.fromfile(folder / "identities", np.uint64) for folder in (partial, other))
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
                _write_chunk(pixels, facts, done_file, chunk, rows, images[place[span]], known[place[span]])
    if other.name.startswith(".") and not is_locked(_lock_of(other)):  # of the files as they were, and never whole
        shutil.rmtree(other)


def _decode_share(partial: Path, source: ImageSource, image_size: int, pending: Sequence[int]) -> list[tuple[str, str]]:
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
                image = read_image(source.open(rows[place]), image_size)
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


def _finish(partial: Path, folder: Path) -> None:
    partial.rename(folder)
    (folder / "done").unlink()
