"""Networks that judge: a name -> a fresh classifier."""

import re

import torch
from torch import nn

from gencond.errors import InputError
from gencond.networks import ConvNet, TimmNetwork


def build_network(name: str, channels: int, num_classes: int, image_size: int, seed: int) -> nn.Module:
    """A classifier with random weights drawn from `seed`.

    Args:
        name: `convnet3` (three blocks of 128 channels), `convnet2w64` (two of 64), or any timm model.
    Raises:
        InputError: an unknown name, or a network that does not fit the images.
    """
    match = re.fullmatch(r"convnet(\d+)(?:w(\d+))?", name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if match:
            try:
                return ConvNet(channels, num_classes, image_size, int(match[2] or 128), int(match[1]))
            except ValueError as error:
                raise InputError(f"network {name}: {error}") from None
        try:
            return TimmNetwork(name, channels, num_classes, image_size)
        except InputError as error:
            raise InputError(f"{error}; judges are convnet<depth>[w<width>] or a timm model") from None
