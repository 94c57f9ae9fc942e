"""What is kept in the cache: files of tensors that know their own checksum, and what lies there, listed and pruned.

A file that is not what was written (a flipped byte, a tensor too few, another shape, cut short) is found when it is
read, said in one line, and made again. The checksum stands in the file's own header, so one rename makes both new.
"""

import hashlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gencond.common.errors import InputError, first_line
from gencond.common.files import cache_dir, is_locked, read_json, written_whole

try:
    import fcntl
except ImportError:  # Windows: what is in use cannot be told there, and nothing is pruned
    fcntl = None

logger = logging.getLogger(__name__)

CHECKSUM, ABOUT = "sha256", "about"  # in a file's header
# Folders of the cache whose content is made again where it is missed. Others hold downloads.
KINDS = {
    "pools": "extractors",
    "statistics": "statistics",
    "difficulties": "ranking",
    "teachers": "teacher",
    "images": "decoded images",
}
DOWNLOADS = {"data": "downloaded set", "weights": "downloaded weights", "environments": "environment of a judge"}
ABANDONED_AFTER_DAYS = 1.0  # a temporary file or folder that nobody works on
_held: dict[Path, int] = {}  # descriptors of what this process uses


# --- tensors -------------------------------------------------------------------------------------------------------


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values: 64 hex digits, about a second for each GB."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_checked(file: Path, tensors: Mapping[str, Tensor], about: str = "") -> None:
    """Writes tensors as safetensors with their checksum, whole or not at all.

    Args:
        about: for people, what they belong to.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(file) as temporary:
        save_file(content, temporary, {CHECKSUM: tensors_sha256(content), ABOUT: about})
    hold(file)


def read_checked(file: Path) -> dict[str, Tensor] | None:
    """The tensors that `write_checked` wrote; None where there are none, or damaged ones, which are then made again."""
    if not file.is_file():
        return None
    hold(file)
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
            expected = (opened.metadata() or {}).get(CHECKSUM)
        if tensors_sha256(tensors) == expected:
            return tensors
        why = "it is not what was written"
    except (SafetensorError, OSError, ValueError) as error:
        why = first_line(error)
    logger.warning("%s is damaged (%s) and will be made again", file, why)
    return None


# --- what lies there -----------------------------------------------------------------------------------------------


def hold(entry: Path) -> None:
    """Marks a file or folder of the cache as in use until this process ends, and as used just now."""
    if fcntl is None:
        return
    try:
        os.utime(entry)
        descriptor = os.open(entry, os.O_RDONLY)
    except OSError:  # another user's
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    if (before := _held.pop(entry, None)) is not None:
        os.close(before)
    _held[entry] = descriptor


@dataclass(frozen=True)
class Entry:
    """Something in the cache.

    Args:
        kind: for people.
        num_bytes: on disk.
        days: since it was used last, or downloaded.
        about: what it belongs to.
        is_made: whether it is made again where it is missed; otherwise it was downloaded.
    """

    path: Path
    kind: str
    num_bytes: int
    days: float
    about: str
    is_made: bool

    @property
    def what(self) -> str:
        return f"{self.about}; {self.path}" if self.about else str(self.path)


def entries(root: Path | None = None) -> list[Entry]:
    """All that lies in the cache, by kind, what was used last first."""
    root, found = root or cache_dir(), []
    for folder, kind in (KINDS | DOWNLOADS).items():
        of_kind = [
            _entry(path, kind, folder in KINDS)
            for path in ((root / folder).iterdir() if (root / folder).is_dir() else ())
            if path.suffix != ".lock"
        ]
        found += sorted(of_kind, key=lambda entry: entry.days)
    return found


def table(found: Sequence[Entry]) -> str:
    """A line for each: kind, size, age, what it belongs to, where it lies; and their sum."""
    rows = [f"{'kind':<24}{'MB':>10}{'days':>7}  what"]
    rows += [f"{one.kind:<24}{one.num_bytes / 1e6:>10,.1f}{one.days:>7.1f}  {one.what}" for one in found]
    return "\n".join([*rows, f"{'all':<24}{sum(one.num_bytes for one in found) / 1e6:>10,.1f}"])


def prune(older_than_days: float, root: Path | None = None) -> tuple[list[Entry], list[Entry]]:
    """Removes what can be made again and was not used for so long; (removed, left since a process uses it).

    Downloads stay. What a killed process left half-written goes after a day.
    """
    removed, used = [], []
    for entry in entries(root):
        oldest = max(older_than_days, ABANDONED_AFTER_DAYS if _is_temporary(entry.path) else 0.0)
        if not entry.is_made or entry.days < oldest:
            continue
        if _is_used(entry.path):
            used.append(entry)
            continue
        try:
            shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink(missing_ok=True)
        except OSError:  # somebody works in it or owns it
            used.append(entry)
        else:
            removed.append(entry)
    return removed, used


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".")


def _is_used(path: Path) -> bool:
    """Whether a living process holds it, or works on what will become it."""
    if fcntl is None:
        return True
    lock = path.with_name(f".{path.name.removeprefix('.').removesuffix('.partial')}.lock")
    if lock.is_file() and is_locked(lock):
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system that cannot tell
        return True
    finally:
        os.close(descriptor)
    return False


def _entry(path: Path, kind: str, is_made: bool) -> Entry:
    files = [path, *path.rglob("*")] if _is_temporary(path) or path.is_dir() else [path]
    facts = []
    for file in files:
        with suppress(OSError):  # a process that works there may have renamed or removed it
            facts.append((file, file.stat()))
    sizes = [fact.st_size for _, fact in facts if stat.S_ISREG(fact.st_mode)]
    latest = max((fact.st_mtime for file, fact in facts if file == path or _is_temporary(path)), default=time.time())
    words = "left half-written" if _is_temporary(path) else _about(path)
    if path.name.endswith(".unfinished.safetensors"):
        words = f"unfinished; {words}"
    return Entry(path, kind, sum(sizes), max(0.0, (time.time() - latest) / 86400), words, is_made)


def _about(path: Path) -> str:
    """What an entry says of itself."""
    if (note := path / "about.json").is_file():
        try:
            return str(read_json(note).get(ABOUT, ""))
        except InputError:
            return "damaged"
    if path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(path, "pt") as opened:
            return (opened.metadata() or {}).get(ABOUT, "")
    except (SafetensorError, OSError):
        return "damaged"
