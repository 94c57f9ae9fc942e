import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gencond.common.errors import InputError
from gencond.common.files import (
    alone_in,
    read_json,
    read_state_dict,
    require_writable,
    take_lock,
    weights_hash,
    write_json,
    write_text,
    written_whole,
)


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


def test_a_probe_of_the_users_stays_and_many_may_probe_at_once(tmp_path: Path) -> None:
    for name in ("probe", ".probe", "probe.tmp"):
        (tmp_path / name).write_text("mine")
    failures: list[Exception] = []

    def probe() -> None:
        try:
            for _ in range(100):
                require_writable(tmp_path)
        except InputError as error:
            failures.append(error)

    ranks = [threading.Thread(target=probe) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert not failures
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("probe", ".probe", "probe.tmp"), "mine"
    )


WRITES = """
import sys, time
from pathlib import Path
from gencond.common.files import written_whole
with written_whole(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    target, users = tmp_path / "a[1].txt", tmp_path / ".a[1].txt.mine.tmp"
    users.write_text("a file of the user's")
    with subprocess.Popen([sys.executable, "-c", WRITES, str(target)], stdout=subprocess.PIPE, text=True) as writer:
        begun = Path(writer.stdout.readline().strip())
        os.utime(begun.parent, (0, 0))  # long ago
        write_text(target, "of another process")
        assert begun.read_text() == "half"
        writer.kill()
    assert begun.exists()
    os.utime(begun.parent, (0, 0))
    write_text(target, "whole")
    assert target.read_text() == "whole" and sorted(tmp_path.iterdir()) == sorted((target, users))


def test_new_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(take_lock(tmp_path / ".lock"))
        write_text(tmp_path / "a.txt", "")
        with written_whole(tmp_path / "folder") as temporary:
            temporary.mkdir()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {".lock": 0o640, "a.txt": 0o640, "folder": 0o750}


ENTERS = """
import sys
from pathlib import Path
from gencond.common.errors import InputError
from gencond.common.files import alone_in
try:
    with alone_in(Path(sys.argv[1]), ".report.lock"):
        print("in")
except InputError as error:
    print(error)
"""


def test_a_second_process_is_kept_out_of_a_folder_and_nothing_of_that_stays(tmp_path: Path) -> None:
    folder = tmp_path / "judged"

    def another() -> str:
        return subprocess.run([sys.executable, "-c", ENTERS, str(folder)], capture_output=True, text=True).stdout

    with alone_in(folder, ".report.lock"):
        assert f"another process works in {folder}" in another()
    assert another() == "in\n" and not folder.exists()
    with alone_in(folder, ".report.lock"):
        (folder / "report.json").touch()
    assert [path.name for path in folder.iterdir()] == ["report.json"]
    with pytest.raises(InputError, match="is a file"), alone_in(folder / "report.json", ".report.lock"):
        pass


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


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is no file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is no file"):
        read_state_dict(tmp_path / "pipe", tmp_path / "pipe")


def test_a_folder_of_the_users_that_is_named_like_a_leftover_stays(tmp_path: Path) -> None:
    mine, empty, left = (tmp_path / f".a.txt.{name}.tmp" for name in ("mine", "empty", "left"))
    for folder in (mine, empty, left):
        folder.mkdir()
    (mine / "notes").write_text("mine")
    (left / "writer").touch()
    for folder in (mine, empty, left):
        os.utime(folder, (0, 0))
    write_text(tmp_path / "a.txt", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.txt.mine.tmp", "a.txt"]


def test_words_for_weights_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imagenet1k").mkdir()
    (tmp_path / "imagenet1k" / "0.bin").write_bytes(b"0")
    monkeypatch.chdir(tmp_path)
    assert weights_hash("imagenet1k") == "imagenet1k"


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("gencond.common.files.fcntl.lockf", no_locks)
    with alone_in(tmp_path, ".lock"):
        pass
