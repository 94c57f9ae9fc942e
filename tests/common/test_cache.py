"""What is kept in the cache is what was written, or made again; it is listed, and pruned where nobody uses it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_difficulty import of as difficulties_of
from test_extractors import build
from test_real_statistics import cached_twice
from torch import Tensor

from gencond.cli import main
from gencond.common.cache import entries, prune, read_checked, write_checked
from gencond.common.files import state_fingerprint
from gencond.data.images import LabeledImages


def tensors() -> dict[str, Tensor]:
    return {
        "a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "c": torch.ones(4, dtype=torch.bfloat16),
        "d": torch.zeros(0, 2), "e": torch.tensor([True, False]),
    }  # fmt: skip


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def rewritten(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = load_file(file)
        change(content)
        save_file(content, file)

    return damage


DAMAGES = {
    "a flipped byte of the last tensor": lambda file: flip(file, -1),
    "a flipped byte of the header": lambda file: flip(file, 12),
    "a tensor too few": rewritten(lambda content: content.pop(min(content))),
    "another shape": rewritten(lambda content: content.update({min(content): torch.zeros(7)})),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "empty": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_not_what_was_written_is_said_and_not_read(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "kept" / "one.safetensors"
    assert read_checked(file) is None and not caplog.text
    write_checked(file, tensors())
    again = read_checked(file)
    assert again.keys() == tensors().keys()
    assert all(torch.equal(again[name], one) and again[name].dtype == one.dtype for name, one in tensors().items())
    damage(file)
    assert read_checked(file) is None and "one.safetensors is damaged" in caplog.text
    assert "will be made again" in caplog.text


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    write_checked(file, {"weights": torch.arange(4.0)}, "some words")
    content = file.read_bytes()
    words = content.index(b"some words")  # which are for people, and change no result
    for position in set(range(len(content))) - set(range(words, words + len(b"some words"))):
        file.write_bytes(content)
        flip(file, position)
        read = read_checked(file)
        # names in the header's JSON may change their quotes or spaces, but no value is another
        assert read is None or torch.equal(read["weights"], torch.arange(4.0)), position


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_pool_ranking_or_statistics_is_made_again_with_the_same_bits(
    few_digits: LabeledImages, tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    for kind, make in (
        ("pools", lambda: [state_fingerprint(net) for net in build(few_digits, tmp_path, (1, 2))]),
        ("difficulties", lambda: difficulties_of(few_digits, tmp_path, num_steps=2).tolist()),
        ("statistics", lambda: cached_twice(few_digits, tmp_path)),
    ):
        first = make()
        (file,) = (tmp_path / kind).iterdir()
        damage(file)
        caplog.clear()
        assert make() == first and caplog.text.count("will be made again") == 1, kind
        caplog.clear()
        assert make() == first and "damaged" not in caplog.text, kind


def made(root: Path, name: str, days: float) -> Path:
    """An entry that another process wrote, last used so long ago."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.zeros(1000)}, path, {"about": "9 images of 3x8x8 px"})
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 86400 * days))
    return path


def test_the_cache_is_listed_with_kind_size_age_and_what_it_belongs_to(
    own_cache: Path, capsys: pytest.CaptureFixture
) -> None:
    made(own_cache, "pools/a.safetensors", 3)
    made(own_cache, "statistics/b.unfinished.safetensors", 0)
    (own_cache / "images" / ".c.partial").mkdir(parents=True)
    (own_cache / "data").mkdir()
    (own_cache / "data" / "set.bin").write_bytes(bytes(2_000_000))
    main(["cache"])
    said = capsys.readouterr().out
    assert "extractors                     0.0    3.0  9 images of 3x8x8 px; " in said
    assert "unfinished; 9 images of 3x8x8 px" in said and "left half-written" in said
    assert "downloaded set                 2.0    0.0  " in said and "\nall                            2.0\n" in said


def test_pruning_takes_what_was_not_used_for_so_long_and_no_download(
    own_cache: Path, capsys: pytest.CaptureFixture
) -> None:
    old, new = made(own_cache, "pools/old.safetensors", 40), made(own_cache, "pools/new.safetensors", 20)
    downloaded = made(own_cache, "weights/far.safetensors", 400)
    temporary = made(own_cache, "pools/.x.safetensors.1.tmp", 0.5)
    main(["cache", "prune"])
    assert "1 removed, 0.0 MB freed" in capsys.readouterr().out
    assert not old.exists() and new.exists() and downloaded.exists()
    main(["cache", "prune", "--older-than", "0"])
    assert not new.exists() and downloaded.exists() and temporary.exists()  # somebody may be writing it
    for days in ("-1", "nan"):
        with pytest.raises(SystemExit) as ended:
            main(["cache", "prune", "--older-than", days])
        assert ended.value.code == 2


def test_what_a_living_process_uses_is_never_pruned(own_cache: Path) -> None:
    file = own_cache / "pools" / "a.safetensors"
    folder = own_cache / "images" / "b"
    folder.mkdir(parents=True)
    write_checked(file, tensors())
    program = (
        "import sys; from pathlib import Path; from gencond.common.cache import hold, prune, read_checked\n"
        f"read_checked(Path({str(file)!r})); hold(Path({str(folder)!r})); print('ready', flush=True); sys.stdin.read()"
    )
    import gencond.common.cache

    for descriptor in gencond.common.cache._held.values():  # this process lets go
        os.close(descriptor)
    gencond.common.cache._held.clear()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout.readline() == "ready\n"
        removed, used = prune(0.0)
        assert not removed and {entry.path for entry in used} == {file, folder}
        user.stdin.close()
        user.wait()
    removed, used = prune(0.0)
    assert {entry.path for entry in removed} == {file, folder} and not used and not entries()
