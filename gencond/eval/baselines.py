"""What a condensed set has to beat: real images at the same number per class, and all of them."""

from collections.abc import Callable

from gencond.data import LabeledImages, kmeans_subset, random_subset

RANDOM_REAL, KMEANS_REAL, WHOLE_SET = "random_real", "kmeans_real", "whole_set"


def draw_baseline(name: str, train: LabeledImages, ipc: int | None) -> Callable[[int], LabeledImages]:
    """seed -> training images. Random subsets are redrawn per seed, k-means clusters anew; the whole set stays.

    Raises:
        InputError: (from the drawn function) a class has fewer than `ipc` images.
    """
    if name == WHOLE_SET:
        return lambda seed: train
    draw = {RANDOM_REAL: random_subset, KMEANS_REAL: kmeans_subset}[name]
    return lambda seed: draw(train, ipc, seed)


def stored_bytes(data: LabeledImages) -> int:
    """Of images kept class by class as uint8, so that labels cost nothing."""
    return data.images.numel()
