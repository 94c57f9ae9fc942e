"""Cached statistics and real batches give the same answers; DM's and M3D's steps are their published formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gencond.common.ranges import to_signed
from gencond.condensing.real import BatchTargets, CachedTargets, class_gradients, gradient_loss
from gencond.condensing.real_statistics import real_statistics
from gencond.data.augment import Augmentation, AugmentParams
from gencond.data.images import LabeledImages
from gencond.data.select import class_batches
from gencond.networks.convnet import ConvNet
from gencond.networks.extractor import Extractor

CLASSES = torch.tensor([1, 4, 8])


@pytest.fixture
def extractor(few_digits: LabeledImages) -> Extractor:
    return Extractor(ConvNet(1, 10, 8, width=4, depth=2), *few_digits.mean_std)


def batches(data: LabeledImages, batch_size: int = 12) -> Tensor:
    rows = class_batches(data, CLASSES, batch_size, torch.Generator().manual_seed(0))
    return data.images[rows]


def embed_batch(
    images: Tensor, extractor: Extractor, augmentation: Augmentation, params: AugmentParams
) -> BatchTargets:
    """Real images of three classes, augmented by a row of parameters each."""
    signed = to_signed(images)
    return BatchTargets(signed, augmentation(signed.flatten(0, 1), params).view(images.shape), extractor)


def synthetic() -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_batches_hold_each_class_without_repetition_until_it_is_used_up(few_digits: LabeledImages) -> None:
    rows = class_batches(few_digits, CLASSES, 7, torch.Generator().manual_seed(0))
    assert torch.equal(few_digits.labels[rows], CLASSES[:, None].expand(3, 7))
    assert all(len(row.unique()) == 7 for row in rows)
    more = class_batches(few_digits, CLASSES, 30, torch.Generator().manual_seed(0))
    assert all(row.bincount()[row.unique()].tolist().count(3) == 6 for row in more)  # 12 images: 30 = 2.5 rounds


def test_a_batch_of_the_whole_class_answers_as_the_cached_statistics_do(
    few_digits: LabeledImages, extractor: Extractor
) -> None:
    augmentation = Augmentation("none", 8)
    statistics = real_statistics(
        few_digits, [extractor], augmentation=augmentation, num_passes=1, num_frequencies=12, seed=0
    )
    cached = CachedTargets.of(statistics, 0, CLASSES)
    batch = embed_batch(batches(few_digits), extractor, augmentation, augmentation.draw(36, torch.Generator()))
    torch.testing.assert_close(cached.centers, batch.centers, atol=1e-5, rtol=1e-4)
    syn = extractor(synthetic()).view(3, 2, -1)
    torch.testing.assert_close(cached.mean_loss(syn), batch.mean_loss(syn), atol=1e-5, rtol=1e-4)


def test_the_image_gradient_of_dm_is_that_of_its_formula(few_digits: LabeledImages, extractor: Extractor) -> None:
    """Siamese: one draw of the augmentation for all images of a class, real and synthetic."""
    augmentation = Augmentation("crop_scale_rotate", 8, *few_digits.mean_std)
    params = augmentation.draw(3, torch.Generator().manual_seed(2))
    real, images = batches(few_digits), synthetic().requires_grad_()
    targets = embed_batch(real, extractor, augmentation, params.rows(torch.arange(3).repeat_interleave(12)))
    syn = extractor(augmentation(images, params.rows(torch.arange(3).repeat_interleave(2)))).view(3, 2, -1)
    (actual,) = torch.autograd.grad(targets.mean_loss(syn), images)

    plain = synthetic().requires_grad_()
    loss = 0
    for c in range(3):
        one = params.rows(slice(c, c + 1))
        real_mean = torch.stack([extractor(augmentation(to_signed(x[None]), one))[0] for x in real[c]]).mean(0)
        syn_mean = torch.stack([extractor(augmentation(x[None], one))[0] for x in plain[2 * c : 2 * c + 2]]).mean(0)
        loss = loss + (real_mean - syn_mean).square().sum()
    torch.testing.assert_close(actual, torch.autograd.grad(loss, plain)[0], atol=1e-5, rtol=1e-3)


def test_class_gradients_are_those_of_the_convolutions_alone(few_digits: LabeledImages, extractor: Extractor) -> None:
    images = to_signed(batches(few_digits))
    found = class_gradients(extractor, images, CLASSES, create_graph=False)
    network = extractor.network.requires_grad_(True)
    for c, label in enumerate(CLASSES):
        loss = F.cross_entropy(network(extractor.normalise(images[c])), label.expand(12))
        expected = torch.autograd.grad(loss, [conv.weight for conv in network.convs])
        assert len(found[c]) == 2
        for one, other in zip(found[c], expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("metric", ["mse", "l1"])
def test_the_gradient_loss_sums_over_classes_vanishes_for_equal_images_and_reaches_pixels(
    few_digits: LabeledImages, extractor: Extractor, metric: str
) -> None:
    real = to_signed(batches(few_digits))
    # 540 gradients, with and without a graph, differ by float32 rounding: 3e-6 was seen for their absolute sum
    assert gradient_loss(extractor, real, real, CLASSES, metric).item() == pytest.approx(0, abs=1e-4)
    syn = synthetic().view(3, 2, 1, 8, 8).requires_grad_()
    loss = gradient_loss(extractor, real, syn, CLASSES, metric)
    alone = [gradient_loss(extractor, real[[c]], syn[[c]], CLASSES[[c]], metric) for c in range(3)]
    torch.testing.assert_close(loss, torch.stack(alone).sum())
    loss.backward()
    assert (syn.grad.flatten(1).abs().sum(1) > 0).all()
