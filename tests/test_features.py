import pytest
import torch

from gencond.features import ConvNet, Extractor, automatic_depth, state_fingerprint


@pytest.mark.parametrize(
    ("channels", "classes", "size", "depth", "parameters"),
    [(3, 10, 32, 3, 320_010), (3, 100, 32, 3, 504_420), (1, 10, 28, 3, 317_706), (3, 200, 64, 4, 857_160)],
)
def test_parameter_counts_are_the_published_ones(
    channels: int, classes: int, size: int, depth: int, parameters: int
) -> None:
    network = ConvNet(channels, classes, size, depth=depth)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.features(torch.zeros(2, channels, size, size)).shape == (2, 2048)


def test_the_norm_is_instance_norm() -> None:
    network = ConvNet(3, 10, 16, width=4, depth=2)
    x = torch.randn(5, 4, 8, 8)
    torch.testing.assert_close(network.norms[0](x), torch.nn.InstanceNorm2d(4)(x))


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


def test_the_fingerprint_follows_the_weights() -> None:
    one, other = ConvNet(1, 2, 8, 4, 2), ConvNet(1, 2, 8, 4, 2)
    assert state_fingerprint(one) != state_fingerprint(other)
    other.load_state_dict(one.state_dict())
    assert state_fingerprint(one) == state_fingerprint(other)
