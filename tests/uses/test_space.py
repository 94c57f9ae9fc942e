"""Which networks a search chooses among."""

import itertools

import pytest
import torch

from gencond.common.errors import InputError, UnfitNetwork
from gencond.data.images import LabeledImages
from gencond.eval.networks import build_network
from gencond.uses.space import Space, fitting


def images_of(side: int, channels: int = 1) -> LabeledImages:
    """Two classes of one black image each."""
    return LabeledImages(torch.zeros(2, channels, side, side, dtype=torch.uint8), torch.arange(2), ("a", "b"))


def test_the_whole_space_has_720_networks_with_names_of_their_own() -> None:
    names = Space().names
    assert len(names) == len(set(names)) == 720
    assert "convnet3w64-relu-batch-max" in names and "convnet1w256-leaky_relu-nonorm-nopool" in names


def test_a_name_builds_the_network_of_its_choices() -> None:
    for depth, norm, pooling in itertools.product((1, 2), ("none", "layer"), ("none", "max")):
        (name,) = Space([4], [depth], ["sigmoid"], [norm], [pooling]).names
        network = build_network(name, 1, 2, 8, seed=0)
        side = 8 if pooling == "none" else 8 // 2**depth
        assert (len(network.convs), network.pooling, network.feature_dim) == (depth, pooling, 4 * side**2)
        assert network.activation is torch.nn.functional.sigmoid
        assert len(list(network.norms.parameters())) == (0 if norm == "none" else 2 * depth)


def test_every_network_of_a_depth_takes_images_and_gives_an_answer_for_each_class() -> None:
    names = Space(widths=[4], depths=[2]).names
    assert len(names) == 45
    for name in names:
        assert build_network(name, 3, 5, 8, seed=0)(torch.zeros(2, 3, 8, 8)).shape == (2, 5), name


def test_networks_that_are_too_deep_for_the_images_are_left_out_with_the_reason() -> None:
    found = fitting(Space([4], [3, 4], ["relu"], ["none"], ["none", "avg"]).names, images_of(8))
    assert list(found.sizes) == [
        "convnet3w4-relu-nonorm-nopool",
        "convnet3w4-relu-nonorm-avg",
        "convnet4w4-relu-nonorm-nopool",
    ]
    assert found.left_out == {
        "convnet4w4-relu-nonorm-avg": "network convnet4w4-relu-nonorm-avg: 4 blocks cannot halve 8 px images"
    }


def test_parameters_are_counted() -> None:
    sizes = fitting(["convnet1w4-relu-batch-avg"], images_of(8)).sizes
    convolution, norm, classifier = 4 * 9 + 4, 2 * 4, 2 * 4 * 4 * 4 + 2
    assert sizes == {"convnet1w4-relu-batch-avg": convolution + norm + classifier}


def test_a_timm_network_that_cannot_take_the_images_is_left_out_and_an_unknown_one_refused() -> None:
    found = fitting(["convnet1w4", "vit_tiny_patch16_224", "convnet1w4"], images_of(8))
    assert list(found.sizes) == ["convnet1w4"] and "cannot take 8 px images" in found.left_out["vit_tiny_patch16_224"]
    with pytest.raises(InputError, match="unknown network 'convnot'") as raised:
        fitting(["convnet1w4", "convnot"], images_of(8))
    assert not isinstance(raised.value, UnfitNetwork)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"widths": [0]}, "--widths are whole numbers in 1 .. 4096, not 0"),
        ({"depths": [5000]}, "--depths are whole numbers in 1 .. 4096, not 5000"),
        ({"activations": ["tanh"]}, "unknown activation 'tanh'; known: relu, leaky_relu, sigmoid, swish"),
        ({"norms": ["nonorm"]}, "unknown norm 'nonorm'; known: instance, batch, layer, group, none"),
        ({"poolings": ["min"]}, "unknown pooling 'min'; known: avg, max, none"),
    ],
)
def test_an_unknown_choice_is_named(choices: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Space(**choices)


def test_a_space_in_which_nothing_fits_is_refused() -> None:
    with pytest.raises(InputError, match="not one network takes the images: network convnet4w4-.* cannot halve 8 px"):
        fitting(Space([4], [4], poolings=["max"]).names, images_of(8))
