from pathlib import Path

import pytest

from gencond.errors import InputError
from gencond.files import read_json, require_writable, write_json, written_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), written_whole(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_an_empty_folder_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    for name in ("new", "second"):
        try:
            with written_whole(target) as temporary:
                temporary.mkdir()
                (temporary / name).touch()
        except OSError:
            assert name == "second"
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/cache cannot be written to"):
        require_writable(tmp_path / "file" / "cache")
    require_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_json_round_trips_and_broken_json_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ü": [1, None]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="a.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match="a.json holds a list, not an object"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="b.json is missing"):
        read_json(tmp_path / "b.json")
