from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from gencond.common.errors import InputError
from gencond.common.files import state_fingerprint
from gencond.networks.classic import alexnet, lenet, mlp, vgg11
from gencond.networks.convnet import ConvNet, automatic_depth, average_pooling
from gencond.networks.extractor import Embedding, Extractor, images_in_caches
from gencond.networks.from_timm import TimmNetwork
from gencond.networks.resnet import CifarResNet, ResNet18, ResNetAP10
from gencond.networks.weights import load_weights


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("channels", "classes", "size", "depth", "parameters"),
    [
        (3, 10, 32, 3, 320_010),
        (3, 100, 32, 3, 504_420),
        (1, 10, 28, 3, 317_706),
        (3, 200, 64, 4, 857_160),
        (3, 10, 128, 5, 615_690),
    ],  # fmt: skip
)
def test_parameter_counts_are_the_published_ones(
    channels: int, classes: int, size: int, depth: int, parameters: int
) -> None:
    network = ConvNet(channels, classes, size, depth=depth)
    assert count(network) == parameters
    assert network.features(torch.zeros(2, channels, size, size)).shape == (2, 2048)


def test_the_norm_is_instance_norm() -> None:
    network = ConvNet(3, 10, 16, width=4, depth=2)
    x = torch.randn(5, 4, 8, 8)
    torch.testing.assert_close(network.norms[0](x), torch.nn.InstanceNorm2d(4)(x))


@pytest.mark.parametrize(
    ("height", "width"), [(8, 8), (4, 4), (2, 2), (7, 7), (6, 6), (12, 12), (32, 32), (64, 64), (8, 4)]
)
def test_pooled_pixels_and_their_gradients_are_those_of_means_over_squares(height: int, width: int) -> None:
    images = torch.randn(3, 2, height, width, dtype=torch.float64, requires_grad=True)
    pooled = average_pooling(images)
    expected = torch.stack([
        torch.stack([images[..., i : i + 2, j : j + 2].mean((-2, -1)) for j in range(0, width - 1, 2)], -1)
        for i in range(0, height - 1, 2)
    ], -2)  # fmt: skip
    torch.testing.assert_close(pooled, expected)
    direction = torch.randn_like(pooled)
    gradients = [torch.autograd.grad((way * direction).sum(), images)[0] for way in (pooled, expected)]
    torch.testing.assert_close(*gradients)


def test_too_many_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="4 blocks cannot halve 8 px"):
        ConvNet(1, 10, 8, depth=4)


def test_depth_follows_the_size() -> None:
    assert [automatic_depth(size) for size in (8, 16, 28, 32, 64)] == [2, 2, 3, 3, 4]


def test_an_extractor_is_frozen_normalises_and_passes_gradients_to_images() -> None:
    network = ConvNet(3, 10, 8, width=4, depth=2)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    extractor = Extractor(network, mean, std)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    features = extractor.train()(images)
    normalised = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(features, network.features(normalised))
    torch.testing.assert_close(extractor.logits(features), network(normalised))
    features.sum().backward()
    assert images.grad is not None and not extractor.training
    assert all(not parameter.requires_grad for parameter in extractor.parameters())


