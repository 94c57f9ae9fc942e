"""Labelled images -> trained networks: one loop for the extractors of a pool and for the classifiers that judge."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from gencond.common.progress import progress
from gencond.common.ranges import to_signed
from gencond.data.augment import Augmentation, AugmentParams
from gencond.data.mapped import MappedImages

Pixels = UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]  # floats in [-1, 1]
# What comes next: images and labels; what of it is random is drawn from the generator.
Source = Callable[[torch.Generator], tuple[Pixels, Int64[Tensor, " n"]]]


class Shuffled:
    """Batches of epochs in random order, as a `Source`.

    Args:
        batch_size: the whole set where that is smaller; the last batch of an epoch holds what is left. A single image
            has the one before it beside it once more, since batch norm cannot be trained on one.
    """

    def __init__(self, images: Pixels | MappedImages, labels: Int64[Tensor, " n"], batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, min(batch_size, len(labels))
        self.epoch: list[Tensor] = []

    def __call__(self, rng: torch.Generator) -> tuple[Pixels, Int64[Tensor, " n"]]:
        if not self.epoch:
            order = torch.randperm(len(self.labels), generator=rng)
            self.epoch = list(order.split(self.batch_size))
            if len(self.epoch[-1]) == 1 < self.batch_size:
                self.epoch[-1] = order[-2:]
        rows = self.epoch.pop(0).to(self.labels.device)
        return self.images[rows], self.labels[rows]


class WholeBatches(Shuffled):
    """`Shuffled`, but an epoch runs on into the next one: every batch is whole, however few images there are."""

    def __init__(self, images: Pixels | MappedImages, labels: Int64[Tensor, " n"], batch_size: int) -> None:
        super().__init__(images, labels, batch_size)
        self.batch_size, self.order = batch_size, torch.empty(0, dtype=torch.int64)

    def __call__(self, rng: torch.Generator) -> tuple[Pixels, Int64[Tensor, " n"]]:
        while len(self.order) < self.batch_size:
            self.order = torch.cat([self.order, torch.randperm(len(self.labels), generator=rng)])
        rows, self.order = self.order[: self.batch_size].to(self.labels.device), self.order[self.batch_size :]
        return self.images[rows], self.labels[rows]


def new_sgd(
    weights: nn.Module | Sequence[Tensor], learning_rate: float, momentum: float = 0.9, weight_decay: float = 5e-4
) -> torch.optim.SGD:
    """The optimiser that the literature's ConvNets are trained with."""
    parameters = weights.parameters() if isinstance(weights, nn.Module) else weights
    return torch.optim.SGD(parameters, learning_rate, momentum=momentum, weight_decay=weight_decay)


def train_network(
    network: nn.Module,
    source: Source,
    *,
    learning_rate: float,
    seed: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    optimizer: torch.optim.Optimizer | None = None,
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
    **training: Any,
) -> None:
    """SGD with cross-entropy on batches of augmented, normalised images; trains `network` in place.

    Args:
        source: of the batches, `Shuffled` or another.
        momentum, weight_decay: of SGD.
        seed: of the order and the augmentation. The initial weights are the caller's.
        optimizer: one to go on with, instead of a new SGD.
        forward: (network, images) -> logits, where not `network(images)`.
        training: see `run_training`.
    """
    logits_of = partial(forward, network) if forward else network
    network.train()
    run_training(
        lambda batches: logits_of(batches[0])[None],
        optimizer or new_sgd(network, learning_rate, momentum, weight_decay),
        [source],
        seeds=[seed],
        learning_rate=learning_rate,
        device=next(network.parameters()).device,
        **training,
    )
    network.eval()


def train_networks(
    networks: Sequence[nn.Module],
    sources: Sequence[Source],
    *,
    learning_rate: float,
    seeds: Sequence[int],
    num_steps: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    new_optimizer: Callable[[Sequence[Tensor]], torch.optim.Optimizer] | None = None,
    on_share: Callable[[float], None] = lambda share: None,
    **training: Any,
) -> None:
    """`train_network` of several networks of one architecture side by side, in place.

    Each sees the images, the order and the augmentation that it would see alone, and ends with the same weights but for
    the rounding of sums in another order. One pass over all of them fills a machine that a small network leaves idle.

    Args:
        sources: of each network, with batches of the same size.
        seeds: of each network.
        new_optimizer: of all their weights, instead of SGD; its arithmetic has to be element by element.
        on_share: called with the share of the training that is done, in [0, 1].
    """
    weights, buffers = stack_module_state(list(networks))
    skeleton = copy.deepcopy(networks[0]).train()

    def logits_of(own: dict[str, Tensor], statistics: dict[str, Tensor], batch: Tensor) -> Tensor:
        return functional_call(skeleton, (own, statistics), (batch,))

    together = torch.vmap(logits_of, randomness="different")
    run_training(
        lambda batches: together(weights, buffers, batches),
        (new_optimizer or partial(new_sgd, learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay))(
            list(weights.values())
        ),
        sources,
        num_steps=num_steps,
        seeds=seeds,
        learning_rate=learning_rate,
        device=next(networks[0].parameters()).device,
        on_step=lambda step: on_share(step / num_steps),
        **training,
    )
    with torch.no_grad():
        for number, network in enumerate(networks):
            own = dict(network.named_parameters()) | dict(network.named_buffers())
            for name, stacked in (weights | buffers).items():
                own[name].copy_(stacked[number])
            network.eval()


def cosine(done: float) -> float:
    """The factor on a learning rate that falls to zero, after the share `done` of the steps, in [0, 1)."""
    return 0.5 * (1 + math.cos(math.pi * done))


