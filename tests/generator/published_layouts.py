"""The published BigGANs, written down anew from their layouts: every entry under its published name, spectral norm
computed in each forward. What the loaders read is held against these.

All parts start at zero; `randomise` fills them, so that a full-size one can be built on the meta device too.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def applied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


class Hooked(nn.Module):
    """torch.nn.utils.spectral_norm's entries: weight_orig, and u and v of the largest singular value."""

    def __init__(self, *shape: int, bias: bool = True) -> None:
        super().__init__()
        self.bias = zeros(shape[0]) if bias else None
        self.weight_orig = zeros(*shape)
        columns = self.weight_orig[0].numel()
        self.register_buffer("weight_u", torch.zeros(shape[0]))
        self.register_buffer("weight_v", torch.zeros(columns))

    def forward(self, x: Tensor) -> Tensor:
        sigma = self.weight_u @ self.weight_orig.flatten(1) @ self.weight_v
        return applied(x, self.weight_orig / sigma, self.bias)


class Iterated(nn.Module):
    """BigGAN-PyTorch's entries: weight, u0, and a log of sigma that nothing reads."""

    def __init__(self, *shape: int, bias: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = zeros(*shape), zeros(shape[0]) if bias else None
        self.register_buffer("u0", torch.zeros(1, shape[0]))
        self.register_buffer("sv0", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight.flatten(1)
        v = F.normalize(self.u0 @ matrix, eps=1e-6)
        u = F.normalize(v @ matrix.T, eps=1e-6)
        sigma = (v @ matrix.T @ u.T).squeeze()
        return applied(x, self.weight / sigma, self.bias)


def attended(module: nn.Module, x: Tensor, names: Sequence[str], gamma: Tensor) -> Tensor:
    theta, phi, g, out = (getattr(module, name) for name in names)
    n, c, h, w = x.shape
    queries = theta(x).view(n, c // 8, h * w)
    keys = F.max_pool2d(phi(x), 2).view(n, c // 8, h * w // 4)
    values = F.max_pool2d(g(x), 2).view(n, c // 2, h * w // 4)
    looks = torch.softmax(queries.transpose(1, 2) @ keys, dim=-1)  # [n, h w, h w / 4]
    return x + gamma * out((values @ looks.transpose(1, 2)).view(n, c // 2, h, w))


def upsampled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


# --- HuggingFace's BigGAN-deep


class HuggingFaceNorm(nn.Module):
    def __init__(self, channels: int, condition_dim: int | None) -> None:
        super().__init__()
        if condition_dim is None:
            self.weight, self.bias = zeros(channels), zeros(channels)
        else:
            self.scale = Hooked(channels, condition_dim, bias=False)
            self.offset = Hooked(channels, condition_dim, bias=False)
        self.register_buffer("running_means", torch.zeros(51, channels))
        self.register_buffer("running_vars", torch.zeros(51, channels))

    def forward(self, x: Tensor, row: int, condition: Tensor | None = None) -> Tensor:
        mean, var = self.running_means[row, :, None, None], self.running_vars[row, :, None, None]
        x = (x - mean) / torch.sqrt(var + 1e-4)
        if condition is None:
            return x * self.weight[:, None, None] + self.bias[:, None, None]
        return x * (1 + self.scale(condition))[:, :, None, None] + self.offset(condition)[:, :, None, None]


class HuggingFaceBlock(nn.Module):
    def __init__(self, up: bool, inputs: int, outputs: int, condition_dim: int) -> None:
        super().__init__()
        self.up, self.outputs, inner = up, outputs, inputs // 4
        self.bn_0, self.conv_0 = HuggingFaceNorm(inputs, condition_dim), Hooked(inner, inputs, 1, 1)
        self.bn_1, self.conv_1 = HuggingFaceNorm(inner, condition_dim), Hooked(inner, inner, 3, 3)
        self.bn_2, self.conv_2 = HuggingFaceNorm(inner, condition_dim), Hooked(inner, inner, 3, 3)
        self.bn_3, self.conv_3 = HuggingFaceNorm(inner, condition_dim), Hooked(outputs, inner, 1, 1)

    def forward(self, x: Tensor, condition: Tensor, row: int) -> Tensor:
        h = self.conv_0(F.relu(self.bn_0(x, row, condition)))
        h = F.relu(self.bn_1(h, row, condition))
        h = self.conv_1(upsampled(h) if self.up else h)
        h = self.conv_2(F.relu(self.bn_2(h, row, condition)))
        h = self.conv_3(F.relu(self.bn_3(h, row, condition)))
        x = x[:, : self.outputs]
        return h + (upsampled(x) if self.up else x)


class HuggingFaceAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = zeros(1)
        self.snconv1x1_theta = Hooked(channels // 8, channels, 1, 1, bias=False)
        self.snconv1x1_phi = Hooked(channels // 8, channels, 1, 1, bias=False)
        self.snconv1x1_g = Hooked(channels // 2, channels, 1, 1, bias=False)
        self.snconv1x1_o_conv = Hooked(channels, channels // 2, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        names = ("snconv1x1_theta", "snconv1x1_phi", "snconv1x1_g", "snconv1x1_o_conv")
        return attended(self, x, names, self.gamma)


HUGGINGFACE_LAYERS = {
    128: ((16, 16), (16, 16), (16, 16), (16, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1)),
    256: ((16, 16), (16, 16), (16, 16), (16, 8), (8, 8), (8, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1)),
}
HUGGINGFACE_LAYERS[512] = (*HUGGINGFACE_LAYERS[256], (1, 1), (1, 1))


class HuggingFaceGenerator(nn.Module):
    def __init__(self, resolution: int, width: int, condition_dim: int) -> None:
        super().__init__()
        self.width = width
        self.gen_z = Hooked(4 * 4 * 16 * width, condition_dim)
        self.layers = nn.ModuleList()
        for number, (inputs, outputs) in enumerate(HUGGINGFACE_LAYERS[resolution]):
            if number == 8:
                self.layers.append(HuggingFaceAttention(inputs * width))
            self.layers.append(HuggingFaceBlock(number % 2 == 1, inputs * width, outputs * width, condition_dim))
        self.bn = HuggingFaceNorm(width, None)
        self.conv_to_rgb = Hooked(width, width, 3, 3)

    def forward(self, condition: Tensor, row: int) -> Tensor:
        x = self.gen_z(condition).view(-1, 4, 4, 16 * self.width).permute(0, 3, 1, 2).contiguous()
        for layer in self.layers:
            x = layer(x) if isinstance(layer, HuggingFaceAttention) else layer(x, condition, row)
        return torch.tanh(self.conv_to_rgb(F.relu(self.bn(x, row)))[:, :3])


class HuggingFaceDeep(nn.Module):
    def __init__(self, resolution: int = 128, width: int = 128, classes: int = 1000, dim: int = 128) -> None:
        super().__init__()
        self.embeddings = nn.Linear(classes, dim, bias=False)
        self.generator = HuggingFaceGenerator(resolution, width, 2 * dim)

    def forward(self, latents: Tensor, labels: Tensor, row: int = 50) -> Tensor:
        one_hot = F.one_hot(labels, self.embeddings.in_features).float()
        return self.generator(torch.cat([latents, self.embeddings(one_hot)], 1), row)


# --- BigGAN-PyTorch


class PyTorchNorm(nn.Module):
    """condition_dim None: learned for each channel; `per_class`: from a table of the classes."""

    def __init__(self, channels: int, condition_dim: int | None, eps: float, per_class: bool = False) -> None:
        super().__init__()
        self.eps = eps
        if condition_dim is None:
            self.gain, self.bias = zeros(channels), zeros(channels)
        elif per_class:
            self.gain, self.bias = nn.Embedding(condition_dim, channels), nn.Embedding(condition_dim, channels)
        else:
            self.gain = Iterated(channels, condition_dim, bias=False)
            self.bias = Iterated(channels, condition_dim, bias=False)
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.zeros(channels))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = F.batch_norm(x, self.stored_mean, self.stored_var, eps=self.eps)
        if y is None:
            return x * self.gain[:, None, None] + self.bias[:, None, None]
        return x * (1 + self.gain(y))[:, :, None, None] + self.bias(y)[:, :, None, None]


class PyTorchAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = Iterated(channels // 8, channels, 1, 1, bias=False)
        self.phi = Iterated(channels // 8, channels, 1, 1, bias=False)
        self.g = Iterated(channels // 2, channels, 1, 1, bias=False)
        self.o = Iterated(channels, channels // 2, 1, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return attended(self, x, ("theta", "phi", "g", "o"), self.gamma)


class PyTorchBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition_dim: int, eps: float, per_class: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = Iterated(outputs, inputs, 3, 3), Iterated(outputs, outputs, 3, 3)
        self.conv_sc = Iterated(outputs, inputs, 1, 1)
        self.bn1 = PyTorchNorm(inputs, condition_dim, eps, per_class)
        self.bn2 = PyTorchNorm(outputs, condition_dim, eps, per_class)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv1(upsampled(F.relu(self.bn1(x, y))))
        return self.conv2(F.relu(self.bn2(h, y))) + self.conv_sc(upsampled(x))


class PyTorchDeepBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition_dim: int, up: bool) -> None:
        super().__init__()
        self.up, self.outputs, inner = up, outputs, inputs // 4
        self.conv1, self.bn1 = Iterated(inner, inputs, 1, 1), PyTorchNorm(inputs, condition_dim, 1e-5)
        self.conv2, self.bn2 = Iterated(inner, inner, 3, 3), PyTorchNorm(inner, condition_dim, 1e-5)
        self.conv3, self.bn3 = Iterated(inner, inner, 3, 3), PyTorchNorm(inner, condition_dim, 1e-5)
        self.conv4, self.bn4 = Iterated(outputs, inner, 1, 1), PyTorchNorm(inner, condition_dim, 1e-5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.bn2(self.conv1(F.relu(self.bn1(x, y))), y))
        h = self.conv2(upsampled(h) if self.up else h)
        h = self.conv4(F.relu(self.bn4(self.conv3(F.relu(self.bn3(h, y))), y)))
        x = x[:, : self.outputs]
        return h + (upsampled(x) if self.up else x)


BIGGAN_WIDTHS = {32: (4, 4, 4, 4), 64: (16, 16, 8, 4, 2), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1)}


class PyTorchBigGAN(nn.Module):
    """`chunk` 0: the whole latent of `latent_dim` to the first layer, and gains of each class."""

    def __init__(
        self,
        resolution: int = 128,
        width: int = 96,
        classes: int = 1000,
        chunk: int = 20,
        shared_dim: int = 128,
        latent_dim: int = 128,
        attention: int | None = 64,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        widths = [times * width for times in BIGGAN_WIDTHS[resolution]]
        self.chunk, self.latent_dim = chunk, chunk * len(widths) if chunk else latent_dim
        if chunk:
            self.shared = nn.Embedding(classes, shared_dim)
        condition_dim = shared_dim + chunk if chunk else classes
        self.linear = Iterated(16 * widths[0], chunk or latent_dim)
        self.blocks = nn.ModuleList()
        for number, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            stage = nn.ModuleList([PyTorchBlock(inputs, outputs, condition_dim, eps, per_class=not chunk)])
            if attention == 8 << number:
                stage.append(PyTorchAttention(outputs))
            self.blocks.append(stage)
        self.output_layer = nn.Sequential(PyTorchNorm(widths[-1], None, 1e-5), nn.ReLU(), Iterated(3, widths[-1], 3, 3))

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        if self.chunk:
            first, *chunks = latents.split(self.chunk, 1)
            conditions = [torch.cat([self.shared(labels), chunk], 1) for chunk in chunks]
        else:
            first, conditions = latents, [labels] * len(self.blocks)
        x = self.linear(first).view(len(latents), -1, 4, 4)
        for stage, y in zip(self.blocks, conditions, strict=True):
            for layer in stage:
                x = layer(x, y)
        return torch.tanh(self.output_layer(x))


class PyTorchDeep(nn.Module):
    """Some versions of the code have as many outputs as channels and look at three, others have three."""

    def __init__(self, resolution: int, width: int, classes: int, dim: int, outputs: int, attention: int) -> None:
        super().__init__()
        widths = [times * width for times in BIGGAN_WIDTHS[resolution]]
        self.shared = nn.Embedding(classes, dim)
        self.linear = Iterated(16 * widths[0], 2 * dim)
        self.blocks = nn.ModuleList()
        for number, (inputs, out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            self.blocks.append(nn.ModuleList([PyTorchDeepBlock(inputs, inputs, 2 * dim, up=False)]))
            self.blocks.append(nn.ModuleList([PyTorchDeepBlock(inputs, out, 2 * dim, up=True)]))
            if attention == 8 << number:
                self.blocks[-1].append(PyTorchAttention(out))
        self.output_layer = nn.Sequential(
            PyTorchNorm(widths[-1], None, 1e-5), nn.ReLU(), Iterated(outputs, widths[-1], 3, 3)
        )

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        condition = torch.cat([self.shared(labels), latents], 1)
        x = self.linear(condition).view(len(latents), -1, 4, 4)
        for stage in self.blocks:
            for layer in stage:
                x = layer(x, condition)
        return torch.tanh(self.output_layer(x)[:, :3])


# --- StudioGAN


class StudioNorm(nn.Module):
    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=1e-4, affine=False)
        self.gain = Hooked(channels, condition_dim, bias=False)
        self.bias = Hooked(channels, condition_dim, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.bn(x) * (1 + self.gain(y))[:, :, None, None] + self.bias(y)[:, :, None, None]


class StudioAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1x1_theta = Hooked(channels // 8, channels, 1, 1, bias=False)
        self.conv1x1_phi = Hooked(channels // 8, channels, 1, 1, bias=False)
        self.conv1x1_g = Hooked(channels // 2, channels, 1, 1, bias=False)
        self.conv1x1_attn = Hooked(channels, channels // 2, 1, 1, bias=False)
        self.sigma = zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        return attended(self, x, ("conv1x1_theta", "conv1x1_phi", "conv1x1_g", "conv1x1_attn"), self.sigma)


class StudioBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition_dim: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = StudioNorm(inputs, condition_dim), StudioNorm(outputs, condition_dim)
        self.conv2d0 = Hooked(outputs, inputs, 1, 1)
        self.conv2d1, self.conv2d2 = Hooked(outputs, inputs, 3, 3), Hooked(outputs, outputs, 3, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv2d1(upsampled(F.relu(self.bn1(x, y))))
        return self.conv2d2(F.relu(self.bn2(h, y))) + self.conv2d0(upsampled(x))


class StudioDeepBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition_dim: int, up: bool) -> None:
        super().__init__()
        self.up, self.outputs, inner = up, outputs, inputs // 4
        self.bn1, self.conv2d1 = StudioNorm(inputs, condition_dim), Hooked(inner, inputs, 1, 1)
        self.bn2, self.conv2d2 = StudioNorm(inner, condition_dim), Hooked(inner, inner, 3, 3)
        self.bn3, self.conv2d3 = StudioNorm(inner, condition_dim), Hooked(inner, inner, 3, 3)
        self.bn4, self.conv2d4 = StudioNorm(inner, condition_dim), Hooked(outputs, inner, 1, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.bn2(self.conv2d1(F.relu(self.bn1(x, y))), y))
        h = self.conv2d2(upsampled(h) if self.up else h)
        h = self.conv2d4(F.relu(self.bn4(self.conv2d3(F.relu(self.bn3(h, y))), y)))
        x = x[:, : self.outputs]
        return h + (upsampled(x) if self.up else x)


STUDIO_WIDTHS = {**BIGGAN_WIDTHS, 64: (16, 8, 4, 2, 1)}  # here the first block halves the channels too


class StudioBigGAN(nn.Module):
    """`deep`: two bottleneck blocks a doubling, and the whole latent to all of them."""

    def __init__(
        self,
        resolution: int = 128,
        width: int = 96,
        classes: int = 1000,
        chunk: int = 20,
        shared_dim: int = 128,
        attention: int = 4,
        deep: bool = False,
    ) -> None:
        super().__init__()
        widths = [times * width for times in STUDIO_WIDTHS[resolution]]
        self.deep, self.chunk, self.latent_dim = deep, chunk, chunk if deep else chunk * len(widths)
        condition_dim = shared_dim + chunk
        self.linear0 = Hooked(16 * widths[0], condition_dim if deep else chunk)
        self.shared = nn.Embedding(classes, shared_dim)
        self.blocks = nn.ModuleList()
        for number, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True), start=1):
            if deep:
                self.blocks.append(nn.ModuleList([StudioDeepBlock(inputs, inputs, condition_dim, up=False)]))
                self.blocks.append(nn.ModuleList([StudioDeepBlock(inputs, outputs, condition_dim, up=True)]))
            else:
                self.blocks.append(nn.ModuleList([StudioBlock(inputs, outputs, condition_dim)]))
            if number == attention:
                self.blocks.append(nn.ModuleList([StudioAttention(outputs)]))
        self.bn4 = nn.BatchNorm2d(widths[-1], eps=1e-4)
        self.conv2d5 = Hooked(3, widths[-1], 3, 3)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        shared = self.shared(labels)
        if self.deep:
            x = self.linear0(torch.cat([shared, latents], 1))
            conditions = iter([torch.cat([shared, latents], 1)] * len(self.blocks))
        else:
            first, *chunks = latents.split(self.chunk, 1)
            x = self.linear0(first)
            conditions = iter([torch.cat([shared, chunk], 1) for chunk in chunks])
        x = x.view(len(latents), -1, 4, 4)
        for (layer,) in self.blocks:
            x = layer(x) if isinstance(layer, StudioAttention) else layer(x, next(conditions))
        return torch.tanh(self.conv2d5(F.relu(self.bn4(x))))


# --- values


@torch.no_grad()
def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights at a scale at which signals live, random statistics, and u and v one power step from random ones.

    So few steps leave u and v far from the singular vectors: that it is the stored ones that count is seen.
    """
    rng = torch.Generator().manual_seed(seed)
    for module in network.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if "var" in name:
                value.uniform_(0.5, 2, generator=rng)
            elif value.is_floating_point():
                value.normal_(std=0.5, generator=rng)
        if isinstance(module, Hooked):
            matrix = module.weight_orig.flatten(1)
            module.weight_v.copy_(F.normalize(module.weight_u @ matrix, dim=0))
            module.weight_u.copy_(F.normalize(matrix @ module.weight_v, dim=0))
    return network.eval()


def key_list(weights: Mapping[str, Tensor]) -> list[str]:
    """`name (shape)` of every entry, sorted."""
    return sorted(f"{name} {tuple(value.shape)}" for name, value in weights.items())
