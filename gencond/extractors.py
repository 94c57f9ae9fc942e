"""Which network embeds a step: one of a fixed pool, a freshly drawn one, or one that is trained along the way.

Only a pool stays as it is, so only of a pool can statistics be kept.

A pool holds snapshots along training trajectories plus random nets, built once and kept on disk: fresh random nets say
little about a class, a single trained one is overfitted, and nets of all ages see what either of them sees.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from gencond.augment import Augmentation
from gencond.data import LabeledImages
from gencond.features import Extractor
from gencond.files import read_cache, short_hash, written_whole
from gencond.networks import ConvNet
from gencond.training import train_network

logger = logging.getLogger(__name__)


class FreshExtractors:
    """A new random network every `refresh_steps` steps, a function of the step alone: DM (1) and M3D (5).

    Args:
        make: seed -> network, on its device.
        mean, std: of the data in [-1, 1], per channel.
    """

    def __init__(
        self,
        make: Callable[[int], nn.Module],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        refresh_steps: int,
        seed: int,
    ) -> None:
        self.make, self.mean, self.std, self.refresh_steps, self.seed = make, mean, std, refresh_steps, seed
        self.number, self.extractor = -1, None

    def at(self, step: int) -> Extractor:
        """The network of a step."""
        number = step // self.refresh_steps
        if number != self.number:
            network = self.make(int(short_hash(self.seed, "extractor", number)[:12], 16))
            self.number, self.extractor = number, Extractor(network, self.mean, self.std)
        return self.extractor


class OnlineExtractors:
    """Fresh networks, each trained on real images after every step until the next is drawn: IDC, DREAM.

    Weights and optimizer are part of a run's state (`state_dict`), since they depend on all steps since the draw.

    Args:
        fresh: draws the networks.
        new_optimizer: of a network just drawn.
        train: (network, optimizer, seed) trains one round; the optimizer is kept between rounds.
    """

    def __init__(
        self,
        fresh: FreshExtractors,
        new_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        train: Callable[[nn.Module, torch.optim.Optimizer, int], None],
    ) -> None:
        self.fresh, self.new_optimizer, self.train = fresh, new_optimizer, train
        self.optimizer: torch.optim.Optimizer | None = None

    def at(self, step: int) -> Extractor:
        """The network of a step, as trained so far."""
        before = self.fresh.number
        extractor = self.fresh.at(step)
        if self.fresh.number != before:
            self.optimizer = self.new_optimizer(extractor.network)
        return extractor

    def after(self, step: int) -> None:
        """Trains the step's network for one round."""
        network = self.at(step).network
        network.requires_grad_(True)
        self.train(network, self.optimizer, int(short_hash(self.fresh.seed, "online", step)[:12], 16))
        network.requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        if self.fresh.extractor is None:
            return {"number": -1}
        return {
            "number": self.fresh.number,
            "network": self.fresh.extractor.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["number"] >= 0:
            extractor = self.at(state["number"] * self.fresh.refresh_steps)
            extractor.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])


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

    stored = read_cache(file)
    if stored is not None:
        logger.info("extractors: reusing the pool of %d nets (%s)", num_nets, key)
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
