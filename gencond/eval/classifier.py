"""Train on some images, test on real ones: the number everything is for."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from gencond.common.ranges import to_signed
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.eval.networks import build_network
from gencond.eval.protocols import Protocol
from gencond.networks.extractor import Embedding, can_compile
from gencond.networks.training import Shuffled, Source, Teacher, WholeBatches, new_sgd, train_network, train_networks

TESTED_AT_ONCE = 500
# Measured with ConvNet-3 of 128 channels on two cores (scripts/bench/seeds.py). Compiled code saves 40 % of a step and
# costs 20 s, so it pays from about as many pixels that go through a row's networks in training. Below that, a batch of
# more pixels keeps a CPU busy by itself, and stacked convolutions are slower there; one thread is busy with fewer.
PIXELS_WORTH_COMPILING = 40_000_000
PIXELS_SIDE_BY_SIDE, PIXELS_ON_ONE_THREAD = 20_000, 3_000


@torch.no_grad()
def confusion_on_real(
    network: nn.Module,
    test: LabeledImages,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> Int[Tensor, "classes classes"]:
    """How often test images of each class (rows) are taken for each class (columns).

    Args:
        mean, std: those of the training.
        forward: (network, images) -> logits, where not `network(images)`.
    """
    network.eval()
    device = next(network.parameters()).device
    shift, scale = (torch.tensor(value).view(1, -1, 1, 1) for value in (mean, std))
    confusion = torch.zeros(test.num_classes, test.num_classes, dtype=torch.int64)
    for rows in torch.arange(len(test)).split(TESTED_AT_ONCE):
        # As many at once always, by taking some again: compiled code meets one size.
        filled = torch.arange(TESTED_AT_ONCE) % len(rows) if len(test) > len(rows) else torch.arange(len(rows))
        images = ((to_signed(test.images[rows[filled]]) - shift) / scale).to(device)
        logits = forward(network, images) if forward else network(images)
        answers = logits[: len(rows)].argmax(1).cpu()
        confusion.index_put_((test.labels[rows], answers), torch.ones_like(answers), accumulate=True)
    return confusion


def top1_of(confusion: Int[Tensor, "classes classes"]) -> float:
    """The share of test images classified rightly, in [0, 1]."""
    return int(confusion.trace()) / int(confusion.sum())


@dataclass(frozen=True)
class FreshImages:
    """Images that nobody sees twice, drawn while a classifier trains.

    Args:
        batch: (seed, number) -> images (uint8, or floats in [-1, 1]) and labels, `batch_size` of them.
        batch_size, num_steps: of a training.
    """

    batch: Callable[[int, int], tuple[Tensor, Tensor]]
    batch_size: int
    num_steps: int

    @property
    def num_images(self) -> int:
        """That a classifier sees in all."""
        return self.batch_size * self.num_steps

    def sources(self, seeds: Sequence[int], device: torch.device) -> list[Source]:
        """A classifier's batches, for each seed; they come from where they are made."""

        def source(seed: int) -> Source:
            numbers = itertools.count()
            return lambda rng: self.batch(seed, next(numbers))

        return [source(seed) for seed in seeds]


@dataclass(frozen=True)
class RepeatedImages:
    """Images of a set, as many in all as of `FreshImages`, however few there are: every batch is whole.

    Args:
        of_seed: the set that a classifier trains on.
        batch_size, num_steps: of a training.
    """

    of_seed: Callable[[int], LabeledImages]
    batch_size: int
    num_steps: int

    def sources(self, seeds: Sequence[int], device: torch.device) -> list[Source]:
        """A classifier's batches, for each seed."""
        return _sources(
            [self.of_seed(seed) for seed in seeds], partial(WholeBatches, batch_size=self.batch_size), device
        )


def _sources(sets: Sequence[LabeledImages], new_source: Callable[..., Source], device: torch.device) -> list[Source]:
    """Of images that are on the device, once where several seeds share a set."""
    moved = {id(one): (one.images.to(device), one.labels.to(device)) for one in sets}
    return [new_source(*moved[id(one)]) for one in sets]


