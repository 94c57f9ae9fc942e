"""Which network embeds a step: one of a fixed pool, a freshly drawn one, or one that is trained along the way.

Only a pool stays as it is, so only of a pool can statistics be kept.

A pool holds snapshots along training trajectories plus random nets, built once and kept on disk: fresh random nets say
little about a class, a single trained one is overfitted, and nets of all ages see what either of them sees.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from gencond.common.cache import read_checked, write_checked
from gencond.common.errors import InputError
from gencond.common.files import all_finite, short_hash
from gencond.common.ranges import to_signed
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.data.mapped import MappedImages
from gencond.networks.extractor import Embedding, Extractor, embed_all, resized
from gencond.networks.training import Pixels, Shuffled, cosine, train_network

logger = logging.getLogger(__name__)

SETTLING_IMAGES = 512  # enough for the statistics of a batch norm


@dataclass(frozen=True)
class ExtractorMaker:
    """One architecture and how it sees one data set: seed -> extractor.

    Args:
        network: seed -> a network with weights of its own, on the CPU.
        mean, std: of the data in [-1, 1], per channel.
        settle_on: real images that random networks' batch norms take their statistics from, since fresh ones pass
            everything through unchanged; None leaves the statistics as they come.
        resize, embed: see `Extractor`.
    """

    network: Callable[[int], nn.Module]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settle_on: UInt8[Tensor, "n c h w"] | None = None
    device: torch.device = torch.device("cpu")
    resize: int | None = None
    embed: Embedding = field(default_factory=Embedding)

    def wrap(self, network: nn.Module, knows_classes: bool) -> Extractor:
        extractor = Extractor(network, self.mean, self.std, self.resize, knows_classes, self.embed)
        return extractor.to(self.device)

    def new(self, seed: int) -> Extractor:
        """A network that was never trained on these classes."""
        extractor = self.wrap(self.network(seed), knows_classes=False)
        if self.settle_on is not None and any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in extractor.modules()
        ):
            images = to_signed(self.settle_on).to(self.device)
            update_bn([extractor.normalise(images)], extractor.network)
            extractor.network.eval()
        return extractor

    def train(
        self,
        network: nn.Module,
        images: Pixels | MappedImages,
        labels: Int64[Tensor, " n"],
        *,
        strategy: str,
        batch_size: int,
        batches: type[Shuffled] = Shuffled,
        **training: Any,
    ) -> None:
        """Trains a network of this architecture in place, in batches of random order.

        Args:
            strategy: augmentation of the images.
            batches: how they are made; `WholeBatches` are all of one size, which compiled code meets again.
            training: see `training.train_network`.
        """
        train_network(
            network,
            batches(images.to(self.device), labels.to(self.device), batch_size),
            augmentation=Augmentation(strategy, images.shape[-1], self.mean, self.std),
            mean=self.mean,
            std=self.std,
            forward=self.logits,
            **training,
        )

    def trained(
        self, images: Pixels | MappedImages, labels: Int64[Tensor, " n"], *, seed: int, **training: Any
    ) -> nn.Module:
        """A new network after training at a rate that falls as a cosine.

        Args:
            seed: of the network and its training.
            training: see `train`.
        """
        network = self.network(seed).to(self.device)
        self.train(network, images, labels, schedule=cosine, seed=seed, **training)
        return network

    def top1(self, network: nn.Module, data: LabeledImages) -> float:
        """Share of the images that a trained network has right, in [0, 1]; nothing is compiled for it."""
        judge = replace(self, embed=Embedding()).wrap(network, knows_classes=True)
        found = judge.logits(embed_all(judge, data.images)).argmax(1).cpu()
        return float((found == data.labels).double().mean())

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Of normalised images, for `train_network`: the arithmetic of training is that of extraction."""
        head: Any = network.classifier  # each of our networks has one
        return head(self.embed(network, resized(images, self.resize)))


def _step_seed(seed: int, purpose: str, number: int) -> int:
    """A seed that is a function of a run's seed and a step alone."""
    return int(short_hash(seed, purpose, number)[:12], 16)


class PoolExtractors:
    """One of a fixed set, at random in each step."""

    def __init__(self, pool: Sequence[Extractor]) -> None:
        self.pool = list(pool)

    def at(self, step: int, rng: torch.Generator) -> Extractor:
        """The network of a step, drawn from `rng`."""
        return self.pool[int(torch.randint(len(self.pool), (), generator=rng))]

    def after(self, step: int) -> None:
        """A pool stays as it is."""


