"""The objectives of M3D, IDC and DREAM against plain transcriptions and their closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gencond.losses.gradient import gradient_matching_loss
from gencond.losses.kernels import squared_distance
from gencond.losses.mean import mean_matching_loss
from gencond.losses.mmd import mmd_loss, squared_mmd
from gencond.networks.convnet import ConvNet


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_m3d(real: Tensor, syn: Tensor) -> float:
    """The published formula with loops, one class."""
    pooled = torch.cat([syn, real]).double()
    n = len(pooled)
    distance = [[float((a - b).square().sum()) for b in pooled] for a in pooled]
    width = sum(map(sum, distance)) / (n * n - n)
    kernel = [[sum(math.exp(-d / (width * 2.0**q)) for q in range(-2, 3)) for d in row] for row in distance]
    m = len(syn)

    def mean(rows: range, columns: range) -> float:
        return sum(kernel[i][j] for i in rows for j in columns) / (len(rows) * len(columns))

    s, r = range(m), range(m, n)
    return mean(s, s) - 2 * mean(s, r) + mean(r, r)


def test_m3d_matches_a_double_loop_and_sums_over_classes() -> None:
    real, syn = normal(3, 9, 4), normal(3, 5, 4, seed=1) + 0.3
    expected = sum(plain_m3d(real[c], syn[c]) for c in range(3))
    assert mmd_loss(real, syn).item() == pytest.approx(expected, rel=1e-4)


def test_m3d_with_the_linear_kernel_is_dm() -> None:
    real, syn = normal(3, 9, 4), normal(3, 5, 4, seed=1)
    torch.testing.assert_close(mmd_loss(real, syn, "linear"), mean_matching_loss(real, syn))
    linear = sum(
        (syn[c] @ syn[c].T).mean() - 2 * (syn[c] @ real[c].T).mean() + (real[c] @ real[c].T).mean() for c in range(3)
    )
    torch.testing.assert_close(mmd_loss(real, syn, "linear"), linear)  # the biased V-statistic, written out


@pytest.mark.parametrize("kernel", ["gaussian", "polynomial", "laplace"])
def test_equal_sets_cost_nothing_and_others_something(kernel: str) -> None:
    real = normal(2, 6, 3)
    assert mmd_loss(real, real.flip(1), kernel).item() == pytest.approx(0, abs=2e-5)  # float32 sums of 5 kernels
    assert mmd_loss(real, real + 1, kernel) > 0.1


def test_m3d_is_free_of_the_scale_of_the_features() -> None:
    real, syn = normal(1, 9, 4), normal(1, 5, 4, seed=1)
    torch.testing.assert_close(mmd_loss(5 * real, 5 * syn), mmd_loss(real, syn), atol=1e-5, rtol=1e-4)


def test_m3d_gradient_takes_the_width_as_given() -> None:
    """The plain transcription with a frozen width, differentiated by autograd."""
    real, syn = normal(9, 4), normal(5, 4, seed=1).requires_grad_()
    pooled = torch.cat([syn, real]).detach()
    width = torch.cdist(pooled, pooled).square().sum() / (14 * 13)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        d = (a[:, None] - b[None]).square().sum(-1)
        return sum(torch.exp(-d / (width * 2.0**q)) for q in range(-2, 3))

    plain = kernel(syn, syn).mean() - 2 * kernel(syn, real).mean() + kernel(real, real).mean()
    expected = torch.autograd.grad(plain, syn)[0]
    (actual,) = torch.autograd.grad(mmd_loss(real[None], syn[None]), syn)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


def test_gradients_are_finite_when_two_rows_coincide() -> None:
    syn = torch.zeros(1, 3, 2, requires_grad=True)
    mmd_loss(normal(1, 4, 2), syn).backward()
    assert syn.grad.isfinite().all()
    x = torch.zeros(3, 2, requires_grad=True)
    squared_distance(x, x).sum().backward()
    assert x.grad.isfinite().all()


def test_squared_mmd_matches_a_double_loop() -> None:
    real, syn, width = normal(6, 3), normal(4, 3, seed=1), 1.5

    def k(a: Tensor, b: Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / (2 * width**2))

    within = [
        sum(k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))
        for x in (real, syn)
    ]
    between = sum(k(r, s) for r in real for s in syn) / 24
    assert squared_mmd(real, syn, width).item() == pytest.approx(sum(within) - 2 * between, abs=1e-6)


def test_squared_mmd_has_the_closed_form_of_shifted_gaussians() -> None:
    n, d, width, shift = 2000, 4, 2.0, 1.0
    real, syn = normal(n, d), normal(n, d, seed=1) + F.one_hot(torch.tensor(1), d) * shift
    scale = (width**2 / (width**2 + 2)) ** (d / 2)
    expected = 2 * scale * (1 - math.exp(-(shift**2) / (2 * (width**2 + 2))))
    assert squared_mmd(real, syn, width).item() == pytest.approx(expected, abs=0.008)  # 5 sigma at n = 2000


def test_squared_mmd_of_one_distribution_is_zero_on_average() -> None:
    values = [squared_mmd(normal(20, 3, seed=s), normal(20, 3, seed=s + 100), 1.0).item() for s in range(100)]
    mean = sum(values) / 100
    error = (sum((value - mean) ** 2 for value in values) / 99 / 100) ** 0.5
    assert abs(mean) < 4 * error and min(values) < 0


def test_squared_mmd_refuses_single_rows_and_no_width() -> None:
    for arguments in ((normal(1, 3), normal(4, 3), 1.0), (normal(4, 3), normal(4, 3), 0.0)):
        with pytest.raises(ValueError, match="needs two rows"):
            squared_mmd(*arguments)


# --- gradients


def test_gradient_matching_matches_a_loop() -> None:
    real, syn = [normal(2, 3), normal(4)], [normal(2, 3, seed=1), normal(4, seed=2)]
    squares = sum(float(((a - b) ** 2).sum()) for a, b in zip(real, syn, strict=True))
    absolutes = sum(float((a - b).abs().sum()) for a, b in zip(real, syn, strict=True))
    assert gradient_matching_loss(real, syn, "mse").item() == pytest.approx(squares, rel=1e-5)
    assert gradient_matching_loss(real, syn, "l1").item() == pytest.approx(absolutes, rel=1e-5)


def test_the_image_gradient_of_gradient_matching_matches_finite_differences() -> None:
    torch.manual_seed(0)
    network = ConvNet(1, 3, 4, width=2, depth=1).double()
    weights, labels = [network.convs[0].weight], torch.tensor([0, 2])
    real = [
        g.detach() for g in torch.autograd.grad(F.cross_entropy(network(normal(2, 1, 4, 4).double()), labels), weights)
    ]

    def loss(images: Tensor) -> Tensor:
        syn = torch.autograd.grad(F.cross_entropy(network(images), labels), weights, create_graph=True)
        return gradient_matching_loss(real, syn)

    assert torch.autograd.gradcheck(loss, normal(2, 1, 4, 4, seed=1).double().requires_grad_())
