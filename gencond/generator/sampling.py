"""Any number of images per class, bit for bit the same however they are asked for; and endless streams.

The bits of a convolution can depend on the batch it runs in, so an image is always computed in the same batch at the
same position: the (class, slot) grid is cut once and for all into blocks, and a block is computed whole even when only
some of its images are wanted. Blocks of slots double from one slot up to a full batch, so that little is computed in
vain whether one image per class is asked for or thousands.

They can depend on the number of threads that share a convolution, too. So each block is computed by one thread, and
the threads of a machine compute as many blocks at once.
"""

import bisect
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from gencond.common.distributed import rank_and_world
from gencond.common.errors import InputError
from gencond.common.progress import progress
from gencond.common.ranges import to_unit

# m is a multiple of n: as many images for each (class, slot), one after the other.
Synthesize = Callable[[Int64[Tensor, " n"], Int64[Tensor, " n"]], Float[Tensor, "m c h w"]]

LARGEST_BLOCK = 128
PIXELS_PER_BLOCK = LARGEST_BLOCK * 32 * 32
MOST_THREADS = 16  # each holds the activations of a block

Item = TypeVar("Item")
Result = TypeVar("Result")


class Block(NamedTuple):
    """Half-open ranges of classes and slots that are computed in one batch, class-major."""

    first_class: int
    last_class: int
    first_slot: int
    last_slot: int


