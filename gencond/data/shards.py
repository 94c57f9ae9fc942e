"""WebDataset shards: which images lie in tar files, where, and of which class."""

import logging
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from gencond.common.errors import InputError, first_line
from gencond.data.source import (
    PACKED,
    SPLITS,
    ImageSource,
    LeftOut,
    class_list,
    files_of,
    image_extensions,
    is_system,
    numbered_classes,
    unpack_first,
)

logger = logging.getLogger(__name__)


def shards_of(folder: Path) -> list[Path]:
    return [path for path in files_of(folder) if path.suffix.lower() == ".tar"]


def split_by_name(root: Path, shards: Sequence[Path]) -> tuple[list[Path], list[Path]]:
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


def find_in_shards(root: Path, train: Sequence[Path], test: Sequence[Path], left_out: LeftOut) -> ImageSource:
    names: list[str] = []
    labels: list[int] = []
    places: list[tuple[int, int, int]] = []
    shards: list[str] = []
    ends: list[int] = []
    folders = list(dict.fromkeys(shard.parent for shard in (*train, *test)))
    for folder in folders:
        if packed := next((path for path in files_of(folder) if PACKED.search(path.name)), None):
            raise InputError(unpack_first(packed))
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
    num_train = ends[0]
    class_names, rank = numbered_classes(torch.tensor(labels), _listed_classes(root, folders), num_train, str(root))
    return ImageSource(
        root, class_names, names, rank[torch.tensor(labels)], num_train, bool(test), tuple(rank.tolist()),
        torch.tensor(places),
        tuple(shards),
    )  # fmt: skip


def _listed_classes(root: Path, folders: Sequence[Path]) -> list[str] | None:
    """The names in `classes.txt` beside shards or in `root`; None where there is no such file.

    Raises:
        InputError: no UTF-8, an empty line between names, two files that differ.
    """
    listed: dict[Path, list[str]] = {}
    for file in dict.fromkeys(folder / "classes.txt" for folder in (*folders, root)):
        if file.is_file():
            listed[file] = class_list(file)
    if len({tuple(lines) for lines in listed.values()}) > 1:
        raise InputError(f"{' and '.join(map(str, listed))} differ: keep the one whose lines the class indices count")
    return next(iter(listed.values())) if listed else None


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
            is_image = suffix.lower() in extensions
            if not is_image and suffix.lower() != ".cls":
                left_out.add("file(s) in shards that are no images", shard / name)
                continue
            if key in (images if is_image else classes):
                raise InputError(f"{shard}: {name} is there twice, or in two formats: write the shard anew")
            if is_image:
                images[key] = name
            else:
                content.seek(offset)
                classes[key] = _class_index(shard, name, content.read(min(size, 32)))
    return [(images[key], *files[images[key]], label) for key, label in _paired(shard, images, classes, left_out)]


def _members_of(shard: Path, left_out: LeftOut) -> tuple[dict[str, tuple[int, int]], dict[str, str], int]:
    """The files of a .tar (name: first byte, bytes), its links (name: name of the target) and where it ends."""
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile would keep them all
                name = posixpath.normpath(member.name)
                if member.isdir():
                    continue
                if any(map(is_system, name.split("/"))):
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
