"""Any timm model as a network of the house."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from gencond.errors import InputError


class TimmNetwork(nn.Module):
    """Any timm model as a network of the house: its pooled features and its head apart.

    Args:
        name: as timm knows it.
        weights: None draws them; `pretrained` takes timm's own from the Hub, all but the head; a path reads a file
            (safetensors or a plain state dict), all but the head.
    Raises:
        InputError: an unknown name, images that the model cannot take, weights that are not its own.
    """

    def __init__(
        self, name: str, channels: int, num_classes: int, image_size: int, weights: str | Path | None = None
    ) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise InputError(f"unknown network {name!r}: timm has no such model")
        from_hub = weights == "pretrained"
        try:
            self.model = timm.create_model(name, pretrained=from_hub, num_classes=num_classes, in_chans=channels)
        except Exception as error:  # a Hub that cannot be reached, a model without weights
            raise InputError(f"network {name}: {_first_line(error)}") from None
        if weights is not None and not from_hub:
            _load_body(self.model, Path(weights))
        training = self.model.training
        try:
            with torch.no_grad():
                features = self.eval().features(torch.zeros(2, channels, image_size, image_size))
                self.classifier(features)
        except Exception as error:  # whatever a model says of images that it cannot take
            raise InputError(f"network {name} cannot take {image_size} px images: {_first_line(error)}") from None
        self.train(training)
        self.feature_dim = features.shape[1]

    @property
    def classifier(self) -> nn.Module:
        return self.model.get_classifier()

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.model(images)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load_body(model: nn.Module, path: Path) -> None:
    """Weights from a file, except those of the head, which belongs to other classes. Raises InputError."""
    try:
        if path.suffix == ".safetensors":
            state: Mapping[str, Tensor] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(state.get("state_dict", state))
    except Exception as error:  # whatever a damaged file makes torch raise
        raise InputError(f"{path} cannot be read as weights of a network: {_first_line(error)}") from None
    own = model.state_dict()
    head = model.get_classifier()
    kept = {name for name, module in model.named_modules() if module is head}
    of_head = {name for name in own if any(name.startswith(f"{prefix}.") for prefix in kept)}
    body = {name: tensor for name, tensor in state.items() if name not in of_head}
    missing, left_over = own.keys() - of_head - body.keys(), body.keys() - own.keys()
    if missing or left_over:
        raise InputError(
            f"{path} does not hold the weights of this network: "
            + (f"{min(missing)} is missing" if missing else f"{min(left_over)} is left over")
        )
    try:
        model.load_state_dict(body, strict=False)
    except RuntimeError as error:  # tensors of another shape
        raise InputError(f"{path} does not fit this network: {_first_line(error)}") from None