def block_images(image_size: int) -> int:
    """Most images of a block."""
    return min(LARGEST_BLOCK, max(1, PIXELS_PER_BLOCK // image_size**2))


def block_of(label: int, slot: int, groups: Sequence[int], image_size: int) -> Block:
    """The block that holds a (class, slot): a function of the artefact alone, never of the request.

    Args:
        groups: numbers of classes that came together. A block holds classes of one group, so that the blocks of those
            that are there stay as they are when others come.
    """
    ends = list(itertools.accumulate(groups))
    of_label = bisect.bisect_right(ends, label)
    size, end = groups[of_label], ends[of_label]
    start, images = end - size, block_images(image_size)
    classes = min(size, images)
    longest = 1 << (images // classes).bit_length() - 1  # the largest power of two that fits
    first_class = start + (label - start) // classes * classes
    if slot >= longest:
        first_slot = slot // longest * longest
        last_slot = first_slot + longest
    else:
        first_slot = 1 << slot.bit_length() - 1 if slot else 0
        last_slot = max(1, 2 * first_slot)
    return Block(first_class, min(first_class + classes, end), first_slot, last_slot)


def blocks_of(classes: Sequence[int], ipc: int, groups: Sequence[int], image_size: int) -> list[Block]:
    """The blocks that hold the first `ipc` slots of `classes`: first slots first, so that a small set comes first."""
    blocks = []
    for first_class in sorted({block_of(label, 0, groups, image_size).first_class for label in classes}):
        slot = 0
        while slot < ipc:
            blocks.append(block_of(first_class, slot, groups, image_size))
            slot = blocks[-1].last_slot
    return sorted(blocks, key=lambda block: (block.first_slot, block.first_class))


def sample_block(synthesize: Synthesize, block: Block, ipc: int) -> tuple[Tensor, Tensor, Tensor]:
    """(labels [n], slots [n], images [n, parts, c, h, w] in [-1, 1]) of a block, but for the slots from `ipc` on.

    `parts` images are all that one (class, slot) gives.
    """
    block_slots = torch.arange(block.first_slot, block.last_slot)
    block_classes = torch.arange(block.first_class, block.last_class)
    labels, slots = block_classes.repeat_interleave(len(block_slots)), block_slots.repeat(len(block_classes))
    keep = slots < ipc
    images = synthesize(labels, slots).unflatten(0, (len(labels), -1))
    return labels[keep], slots[keep], images[keep.to(images.device)]


def threads_for(device: torch.device) -> int:
    """How many blocks are worked on at once. A GPU computes while the threads do what comes after the images."""
    if device.type == "cpu":
        return min(torch.get_num_threads(), MOST_THREADS)
    return max(1, min((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), MOST_THREADS))


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """`function` of each item, in their order; at most `threads` + 1 results are alive at once.

    Each call runs in one thread, torch's own included.
    """
    torch_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(torch_threads)  # what a thread sets for itself is the default of those to come


def sample_class_major(
    synthesize: Synthesize, classes: Sequence[int], ipc: int, groups: Sequence[int], image_size: int, threads: int
) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, " n"]]:
    """Slots 0..ipc-1 of `classes` in the order given, in [0, 1]; for `groups` see `block_of`."""
    images: Tensor | None = None
    bar = progress(description="sampling", total=len(classes) * ipc, unit="image", disable=len(classes) * ipc < 5000)
    first_row = torch.full((sum(groups),), -1)
    first_row[list(classes)] = torch.arange(len(classes)) * ipc
    blocks = blocks_of(classes, ipc, groups, image_size)
    for labels, slots, batch in in_threads(lambda block: sample_block(synthesize, block, ipc), blocks, threads):
        if images is None:
            images = batch.new_empty(len(classes) * ipc, *batch.shape[1:])  # [n, parts, c, h, w]
        wanted = first_row[labels] >= 0
        rows = (first_row[labels] + slots)[wanted]
        images[rows.to(batch.device)] = to_unit(batch[wanted.to(batch.device)]).clamp(0, 1)
        bar.update(len(rows))
    bar.close()
    assert images is not None, "no class, or no image of each"
    return images.flatten(0, 1), torch.tensor(classes).repeat_interleave(ipc * images.shape[1]).to(images.device)


class SampledDataset(torch.utils.data.Dataset):
    """A map-style dataset of (image, class index); images are kept as uint8 and given as float in [0, 1].

    Args:
        images, labels: the samples.
        class_names: for `classes` and `class_to_idx`, which with `targets` are as torchvision's datasets have them.
        transform: applied to each float [c, h, w] image; torchvision's v2 transforms take it as it is.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        class_names: Sequence[str],
        transform: Callable | None = None,
    ) -> None:
        self.images, self.labels, self.classes, self.transform = images, labels, list(class_names), transform
        self.targets = labels.tolist()
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].float() / 255
        return image if self.transform is None else self.transform(image), int(self.labels[index])


class SampleStream(torch.utils.data.IterableDataset):
    """Endless batches of images never seen before: (images [b, c, h, w] in [0, 1], labels [b]).

    Batch i holds slots of its own for all its images, drawn past the learned ones, and every class equally often
    (to one), in random order: libraries mix an image with one beside it, which should be of any class. Loader workers
    and processes take every n-th batch, so that none repeats another's. Use it as
    `DataLoader(stream, batch_size=None)`.

    Args:
        synthesize: (labels, slots) -> images in [-1, 1].
        first_slot: where the fresh slots begin.
        images_per_slot: how many images one (class, slot) gives.
        rank, num_processes: of the process; None asks torch.distributed where it runs.
    """

    def __init__(
        self,
        synthesize: Synthesize,
        num_classes: int,
        first_slot: int,
        batch_size: int,
        seed: int = 0,
        images_per_slot: int = 1,
        rank: int | None = None,
        num_processes: int | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % images_per_slot:
            raise InputError(f"batch_size must be a multiple of {images_per_slot} and at least 1, not {batch_size}")
        self.synthesize, self.num_classes, self.first_slot = synthesize, num_classes, first_slot
        self.batch_size, self.seed, self.images_per_slot = batch_size, seed, images_per_slot
        launched = rank_and_world()
        self.rank = launched[0] if rank is None else rank
        self.num_processes = num_processes or launched[1]

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch `number`, in any order."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        num_slots = self.batch_size // self.images_per_slot
        position = torch.arange(num_slots)
        labels = torch.from_numpy(rng.permutation(self.num_classes))[position % self.num_classes]
        slots = self.first_slot + number * num_slots + position
        images, order = to_unit(self.synthesize(labels, slots)), torch.from_numpy(rng.permutation(self.batch_size))
        return images[order.to(images.device)], labels.repeat_interleave(self.images_per_slot)[order]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        number = self.rank * num_workers + worker_id
        while True:
            yield self.batch(number)
            number += self.num_processes * num_workers
