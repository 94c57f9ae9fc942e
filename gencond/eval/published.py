"""Accuracy at a storage as others published it, to be drawn behind our own: other protocols, marked as published.

The figures lie in `published/NAME.json`, each with the paper and the plot it comes from and how it was read.
"""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from gencond.common.errors import InputError

Curves = dict[str, dict[float, float]]  # method -> megabits a class -> top-1 %


def _read(name: str) -> dict[str, Any]:
    return json.loads(resources.files("gencond").joinpath("eval", "published", f"{name}.json").read_text("utf-8"))


def _curves(content: Mapping[str, Any]) -> Curves:
    return {method: dict(curve["points"]) for method, curve in content["curves"].items()}


_CIFAR10 = _read("cifar10")
CIFAR10: Curves = _curves(_CIFAR10)
CIFAR10_CLASSES = tuple(_CIFAR10["classes"])
# Curves, classes, channels and side.
PUBLISHED = {
    "cifar10": (
        {method: CIFAR10[method] for method in _CIFAR10["drawn"]},
        len(CIFAR10_CLASSES),
        (_CIFAR10["channels"], _CIFAR10["image_size"]),
    ),
}


def published_curves(class_names: list[str]) -> Curves:
    """Method -> megabits a class -> top-1 %, of the set with these classes; empty where nothing is known."""
    return CIFAR10 if tuple(class_names) == CIFAR10_CLASSES else {}


def curves_of(name: str, num_classes: int, shape: tuple[int, int]) -> Curves:
    """Those of a set by its own name, for images whose class names do not tell.

    Args:
        shape: channels and side of the images at hand.
    Raises:
        InputError: an unknown name, or images that cannot be of that set.
    """
    if name not in PUBLISHED:
        raise InputError(f"nothing published is known of {name!r}; known: {', '.join(PUBLISHED)}")
    curves, of_classes, of_shape = PUBLISHED[name]
    if (num_classes, shape) != (of_classes, of_shape):
        raise InputError(
            f"{name} has {of_classes} classes and {of_shape[0]}x{of_shape[1]} px images, these are {num_classes} and "
            f"{shape[0]}x{shape[1]}: leave the published figures out"
        )
    return curves
