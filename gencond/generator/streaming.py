"""Exports of any size: block by block into the files of a format, on several processes, resumable, with the same bytes.

The blocks of a set are cut once and for all into parts: some images of an ImageFolder, a shard of the other formats. A
part is written by one process, by itself, so neither the number of processes nor how often they were killed is seen in
the bytes. Until all parts are there, everything lies in a hidden folder beside the target:

    .NAME.unfinished/   plan.json (what is sampled), images/ (becomes the target), done/ (an empty file for each part
                        that is whole), lock.RANK (held while a process works)

Memory holds a few blocks of images, one for each thread and one more; with parquet also the encoded images of a shard.
"""

import itertools
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from gencond.common.distributed import wait_for_everyone
from gencond.common.errors import InputError
from gencond.common.files import is_locked, read_json, take_lock, write_json
from gencond.common.pictures import png_bytes
from gencond.common.progress import progress
from gencond.common.ranges import as_bytes
from gencond.generator.exporting import PART_WRITERS, EncodedImage, Layout, class_folders, lay_out
from gencond.generator.sampling import Block, Synthesize, blocks_of, in_threads, sample_block

logger = logging.getLogger(__name__)

LAYOUT = 2  # changes whenever the same images would lie in other files
# A killed process does its part again. 10,000 images of 64 px are shards of about 100 MB.
IMAGES_PER_PART = {"imagefolder": 128, "webdataset": 10_000, "parquet": 10_000}
POLL_SECONDS = 0.2


def parts_of(blocks: Sequence[Block], ipc: int, images_per_slot: int, most_images: int) -> list[list[Block]]:
    """Consecutive blocks, together of `most_images` at most or one block alone."""
    parts: list[list[Block]] = []
    room = 0
    for block in blocks:
        size = num_images_of(block, ipc, images_per_slot)
        if size > room:
            parts.append([])
            room = most_images
        parts[-1].append(block)
        room -= size
    return parts


def num_images_of(block: Block, ipc: int, images_per_slot: int) -> int:
    """Images of a block that belong to the first `ipc` slots."""
    return (block.last_class - block.first_class) * (min(block.last_slot, ipc) - block.first_slot) * images_per_slot


def export_in_parts(
    synthesize: Synthesize,
    class_names: Sequence[str],
    groups: Sequence[int],
    out: Path,
    format: str,
    ipc: int,
    image_size: int,
    images_per_slot: int,
    origin: dict[str, Any],
    threads: int,
    rank: int = 0,
    num_processes: int = 1,
) -> None:
    """Writes this process's share of `ipc` images of each class; the process of rank 0 waits for all and ends it.

    Args:
        groups: see `sampling.block_of`.
        out: a new or empty folder; it is whole or not there.
        format: one of `exporting.PART_WRITERS`.
        images_per_slot: how many images one (class, slot) gives.
        origin: what else decides the bytes, as JSON: an unfinished export of another is not gone on with.
        threads: blocks worked on at once.
    Raises:
        InputError: a rank out of range; an unfinished export of something else beside `out`; another process is writing
            it; one of the processes ended before its share was done.
    """
    if not 0 <= rank < num_processes:
        raise InputError(f"rank {rank} is none of {num_processes} processes")
    out = out.resolve()
    work = out.with_name(f".{out.name}.unfinished")
    blocks = blocks_of(range(len(class_names)), ipc, groups, image_size)
    parts = parts_of(blocks, ipc, images_per_slot, IMAGES_PER_PART[format])
    layout = Layout(class_names, class_folders(class_names), ipc * images_per_slot, len(parts))
    plan = {"format": format, "ipc": ipc, "num_parts": len(parts), "layout": LAYOUT, **origin}
    renamed = [pair for pair in zip(class_names, layout.folders, strict=True) if pair[0] != pair[1]]
    if rank == 0 and format == "imagefolder" and renamed:
        logger.info(
            "export: %d of %d folders are renamed so that all readers agree on them, %r to %r",
            len(renamed),
            len(class_names),
            *renamed[0],
        )

    with _share(work, out, plan, rank, num_processes):
        folder = work / "images"
        lay_out(format, folder, layout)
        _wait_for_all(num_processes)
        done = _done(work)
        own = [part for part in range(rank, len(parts), num_processes) if part not in done]

        def encoded(block: Block) -> list[EncodedImage]:
            labels, slots, images = sample_block(synthesize, block, ipc)
            arrays = as_bytes(images).permute(0, 1, 3, 4, 2).cpu().numpy()  # [n, parts, h, w, c]
            return [
                EncodedImage(label, slot * images_per_slot + position, png_bytes(array))
                for label, slot, of_slot in zip(labels.tolist(), slots.tolist(), arrays, strict=True)
                for position, array in enumerate(of_slot)
            ]

        sizes = [sum(num_images_of(block, ipc, images_per_slot) for block in part) for part in parts]
        with _Bar(work, sizes, own, disable=rank != 0) as bar:
            own_blocks = (block for part in own for block in parts[part])
            with closing(in_threads(encoded, own_blocks, threads)) as results:
                for part in own:
                    of_part = itertools.islice(results, len(parts[part]))
                    images = itertools.chain.from_iterable(bar.watched(of_part))
                    PART_WRITERS[format](images, folder, layout, part)
                    (work / "done" / f"{part:06d}").touch()
            if rank == 0:
                _wait_for_parts(work, len(parts), num_processes, bar)
        if rank == 0:
            if out.is_dir():
                out.rmdir()
            folder.rename(out)
    if rank == 0:
        shutil.rmtree(work)


