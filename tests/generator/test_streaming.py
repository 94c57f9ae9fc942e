"""Exports of any size: the same bytes on any number of processes and however often they were killed."""

import logging
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from test_condensed import make
from test_distributed import accelerate_launch
from torch import Tensor
from torchvision.datasets import ImageFolder

from gencond.common.errors import InputError
from gencond.generator import streaming
from gencond.generator.dataset import CondensedDataset
from gencond.generator.sampling import blocks_of
from gencond.generator.streaming import num_images_of, parts_of

FORMATS = ("imagefolder", "webdataset", "parquet")
CLASSES = [f"{label:02d}" for label in range(12)]


@pytest.fixture
def condensed(monkeypatch: pytest.MonkeyPatch) -> CondensedDataset:
    """Twelve classes, in parts so small that a few images have many."""
    monkeypatch.setattr(streaming, "IMAGES_PER_PART", dict.fromkeys(FORMATS, 60))
    return make(CLASSES)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def counted(condensed: CondensedDataset, calls: list[int], fail_at: int | None = None) -> CondensedDataset:
    """`condensed`, with a note of each block that is sampled; the one of number `fail_at` raises."""
    synthesize = condensed._synthesizer(None)

    def synthesize_counted(labels: Tensor, slots: Tensor) -> Tensor:
        calls.append(len(labels))
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return synthesize(labels, slots)

    condensed._synthesizer = lambda seed: synthesize_counted
    return condensed


@pytest.mark.parametrize("format", FORMATS)
def test_several_processes_write_the_bytes_of_one(condensed: CondensedDataset, tmp_path: Path, format: str) -> None:
    condensed.export(tmp_path / "one", 30, format)
    for num_processes in (2, 3):
        out = tmp_path / str(num_processes)
        for rank in reversed(range(num_processes)):
            assert not out.exists()  # before the last one is done
            condensed.export(out, 30, format, rank=rank, num_processes=num_processes)
        assert files(out) == files(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "one"]


@pytest.mark.parametrize("format", FORMATS)
def test_killed_and_started_again_it_writes_the_same_bytes_and_does_no_part_twice(
    condensed: CondensedDataset, tmp_path: Path, format: str
) -> None:
    whole: list[int] = []
    counted(make(CLASSES), whole).export(tmp_path / "one", 30, format)
    runs: list[list[int]] = []
    for fail_at in (1, 3, 4, None):
        runs.append([])
        again = counted(make(CLASSES), runs[-1], fail_at)
        if fail_at is not None:
            with pytest.raises(KeyboardInterrupt):
                again.export(tmp_path / "two", 30, format)
            assert not (tmp_path / "two").exists()
        else:
            again.export(tmp_path / "two", 30, format)
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert sum(map(len, runs)) > len(whole) >= len(runs[-1])  # with many threads the first part was never whole
    most = torch.get_num_threads() + 1 + 2  # what was being worked on, and the blocks of one part
    assert sum(map(len, runs)) - len(whole) <= 3 * most


