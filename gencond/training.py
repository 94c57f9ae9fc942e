"""Labelled images -> a trained network: one loop for the extractors of a pool and for the classifiers that judge."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
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
    augmentation: Augmentation | None = None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    on_step: Callable[[int], None] | None = None,
    description: str = "",
) -> None:
    """SGD with cross-entropy on shuffled epochs of augmented, normalised images; trains `network` in place.

    Args:
        batch_size: the whole set where that is smaller; the last batch of an epoch is filled from the next.
        schedule: share of the steps done, in [0, 1) -> factor on the learning rate.
        augmentation: drawn anew for every image of every batch, in [-1, 1].
        mean, std: what images in [-1, 1] are normalised with.
        seed: of the order and the augmentation. The initial weights are the caller's.
        on_step: called with the number of steps done.
        description: of the progress bar; none shows no bar.
    """
    device = next(network.parameters()).device
    rng = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(labels))
    shift, scale = (torch.tensor(value, device=device).view(1, -1, 1, 1) for value in (mean, std))
    images, labels = images.to(device), labels.to(device)
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=momentum, weight_decay=weight_decay)
    network.train()
    queue = torch.empty(0, dtype=torch.int64)
    for step in progress(range(num_steps), description=description, disable=not description):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step / num_steps)
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(len(labels), generator=rng)])
        rows, queue = queue[:batch_size].to(device), queue[batch_size:]
        batch = to_signed(images[rows])
        if augmentation is not None:
            batch = augmentation(batch, augmentation.draw(batch_size, rng))
        loss = F.cross_entropy(network((batch - shift) / scale), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if on_step is not None:
            on_step(step + 1)
    network.eval()
