"""Frozen extractors: images -> features."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor, nn


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

    def normalise(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """[-1, 1] -> what the network was trained on."""
        return (images - self.mean) / self.std

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.network.features(self.normalise(images))

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
