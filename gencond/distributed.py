"""Class-parallel processes: each takes its own classes; only class centers cross the wire, with gradient."""

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from gencond.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

# One process may build extractors for hours while the others wait.
TIMEOUT = timedelta(hours=24)

Value = TypeVar("Value")


def new_accelerator() -> "Accelerator":
    """An Accelerator as `accelerate launch` configured it, patient enough for the stages that one process does."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)])


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
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def from_all(own: list[Value]) -> list[Value]:
    """The items of all processes, on every process, in rank order."""
    _, world = rank_and_world()
    if world == 1:
        return own
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.own], None


def gather_rows(own: Shaped[Tensor, "m d"], num_rows: int) -> Shaped[Tensor, "n d"]:
    """The rows of all processes, in the order of `own_share`; `own` itself in a single process."""
    _, world = rank_and_world()
    if world == 1:
        return own
    return _Gather.apply(own, [own_share(num_rows, rank, world) for rank in range(world)])
