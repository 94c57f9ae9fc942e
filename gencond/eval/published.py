"""Accuracy at a storage as others published it, to be drawn behind our own: other protocols, marked as published.

Source: the labelled points of the rate-utility plots of 2507.17221 (float32 pixels; latents, decoders and labels
included), ConvNet-3 of 128 channels. Unlabelled points were read off by eye, to 0.3 points.
"""

from gencond.common.errors import InputError

# Megabits a class -> top-1 %.
CIFAR10: dict[str, dict[float, float]] = {
    "TM": {0.098: 46.3, 0.983: 65.3, 4.92: 71.6},
    "IDC": {0.098: 50.0, 0.983: 67.5, 4.92: 74.5},
    "HaBa": {0.098: 48.3, 0.983: 69.9, 4.92: 74.0},
    "FreD": {0.098: 60.6, 0.983: 70.3, 4.92: 75.8},
    "RTP": {0.098: 66.4, 0.983: 71.2, 4.92: 73.6},
    "SPEED": {0.098: 63.2, 0.983: 73.5, 4.92: 77.7},
    "NSD": {0.098: 68.5, 0.983: 73.4, 4.92: 75.2},
    "HMN": {0.098: 65.7, 0.983: 73.7, 4.92: 76.9},
    "DDiF": {0.098: 66.5, 0.983: 74.0, 4.92: 77.5},
    "RUO": {0.107: 70.3, 0.77: 77.5, 2.0: 79.7},
}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Curves, classes, channels and side. Of the curves two that store a decoder and can be told apart in a plot beside rows
# of any kind: neural fields, and the best in few bits.
PUBLISHED = {
    "cifar10": ({method: CIFAR10[method] for method in ("DDiF", "RUO")}, len(CIFAR10_CLASSES), (3, 32)),
}


def published_curves(class_names: list[str]) -> dict[str, dict[float, float]]:
    """Method -> megabits a class -> top-1 %, of the set with these classes; empty where nothing is known."""
    return CIFAR10 if tuple(class_names) == CIFAR10_CLASSES else {}


def curves_of(name: str, num_classes: int, shape: tuple[int, int]) -> dict[str, dict[float, float]]:
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