@contextmanager
def _share(work: Path, out: Path, plan: dict[str, Any], rank: int, num_processes: int) -> Iterator[None]:
    """The right to write this process's share into `work`. Raises InputError as `export_in_parts` does."""
    if rank == 0 and work.is_dir() and not (work / "images").is_dir():
        shutil.rmtree(work)  # a finished export was killed while it cleaned up
    _wait_for_all(num_processes)
    (work / "images").mkdir(parents=True, exist_ok=True)
    (work / "done").mkdir(exist_ok=True)
    if not (work / "plan.json").is_file():
        write_json(work / "plan.json", plan)  # each process writes the same
    found = read_json(work / "plan.json")
    for name in {**plan, **found}:
        if found.get(name) != plan.get(name):
            raise InputError(
                f"beside {out} lies an unfinished export with another {name} ({found.get(name)}, now {plan.get(name)}):"
                f" finish it with that, choose another --out or remove {work}"
            )
    if (lock := take_lock(work / f"lock.{rank}")) is None:
        raise InputError(f"another process writes {out}: wait for it or choose another --out")
    try:
        yield
    finally:
        os.close(lock)


def _wait_for_all(num_processes: int) -> None:
    if num_processes > 1:
        wait_for_everyone()


def _done(work: Path) -> set[int]:
    return {int(name) for name in os.listdir(work / "done")}


def _wait_for_parts(work: Path, num_parts: int, num_processes: int, bar: "_Bar") -> None:
    """Returns when all parts are whole. Raises InputError when a process has ended and its parts are not."""
    while len(_done(work)) < num_parts:
        ended = [rank for rank in range(1, num_processes) if not is_locked(work / f"lock.{rank}")]
        missing = set(range(num_parts)) - _done(work)  # looked at again: a process ends once its parts are there
        for rank in ended:
            if any(part % num_processes == rank for part in missing):
                raise InputError(
                    f"process {rank} ended before its share was sampled: the same command goes on from here"
                )
        bar.look()
        time.sleep(POLL_SECONDS)


class _Bar:
    """Progress in images over all processes: the own ones block by block, those of others part by part."""

    def __init__(self, work: Path, sizes: list[int], own: list[int], disable: bool) -> None:
        self.work, self.sizes, self.own = work, sizes, set(own)
        self.written, self.looked = 0, time.monotonic()
        self.bar = progress(
            description="sampling", total=sum(sizes), initial=self._of_others(), unit="image",
            disable=disable or sum(sizes) < 5000,
        )  # fmt: skip

    def _of_others(self) -> int:
        """Images of other processes and of earlier runs."""
        return sum(self.sizes[part] for part in _done(self.work) - self.own)

    def look(self) -> None:
        if not self.bar.disable:
            self.looked = time.monotonic()
            self.bar.update(self.written + self._of_others() - self.bar.n)

    def watched(self, results: Iterator[list[EncodedImage]]) -> Iterator[list[EncodedImage]]:
        for images in results:
            yield images
            self.written += len(images)
            if time.monotonic() - self.looked > POLL_SECONDS:
                self.look()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.look()
        self.bar.close()
