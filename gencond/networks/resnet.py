"""Residual networks of the literature: ResNetAP-10 for ImageNet subsets, ResNet-18 and ResNet-20 for small images."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gencond.networks.convnet import Norm, norm_layer


class ResidualBlock(nn.Module):
    """conv norm ReLU conv norm, plus a skip.

    Args:
        stride: of the first convolution and the skip.
        side: of the images that come in, in pixels.
        average: halves by average pooling instead of strides ("AP").
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, side: int, norm: Norm, average: bool = False
    ) -> None:
        super().__init__()
        self.pool = stride if average else 1
        stride, side = (1, side // stride) if average else (stride, -(-side // stride))
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = norm_layer(norm, out_channels, side * self.pool)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, out_channels, side)
        self.skip = nn.Identity()
        if stride * self.pool > 1 or in_channels != out_channels:
            self.skip = nn.Sequential(
                nn.AvgPool2d(self.pool),  # before the 1x1 convolution: the same result for a quarter of the work
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                norm_layer(norm, out_channels, side),
            )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        h = F.relu(self.norm1(self.conv1(x)))
        if self.pool > 1:
            h = F.avg_pool2d(h, self.pool)
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """A 3x3 or larger stem without stride, stages of residual blocks with twice the channels each, a global average.

    Args:
        image_size: of the images, in pixels.
        blocks: of each stage; all stages but the first halve the image.
        width: channels of the first stage.
        average: see `ResidualBlock`.
        kernel, pool: of the stem.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: int,
        blocks: Sequence[int],
        width: int = 64,
        norm: Norm = "instance",
        average: bool = False,
        kernel: int = 3,
        pool: int = 1,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        self.norm = norm_layer(norm, width, image_size)
        side, inputs, body = image_size // pool, width, []
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(count):
                stride = 2 if stage and block == 0 else 1
                body.append(ResidualBlock(inputs, outputs, stride, side, norm, average))
                side, inputs = -(-side // stride), outputs
        self.blocks = nn.Sequential(*body)
        self.feature_dim = inputs
        self.classifier = nn.Linear(inputs, num_classes)

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        x = F.relu(self.norm(self.conv(images)))
        return self.blocks(F.avg_pool2d(x, self.pool)).mean((2, 3))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.features(images))


class ResNet18(ResNet):
    """ResNet-18 as the literature judges small images with it: a 3x3 stem without pooling, instance norm.

    `ResNet18(3, 10, 32)` has 11,173,962 parameters, as many as with batch norm.

    Args:
        norm: `instance`, or `batch` where a table says ResNet18BN.
    Raises:
        ValueError: images of less than 16 px with instance norm, which ends at a single pixel.
    Source: as in the evaluation of Dataset Condensation with Distribution Matching (2110.04181).
    """

    def __init__(self, channels: int, num_classes: int, image_size: int, norm: Norm = "instance") -> None:
        if image_size < 16 and norm == "instance":
            raise ValueError(f"its last instance norm sees one pixel of {image_size} px images: 16 px are needed")
        super().__init__(channels, num_classes, image_size, blocks=(2, 2, 2, 2), norm=norm)


class ResNetAP10(ResNet):
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
        kernel, pool = (3, 1) if image_size <= 64 else (3, 2) if image_size <= 128 else (7, 4)
        if image_size % (8 * pool):
            raise ValueError(f"ResNetAP-10 cannot halve {image_size} px images {3 + pool // 2} times")
        super().__init__(
            channels, num_classes, image_size, (1, 1, 1, 1), width, norm, average=True, kernel=kernel, pool=pool
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class CifarBlock(nn.Module):
    """conv norm ReLU conv norm, plus a skip without weights: every other pixel, and new channels of zeros."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        half = self.new_channels // 2
        skip = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))
        return F.relu(h + skip)


class CifarResNet(nn.Module):
    """The residual network of CIFAR: 16, 32 and 64 channels, batch norm, skips without weights.

    Its weights have the names of the files that are around (`conv1`, `layer1.0.bn1`, `linear`). With three channels and
    ten classes ResNet-20 has 269,722 parameters and ResNet-56 853,018.

    Args:
        image_size: any.
        depth: 6n + 2 layers with weights.
    Raises:
        ValueError: another depth.
    Source: He et al., Deep Residual Learning (1512.03385), section 4.2, shortcuts of option A.
    """

    def __init__(self, channels: int, num_classes: int, image_size: int, depth: int = 20) -> None:
        super().__init__()
        count, rest = divmod(depth - 2, 6)
        if rest or count < 1:
            raise ValueError(f"a residual network of CIFAR has 6n + 2 layers, not {depth}")
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs, stages = 16, []
        for stage, outputs in enumerate((16, 32, 64)):
            strides = [2 if stage else 1, *[1] * (count - 1)]
            stages.append(
                [CifarBlock(inputs if n == 0 else outputs, outputs, stride) for n, stride in enumerate(strides)]
            )
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*blocks) for blocks in stages)
        self.linear = nn.Linear(inputs, num_classes)
        self.feature_dim = inputs

    @property
    def classifier(self) -> nn.Module:
        return self.linear

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        x = F.relu(self.bn1(self.conv1(images)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.linear(self.features(images))
