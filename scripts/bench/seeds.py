"""What it costs to train the classifiers of several seeds: a plain loop against gencond's evaluator, at any IPC.

    python scripts/bench/seeds.py                       # 5 seeds, ConvNet-3, 32 px, IPC 1 and 10
    python scripts/bench/seeds.py --network convnet2w64 --side 8 --channels 1 --protocol quick

The plain loop is one network after the other: augmentation, forward, backward, a step of SGD, in eager float32. Images
are noise, which costs what photographs cost. Seconds are for all seeds and all steps of the protocol, from the median
of some of them, without testing; the evaluator's hold what compiling costs.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gencond.cli import run_cleanly
from gencond.common.distributed import new_accelerator
from gencond.data.augment import Augmentation
from gencond.eval.classifier import compiled_forward, fastest_way
from gencond.eval.networks import build_network
from gencond.eval.protocols import get_protocol
from gencond.networks.training import Shuffled, Source, train_network, train_networks

STRATEGY = "color_crop_cutout_flip_scale_rotate"
REPETITIONS = 5


Forward = Callable[[nn.Module, Tensor], Tensor]


def train(
    way: str,
    forward: Forward | None,
    networks: Sequence[nn.Module],
    sources: Sequence[Source],
    num_steps: int,
    **options: Any,
) -> None:
    """`num_steps` of each network."""
    seeds = range(len(networks))
    if way == "side by side":
        train_networks(networks, sources, seeds=seeds, num_steps=num_steps, **options)
    else:
        for network, source, seed in zip(networks, sources, seeds, strict=True):
            train_network(network, source, seed=seed, num_steps=num_steps, forward=forward, **options)


def seconds(way: str, num_steps: int, timed_steps: int, *what: Any, **options: Any) -> float:
    """Of all networks and steps, with what happens at the first one alone."""
    forward = compiled_forward() if way == "compiled" else None
    begun = time.perf_counter()
    train(way, forward, *what, 1, **options)
    first, each = time.perf_counter() - begun, []
    for _ in range(REPETITIONS):
        begun = time.perf_counter()
        train(way, forward, *what, timed_steps, **options)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        each.append((time.perf_counter() - begun) / timed_steps)
    return first + statistics.median(each) * (num_steps - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="convnet3")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--protocol", default="dm")
    parser.add_argument("--steps", type=int, default=10, help=f"timed, in each of {REPETITIONS} repetitions")
    args = parser.parse_args()
    device, protocol = new_accelerator().device, get_protocol(args.protocol, 10, args.side)
    mean, std = (0.0,) * args.channels, (1.0,) * args.channels
    options = {
        "learning_rate": protocol.learning_rate, "augmentation": Augmentation(STRATEGY, args.side, mean, std),
        "mean": mean, "std": std,
    }  # fmt: skip
    print("".join(f"{title:>16}" for title in ("IPC", "plain loop, s", "evaluator, s", "its way", "ratio")))
    for ipc in args.ipc:
        num_steps, batch_size = protocol.num_steps(10 * ipc), min(protocol.batch_size, 10 * ipc)
        images = torch.randint(0, 256, (10 * ipc, args.channels, args.side, args.side), dtype=torch.uint8)
        labels = torch.arange(10).repeat_interleave(ipc)
        networks = [build_network(args.network, args.channels, 10, args.side, s).to(device) for s in range(args.seeds)]
        sources = [Shuffled(images.to(device), labels.to(device), batch_size) for _ in networks]
        way = fastest_way(device, batch_size * args.side**2, num_steps, args.seeds)
        plain = seconds("plain", num_steps, args.steps, networks, sources, **options)
        ours = plain if way == "plain" else seconds(way, num_steps, args.steps, networks, sources, **options)
        print(f"{ipc:>16}{plain:>16.1f}{ours:>16.1f}{way:>16}{plain / ours:>15.2f}x", flush=True)


if __name__ == "__main__":
    run_cleanly(main)
