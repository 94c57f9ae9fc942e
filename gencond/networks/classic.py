"""MLP, LeNet, AlexNet and VGG-11 as the literature judges images of 28 and 32 px with them."""

from jaxtyping import Float
from torch import Tensor, nn

from gencond.networks.convnet import Norm, norm_layer, padded_side


class Classic(nn.Module):
    """A body that ends in a flat vector, and a linear head."""

    def __init__(self, body: nn.Sequential, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.body, self.feature_dim = body, feature_dim
        self.classifier = nn.Linear(feature_dim, num_classes)

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.body(images)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.features(images))


def mlp(channels: int, num_classes: int, image_size: int) -> Classic:
    """Two hidden layers of 128."""
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(channels * image_size**2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()
    )
    return Classic(body, 128, num_classes)


def lenet(channels: int, num_classes: int, image_size: int) -> Classic:
    """Two 5x5 convolutions with max pooling, two hidden layers of 120 and 84.

    Raises:
        ValueError: images of less than 16 px.
    """
    padding = 2 if padded_side(channels, image_size) > image_size else 0
    side = ((image_size + 2 * padding - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(f"its 5x5 convolutions leave nothing of {image_size} px images")
    body = nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * side**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
    )  # fmt: skip
    return Classic(body, 84, num_classes)


def alexnet(channels: int, num_classes: int, image_size: int, norm: Norm = "none") -> Classic:
    """Five convolutions of 128 to 256 channels with three max poolings.

    Args:
        norm: after each convolution; `batch` where a table says AlexNetBN.
    Raises:
        ValueError: images of less than 8 px.
    """
    side = padded_side(channels, image_size)
    extra = (side - image_size) // 2
    if side < 8:
        raise ValueError(f"{image_size} px images cannot be halved three times")
    layers, inputs = [], channels
    for index, (outputs, kernel, pools) in enumerate(
        ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))
    ):
        padding = kernel // 2 + (extra if index == 0 else 0)
        layers += [nn.Conv2d(inputs, outputs, kernel, padding=padding), norm_layer(norm, outputs, side), nn.ReLU()]
        inputs = outputs
        if pools:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return Classic(nn.Sequential(*layers, nn.Flatten()), inputs * side**2, num_classes)


def vgg11(channels: int, num_classes: int, image_size: int, norm: Norm = "instance") -> Classic:
    """Eight 3x3 convolutions of 64 to 512 channels with five max poolings.

    Args:
        norm: after each convolution; `batch` where a table says VGG11BN.
    Raises:
        ValueError: images of less than 32 px, but for 28 px grey ones.
    """
    side = padded_side(channels, image_size)
    extra = (side - image_size) // 2
    if side < 32:
        raise ValueError(f"{image_size} px images cannot be halved five times")
    layers, inputs = [], channels
    for outputs in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):  # 0: a pooling
        if outputs == 0:
            layers.append(nn.MaxPool2d(2))
            side //= 2
            continue
        padding = 1 + (0 if layers else extra)
        layers += [nn.Conv2d(inputs, outputs, 3, padding=padding), norm_layer(norm, outputs, side), nn.ReLU()]
        inputs = outputs
    return Classic(nn.Sequential(*layers, nn.Flatten()), inputs * side**2, num_classes)