@pytest.mark.parametrize("compiled", [False, True])
def test_many_images_go_through_an_extractor_in_pieces_with_the_same_features_and_gradients(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one size where the network is compiled, which is compiled anew for every size."""
    monkeypatch.setattr("gencond.networks.extractor.CACHED_PIXELS", 4 * 64)
    monkeypatch.setattr("gencond.networks.extractor.NEVER_PARTED", 1)
    torch.manual_seed(0)
    sizes: list[int] = []

    class Counting(Embedding):
        def __call__(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return network.features(images)  # pyright: ignore[reportCallIssue]

    embed = Counting()
    embed.compile = compiled
    network = ConvNet(1, 10, 8, width=16, depth=2)
    extractor = Extractor(network, (0.1,), (0.5,), embed=embed)
    assert images_in_caches(torch.zeros(90, 1, 8, 8, device="meta")) == 90  # on a GPU too
    assert images_in_caches(torch.zeros(90, 3, 64, 64)) == 1
    images = torch.rand(10, 1, 8, 8, requires_grad=True)
    whole = network.features((images - 0.1) / 0.5)
    (expected,) = torch.autograd.grad(whole.square().sum(), images)
    features = extractor(images)
    (found,) = torch.autograd.grad(features.square().sum(), images)
    assert sizes == ([4, 4, 4] if compiled else [4, 4, 2])
    torch.testing.assert_close(features, whole)
    torch.testing.assert_close(found, expected)


def test_the_fingerprint_follows_the_weights() -> None:
    one, other = ConvNet(1, 2, 8, 4, 2), ConvNet(1, 2, 8, 4, 2)
    assert state_fingerprint(one) != state_fingerprint(other)
    other.load_state_dict(one.state_dict())
    assert state_fingerprint(one) == state_fingerprint(other)


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "group", "none"])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "swish"])
def test_every_network_of_the_search_space_is_built_and_trains(norm: str, pooling: str, activation: str) -> None:
    network = ConvNet(3, 5, 16, width=8, depth=2, activation=activation, norm=norm, pooling=pooling)
    features = network.features(torch.randn(2, 3, 16, 16))
    assert features.shape == (2, network.feature_dim) == (2, 8 * (16**2 if pooling == "none" else 4**2))
    network.classifier(features).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_the_options_are_the_operations_they_name() -> None:
    network = ConvNet(1, 2, 4, width=4, depth=1, activation="swish", norm="layer", pooling="max")
    x = torch.randn(2, 1, 4, 4)
    h = torch.nn.functional.layer_norm(network.convs[0](x), [4, 4, 4])
    expected = torch.nn.functional.max_pool2d(h * h.sigmoid(), 2).flatten(1)
    torch.testing.assert_close(network.features(x), expected)


@pytest.mark.parametrize(("size", "pooled"), [(32, 1), (64, 1), (128, 2), (224, 4)])
def test_resnet_ap_pools_large_images_more_and_has_512_features(size: int, pooled: int) -> None:
    network = ResNetAP10(3, 10, size)
    assert network.pool == pooled and network.feature_dim == 512
    # stem + 4 blocks of two 3x3 convolutions + three 1x1 skips + norms + head
    convs = 3 * 64 * (49 if size > 128 else 9) + 9 * (64 * 64 + 64 * 64)
    convs += sum(9 * (c * 2 * c + 4 * c * c) + 2 * c * c for c in (64, 128, 256))
    norms = 2 * (64 + 2 * 64 + 3 * (128 + 256 + 512))
    assert count(network) == convs + norms + 512 * 10 + 10
    small = ResNetAP10(1, 4, size, width=4)
    assert small(torch.randn(2, 1, size, size)).shape == (2, 4)


def test_resnet_ap_refuses_sizes_it_cannot_halve() -> None:
    with pytest.raises(ValueError, match="cannot halve 28 px"):
        ResNetAP10(1, 10, 28)


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return outputs * (inputs * kernel**2 + 1)


def test_classic_networks_have_the_parameters_of_their_layers() -> None:
    """Counted by hand for 32 px colour images and ten classes."""
    assert count(mlp(3, 10, 32)) == 3072 * 128 + 128 + 128 * 128 + 128 + 1290
    assert count(lenet(3, 10, 32)) == 62_006  # the well-known number
    convs = conv(3, 128, 5) + conv(128, 192, 5) + conv(192, 256) + conv(256, 192) + conv(192, 192)
    assert count(alexnet(3, 10, 32)) == convs + 192 * 16 * 10 + 10
    convs = conv(3, 64) + conv(64, 128) + conv(128, 256) + conv(256, 256)
    convs += conv(256, 512) + 3 * conv(512, 512)
    assert count(vgg11(3, 10, 32)) == convs + 2 * (64 + 128 + 2 * 256 + 4 * 512) + 5130
    assert count(vgg11(3, 10, 32)) == count(vgg11(3, 10, 32, norm="batch"))
    assert count(ResNet18(3, 10, 32)) == 11_173_962  # the well-known number of ResNet-18 on CIFAR-10


@pytest.mark.parametrize("build", [mlp, lenet, alexnet, vgg11, ResNet18])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 64)])
def test_classic_networks_take_the_sizes_of_small_sets(build: Callable, channels: int, size: int) -> None:
    network = build(channels, 7, size)
    images = torch.randn(2, channels, size, size)
    assert network.features(images).shape == (2, network.feature_dim)
    network(images).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("build", [lenet, vgg11, ResNet18])
def test_classic_networks_refuse_images_that_they_halve_to_nothing(build: Callable) -> None:
    with pytest.raises(ValueError, match="8 px images"):
        build(1, 10, 8)


def test_images_without_strides_are_halved_by_averages_alone_in_the_ap_network() -> None:
    assert {m.stride for m in ResNetAP10(3, 10, 32).modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    assert [m.stride for m in ResNet18(3, 10, 32).modules() if isinstance(m, nn.Conv2d)].count((2, 2)) == 6


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_the_residual_networks_of_cifar_have_their_parameters_and_names(depth: int, parameters: int) -> None:
    network = CifarResNet(3, 10, 32, depth)
    assert count(network) == parameters and network.features(torch.zeros(2, 3, 32, 32)).shape == (2, 64)
    names = {"conv1.weight", "bn1.running_var", f"layer3.{(depth - 2) // 6 - 1}.bn2.bias", "linear.weight"}
    assert names <= network.state_dict().keys()
    with pytest.raises(ValueError, match="6n \\+ 2 layers, not 18"):
        CifarResNet(3, 10, 32, 18)


def test_a_skip_that_halves_takes_every_other_pixel_and_adds_zeros() -> None:
    block = CifarResNet(1, 2, 8).layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)  # nothing but the skip
    x = torch.rand(1, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2]) and y[:, :8].abs().max() == y[:, 24:].abs().max() == 0


def test_weights_of_a_file_are_taken_whole_or_refused(tmp_path: Path) -> None:
    network, other = ConvNet(1, 3, 8, width=4, depth=2), ConvNet(1, 3, 8, width=4, depth=2)
    state, file = network.state_dict(), tmp_path / "w.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, file)
    load_weights(other, file)
    assert state_fingerprint(other) == state_fingerprint(network)
    for content, message in (
        ({k: v for k, v in state.items() if k != "classifier.bias"}, "classifier.bias is missing"),
        (state | {"more": torch.zeros(1)}, "more is left over"),
        (state | {"classifier.bias": torch.zeros(4)}, "does not fit this network: .*classifier.bias"),
        (state | {"classifier.bias": torch.full((3,), float("nan"))}, "w.pt: classifier.bias holds NaN"),
        ({"code": print}, "holds print beside tensors, which could run code"),
    ):
        torch.save(content, file)
        with pytest.raises(InputError, match=message):
            load_weights(other, file)


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("vit_tiny_patch16_224", 32, 4),
        ("deit_tiny_patch16_224", 48, 9),
        ("mixer_s16_224", 32, 4),
        ("swin_tiny_patch4_window7_224", 64, 4),
    ],
)
def test_transformers_and_mixers_of_timm_are_built_for_the_images(name: str, size: int, tokens: int) -> None:
    """Of 16 px patches that many, of Swin's 4 px ones after three halvings."""
    network = TimmNetwork(name, 1, 5, size)
    images = torch.randn(2, 1, size, size)
    features = network.model.forward_features(images)
    assert features.flatten(1, -2).shape[1] in (tokens, tokens + 1)  # with a class token
    network(images).square().sum().backward()
    assert network.features(images).shape == (2, network.feature_dim)
    assert all(parameter.grad is not None for parameter in network.model.get_classifier().parameters())


def test_networks_of_timm_that_take_the_images_as_they_are_are_built_as_they_were() -> None:
    torch.manual_seed(0)
    network = TimmNetwork("resnet10t", 3, 5, 32)
    torch.manual_seed(0)
    assert state_fingerprint(network.model) == state_fingerprint(timm.create_model("resnet10t", num_classes=5))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "vit_tiny_patch16_224",
            28,
            "cannot take 28 px images: it sees whole patches of 16 px and nothing beside them",
        ),
        ("levit_128s", 64, "has several heads, which are not trained here: choose one with one head"),
        ("inception_v3", 32, "cannot take 32 px images: Calculated padded input size"),
    ],
)
def test_images_that_a_network_of_timm_cannot_take_are_refused_in_one_line(name: str, size: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        TimmNetwork(name, 3, 5, size)
    assert "\n" not in str(caught.value)
