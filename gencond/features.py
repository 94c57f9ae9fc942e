"""Frozen extractors: images -> features."""

import hashlib
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvNet(nn.Module):
    """The small network of the condensation literature: blocks of conv 3x3, instance norm, ReLU, average pool.

    `ConvNet(3, 10, 32)` is its ConvNet-3: 320,010 parameters, 2048 features.

    Args:
        channels, image_size: of the images; 28 px grey ones are padded to 32, as the literature does.
        width, depth: channels of every block, number of blocks; each halves the side.
    Raises:
        ValueError: more blocks than the image can be halved.
    Source: Gidaris & Komodakis 2018; as in Dataset Condensation with Distribution Matching (2110.04181).
    """

    def __init__(self, channels: int, num_classes: int, image_size: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        pads_to_32 = image_size == 28 and channels == 1
        side = (32 if pads_to_32 else image_size) >> depth
        if side < 1:
            raise ValueError(f"{depth} blocks cannot halve {image_size} px images")
        self.convs = nn.ModuleList(
            nn.Conv2d(width if block else channels, width, 3, padding=3 if pads_to_32 and not block else 1)
            for block in range(depth)
        )
        # One group per channel is instance norm, the same in training and evaluation.
        self.norms = nn.ModuleList(nn.GroupNorm(width, width) for _ in range(depth))
        self.feature_dim = width * side**2
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            images = F.avg_pool2d(F.relu(norm(conv(images))), 2)
        return images.flatten(1)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.features(images))


def automatic_depth(image_size: int) -> int:
    """Blocks that leave a feature map of about 4x4 (2x2 at 8 px): 3 at 28 and 32 px, 4 at 64."""
    return max(2, round(math.log2(image_size / 4)))


class Extractor(nn.Module):
    """A frozen network that takes images in [-1, 1] and owns their normalisation.

    Args:
        network: with `features(images)`, `classifier(features)` and `feature_dim`.
        mean, std: per channel, of the data in [-1, 1].
    """

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.eval().requires_grad_(False)

    @property
    def feature_dim(self) -> int:
        return self.network.feature_dim

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.network.features((images - self.mean) / self.std)

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """What the network's own head says of its features."""
        return self.network.classifier(features)

    def train(self, mode: bool = True) -> "Extractor":
        """Stays in eval mode: a frozen extractor has no training behaviour."""
        return super().train(False)


def state_fingerprint(module: nn.Module) -> str:
    """16 hex digits of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
