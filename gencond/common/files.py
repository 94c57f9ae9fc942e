"""Files that are whole or absent: everything gencond writes goes to a temporary name first."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencond.common.errors import InputError, first_line

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not kept apart there
    fcntl = None

if TYPE_CHECKING:
    from torch import Tensor, nn

WRITER = "writer"  # in a temporary folder: locked while the process that fills it lives
NAMES_OF_WEIGHTS = ("imagenet1k", "pretrained")  # in a recipe: never a path, whatever lies in the working directory
ABANDONED_SECONDS = 10  # a younger folder may be one whose writer has not locked it yet


def cache_dir() -> Path:
    """Where statistics and downloaded sets are kept: `$GENCOND_CACHE`, or `~/.cache/gencond`."""
    return Path(os.environ.get("GENCOND_CACHE") or Path.home() / ".cache" / "gencond").expanduser()


def require_writable(folder: Path) -> None:
    """Makes `folder`. Raises InputError where it cannot be written to, before minutes of work are lost to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a name of nobody's, gone with this process
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}): choose another place") from None


def free_space(path: Path) -> int:
    """Bytes that are free where `path` is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_new(path: Path) -> None:
    """Raises InputError where a file or a folder with something in it stands already."""
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise InputError(f"{path} exists and is not empty: choose another place or remove it")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary place to write (a file or a folder); renames it to `path` if nothing was raised.

    Readers see the old content or the new one, never a part, also when the process is killed in between; what killed
    writers of `path` left beside it is removed. An empty folder at `path` is replaced; one with content is left alone
    and raises OSError.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, glob.escape(path.name))
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    lock = take_lock(folder / WRITER)
    temporary = folder / path.name
    try:
        yield temporary
        if path.is_dir():
            path.rmdir()
        if temporary.is_file():
            _give_usual_mode(temporary)
        for file in temporary.glob("*.safetensors"):
            _give_usual_mode(file)
        os.replace(temporary, path)
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(folder)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Removes what killed writers of names like `pattern` left in `folder`; what a living process writes stays."""
    for left in folder.glob(f".{pattern}.*.tmp"):
        with suppress(OSError):  # another process removes it too, or it is another user's
            age = time.time() - left.stat().st_mtime
            if age > ABANDONED_SECONDS and left.is_dir() and _is_abandoned(left):
                shutil.rmtree(left)


def _is_abandoned(folder: Path) -> bool:
    """Whether a writer of ours that is gone made a folder; one without its mark is somebody's own, unless empty."""
    writer = folder / WRITER
    return not is_locked(writer) if writer.is_file() else not any(folder.iterdir())


def take_lock(file: Path) -> int | None:
    """A descriptor that keeps other processes from taking this lock until it is closed; None where one has it.

    On a file system without locks nobody is kept out.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            return None
    return descriptor


@contextmanager
def alone_in(folder: Path, lock_name: str) -> Iterator[None]:
    """Keeps others who ask for the same lock out of `folder`, which is made, and removed where nothing came into it.

    Raises:
        InputError: another process is in it, or it cannot be written to.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: choose a folder")
    is_new, lock_file = not folder.exists(), folder / lock_name
    require_writable(folder)
    lock = take_lock(lock_file)
    while lock is not None and not _is_still(lock, lock_file):  # the one before removed it meanwhile
        os.close(lock)
        lock = take_lock(lock_file)
    if lock is None:
        raise InputError(f"another process works in {folder}: wait for it or choose another --out")
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        os.close(lock)
        if is_new:
            with suppress(OSError):  # something is in it
                folder.rmdir()


def _is_still(descriptor: int, file: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.fstat(descriptor).st_ino == file.stat().st_ino
    except FileNotFoundError:
        return False


def is_locked(file: Path) -> bool:
    """Whether another process has a lock; where the system has no such locks, as if one had it."""
    if fcntl is None:
        return True
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _give_usual_mode(file: Path) -> None:
    """The mode a new file has by the user's umask; safetensors writes files that only their owner can read."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError where it is missing, not JSON or not an object."""
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise InputError(f"{path} is no file: restore it")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): restore the file") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not an object: restore the file")
    return value


LOG_NAME = "log.jsonl"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run folder's log, without the half line that a killed run may have left; none without a log."""
    file, entries = folder / LOG_NAME, []
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return [entry for entry in entries if isinstance(entry, dict)]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_fingerprint(module: "nn.Module") -> str:
    """16 hex digits of a module's weights and buffers."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def numpy_scalars() -> list[Any]:
    """What a pickled numpy number is made of, for `safe_globals` of torch: some files keep scores beside tensors."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "b1")]
    return [np.dtype, *kinds, scalar, (scalar, "numpy.core.multiarray.scalar")]  # the name before numpy 2


def read_state_dict(path: Path, source: str | Path) -> "dict[str, Tensor]":
    """The state dict in a file, safetensors or torch's: the whole of it, or under the key `state_dict`.

    Args:
        source: what messages call it.
    Raises:
        InputError: unreadable, not only tensors, or holding what could run code.
    """
    import torch
    from safetensors.torch import load_file

    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise InputError(f"{source} is no file: name the file of the weights")
    try:
        with path.open("rb") as file:  # safetensors begin with a length and a JSON object; names say little
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors:
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(numpy_scalars()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors raise many kinds; all mean the same here
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{source} holds {refused[1]} beside tensors, which could run code and is not read: save its state dict"
            ) from None
        reason = first_line(error).partition(" In PyTorch 2.6")[0]  # torch goes on to advise the unsafe way
        raise InputError(
            f"{source} cannot be read as weights ({reason}): it is damaged, cut short or no such file"
        ) from None
    entries = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(entries, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in entries.items()
    ):
        raise InputError(f"{source} holds no state dict: expected names with tensors, alone or under 'state_dict'")
    return dict(entries)


def file_hash(path: Path) -> str:
    """16 hex digits of a file's content."""
    return file_sha256(path)[:16]


def all_finite(tensors: "Mapping[str, Tensor]") -> bool:
    """Whether there is neither NaN nor infinity in them: what has some is not worth keeping."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def weights_hash(weights: str | Path) -> str:
    """What identifies weights: 16 hex digits of what is in a file or a folder, else their name."""
    if weights in NAMES_OF_WEIGHTS:
        return str(weights)
    path = Path(weights)
    if path.is_dir():
        return short_hash([(file.name, file_hash(file)) for file in sorted(path.iterdir()) if file.is_file()])
    return file_hash(path) if path.is_file() else path.name


def short_hash(*parts: Any) -> str:
    """16 hex digits that identify JSON-like values: the key of a cache entry."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
