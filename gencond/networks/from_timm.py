"""Any timm model as a network of the house."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gencond.common.errors import InputError, UnfitNetwork, first_line
from gencond.networks.weights import load_weights


class TimmNetwork(nn.Module):
    """Any timm model as a network of the house: its pooled features and its head apart.

    Args:
        name: as timm knows it.
        image_size: of a model that is built for one size and does not take this one, it is built for this one
            (`img_size`), a whole number of its patches.
        weights: None draws them; `pretrained` takes timm's own from the Hub; a path reads a file (safetensors or a
            plain state dict).
        with_head: whether the head's weights are taken too; otherwise they are drawn, for other classes.
    Raises:
        InputError: an unknown name, several heads, images that the model cannot take, weights that are not its own.
    """

    model: Any  # timm's have much in common and no class that declares it

    def __init__(
        self,
        name: str,
        channels: int,
        num_classes: int,
        image_size: int,
        weights: str | Path | None = None,
        with_head: bool = False,
    ) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise InputError(f"unknown network {name!r}: timm has no such model")
        from_hub = weights == "pretrained"
        sizes: tuple[dict[str, Any], ...] = ({}, {"img_size": image_size})
        for options in sizes:  # transformers and mixers are built for one size
            try:
                self.model = timm.create_model(
                    name, pretrained=from_hub, num_classes=num_classes, in_chans=channels, **options
                )
            except Exception as error:  # a Hub that cannot be reached, a model without weights
                raise InputError(f"network {name}: {first_line(error)}") from None
            if isinstance(self.model.get_classifier(), tuple | nn.ModuleList):
                raise InputError(
                    f"network {name} has several heads, which are not trained here: choose one with one head"
                )
            try:
                self.feature_dim = self._probed(channels, image_size)
                break
            except Exception as error:  # whatever a model says of images that it cannot take
                if options or not self._about.get("fixed_input_size"):
                    raise UnfitNetwork(
                        f"network {name} cannot take {image_size} px images: {first_line(error)}"
                    ) from None
        known = self._about.get("num_classes")
        if from_hub and with_head and known != num_classes:  # timm then draws the head
            raise InputError(f"network {name}: its head knows {known} classes, the data has {num_classes}")
        if weights is not None and not from_hub:
            load_weights(self.model, Path(weights), None if with_head else self.model.get_classifier())

    @property
    def _about(self) -> dict[str, Any]:
        """What timm knows of the model; nothing of one that somebody registered without it."""
        return getattr(self.model, "pretrained_cfg", None) or {}

    @torch.no_grad()
    def _probed(self, channels: int, image_size: int) -> int:
        """The length of its features. Raises whatever the model raises of images that it cannot take."""
        from timm.layers.patch_embed import PatchEmbed

        for module in self.model.modules():
            if isinstance(module, PatchEmbed) and not module.dynamic_img_pad:
                if any(image_size % int(side) for side in module.patch_size):
                    raise ValueError(f"it sees whole patches of {module.patch_size[0]} px and nothing beside them")
        training = self.training
        features = self.eval().features(torch.zeros(2, channels, image_size, image_size))
        self.classifier(features)
        self.train(training)
        return features.shape[1]

    @property
    def classifier(self) -> nn.Module:
        return self.model.get_classifier()

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.model(images)
