"""Train on some images, test on real ones: the number everything is for."""

import torch
from torch import nn

from gencond.augment import Augmentation
from gencond.data import LabeledImages
from gencond.eval.networks import build_network
from gencond.eval.protocols import Protocol
from gencond.ranges import to_signed
from gencond.training import train_network


@torch.no_grad()
def top1_on_real(
    network: nn.Module,
    test: LabeledImages,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int = 1000,
) -> float:
    """The share of test images classified rightly, in [0, 1]. `mean` and `std` are those of the training."""
    network.eval()
    device = next(network.parameters()).device
    shift, scale = (torch.tensor(value).view(1, -1, 1, 1) for value in (mean, std))
    right = 0
    for rows in torch.arange(len(test)).split(batch_size):
        logits = network(((to_signed(test.images[rows]) - shift) / scale).to(device))
        right += int((logits.argmax(1).cpu() == test.labels[rows]).sum())
    return right / len(test)


def train_and_test(
    train: LabeledImages,
    test: LabeledImages,
    *,
    network: str,
    protocol: Protocol,
    augmentation: str,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    seed: int,
    device: torch.device,
) -> float:
    """Top-1 on `test`, in [0, 1], of the last iterate of a classifier trained on `train` alone.

    Args:
        augmentation: strategy of operations that leave the class as it is.
        normalisation: mean and std of the real training set in [-1, 1], the same for every row of a table.
        seed: of the initial weights, the order and the augmentation.
    """
    classifier = build_network(network, train.channels, train.num_classes, train.image_size, seed).to(device)
    mean, std = normalisation
    mode = "idc" if protocol.augmentation == "idc" else "one"
    train_network(
        classifier,
        train.images,
        train.labels,
        num_steps=protocol.num_steps(len(train)),
        batch_size=protocol.batch_size,
        learning_rate=protocol.learning_rate,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
        schedule=protocol.rate_at,
        restart_at=protocol.restart_at,
        augmentation=Augmentation(protocol.strategy(augmentation), train.image_size, mean, std, mode),
        cutmix=protocol.cutmix,
        mean=mean,
        std=std,
        seed=seed,
    )
    return top1_on_real(classifier, test, mean, std)