def test_a_run_on_one_process_goes_on_with_two(condensed: CondensedDataset, tmp_path: Path) -> None:
    condensed.export(tmp_path / "one", 30)
    with pytest.raises(KeyboardInterrupt):
        counted(make(CLASSES), [], fail_at=4).export(tmp_path / "two", 30)
    condensed.export(tmp_path / "two", 30, rank=1, num_processes=2)
    condensed.export(tmp_path / "two", 30, rank=0, num_processes=2)
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ipc": 31}, r"another ipc \(30, now 31\)"),
        ({"seed": 4}, r"another seed \(None, now 4\)"),
        ({"format": "webdataset"}, "another format"),
        ({"layout": 1}, r"another layout \(2, now 1\)"),
        ({"condensed": make(CLASSES, width=16)}, "another artefact"),
    ],
)
def test_an_unfinished_export_of_something_else_is_not_gone_on_with(
    condensed: CondensedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        counted(make(CLASSES), [], fail_at=3).export(tmp_path / "out", 30)
    before = files(tmp_path)
    asked = {"condensed": condensed, "ipc": 30, "format": "imagefolder", "seed": None} | change
    monkeypatch.setattr(streaming, "LAYOUT", asked.pop("layout", streaming.LAYOUT))
    with pytest.raises(InputError, match=message) as error:
        asked.pop("condensed").export(tmp_path / "out", **asked)
    assert "\n" not in str(error.value) and files(tmp_path) == before


def test_a_process_that_ended_early_ends_the_run_with_one_line_and_it_goes_on(
    condensed: CondensedDataset, tmp_path: Path
) -> None:
    condensed.export(tmp_path / "one", 30)
    with pytest.raises(InputError, match="process 1 ended before its share was sampled: the same command goes on"):
        condensed.export(tmp_path / "two", 30, rank=0, num_processes=2)  # no other was started
    condensed.export(tmp_path / "two", 30)
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_what_a_finished_export_left_when_it_was_killed_does_not_matter(
    condensed: CondensedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(streaming.shutil, "rmtree", lambda path: None)
        condensed.export(tmp_path / "out", 2)
    assert (tmp_path / ".out.unfinished").is_dir()
    (tmp_path / "out").rename(tmp_path / "moved")
    condensed.export(tmp_path / "out", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "out"]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are counted from the moment they are asked for to the moment they are written."""
    alive, most, lock = 0, 0, threading.Lock()
    sample_block, write = streaming.sample_block, streaming.PART_WRITERS["imagefolder"]

    def begun(*arguments: Any) -> Any:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return sample_block(*arguments)

    def written(images: Iterator, *arguments: Any) -> None:
        nonlocal alive
        write(images, *arguments)
        with lock:
            alive -= 1  # a part is a block here

    monkeypatch.setattr(streaming, "IMAGES_PER_PART", {"imagefolder": 1})
    monkeypatch.setattr(streaming, "sample_block", begun)
    monkeypatch.setitem(streaming.PART_WRITERS, "imagefolder", written)
    make().export(tmp_path / "out", 900)
    assert alive == 0 and most <= torch.get_num_threads() + 1 < len(blocks_of(range(3), 900, [3], 8))


@pytest.mark.parametrize(("num_classes", "ipc", "size"), [(1000, 7, 32), (10, 600, 64), (3, 1, 8), (1000, 3, 256)])
def test_parts_are_cut_by_the_set_alone_and_have_all_images(num_classes: int, ipc: int, size: int) -> None:
    blocks = blocks_of(range(num_classes), ipc, [num_classes], size)
    for images_per_slot in (1, 4):
        parts = parts_of(blocks, ipc, images_per_slot, 500)
        sizes = [sum(num_images_of(block, ipc, images_per_slot) for block in part) for part in parts]
        assert [block for part in parts for block in part] == blocks
        assert sum(sizes) == num_classes * ipc * images_per_slot
        assert all(size <= 500 or len(part) == 1 for size, part in zip(sizes, parts, strict=True))


def test_what_is_written_is_read_back_by_others(condensed: CondensedDataset, tmp_path: Path) -> None:
    expected = (condensed.sample(7)[0] * 255).round().to(torch.uint8)[:, 0].numpy()
    for format in FORMATS:
        condensed.export(tmp_path / format, 7, format)
    folder = ImageFolder(str(tmp_path / "imagefolder"), loader=lambda path: np.asarray(Image.open(path)))
    assert folder.classes == CLASSES and folder.targets == [label for label in range(12) for _ in range(7)]
    assert np.array_equal(np.stack([image for image, _ in folder]), expected)
    shards = sorted((tmp_path / "webdataset").glob("*.tar"))
    found = {}
    for number, path in enumerate(shards):
        with tarfile.open(path) as shard:
            members = shard.getmembers()
            labels = [int(shard.extractfile(member).read()) for member in members if member.name.endswith("cls")]
            for member in members[::2]:
                found[int(member.name.split(".")[0])] = np.asarray(Image.open(shard.extractfile(member)))
        if number == 0:
            assert labels[:12] == list(range(12))  # the first slot of every class
    assert len(shards) > 1 and np.array_equal(np.stack([found[row] for row in range(84)]), expected)
    assert (tmp_path / "webdataset" / "classes.txt").read_text().split() == CLASSES
    names = sorted(path.name for path in (tmp_path / "parquet").iterdir())
    assert names == [f"train-{part:05d}-of-{len(names):05d}.parquet" for part in range(len(names))]
    assert pyarrow.parquet.read_table(tmp_path / "parquet").num_rows == 84


def test_renamed_folders_are_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gencond"):
        make(["ant", "bee"]).export(tmp_path / "same", 1)
        assert not caplog.messages
        make(["test_tube", "vase"]).export(tmp_path / "other", 1)
    assert caplog.messages == [
        "export: 1 of 2 folders are renamed so that all readers agree on them, 'test_tube' to '+test+_tube'"
    ]


def test_one_file_is_refused_to_several_processes(condensed: CondensedDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="npz is one file"):
        condensed.export(tmp_path / "out", 1, "npz", rank=1, num_processes=2)
    assert not any(tmp_path.iterdir())


# --- real processes


def command(condensed: CondensedDataset, tmp_path: Path, out: Path, *launcher: str) -> list[str]:
    condensed.save_pretrained(tmp_path / "artefact")
    script = str(Path(__file__).parent.parent.parent / "scripts" / "sample.py")
    return [sys.executable, *launcher, script, str(tmp_path / "artefact"), "--ipc", "3000", "--out", str(out)]


def environment(**values: str) -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "true"} | values


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_command_goes_on_with_two_processes_that_are_killed_too(tmp_path: Path) -> None:
    condensed = make(CLASSES, width=32)
    condensed.export(tmp_path / "one", 3000)
    out, done = tmp_path / "two", tmp_path / ".two.unfinished" / "done"
    alone = subprocess.Popen(command(condensed, tmp_path, out), env=environment())
    wait_for(lambda: done.is_dir() and len(os.listdir(done)) > 20)
    alone.send_signal(signal.SIGKILL)
    alone.wait()
    first = len(os.listdir(done))
    launch = command(condensed, tmp_path, out, "-m", *accelerate_launch())
    both = subprocess.Popen(launch, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(os.listdir(done)) > first + 20)
    psutil.Process(both.pid).children()[-1].kill()
    _, said = both.communicate(timeout=60)
    assert both.returncode != 0 and not out.exists()
    assert "gencond: terminated; the same command goes on" in said or "ended before its share" in said
    subprocess.run(launch, env=environment(OMP_NUM_THREADS="1"), check=True, capture_output=True)
    assert files(out) == files(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artefact", "one", "two"]
