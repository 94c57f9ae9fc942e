"""Labelled images -> a trained network: one loop for the extractors of a pool and for the classifiers that judge."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from gencond.augment import Augmentation
from gencond.progress import progress
from gencond.ranges import to_signed


def train_network(
    network: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Callable[[float], float] = lambda done: 1.0,
    restart_at: float | None = None,
    augmentation: Augmentation | None = None,
    cutmix: float = 0.0,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    optimizer: torch.optim.Optimizer | None = None,
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
    on_step: Callable[[int], None] | None = None,
    description: str = "",
) -> None:
    """SGD with cross-entropy on shuffled epochs of augmented, normalised images; trains `network` in place.

    Args:
        batch_size: the whole set where that is smaller; the last batch of an epoch holds what is left.
        schedule: share of the steps done, in [0, 1) -> factor on the learning rate.
        restart_at: share of the steps after which the momentum starts from zero; None never.
        augmentation: drawn anew for every image of every batch, in [-1, 1].
        cutmix: probability that a batch is mixed by CutMix (1905.04899, beta 1: a box of uniform area).
        mean, std: what images in [-1, 1] are normalised with.
        seed: of the order and the augmentation. The initial weights are the caller's.
        optimizer: one to go on with, instead of a new SGD.
        forward: (network, images) -> logits, where not `network(images)`.
        on_step: called with the number of steps done.
        description: of the progress bar; none shows no bar.
    """
    device = next(network.parameters()).device
    rng = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(labels))
    shift, scale = (torch.tensor(value, device=device).view(1, -1, 1, 1) for value in (mean, std))
    images, labels = images.to(device), labels.to(device)
    if optimizer is None:
        optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=momentum, weight_decay=weight_decay)
    network.train()
    logits_of = partial(forward, network) if forward else network
    epoch: list[Tensor] = []
    for step in progress(range(num_steps), description=description, disable=not description):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step / num_steps)
        if restart_at is not None and step == math.floor(restart_at * num_steps) + 1:
            optimizer.state.clear()
        if not epoch:
            epoch = list(torch.randperm(len(labels), generator=rng).split(batch_size))
        rows = epoch.pop(0).to(device)
        batch = to_signed(images[rows])
        if augmentation is not None:
            batch = augmentation(batch, augmentation.draw(len(rows), rng))
        batch = (batch - shift) / scale
        if cutmix and float(torch.rand((), generator=rng)) < cutmix:
            loss = cutmix_loss(logits_of, batch, labels[rows], rng)
        else:
            loss = F.cross_entropy(logits_of(batch), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if on_step is not None:
            on_step(step + 1)
    network.eval()


def cutmix_loss(
    logits_of: Callable[[Tensor], Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    rng: torch.Generator,
) -> Float[Tensor, ""]:
    """Cross-entropy where a box of every image comes from another one; both labels count by their share of the area.

    Source: Yun et al., CutMix (1905.04899), with beta 1, one box a batch, as IDC trains with it.
    """
    height, width = images.shape[-2:]
    side = math.sqrt(float(torch.rand((), generator=rng)))  # a box of 1 - lambda of the area, lambda ~ U(0, 1)
    center = [int(torch.randint(length, (), generator=rng)) for length in (height, width)]
    top, bottom = (min(max(center[0] + sign * int(height * side) // 2, 0), height) for sign in (-1, 1))
    left, right = (min(max(center[1] + sign * int(width * side) // 2, 0), width) for sign in (-1, 1))
    partner = torch.randperm(len(images), generator=rng).to(images.device)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    logits = logits_of(mixed)
    return kept * F.cross_entropy(logits, labels) + (1 - kept) * F.cross_entropy(logits, labels[partner])
