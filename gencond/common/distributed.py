"""Class-parallel processes: each takes its own classes; only class centers cross the wire, with gradient.

Processes may wait for each other for hours, while one trains extractors or downloads weights, and only in
`wait_for_everyone`, which says so every some minutes. A collective itself ends with an error after `TIMEOUT`.
"""

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psutil
import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.progress import spoken_time

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=10)  # of a collective, to which processes come at nearly the same time
PATIENCE = timedelta(days=30)  # of `wait_for_everyone`
SECONDS_BETWEEN_WORDS = 300.0
POLL_SECONDS = 0.02

Value = TypeVar("Value")


def new_accelerator(tracker: str | None = None, logging_dir: Path | None = None) -> "Accelerator":
    """An Accelerator as `accelerate launch` configured it.

    Data parallelism leaves buffers alone: it would send them before every forward pass, and processes may need
    different numbers of those. Matching keeps batch norms as they are; pretraining, which does not, uses the batch's
    own statistics and computes those that stay from weights that all processes have.

    Args:
        tracker: its `log_with`.
        logging_dir: where a tracker that writes files does so.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import ProjectConfiguration

    accelerator = Accelerator(
        log_with=tracker,
        project_config=None if logging_dir is None else ProjectConfiguration(logging_dir=str(logging_dir)),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=TIMEOUT),
            DistributedDataParallelKwargs(broadcast_buffers=False),
        ],
    )
    if accelerator.num_processes > 1:
        _patient_group()
    return accelerator


def memory_used(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU since this was last asked; of a CPU what the process holds now."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return psutil.Process().memory_info().rss


def peak_memory() -> int:
    """Bytes that this process held at most, or holds where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().rss
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) where none were launched."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_main_process() -> bool:
    return rank_and_world()[0] == 0


@functools.cache
def _patient_group() -> "dist.ProcessGroup":
    """All processes, connected once more without a GPU; made when all of them ask for it first."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    return cast("dist.ProcessGroup", group)  # a number only for processes that are left out


def wait_for_everyone() -> None:
    """Returns once every process is here, however long one of them works before it comes; says that it waits."""
    rank, world = rank_and_world()
    if world == 1:
        return
    arrived = dist.barrier(group=_patient_group(), async_op=True)
    started = said = time.monotonic()
    while not arrived.is_completed():
        time.sleep(POLL_SECONDS)
        if time.monotonic() - said > SECONDS_BETWEEN_WORDS:
            said = time.monotonic()
            logger.info("process %d of %d has waited %s for others", rank, world, spoken_time(said - started))
    arrived.wait()


def from_main(compute: Callable[[], Value]) -> Value:
    """What the main process computes, on every process, so that all go on alike; all raise its InputError."""
    rank, world = rank_and_world()
    if world == 1:
        return compute()
    answer: list[Any] = [None, None]
    if rank == 0:
        try:
            answer[0] = compute()
        except (InputError, OSError) as error:
            answer[1] = error
    wait_for_everyone()
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process does what is inside, then the others, who find it done; all raise the main one's InputError."""
    failure = None
    if is_main_process():
        try:
            yield
        except (InputError, OSError) as error:
            failure = error
    failure = from_main(lambda: failure)
    if failure is not None:
        raise failure
    if not is_main_process():
        yield


def from_all(own: list[Value]) -> list[Value]:
    """The items of all processes, on every process, in rank order."""
    _, world = rank_and_world()
    if world == 1:
        return own
    wait_for_everyone()
    several: list[Any] = [None] * world
    dist.all_gather_object(several, own)
    return [item for items in several for item in items]


def own_share(num_items: int, rank: int, num_processes: int) -> slice:
    """The contiguous share of `rank`: shares differ by one item at most and cover all of them."""
    return slice(rank * num_items // num_processes, (rank + 1) * num_items // num_processes)


class _Gather(torch.autograd.Function):
    """Rows of all processes in rank order; the gradient of the own rows is summed over the processes.

    Every process computes the same loss from the gathered rows, and averaging gradients over processes (as data
    parallelism does) divides the sum by their number again: the result is the gradient of one such loss.
    `dist.all_gather` alone passes no gradient.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, shares: list[slice]) -> Tensor:
        ctx.own = shares[dist.get_rank()]
        gathered = own.new_zeros(shares[-1].stop, *own.shape[1:])
        gathered[ctx.own] = own
        dist.all_reduce(gathered)  # zeros elsewhere: the sum is the concatenation, also for unequal shares
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.own], None


def gather_rows(own: Shaped[Tensor, "m d"], num_rows: int) -> Shaped[Tensor, "n d"]:
    """The rows of all processes, in the order of `own_share`; `own` itself in a single process."""
    _, world = rank_and_world()
    if world == 1:
        return own
    return _Gather.apply(own, [own_share(num_rows, rank, world) for rank in range(world)])
