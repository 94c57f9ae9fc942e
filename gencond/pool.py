"""A pool of frozen ConvNets: snapshots along training trajectories plus random ones, built once and kept on disk.

Fresh random nets (DM) say little about a class, trained ones (matching in one net) overfit it; a pool of nets of all
ages gives the same accuracy as fresh nets with statistics that are computed once.
"""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gencond.augment import Augmentation
from gencond.data import LabeledImages
from gencond.features import Extractor
from gencond.files import short_hash, written_whole
from gencond.networks import ConvNet
from gencond.training import train_network

logger = logging.getLogger(__name__)


def build_pool(
    data: LabeledImages,
    cache: Path,
    *,
    width: int,
    depth: int,
    num_trajectories: int,
    snapshot_steps: Sequence[int],
    num_random: int,
    batch_size: int,
    learning_rate: float,
    strategy: str,
    seed: int,
    device: torch.device,
) -> tuple[list[Extractor], str]:
    """The extractors and the key that identifies them; read from `cache` if they were built before.

    Args:
        cache: the folder that keeps them.
        snapshot_steps: after how many training steps a trajectory's net joins the pool, ascending.
        num_random: nets that are never trained.
        strategy: augmentation of the training.
    """
    mean, std = data.mean_std
    key = short_hash(
        "pool-1", data.fingerprint, width, depth, num_trajectories, list(snapshot_steps), num_random, batch_size,
        learning_rate, strategy, seed,
    )  # fmt: skip
    file = cache / "pools" / f"{key}.safetensors"
    num_nets = num_trajectories * len(snapshot_steps) + num_random

    def new_network(number: int) -> ConvNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1000 + number)
            return ConvNet(data.channels, data.num_classes, data.image_size, width, depth)

    if file.exists():
        logger.info("extractors: reusing the pool of %d nets (%s)", num_nets, key)
        stored = load_file(file)
        networks = [new_network(number) for number in range(num_nets)]
        for number, network in enumerate(networks):
            prefix = f"{number}."
            own = {name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)}
            network.load_state_dict(own)
    else:
        networks = []
        augmentation = Augmentation(strategy, data.image_size, mean, std)
        for trajectory in range(num_trajectories):
            network = new_network(len(networks)).to(device)

            def keep(step: int, network: ConvNet = network) -> None:
                if step in snapshot_steps:
                    networks.append(copy.deepcopy(network))

            train_network(
                network,
                data.images,
                data.labels,
                num_steps=max(snapshot_steps),
                batch_size=batch_size,
                learning_rate=learning_rate,
                augmentation=augmentation,
                mean=mean,
                std=std,
                seed=seed * 1000 + trajectory,
                on_step=keep,
                description=f"extractors {trajectory + 1}/{num_trajectories}",
            )
        networks += [new_network(len(networks) + number) for number in range(num_random)]
        with written_whole(file) as temporary:
            save_file(
                {
                    f"{number}.{name}": tensor.detach().cpu().contiguous()
                    for number, network in enumerate(networks)
                    for name, tensor in network.state_dict().items()
                },
                temporary,
            )
    return [Extractor(network, mean, std).to(device) for network in networks], key
