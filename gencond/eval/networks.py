"""Networks that judge: a name -> a fresh classifier."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from torch import nn

from gencond.common.errors import InputError, UnfitNetwork
from gencond.common.seeding import seeded
from gencond.networks.classic import alexnet, lenet, mlp, vgg11
from gencond.networks.convnet import ACTIVATIONS, ConvNet, Norm, Pooling
from gencond.networks.from_timm import TimmNetwork
from gencond.networks.resnet import CifarResNet, ResNet18, ResNetAP10

LARGEST = 4096  # depth and width: more is a slip of the fingers, and would be allocated
CONVNET = r"convnet(\d+)(?:w(\d+))?"
# How the options of a ConvNet are written in a name; `none` would not say of what.
OPTIONS: dict[str, tuple[str, str]] = {
    **{name: ("norm", name) for name in get_args(Norm) if name != "none"},
    **{name: ("pooling", name) for name in get_args(Pooling) if name != "none"},
    **{name: ("activation", name) for name in ACTIVATIONS},
    "nonorm": ("norm", "none"),
    "nopool": ("pooling", "none"),
}
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp, "lenet": lenet, "alexnet": alexnet, "vgg11": vgg11, "resnet18": ResNet18, "resnet_ap10": ResNetAP10,
    "resnet20": CifarResNet, "resnet56": partial(CifarResNet, depth=56),
}  # fmt: skip
WITH_NORM = ("alexnet", "vgg11", "resnet18", "resnet_ap10")  # besides ConvNets
KNOWN = (
    f"judges are convnet<depth>[w<width>][-option ...], {', '.join(BUILDERS)}, or a timm model (timm/<name> where both "
    f"have the name); options are {', '.join(OPTIONS)}"
)


def build_network(name: str, channels: int, num_classes: int, image_size: int, seed: int) -> nn.Module:
    """A classifier with random weights drawn from `seed`.

    Args:
        name: `convnet3` (three blocks of 128 channels), `convnet2w64` (two of 64), `convnet3-batch-max` (with batch
            norm and max pooling), the literature's `mlp`, `lenet`, `alexnet`, `vgg11`, `resnet18`, `resnet_ap10`
            (`vgg11-batch` with batch norm), `resnet20` and `resnet56` of CIFAR, or any timm model.
    Raises:
        InputError: an unknown name; `UnfitNetwork`, which is one too, where a network does not fit the images.
    """
    with seeded(seed):
        try:
            return _builder(name)(channels, num_classes, image_size)
        except InputError:
            raise  # it says already which network
        except ValueError as error:
            raise UnfitNetwork(f"network {name}: {error}") from None


def is_own(name: str) -> bool:
    """Whether a name is of a network of this house, rather than timm's."""
    base = name.partition("-")[0]
    return base in BUILDERS or re.fullmatch(CONVNET, base) is not None


def _builder(name: str) -> Callable[[int, int, int], nn.Module]:
    """What builds the network of a name. Raises InputError for an unknown one."""
    base, *words = name.split("-")
    convnet = re.fullmatch(CONVNET, base)
    if not is_own(name):
        return partial(_timm, name)
    options: dict[str, Any] = {}
    for word in words:
        option, value = OPTIONS.get(word, (None, None))
        if option is None or option in options or (convnet is None and (option != "norm" or base not in WITH_NORM)):
            raise InputError(f"unknown network {name!r}: {base} does not take {word!r} there; {KNOWN}")
        options[option] = value
    if convnet is None:
        return partial(BUILDERS[base], **options)
    if max(int(convnet[1]), int(convnet[2] or 0)) > LARGEST:
        raise InputError(f"network {name}: depth and width of a convnet are {LARGEST} at most")
    return partial(ConvNet, depth=int(convnet[1]), width=int(convnet[2] or 128), **options)


def _timm(name: str, channels: int, num_classes: int, image_size: int) -> nn.Module:
    try:
        return TimmNetwork(name.removeprefix("timm/"), channels, num_classes, image_size)
    except InputError as error:
        raise type(error)(f"{error}; {KNOWN}") from None