def run_training(
    logits_of: Callable[[Float[Tensor, "r b c h w"]], Float[Tensor, "r b classes"]],
    optimizer: torch.optim.Optimizer,
    sources: Sequence[Source],
    *,
    num_steps: int,
    learning_rate: float,
    seeds: Sequence[int],
    device: torch.device,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    schedule: Callable[[float], float] = lambda done: 1.0,
    restart_at: float | None = None,
    augmentation: Augmentation | None = None,
    cutmix: float = 0.0,
    teacher: "Teacher | None" = None,
    on_step: Callable[[int], None] | None = None,
    description: str = "",
) -> None:
    """The loop behind `train_network` and `train_networks`.

    Args:
        logits_of: a batch for each of r networks -> their logits.
        sources: of each network's batches.
        schedule: share of the steps done, in [0, 1) -> factor on the learning rate.
        restart_at: share of the steps after which the momentum starts from zero; None never.
        augmentation: drawn anew for every image of every batch, in [-1, 1].
        cutmix: probability that a batch is mixed by CutMix (1905.04899, beta 1: a box of uniform area).
        teacher: whose answers to each batch are learned instead of the labels.
        mean, std: what images in [-1, 1] are normalised with.
        on_step: called with the number of steps done.
        description: of the progress bar; none shows no bar.
    """
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    shift, scale = (torch.tensor(value, device=device).view(1, -1, 1, 1) for value in (mean, std))
    for step in progress(range(num_steps), description=description, disable=not description):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step / num_steps)
        if restart_at is not None and step == math.floor(restart_at * num_steps) + 1:
            optimizer.state.clear()
        drawn = [source(rng) for source, rng in zip(sources, rngs, strict=True)]
        batch = to_signed(torch.cat([images for images, _ in drawn]).to(device))
        batch_labels = torch.stack([labels for _, labels in drawn]).to(device)
        if augmentation is not None:
            count = batch_labels.shape[1]
            batch = augmentation(batch, AugmentParams.cat([augmentation.draw(count, rng) for rng in rngs]))
        batch = batch.unflatten(0, batch_labels.shape)
        mixes = [draw_cutmix(cutmix, batch[0], rng) for rng in rngs]
        if any(mixes):
            batch = torch.stack([mix(own) if mix else own for mix, own in zip(mixes, batch, strict=True)])
        logits = logits_of((batch - shift) / scale)
        if teacher is not None:
            losses = [teacher.divergence(own, answers) for own, answers in zip(logits, teacher.of(batch), strict=True)]
        else:
            losses = [
                mix.cross_entropy(own, of, batch.shape[-1] * batch.shape[-2]) if mix else F.cross_entropy(own, of)
                for mix, own, of in zip(mixes, logits, batch_labels, strict=True)
            ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        if on_step is not None:
            on_step(step + 1)


@dataclass(frozen=True)
class Teacher:
    """A trained network whose softened answers are learned.

    Args:
        logits: images in [-1, 1] [n, c, h, w] -> [n, classes].
        temperature: that both answers are divided by.
    """

    logits: Callable[[Tensor], Tensor]
    temperature: float

    @torch.no_grad()
    def of(self, images: Float[Tensor, "r b c h w"]) -> Float[Tensor, "r b classes"]:
        """Its answers to the batches of several networks."""
        return self.logits(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def divergence(self, logits: Float[Tensor, "n classes"], answers: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
        """Kullback-Leibler divergence of a network's softened answers from the teacher's, mean over images.

        Source: Hinton et al., Distilling the Knowledge in a Neural Network (1503.02531), without their factor T^2.
        """
        own, told = (F.log_softmax(one / self.temperature, dim=1) for one in (logits, answers))
        return F.kl_div(own, told, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class CutMix:
    """A box of every image that comes from another one; both labels count by their share of the area.

    Args:
        top, bottom, left, right: of the box, in pixels.
        partner: which image each takes it from.
    """

    top: int
    bottom: int
    left: int
    right: int
    partner: Int64[Tensor, " n"]

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        mixed = images.clone()
        rows, columns = slice(self.top, self.bottom), slice(self.left, self.right)
        mixed[:, :, rows, columns] = images[self.partner, :, rows, columns]
        return mixed

    def cross_entropy(
        self, logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"], num_pixels: int
    ) -> Float[Tensor, ""]:
        """Of the logits of mixed images; `num_pixels` of one."""
        kept = 1 - (self.bottom - self.top) * (self.right - self.left) / num_pixels
        return kept * F.cross_entropy(logits, labels) + (1 - kept) * F.cross_entropy(logits, labels[self.partner])


def draw_cutmix(probability: float, images: Float[Tensor, "n c h w"], rng: torch.Generator) -> CutMix | None:
    """A box for a batch, with lambda ~ U(0, 1) of the area left; None where the batch stays as it is.

    Source: Yun et al., CutMix (1905.04899), with beta 1, one box a batch, as IDC trains with it.
    """
    if not probability or float(torch.rand((), generator=rng)) >= probability:
        return None
    height, width = images.shape[-2:]
    side = math.sqrt(float(torch.rand((), generator=rng)))
    row, column = (int(torch.randint(length, (), generator=rng)) for length in (height, width))
    top, bottom = (min(max(row + sign * int(height * side) // 2, 0), height) for sign in (-1, 1))
    left, right = (min(max(column + sign * int(width * side) // 2, 0), width) for sign in (-1, 1))
    return CutMix(top, bottom, left, right, torch.randperm(len(images), generator=rng).to(images.device))
