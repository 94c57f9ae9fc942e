"""A space of networks to choose from: ConvNets of every choice, by the names that judges are built by."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from gencond.common.errors import InputError, UnfitNetwork
from gencond.data.images import LabeledImages
from gencond.eval.networks import LARGEST, OPTIONS, build_network

WORDS = {choice: word for word, choice in OPTIONS.items()}  # (option, value) -> how a name says it


@dataclass(frozen=True)
class Space:
    """ConvNets by their choices: 720 where none is left out.

    Args:
        widths: channels of every block, 1 to 4096.
        depths: blocks, 1 to 4096.
        activations, norms, poolings: of every block, as `networks.convnet` names them.
    Raises:
        InputError: an unknown value.
    Source: the choices of Dataset Condensation with Distribution Matching (2110.04181), architecture search.
    """

    widths: Sequence[int] = (32, 64, 128, 256)
    depths: Sequence[int] = (1, 2, 3, 4)
    activations: Sequence[str] = ("sigmoid", "relu", "leaky_relu")
    norms: Sequence[str] = ("none", "batch", "layer", "instance", "group")
    poolings: Sequence[str] = ("none", "max", "avg")

    def __post_init__(self) -> None:
        for name, numbers in (("widths", self.widths), ("depths", self.depths)):
            if wrong := [number for number in numbers if not 1 <= number <= LARGEST]:
                raise InputError(f"--{name} are whole numbers in 1 .. {LARGEST}, not {wrong[0]}")
        for option, values in (("activation", self.activations), ("norm", self.norms), ("pooling", self.poolings)):
            if wrong := [value for value in values if (option, value) not in WORDS]:
                known = ", ".join(value for kind, value in WORDS if kind == option)
                raise InputError(f"unknown {option} {wrong[0]!r}; known: {known}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of its networks, each once: `convnet3w64-relu-batch-max`."""
        choices = itertools.product(self.depths, self.widths, self.activations, self.norms, self.poolings)
        return tuple(
            dict.fromkeys(
                f"convnet{depth}w{width}-{WORDS['activation', activation]}-{WORDS['norm', norm]}"
                f"-{WORDS['pooling', pooling]}"
                for depth, width, activation, norm, pooling in choices
            )
        )


@dataclass(frozen=True)
class Fitting:
    """Networks sorted out by whether they take the images.

    Args:
        sizes: name -> number of parameters, of those that do.
        left_out: name -> why it does not.
    """

    sizes: dict[str, int]
    left_out: dict[str, str]


def fitting(names: Sequence[str], images: LabeledImages) -> Fitting:
    """Which of the named networks take the images.

    Raises:
        InputError: an unknown name, or not one network that takes them.
    """
    sizes, left_out = {}, {}
    for name in dict.fromkeys(names):
        try:
            network = build_network(name, images.channels, images.num_classes, images.image_size, seed=0)
        except UnfitNetwork as error:
            left_out[name] = str(error)
        else:
            sizes[name] = sum(weights.numel() for weights in network.parameters())
    if not sizes:
        raise InputError(f"not one network takes the images: {next(iter(left_out.values()))}")
    return Fitting(sizes, left_out)