class FreshExtractors:
    """A new random network every `refresh_steps` steps, a function of the step alone: DM (1) and M3D (5).

    Args:
        new: seed -> extractor.
    """

    def __init__(self, new: Callable[[int], Extractor], refresh_steps: int, seed: int) -> None:
        self.new, self.refresh_steps, self.seed = new, refresh_steps, seed
        self.number = -1
        self.extractor: Extractor | None = None

    def at(self, step: int, rng: torch.Generator | None = None) -> Extractor:
        """The network of a step."""
        number = step // self.refresh_steps
        if self.extractor is None or number != self.number:
            self.number, self.extractor = number, self.new(_step_seed(self.seed, "extractor", number))
        return self.extractor

    def after(self, step: int) -> None:
        """Never trained."""


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
        self.optimizer: torch.optim.Optimizer  # of the network that was drawn last

    def at(self, step: int, rng: torch.Generator | None = None) -> Extractor:
        """The network of a step, as trained so far."""
        before = self.fresh.number
        extractor = self.fresh.at(step)
        if self.fresh.number != before:
            self.optimizer = self.new_optimizer(extractor.network)
        return extractor

    def after(self, step: int) -> None:
        """Trains the step's network for one round."""
        extractor = self.at(step)
        network = extractor.network.requires_grad_(True)
        self.train(network, self.optimizer, _step_seed(self.fresh.seed, "online", step))
        network.requires_grad_(False)
        extractor.knows_classes = True

    def state_dict(self) -> dict[str, Any]:
        if self.fresh.extractor is None:
            return {"number": -1}
        return {
            "number": self.fresh.number,
            "knows_classes": self.fresh.extractor.knows_classes,
            "network": self.fresh.extractor.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["number"] >= 0:
            extractor = self.at(state["number"] * self.fresh.refresh_steps)
            extractor.network.load_state_dict(state["network"])
            extractor.knows_classes = state["knows_classes"]
            self.optimizer.load_state_dict(state["optimizer"])


Extractors = PoolExtractors | FreshExtractors | OnlineExtractors


def pool_of(extractors: Extractors) -> list[Extractor]:
    """The networks of a pool. Raises TypeError for extractors that change, of which no statistics are kept."""
    if not isinstance(extractors, PoolExtractors):
        raise TypeError("statistics are kept for a pool of extractors alone")
    return extractors.pool


@dataclass(frozen=True)
class Pool:
    """What a pool of extractors consists of.

    Args:
        architecture: says which networks its maker makes, and from which weights.
        num_trajectories: networks that are trained.
        snapshot_steps: after how many training steps a trajectory's net joins the pool, ascending.
        num_random: nets that are never trained.
        batch_size, learning_rate, cutmix: of the training; cutmix is the share of mixed batches.
        strategy: augmentation of the training.
    """

    architecture: str
    num_trajectories: int
    snapshot_steps: tuple[int, ...]
    num_random: int
    batch_size: int
    learning_rate: float
    cutmix: float
    strategy: str
    seed: int

    @property
    def num_trained(self) -> int:
        return self.num_trajectories * len(self.snapshot_steps)

    @property
    def num_networks(self) -> int:
        return self.num_trained + self.num_random

    @property
    def num_steps(self) -> int:
        """Of training, of all trajectories."""
        return self.num_trajectories * max(self.snapshot_steps)

    def train(
        self,
        maker: ExtractorMaker,
        network: nn.Module,
        data: LabeledImages,
        num_steps: int,
        trajectory: int = 0,
        **training: Any,
    ) -> None:
        """Trains a network in place, along a trajectory of that number.

        Args:
            training: see `training.train_network`.
        """
        maker.train(
            network,
            data.images,
            data.labels,
            strategy=self.strategy,
            batch_size=self.batch_size,
            num_steps=num_steps,
            learning_rate=self.learning_rate,
            cutmix=self.cutmix,
            seed=self.seed * 1000 + trajectory,
            **training,
        )


def build_pool(data: LabeledImages, cache: Path, maker: ExtractorMaker, pool: Pool) -> tuple[list[Extractor], str]:
    """The extractors of a pool, those that were trained first, and the key that identifies them.

    Args:
        cache: the folder that keeps them; what was built before is read from there.
    Raises:
        InputError: a weight is not finite after training.
    """
    key = short_hash(
        "pool-4", data.fingerprint, pool.architecture, pool.num_trajectories, list(pool.snapshot_steps),
        pool.num_random, pool.batch_size, pool.learning_rate, pool.cutmix, pool.strategy, pool.seed,
    )  # fmt: skip
    file = cache / "pools" / f"{key}.safetensors"
    first_seed = pool.seed * 1000
    stored = read_checked(file)
    if stored is not None:
        logger.info("extractors: reusing the pool of %d nets (%s)", pool.num_networks, key)
        networks = [maker.network(first_seed + number) for number in range(pool.num_networks)]
        for number, network in enumerate(networks):
            prefix = f"{number}."
            own = {name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)}
            network.load_state_dict(own)
    else:
        networks = []
        for trajectory in range(pool.num_trajectories):
            network = maker.network(first_seed + len(networks)).to(maker.device)

            def keep(step: int, network: nn.Module = network) -> None:
                if step in pool.snapshot_steps:
                    networks.append(copy.deepcopy(network))

            pool.train(
                maker,
                network,
                data,
                max(pool.snapshot_steps),
                trajectory,
                on_step=keep,
                description=f"extractors {trajectory + 1}/{pool.num_trajectories}",
            )
        networks += [maker.new(first_seed + pool.num_trained + number).network for number in range(pool.num_random)]
        weights = {
            f"{number}.{name}": tensor
            for number, network in enumerate(networks)
            for name, tensor in network.state_dict().items()
        }
        if not all_finite(weights):
            raise InputError("extractors: a weight is not finite after training: lower features.learning_rate")
        write_checked(file, weights, f"{len(networks)} networks of {data.words}")
    return [
        maker.wrap(network, knows_classes=number < pool.num_trained) for number, network in enumerate(networks)
    ], key
