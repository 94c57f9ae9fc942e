"""Quality metrics against closed forms and plain loops; memorisation finds copies and only copies."""

import math
from pathlib import Path

import pytest
import timm
import torch

from gencond.common.errors import InputError
from gencond.data.images import LabeledImages
from gencond.data.select import random_subset
from gencond.eval.given import GivenNetwork, quality_network
from gencond.eval.memorization import memorisation, nearest_training_images
from gencond.eval.metrics import compare_sets, density_and_coverage, embed_as_bytes, quality, spread_of_classes

CPU = torch.device("cpu")


def points(count: int, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + shift


def test_a_set_against_itself_is_perfect_and_a_far_one_is_not() -> None:
    same = quality(points(300), points(300))
    assert same["fid"] == pytest.approx(0, abs=1e-6) and same["precision"] == same["recall"] == same["coverage"] == 1
    far = quality(points(300, 50.0), points(300))
    assert far["precision"] == far["recall"] == far["density"] == far["coverage"] == 0
    assert far["fid"] == pytest.approx(4 * 50**2, rel=0.01)  # the squared distance of the means


def test_density_and_coverage_are_those_of_a_plain_loop() -> None:
    real, syn, neighbours = points(40), points(25, 0.5, seed=1), 3
    counts, covered = 0, 0
    for center in real:
        radius = sorted(float((center - other).norm()) for other in real)[neighbours]  # the first is itself
        inside = sum(float((center - one).norm()) < radius for one in syn)
        counts, covered = counts + inside, covered + (inside > 0)
    density, coverage = density_and_coverage(syn, real, neighbours)
    assert density == pytest.approx(counts / (neighbours * 25)) and coverage == pytest.approx(covered / 40)


def test_the_spread_of_a_class_is_its_mean_squared_distance_and_unknown_of_one_image() -> None:
    features, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]]), torch.tensor([0, 0, 1])
    spread = spread_of_classes(features, labels, 2)
    assert spread[0] == 2 and math.isnan(spread[1])  # unbiased: (1 + 1) / (2 - 1)


@pytest.fixture
def network(tmp_path: Path, few_digits: LabeledImages) -> GivenNetwork:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=1000).state_dict(), tmp_path / "w.pt")
    return quality_network(f"test_resnet={tmp_path / 'w.pt'}", few_digits, CPU)


def test_the_panel_names_a_class_that_is_one_image_again_and_again(
    few_digits: LabeledImages, digits: tuple, network: GivenNetwork
) -> None:
    syn = random_subset(digits[0], 6, seed=1)
    syn.images[syn.labels == 3] = syn.images[18].clone()
    found = compare_sets("test_resnet", network, syn, few_digits, random_subset(digits[1], 6, seed=0))
    assert found.collapsed == ("3",) and found.diversity["3"] == 0 and found.extractor == "test_resnet"
    assert 0.3 < found.diversity["4"] < 3 and (found.num_syn, found.num_real) == (60, 120)
    assert set(found.condensed) == {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert found.held_out_real["coverage"] > 0.3


def test_floats_and_bytes_of_the_same_images_have_the_same_features(
    few_digits: LabeledImages, network: GivenNetwork
) -> None:
    one = embed_as_bytes(network, few_digits.images[:9])
    other = embed_as_bytes(network, few_digits.images[:9].float() / 127.5 - 1)
    assert one.shape[0] == 9 and torch.equal(one, other)


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        ("resnet_of_mine", "timm has no such model"),
        ("resnet10t=nowhere.pt", "no such file"),
        ("convnet2=nowhere.pt", "no such file"),
        ("convnet3", "give the file of its weights, convnet3=FILE"),
        ("inception=no.pth", "inception"),
    ],
)
def test_networks_that_cannot_be_had_are_named(extractor: str, message: str, few_digits: LabeledImages) -> None:
    with pytest.raises(InputError, match=message):
        quality_network(extractor, few_digits, CPU)


def test_copies_are_nearer_than_held_out_images_and_new_images_are_not(digits: tuple) -> None:
    train, test = digits
    copies = random_subset(train, 5, seed=0)
    near, nearest = memorisation(copies, train, test)
    assert near.share_nearer == 1 and near.median_syn == pytest.approx(0, abs=1e-3)
    assert torch.equal(train.images[nearest.row], copies.images)
    new, _ = memorisation(random_subset(test, 20, seed=0), train, test)
    assert new.share_nearer < 0.15 and new.median_syn == pytest.approx(new.median_held_out, rel=0.1)


def test_the_nearest_training_image_is_that_of_a_plain_search(digits: tuple) -> None:
    train, few = digits[0], random_subset(digits[1], 1, seed=0)
    found = nearest_training_images(few, train)
    for image, distance, row in zip(few.images, found.distance, found.row, strict=True):
        every = ((train.images.float() - image.float()) / 255).square().flatten(1).mean(1).sqrt()
        assert int(every.argmin()) == row
        torch.testing.assert_close(distance, every.min(), atol=2e-4, rtol=1e-3)  # cdist by products
