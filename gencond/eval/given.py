"""Networks that come trained: extractors for the quality of samples, and teachers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gencond.common.cache import read_checked, write_checked
from gencond.common.errors import InputError, first_line
from gencond.common.files import all_finite, cache_dir, short_hash, state_fingerprint
from gencond.common.ranges import as_bytes
from gencond.data.images import LabeledImages
from gencond.eval.classifier import confusion_on_real, top1_of, trained_on_all
from gencond.eval.networks import build_network, is_own
from gencond.eval.protocols import Protocol
from gencond.networks.extractor import Extractor
from gencond.networks.from_timm import TimmNetwork
from gencond.networks.resnet import CifarResNet
from gencond.networks.weights import load_weights

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of images in [0, 1]
TEACHING = Protocol("teacher", 30, 128, 0.05, min_steps=1000, source="gencond")


class GivenNetwork(Extractor):
    """A trained network for images in [-1, 1] of any side, grey ones too where it takes colour.

    Args:
        in_channels: that the network takes.
        others: see `features.Extractor`.
    """

    def __init__(self, network: nn.Module, in_channels: int, *others: Any, **named: Any) -> None:
        super().__init__(network, *others, **named)
        self.in_channels = in_channels

    def normalise(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return super().normalise(images.expand(-1, self.in_channels, -1, -1))


def quality_network(asked: str, train: LabeledImages, device: torch.device) -> GivenNetwork:
    """Whose features samples and real images are compared in.

    Args:
        asked: `inception` or a timm model (`timm/NAME` where a judge has the name too), with weights from their home
            or after `=` from a file; or one of this house's judges with a file.
        train: the real images.
    Raises:
        InputError: no such network, or weights that cannot be had.
    """
    name, _, weights = asked.partition("=")
    if name == "inception":
        return GivenNetwork(_Inception(weights), 3, (0.0,) * 3, (1.0,) * 3).to(device)
    if is_own(name):
        if not weights:
            raise InputError(f"--quality {name}: give the file of its weights, {name}=FILE, or take timm/{name}")
        return _own(name, weights, train).to(device)
    return _of_timm(name, weights or "pretrained", 1000, with_head=False).to(device)


@dataclass(frozen=True)
class TeacherFacts:
    """What a report says of a teacher.

    Args:
        name, top1, key, trained: see `GivenTeacher`.
        bytes: of its weights.
    """

    name: str
    top1: float
    bytes: int
    key: str
    trained: str


@dataclass(frozen=True)
class GivenTeacher:
    """Whose answers a protocol learns from.

    Args:
        name: as it was asked for, without a path.
        network: with `logits` that mean something.
        top1: on the test images, in [0, 1].
        key: identifies it.
        trained: how, where that was done here; empty for weights that were given.
    """

    name: str
    network: GivenNetwork
    top1: float
    key: str
    trained: str

    def logits(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Of images in [-1, 1]."""
        return self.network.logits(self.network(images))

    @property
    def facts(self) -> TeacherFacts:
        """For a report."""
        num_bytes = sum(tensor.nbytes for tensor in self.network.network.state_dict().values())
        return TeacherFacts(self.name, self.top1, num_bytes, self.key, self.trained)


def get_teacher(
    asked: str, train: LabeledImages, test: LabeledImages, augmentation: str, device: torch.device
) -> GivenTeacher:
    """A teacher for the classes of `train`.

    Args:
        asked: one of this house's judges, trained here on the real images and kept on disk, or with weights after `=`;
            or a timm model with weights of these classes from the Hub or after `=`.
        augmentation: strategy of a training here.
    Raises:
        InputError: no such network, weights that cannot be had or are of other classes.
    """
    name, _, weights = asked.partition("=")
    trained = ""
    if not is_own(name):
        network = _of_timm(name, weights or "pretrained", train.num_classes, with_head=True)
    elif weights:
        network = _own(name, weights, train)
    else:
        network = _trained_here(name, train, augmentation, device)
        trained = f"here, on all training images for {TEACHING.num_steps(len(train))} steps"
    network = network.to(device)
    blank = (0.0,) * train.channels, (1.0,) * train.channels  # it normalises by itself
    confusion = confusion_on_real(network, test, *blank, forward=lambda _, images: network.logits(network(images)))
    return GivenTeacher(name, network, top1_of(confusion), state_fingerprint(network), trained)


def _own(name: str, weights: str, train: LabeledImages) -> GivenNetwork:
    """A judge with weights from a file, which are for images normalised by this data's mean and std.

    The CIFAR ResNets that are around were trained with ImageNet's.
    """
    network = build_network(name, train.channels, train.num_classes, train.image_size, seed=0)
    load_weights(network, Path(weights))
    if isinstance(network, CifarResNet):
        return GivenNetwork(network, train.channels, *_signed(IMAGENET_MEAN, IMAGENET_STD), knows_classes=True)
    return GivenNetwork(network, train.channels, *train.mean_std, knows_classes=True)


def _trained_here(name: str, train: LabeledImages, augmentation: str, device: torch.device) -> GivenNetwork:
    key = short_hash("teacher-2", name, train.fingerprint, augmentation, TEACHING.describe())
    file = cache_dir() / "teachers" / f"{key}.safetensors"
    if (weights := read_checked(file)) is None:
        network = trained_on_all(name, train, TEACHING, augmentation, device, "teacher")
        if not all_finite(network.state_dict()):
            raise InputError(f"teacher {name} diverged on {train.words}: choose another --teacher")
        write_checked(file, network.state_dict(), f"{name} of {train.words}")
    else:
        logger.info("teacher: taken from %s", file)
        network = build_network(name, train.channels, train.num_classes, train.image_size, seed=0)
        network.load_state_dict(weights)
    return GivenNetwork(network, train.channels, *train.mean_std, knows_classes=True)


def _of_timm(name: str, weights: str, num_classes: int, with_head: bool) -> GivenNetwork:
    """A timm model, for images as it was trained on."""
    name = name.removeprefix("timm/")
    if weights != "pretrained" and not Path(weights).is_file():
        raise InputError(f"{name}={weights}: no such file")
    import timm

    if not timm.is_model(name):
        raise InputError(f"{name}: timm has no such model, and there is no judge of that name")
    found: Any = timm.get_pretrained_cfg(name) or timm.create_model(name).pretrained_cfg
    given: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    size = given["input_size"][1]
    network = TimmNetwork(name, 3, num_classes, size, weights, with_head)
    return GivenNetwork(network, 3, *_signed(given["mean"], given["std"]), resize=size, knows_classes=with_head)


def _signed(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Moments of images in [0, 1] -> in [-1, 1]."""
    return tuple(2 * value - 1 for value in mean), tuple(2 * value for value in std)


class _Inception(nn.Module):
    """The network of the FID. Raises InputError where it or its weights cannot be had."""

    feature_dim = 2048

    def __init__(self, weights: str) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise InputError("--quality needs torch-fidelity: pip install 'gencond[quality]'") from None
        try:
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights or None)
        except Exception as error:  # no network, a wrong file
            raise InputError(
                f"the weights of inception cannot be had ({first_line(error)[:100]}): give a file, "
                "--quality inception=PATH, or a timm model"
            ) from None
        self.network = network

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.network(as_bytes(images).contiguous())[0]
