"""The folder of a use: whose it is, and the pages that it gets."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gencond.common.errors import InputError
from gencond.common.files import read_json, write_json, write_text, written_whole


def claim(
    out: Path, name: str, kind: str, content: Mapping[str, Any], same: Mapping[str, str], besides: Collection[str] = ()
) -> None:
    """Makes `out` the folder of one result, whose file `out/name.json` then lies there.

    Args:
        name: of its file.
        kind: what it is, for people.
        content: of its file, before anything is measured.
        same: fields that what lies there has to share -> what to say of another.
        besides: names of files that may lie there before.
    Raises:
        InputError: `out` holds something else.
    """
    file = out / f"{name}.json"
    if file.is_file():
        before = read_json(file)
        for field, other in same.items():
            if before.get(field) != content[field]:
                raise InputError(f"{out} holds a {kind} with {other}: choose another --out")
    elif any(not path.name.startswith(".") and path.name not in besides for path in out.iterdir()):
        raise InputError(f"{out} is not empty and holds no {kind}: choose another --out")
    else:
        write_json(file, content)


def write_pages(out: Path, name: str, png: bytes, markdown: str, page: str) -> None:
    """Writes `out/name.png`, `out/name.md` and `out/name.html`, each whole or not at all."""
    with written_whole(out / f"{name}.png") as temporary:
        temporary.write_bytes(png)
    write_text(out / f"{name}.md", markdown)
    write_text(out / f"{name}.html", page)


def to_reproduce(command: str, commit: str | None, versions: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    """(name, value) of what makes a result again."""
    return [
        ("Command", command),
        ("Commit", str(commit or "unknown")),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
    ]
