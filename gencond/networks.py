"""The small networks of the condensation literature: each has `features(images)`, `classifier`, `feature_dim`."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from gencond.errors import InputError

Activation = Literal["relu", "leaky_relu", "sigmoid", "swish"]
Norm = Literal["instance", "batch", "layer", "group", "none"]
Pooling = Literal["avg", "max", "none"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": F.sigmoid,
    "swish": F.silu,
}


def norm_layer(norm: Norm, channels: int, side: int) -> nn.Module:
    """The normalisation of a block. Instance norm is a group norm of one channel a group: no running statistics."""
    match norm:
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "group":
            return nn.GroupNorm(4, channels)
        case "batch":
            return nn.BatchNorm2d(channels)
        case "layer":
            return nn.LayerNorm([channels, side, side])
        case "none":
            return nn.Identity()


class ConvNet(nn.Module):
    """Blocks of conv 3x3, norm, activation, pool.

    `ConvNet(3, 10, 32)` is the literature's ConvNet-3: 320,010 parameters, 2048 features.

    Args:
        channels, image_size: of the images; 28 px grey ones are padded to 32, as the literature does.
        width, depth: channels of every block, number of blocks.
        activation, norm, pooling: of every block; without pooling the side stays.
    Raises:
        ValueError: more blocks than the image can be halved.
    Source: as in Dataset Condensation with Distribution Matching (2110.04181) and its architecture search.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: int,
        width: int = 128,
        depth: int = 3,
        activation: Activation = "relu",
        norm: Norm = "instance",
        pooling: Pooling = "avg",
    ) -> None:
        super().__init__()
        pads_to_32 = image_size == 28 and channels == 1
        side = 32 if pads_to_32 else image_size
        if pooling != "none" and side >> depth < 1:
            raise ValueError(f"{depth} blocks cannot halve {image_size} px images")
        self.activation, self.pooling = ACTIVATIONS[activation], pooling
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for block in range(depth):
            padding = 3 if pads_to_32 and block == 0 else 1
            self.convs.append(nn.Conv2d(width if block else channels, width, 3, padding=padding))
            self.norms.append(norm_layer(norm, width, side))
            side = side if pooling == "none" else side // 2
        self.feature_dim = width * side**2
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            images = self.activation(norm(conv(images)))
            if self.pooling == "avg":
                images = F.avg_pool2d(images, 2)
            elif self.pooling == "max":
                images = F.max_pool2d(images, 2)
        return images.flatten(1)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.features(images))


def automatic_depth(image_size: int) -> int:
    """Blocks that leave a feature map of about 4x4 (2x2 at 8 px): 3 at 28 and 32 px, 4 at 64."""
    return max(2, round(math.log2(image_size / 4)))


class ResNetAPBlock(nn.Module):
    """conv norm ReLU [average pool] conv norm, plus a skip; strides are replaced by average pooling ("AP")."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, side: int, norm: Norm) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = norm_layer(norm, out_channels, side)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, out_channels, side // stride)
        self.skip = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.skip = nn.Sequential(
                nn.AvgPool2d(stride),  # before the 1x1 convolution: the same result for a quarter of the work
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                norm_layer(norm, out_channels, side // stride),
            )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        h = F.relu(self.norm1(self.conv1(x)))
        if self.stride > 1:
            h = F.avg_pool2d(h, self.stride)
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ResNetAP10(nn.Module):
    """ResNet-10 with average pooling for strides and instance norm: the ImageNet network of IDC, DREAM and M3D.

    Args:
        image_size: a multiple of 8 for up to 64 px, of 16 up to 128 and of 32 above: larger images are pooled more.
        width: channels of the first stage; stages have 1, 2, 4 and 8 times as many.
    Raises:
        ValueError: images too small for the four stages, or a size that does not divide.
    Source: Kim et al., IDC (2205.14959), released code.
    """

    def __init__(
        self, channels: int, num_classes: int, image_size: int, width: int = 64, norm: Norm = "instance"
    ) -> None:
        super().__init__()
        kernel, self.pool = (3, 1) if image_size <= 64 else (3, 2) if image_size <= 128 else (7, 4)
        if image_size % (8 * self.pool):
            raise ValueError(f"ResNetAP-10 cannot halve {image_size} px images {3 + self.pool // 2} times")
        self.conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        self.norm = norm_layer(norm, width, image_size)
        side, inputs, blocks = image_size // self.pool, width, []
        for stage in range(4):
            outputs, stride = width * 2**stage, 2 if stage else 1
            blocks.append(ResNetAPBlock(inputs, outputs, stride, side, norm))
            side, inputs = side // stride, outputs
        self.blocks = nn.Sequential(*blocks)
        self.feature_dim = inputs
        self.classifier = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        x = F.relu(self.norm(self.conv(images)))
        return self.blocks(F.avg_pool2d(x, self.pool)).mean((2, 3))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.features(images))


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
        state = state.get("state_dict", state)
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
        model.load_state_dict(body, strict=False)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file, or one of another shape, makes torch raise
        raise InputError(f"{path} cannot be read as weights of this network: {_first_line(error)}") from None
