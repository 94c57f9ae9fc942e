"""Every loss against a slow and obvious double loop, and its closed forms."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gencond.losses.adversarial import discriminator_hinge_loss, generator_hinge_loss
from gencond.losses.anchor import contrast, pixel_anchor_loss, pooled_pixels, representative_loss
from gencond.losses.center import center_loss
from gencond.losses.classification import classification_loss
from gencond.losses.diversity import diversity_loss
from gencond.losses.kernels import fourier_embedding, fourier_frequencies, median_bandwidth
from gencond.losses.mean import mean_matching_loss
from gencond.losses.mmd import fourier_mmd_loss, mmd_loss
from gencond.losses.total import total_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- means


def test_mean_matching_matches_a_loop_over_classes() -> None:
    real, syn = normal(3, 7, 5), normal(3, 2, 5, seed=1)
    expected = 0.0
    for c in range(3):
        for d in range(5):
            expected += (float(real[c, :, d].mean()) - float(syn[c, :, d].mean())) ** 2
    assert mean_matching_loss(real, syn).item() == pytest.approx(expected, rel=1e-5)


def test_a_cached_mean_gives_the_same_loss_and_gradient_as_the_images_behind_it() -> None:
    real, syn = normal(3, 7, 5), normal(3, 2, 5, seed=1).requires_grad_()
    direct, cached = mean_matching_loss(real, syn), mean_matching_loss(real.mean(1, keepdim=True), syn)
    torch.testing.assert_close(direct, cached)
    torch.testing.assert_close(torch.autograd.grad(direct, syn), torch.autograd.grad(cached, syn))


def test_equal_means_cost_nothing() -> None:
    real = normal(4, 6)
    assert mean_matching_loss(real, real.flip(0)).item() == pytest.approx(0, abs=1e-12)


# --- MMD


def test_the_fourier_embedding_approximates_the_gaussian_kernel() -> None:
    x, width = normal(20, 6), 2.0
    frequencies = fourier_frequencies(6, 20_000, (width,), torch.Generator().manual_seed(1))
    embedded = fourier_embedding(x, frequencies)
    kernel = torch.exp(-torch.cdist(x, x).square() / (2 * width**2))
    # each entry is a mean of 20,000 bounded terms: standard error at most 1 / sqrt(2 * 20000) = .005, 5 sigma
    assert (embedded @ embedded.T - kernel).abs().max() < 0.025
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(20))


def test_several_bandwidths_give_the_mean_of_their_kernels() -> None:
    x, widths = normal(12, 4), (0.5, 1.0, 3.0)
    frequencies = fourier_frequencies(4, 30_000, widths, torch.Generator().manual_seed(1))
    embedded = fourier_embedding(x, frequencies)
    kernel = sum(torch.exp(-torch.cdist(x, x).square() / (2 * width**2)) for width in widths) / 3
    assert (embedded @ embedded.T - kernel).abs().max() < 0.025


def test_fourier_mmd_approximates_the_double_loop_over_pairs() -> None:
    real, syn, width = normal(1, 40, 5), normal(1, 15, 5, seed=1) + 0.5, 2.0

    def mean_kernel(a: Tensor, b: Tensor) -> float:
        total = 0.0
        for x in a:
            for y in b:
                total += math.exp(-float((x - y).square().sum()) / (2 * width**2))
        return total / (len(a) * len(b))

    expected = mean_kernel(real[0], real[0]) + mean_kernel(syn[0], syn[0]) - 2 * mean_kernel(real[0], syn[0])
    frequencies = fourier_frequencies(5, 30_000, (width,), torch.Generator().manual_seed(2))
    embedding = fourier_embedding(real, frequencies).mean(1)
    # the estimate is a mean over 30,000 frequencies of terms in [0, 4]; 1 % was seen, 5 % allowed
    assert fourier_mmd_loss(embedding, syn, frequencies).item() == pytest.approx(expected, rel=0.05)


def test_fourier_mmd_of_shifted_gaussians_has_its_closed_form() -> None:
    shift, width, d = 1.0, 2.0, 4
    real, syn = normal(1, 4000, d), normal(1, 4000, d, seed=1)
    syn = syn + F.one_hot(torch.tensor(0), d) * shift
    scale = (width**2 / (width**2 + 2)) ** (d / 2)
    expected = 2 * scale * (1 - math.exp(-(shift**2) / (2 * (width**2 + 2))))
    frequencies = fourier_frequencies(d, 3000, (width,), torch.Generator().manual_seed(2))
    embedding = fourier_embedding(real, frequencies).mean(1)
    # 4000 samples a side and 3000 frequencies: relative error of some per cent
    assert fourier_mmd_loss(embedding, syn, frequencies).item() == pytest.approx(expected, rel=0.12)


def test_the_median_bandwidth_is_the_median_distance_and_scales_with_the_features() -> None:
    x = normal(9, 3)
    distances = sorted(float((x[i] - x[j]).norm()) for i in range(9) for j in range(i))
    assert median_bandwidth(x) == pytest.approx(distances[(len(distances) - 1) // 2])
    assert median_bandwidth(5 * x) == pytest.approx(5 * median_bandwidth(x), rel=1e-5)
    with pytest.raises(ValueError, match="two rows"):
        median_bandwidth(x[:1])


def test_frequencies_that_bandwidths_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be shared"):
        fourier_frequencies(3, 10, (1.0, 2.0, 3.0), torch.Generator())


# --- diversity


def test_diversity_matches_a_double_loop() -> None:
    features, centers, temperature = normal(2, 4, 3), normal(2, 3, seed=1), 0.3
    terms = []
    for c in range(2):
        arrows = [(features[c, i] - centers[c]).tolist() for i in range(4)]
        for i in range(4):
            closeness = []
            for j in range(4):
                if i != j:
                    inner = sum(a * b for a, b in zip(arrows[i], arrows[j], strict=True))
                    closeness.append(inner / math.hypot(*arrows[i]) / math.hypot(*arrows[j]))
            terms.append(temperature * math.log(sum(math.exp(one / temperature) for one in closeness) / 3))
    assert diversity_loss(features, centers, temperature).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda syn: diversity_loss(syn, torch.ones(len(syn), syn.shape[-1])),
        lambda syn: mmd_loss(syn.detach() + 1, syn),
        lambda syn: center_loss(syn.detach().flatten(0, 1) + 1, syn, torch.arange(len(syn))),
    ],
    ids=["diversity", "mmd", "center"],
)
def test_pairs_take_no_more_memory_than_features(loss: Callable[[Tensor], Tensor]) -> None:
    """The largest tensor on either way; the differences of all pairs of 32 would be 16 times the features."""
    sizes: list[int] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            sizes.extend(one.numel() for one in tree_leaves(result) if isinstance(one, Tensor))
            return result

    features = normal(2, 32, 256).requires_grad_()
    with Watched():
        loss(features).backward()
    assert max(sizes) == features.numel()


def test_diversity_is_that_of_directions_one_for_a_single_one_and_near_zero_for_unrelated_ones() -> None:
    center, one = torch.zeros(1, 400), normal(1, 1, 400)
    lined_up = one * torch.rand(1, 6, 1, generator=torch.Generator().manual_seed(3)).add(0.1)
    assert diversity_loss(lined_up, center).item() == pytest.approx(1, abs=1e-5)
    assert abs(diversity_loss(normal(1, 6, 400), center)) < 0.05  # cosines of 400 random numbers are some hundredths
    opposite = torch.cat([one, -one], 1)
    assert diversity_loss(opposite, center).item() == pytest.approx(-1, abs=1e-5)
    assert diversity_loss(5 * normal(1, 6, 400), center) == pytest.approx(diversity_loss(normal(1, 6, 400), center))


def test_one_sample_has_nothing_to_keep_apart_from() -> None:
    assert diversity_loss(normal(3, 1, 4), torch.ones(3, 4)) == 0


def test_diversity_gradient_is_finite_at_the_center_and_matches_finite_differences() -> None:
    features = torch.zeros(1, 3, 2, requires_grad=True)
    diversity_loss(features, torch.zeros(1, 2)).backward()
    assert features.grad.isfinite().all()
    x, centers = (0.3 * normal(2, 3, 4)).double().requires_grad_(), normal(2, 4, seed=1).double()
    assert torch.autograd.gradcheck(lambda x: diversity_loss(x, centers), x)


# --- centers


def test_centers_match_a_double_loop() -> None:
    real, syn, temperature = normal(4, 3), normal(2, 3, 3, seed=1), 0.7
    labels = torch.tensor([3, 1])
    gaps = [float((real[i] - real[j]).square().sum()) for i in range(4) for j in range(i)]
    unit, terms = temperature * sum(gaps) / len(gaps), []
    for c in range(2):
        for p in range(3):
            near = [math.exp(-float((syn[c, p] - real[k]).square().sum()) / unit) for k in range(4)]
            terms.append(-math.log(near[labels[c]] / sum(near)))
    assert center_loss(real, syn, labels, temperature).item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_a_center_costs_least_beyond_its_own_as_seen_from_the_others() -> None:
    """And nothing where there is no other class; free of the scale of the features."""
    real, own = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([1])

    def at(x: float, scale: float = 1.0) -> float:
        return center_loss(scale * real, scale * torch.tensor([[[x, 0.0]]]), own).item()

    assert at(0.0) > at(0.5) > at(1.0) > at(1.3) > 0
    assert at(0.5) == pytest.approx(math.log(2), rel=1e-5)
    assert at(0.8, scale=30.0) == pytest.approx(at(0.8), rel=1e-4)
    assert center_loss(real[:1], torch.ones(1, 2, 2), torch.tensor([0])) == 0


def test_center_gradient_is_finite_when_real_centers_coincide() -> None:
    syn = torch.zeros(3, 1, 2, requires_grad=True)
    center_loss(torch.zeros(3, 2), syn, torch.arange(3)).backward()
    assert syn.grad.isfinite().all()


# --- several sets of the same images


@pytest.mark.parametrize("kernel", ["gaussian", "linear", "polynomial", "laplace"])
def test_weighted_sets_of_the_same_images_have_the_mean_of_the_losses_of_each_set(kernel: str) -> None:
    """The Gaussian kernel takes its width from all images, so its sets are held against all of them weighed alike."""
    real, syn = normal(2, 5, 3), normal(2, 6, 3, seed=1)
    prefix = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [1 / 6] * 6])
    whole = mmd_loss(real, syn, kernel)
    torch.testing.assert_close(mmd_loss(real, syn, kernel, prefix[1:]), whole)
    if kernel != "gaussian":
        expected = (mmd_loss(real, syn[:, :2], kernel) + whole) / 2
        torch.testing.assert_close(mmd_loss(real, syn, kernel, prefix), expected)


def test_weighted_sets_of_embedded_images_have_the_mean_of_the_losses_of_each_set() -> None:
    real, syn = normal(2, 5, 3), normal(2, 6, 3, seed=1)
    prefix = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [1 / 6] * 6])
    frequencies = fourier_frequencies(3, 30, (1.0, 2.0, 3.0), torch.Generator().manual_seed(2))
    embedding = fourier_embedding(real, frequencies).mean(1)
    expected = [fourier_mmd_loss(embedding, part, frequencies) for part in (syn[:, :2], syn)]
    torch.testing.assert_close(fourier_mmd_loss(embedding, syn, frequencies, prefix), sum(expected) / 2)


# --- anchors, classification, adversarial, total


def test_anchors_match_their_formulas() -> None:
    real, syn = normal(3, 2, 8, 8), normal(3, 2, 8, 8, seed=1)
    assert representative_loss(real, syn).item() == pytest.approx(float(((real - syn) ** 2).mean()), rel=1e-6)
    shares = [representative_loss(real[:1], syn[:1], 3), representative_loss(real[1:], syn[1:], 3)]
    assert sum(shares).item() == pytest.approx(float(((real - syn) ** 2).mean()), rel=1e-6)
    assert representative_loss(real[:0], syn[:0], 3) == 0  # a process that got no share
    thumbnail = pooled_pixels(syn)[0].view(2, 4, 4)
    assert thumbnail[1, 2, 3].item() == pytest.approx(float(syn[0, 1, 4:6, 6:8].mean()), abs=1e-6)
    assert contrast(syn)[2, 1].item() == pytest.approx(float(syn[2, 1].std(unbiased=False)), rel=1e-5)


def test_the_pixel_anchor_is_zero_at_the_real_statistics_and_sees_brightness_and_contrast() -> None:
    images = normal(2, 6, 3, 8, 8)
    pooled, contrasts = pooled_pixels(images).mean(1), contrast(images).mean(1)
    assert pixel_anchor_loss(pooled, contrasts, images).item() == pytest.approx(0, abs=1e-12)
    assert pixel_anchor_loss(pooled, contrasts, images + 1).item() == pytest.approx(1, rel=0.05)
    assert pixel_anchor_loss(pooled, contrasts, 2 * images) > 0.5


def test_a_flat_image_has_a_finite_contrast_gradient() -> None:
    flat = torch.zeros(1, 1, 4, 4, requires_grad=True)
    contrast(flat).sum().backward()
    assert flat.grad.isfinite().all()


def test_classification_of_uniform_logits_costs_log_of_the_number_of_classes() -> None:
    assert classification_loss(torch.zeros(4, 10), torch.arange(4)).item() == pytest.approx(math.log(10))


def test_hinge_losses_match_their_formulas_in_direction_and_size() -> None:
    real, syn = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert discriminator_hinge_loss(real, syn).item() == pytest.approx(0.25 + 0.5)
    assert generator_hinge_loss(syn).item() == pytest.approx(1.5)


def test_the_total_weighs_parts_and_leaves_them_alone() -> None:
    parts = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert total_loss(parts, {"a": 0.5, "b": 2.0, "unused": 9.0}) == 7
    assert parts["a"] == 2
    with pytest.raises(KeyError, match="b"):
        total_loss(parts, {"a": 1.0})
