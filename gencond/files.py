"""Files that are whole or absent: everything gencond writes goes to a temporary name first."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gencond.errors import InputError


def cache_dir() -> Path:
    """Where statistics and downloaded sets are kept: `$GENCOND_CACHE`, or `~/.cache/gencond`."""
    return Path(os.environ.get("GENCOND_CACHE") or Path.home() / ".cache" / "gencond").expanduser()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to write (a file or a folder); renames it to `path` if nothing was raised.

    Readers see the old content or the new one, never a part, also when the process is killed in between. An
    existing folder is moved aside for the moment between two renames, since a folder cannot be replaced in one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if path.is_dir():
            replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.rename(path, replaced)
            os.rename(temporary, path)
            shutil.rmtree(replaced)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises InputError where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error})") from None


def short_hash(*parts: Any) -> str:
    """16 hex digits that identify JSON-like values: the key of a cache entry."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