def train_and_test(
    train: Sequence[LabeledImages] | FreshImages | RepeatedImages,
    test: LabeledImages,
    *,
    network: str,
    protocol: Protocol,
    augmentation: str,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    seeds: Sequence[int],
    device: torch.device,
    teacher: Callable[[Tensor], Tensor] | None = None,
    on_share: Callable[[float], None] = lambda share: None,
    on_tested: Callable[[Tensor], None] = lambda confusion: None,
) -> list[float]:
    """Top-1 on `test`, in [0, 1], of the last iterates of classifiers, each trained on images of its own alone.

    They are trained side by side where one alone would leave the machine idle, otherwise one after the other with
    compiled code where that pays; to float rounding, the numbers are those that each has alone.

    Args:
        train: for each seed, as many images for one as for another; or what says itself how long is trained on it.
        augmentation: strategy of operations that leave the class as it is.
        normalisation: mean and std of the real training set in [-1, 1], the same for every row of a table.
        seeds: of the initial weights, the order and the augmentation.
        teacher: images in [-1, 1] -> logits, for a protocol with a temperature.
        on_share: called with the share of the training that is done, in [0, 1].
        on_tested: called with each classifier's `confusion_on_real`.
    """
    classifiers = [
        build_network(network, test.channels, test.num_classes, test.image_size, seed).to(device) for seed in seeds
    ]
    if isinstance(train, FreshImages | RepeatedImages):
        batch_size, num_steps, sources = train.batch_size, train.num_steps, train.sources(seeds, device)
    else:
        batch_size, num_steps = protocol.batch_of(len(train[0])), protocol.num_steps(len(train[0]))
        sources = _sources(train, partial(Shuffled, batch_size=batch_size), device)
    mean, std = normalisation
    options = {
        "num_steps": num_steps, "learning_rate": protocol.learning_rate, "schedule": protocol.rate_at,
        "restart_at": protocol.restart_at, "cutmix": protocol.cutmix, "mean": mean, "std": std,
        "teacher": _teacher_of(protocol, teacher),
        "augmentation": Augmentation(
            protocol.strategy(augmentation), test.image_size, mean, std,
            "one" if protocol.augmentation == "none" else protocol.augmentation,
        ),
    }  # fmt: skip
    way = fastest_way(device, batch_size * test.image_size**2, num_steps, len(seeds))
    forward = compiled_forward() if way == "compiled" else None
    if way == "side by side":
        train_networks(
            classifiers, sources, seeds=seeds, new_optimizer=partial(new_optimizer, protocol), on_share=on_share,
            **options,
        )  # fmt: skip
    else:
        for number, (classifier, source, seed) in enumerate(zip(classifiers, sources, seeds, strict=True)):
            train_network(
                classifier, source, seed=seed, forward=forward,
                optimizer=new_optimizer(protocol, list(classifier.parameters())),
                on_step=lambda step, number=number: on_share((number + step / num_steps) / len(seeds)), **options,
            )  # fmt: skip
    confusions = [confusion_on_real(classifier, test, mean, std, forward) for classifier in classifiers]
    for confusion in confusions:
        on_tested(confusion)
    return list(map(top1_of, confusions))


def _teacher_of(protocol: Protocol, logits: Callable[[Tensor], Tensor] | None) -> Teacher | None:
    """Whose answers are learned; None where a protocol learns labels."""
    if protocol.temperature is None:
        return None
    assert logits is not None, f"protocol {protocol.name} learns a teacher's answers"
    return Teacher(logits, protocol.temperature)


def new_optimizer(protocol: Protocol, weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    """As a protocol says."""
    if protocol.optimizer == "adamw":
        return torch.optim.AdamW(weights, protocol.learning_rate, weight_decay=protocol.weight_decay)
    assert protocol.momentum is not None, f"SGD has a momentum, which protocol {protocol.name} leaves out"
    return new_sgd(weights, protocol.learning_rate, protocol.momentum, protocol.weight_decay)


def trained_on_all(
    network: str,
    train: LabeledImages,
    protocol: Protocol,
    augmentation: str,
    device: torch.device,
    description: str,
) -> nn.Module:
    """A judge that was trained on all of `train`, labels and not a teacher's answers, with a progress bar."""
    mean, std = train.mean_std
    classifier = build_network(network, train.channels, train.num_classes, train.image_size, seed=0).to(device)
    train_network(
        classifier,
        Shuffled(train.images.to(device), train.labels.to(device), protocol.batch_of(len(train))),
        optimizer=new_optimizer(protocol, list(classifier.parameters())),
        num_steps=protocol.num_steps(len(train)),
        learning_rate=protocol.learning_rate,
        schedule=protocol.rate_at,
        augmentation=Augmentation(augmentation, train.image_size, mean, std),
        mean=mean,
        std=std,
        seed=0,
        description=description,
    )
    return classifier


def fastest_way(
    device: torch.device, batch_pixels: int, num_steps: int, num_seeds: int
) -> Literal["side by side", "compiled", "plain"]:
    """How the networks of several seeds are trained; the last two one after the other.

    Args:
        batch_pixels: of all images of a step of one network.
        num_steps: of each network.
    """
    if device.type == "cpu" and batch_pixels * num_steps * num_seeds >= PIXELS_WORTH_COMPILING and can_compile():
        return "compiled"
    busy = PIXELS_SIDE_BY_SIDE if torch.get_num_threads() > 1 else PIXELS_ON_ONE_THREAD
    idle = device.type != "cpu" or batch_pixels <= busy
    return "side by side" if idle and num_seeds > 1 else "plain"


def compiled_forward() -> Callable[[nn.Module, Tensor], Tensor]:
    """(network, images) -> logits for all networks of one architecture."""
    embed = Embedding(compile=True)

    def forward(network: nn.Module, images: Tensor) -> Tensor:
        features = embed(network, images)
        return network.classifier(features)  # pyright: ignore[reportCallIssue]  # networks here have it

    return forward
