"""What a condensed set has to beat: real images at the same number per class, and all of them."""

from gencond.data import LabeledImages, kmeans_subset, random_subset

RANDOM_REAL, KMEANS_REAL, WHOLE_SET = "random_real", "kmeans_real", "whole_set"


def draw_baseline(name: str, train: LabeledImages, ipc: int | None, seed: int) -> LabeledImages:
    """Training images: random subsets are redrawn for each seed, k-means clusters anew; the whole set stays.

    Raises:
        InputError: a class has fewer than `ipc` images.
    """
    if name == WHOLE_SET:
        return train
    return {RANDOM_REAL: random_subset, KMEANS_REAL: kmeans_subset}[name](train, ipc, seed)


def stored_bytes(data: LabeledImages) -> int:
    """Of images kept class by class as uint8, so that labels cost nothing."""
    return data.images.numel()
