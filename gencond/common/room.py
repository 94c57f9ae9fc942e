"""Whether there is room for something, asked before it is allocated or worked for."""

from pathlib import Path

import psutil

from gencond.common.errors import InputError
from gencond.common.files import free_space, require_writable


def require_memory(num_bytes: int, what: str, advice: str) -> None:
    """Raises InputError where `what` takes more bytes than the machine has memory."""
    if num_bytes > (total := psutil.virtual_memory().total):
        raise InputError(f"{what} take {num_bytes / 1e9:,.1f} GB, the machine has {total / 1e9:,.1f}: {advice}")


def require_disk(num_bytes: int, path: Path, what: str, advice: str) -> None:
    """Raises InputError where `what` takes more bytes than are free where `path` is or will be."""
    if num_bytes > (free := free_space(path)):
        raise InputError(f"{what} take {num_bytes / 1e9:,.1f} GB or more, {free / 1e9:,.1f} GB are free: {advice}")


def require_place(path: Path) -> None:
    """Raises InputError where a folder could not be made at `path`, or written into; leaves nothing there."""
    while not path.exists():
        path = path.absolute().parent
    require_writable(path)


def require_text(name: str | Path, what: str) -> None:
    """Raises InputError for a name of the file system that is not UTF-8: no report and no artefact can hold it."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} {ascii(str(name))} is not UTF-8: rename it") from None
