"""Image sets that are known by a name."""

from collections.abc import Callable
from typing import cast

import numpy as np
import torch

from gencond.common.errors import InputError, first_line
from gencond.common.files import cache_dir
from gencond.data.images import LabeledImages
from gencond.data.npz import _channels_first


def _digits() -> tuple[LabeledImages, None]:
    from sklearn.datasets import load_digits
    from sklearn.utils import Bunch

    digits = cast(Bunch, load_digits())  # a pair only where it is asked for one
    images = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return LabeledImages(images, labels, tuple(str(digit) for digit in range(10))), None


def _torchvision_set(name: str) -> Callable[[], tuple[LabeledImages, LabeledImages]]:
    def load() -> tuple[LabeledImages, LabeledImages]:
        from torchvision import datasets

        root = cache_dir() / "data"
        try:
            train, test = (getattr(datasets, name)(root, train=train, download=True) for train in (True, False))
        except (OSError, RuntimeError) as error:
            raise InputError(f"{name} could not be downloaded to {root} ({first_line(error)})") from None
        order = sorted(range(len(train.classes)), key=lambda label: train.classes[label])
        names = tuple(train.classes[label] for label in order)
        rank = torch.tensor(order).argsort()
        class_of = tuple(rank.tolist())
        images_train, images_test = (
            LabeledImages(_channels_first(np.asarray(part.data)), rank[torch.as_tensor(part.targets)], names, class_of)
            for part in (train, test)
        )
        return images_train, images_test

    return load


NAMED_SETS: dict[str, Callable[[], tuple[LabeledImages, LabeledImages | None]]] = {
    "digits": _digits,
    "mnist": _torchvision_set("MNIST"),
    "fashion_mnist": _torchvision_set("FashionMNIST"),
    "cifar10": _torchvision_set("CIFAR10"),
    "cifar100": _torchvision_set("CIFAR100"),
}
