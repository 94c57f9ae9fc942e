import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gencond.generator.backbone import SelfAttention
from gencond.generator.biggan import (
    BigGANGenerator,
    ConditionalBatchNorm,
    published_config,
    set_standing_statistics,
)
from gencond.generator.discriminator import ProjectionDiscriminator


def generator(size: int = 8, blocks: int = 1, channels: int = 1) -> BigGANGenerator:
    return BigGANGenerator(size, channels, 5, 4 * (blocks + 1), 6, (8,) * blocks)


@pytest.mark.parametrize(("size", "blocks"), [(8, 1), (8, 2), (16, 2), (28, 2), (32, 3), (40, 3), (64, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_size_asked_for_and_lie_in_range(size: int, blocks: int, channels: int) -> None:
    network = generator(size, blocks, channels)
    images = network(torch.randn(3, 4 * (blocks + 1)), torch.tensor([0, 4, 2]))
    assert images.shape == (3, channels, size, size) and images.abs().max() <= 1


@pytest.mark.parametrize(
    ("resolution", "parameters"),
    # 4,304,387 published at 32 px, where we add the identity table of 10 classes
    [(32, 4_304_387 + 100), (128, 70_433_988)],
)
def test_published_sizes_have_the_published_number_of_parameters(resolution: int, parameters: int) -> None:
    with torch.device("meta"):
        network = BigGANGenerator(**published_config(resolution))
    assert sum(weight.numel() for weight in network.parameters()) == parameters


def test_attention_follows_the_block_of_its_resolution_and_starts_as_the_identity() -> None:
    network = BigGANGenerator(16, 3, 5, 12, 6, (16, 8), attention_resolution=8).eval()
    assert network.attention.query.in_channels == 16
    latents, labels = torch.randn(3, 12), torch.arange(3)
    images = network(latents, labels)
    network.attention.gamma.data.fill_(1.0)
    assert not torch.equal(network(latents, labels), images)
    del network.attention
    network.attention_after = None
    assert torch.equal(network(latents, labels), images)


def test_attention_looks_everywhere_with_unscaled_softmax() -> None:
    attention, x = SelfAttention(16), torch.randn(2, 16, 6, 4)
    attention.gamma.data.fill_(0.5)
    query, key, value = attention.query(x), attention.key(x), attention.value(x)
    expected = torch.zeros(2, 8, 6, 4)
    for image in range(2):
        keys = F.max_pool2d(key[image], 2).flatten(1)
        for row in range(6):
            for column in range(4):
                looks = torch.softmax(query[image, :, row, column] @ keys, 0)
                expected[image, :, row, column] = F.max_pool2d(value[image], 2).flatten(1) @ looks
    torch.testing.assert_close(attention(x), x + 0.5 * attention.out(expected))


@pytest.mark.parametrize(("size", "of_path"), [(16, 16), (28, 28), (64, 32), (112, 28)])
def test_a_linear_path_adds_an_image_of_at_most_32_pixels_before_the_tanh(size: int, of_path: int) -> None:
    plain = BigGANGenerator(size, 3, 5, 12, 6, (8, 8)).eval()
    network = BigGANGenerator(size, 3, 5, 12, 6, (8, 8), linear_path=True).eval()
    assert not network.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    latents, labels = torch.randn(3, 12), torch.arange(3)
    assert torch.equal(network(latents, labels), plain(latents, labels))  # it starts at 0
    network.path.weight.data.normal_(std=0.3)
    network.path.bias.data.fill_(0.2)
    added = torch.atanh(network(latents, labels).double()) - torch.atanh(plain(latents, labels).double())
    small = F.linear(latents / 12**0.5, network.path.weight, network.path.bias).view(3, 3, of_path, of_path)
    expected = F.interpolate(small, size=(size, size), mode="bilinear")
    torch.testing.assert_close(added.float(), expected, atol=1e-3, rtol=0)  # atanh is steep where a tanh is near 1


def test_a_fitted_path_makes_images_that_are_linear_in_their_latents() -> None:
    network = BigGANGenerator(16, 1, 5, 12, 6, (8, 8), linear_path=True).eval()
    latents, labels = torch.randn(100, 12), torch.randint(5, (100,))
    images = torch.tanh(0.2 * (latents @ torch.randn(12, 256)).view(100, 1, 16, 16)).clamp(-0.9, 0.9)
    network.fit_path(latents, labels, images)
    with torch.no_grad():
        error = (network(latents, labels) - images).square().mean() / images.var()
        network.out_conv.weight.zero_()
        alone = (network(latents, labels) - images).square().mean() / images.var()
    # Clamping and the ridge leave a few thousandths; what the blocks say of the images is a share of .03, and undone.
    assert error < 0.02 and alone < 0.05


@pytest.mark.parametrize(("size", "of_path"), [(66, 33), (64, 32), (48, 24)])
def test_a_path_that_makes_smaller_images_is_fitted_to_their_areas_means(size: int, of_path: int) -> None:
    network = BigGANGenerator(size, 3, 5, 12, 6, (8,), linear_path=True).eval()
    assert network.path.out_features == 3 * of_path**2
    latents, labels = torch.randn(40, 12), torch.randint(5, (40,))
    small = 0.2 * (latents @ torch.randn(12, 3 * of_path**2)).view(40, 3, of_path, of_path)
    large = F.interpolate(small, scale_factor=2).clamp(-2, 2)
    rough = 0.3 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(of_path, of_path)  # nothing of it is in the means
    network.fit_path(latents, labels, torch.tanh(large + rough))
    straight = F.linear(latents / 12**0.5, network.path.weight, network.path.bias).view_as(small)
    with torch.no_grad():
        own = network(latents, labels).atanh() - F.interpolate(straight, size=(size, size), mode="bilinear")
    own = F.interpolate(own, size=(of_path, of_path), mode="area")
    missing = small.clamp(-2, 2) - own
    # Clamping to .97 and what the blocks say that is not linear in a latent leave some of it.
    assert (straight - missing).square().mean() < 0.05 * missing.var()


def test_a_generator_without_a_path_refuses_to_fit_it() -> None:
    with pytest.raises(ValueError, match="no linear path"):
        generator().fit_path(torch.randn(2, 8), torch.tensor([0, 1]), torch.zeros(2, 1, 8, 8))


def test_an_undivided_latent_reaches_the_first_layer_only() -> None:
    network = BigGANGenerator(16, 3, 5, 7, 6, (8, 8), hierarchical=False)
    assert network.linear.in_features == 7 and network.blocks[0].norm1.gain.in_features == 6
    assert network(torch.randn(3, 7), torch.arange(3)).shape == (3, 3, 16, 16)


def test_checkpointing_gives_the_same_gradients_and_counts_no_batch_twice() -> None:
    network, inputs = generator(16, 2), (torch.randn(4, 12), torch.arange(4))
    plain = torch.autograd.grad(network.eval()(*inputs).sum(), list(network.parameters()))
    network.enable_gradient_checkpointing()
    checkpointed = torch.autograd.grad(network(*inputs).sum(), list(network.parameters()))
    assert all(torch.equal(one, two) for one, two in zip(plain, checkpointed, strict=True))
    network.train()(*inputs).sum().backward()
    once = network.blocks[0].norm1.running_mean.clone()
    network.disable_gradient_checkpointing()
    network.blocks[0].norm1.running_mean.zero_()
    network(*inputs).sum().backward()
    assert torch.equal(once, network.blocks[0].norm1.running_mean)


def test_bfloat16_is_close() -> None:
    network, (latents, labels) = generator(16, 2, 3).eval(), (torch.randn(4, 12), torch.arange(4))
    low = network(latents, labels), network.to(torch.bfloat16)(latents.bfloat16(), labels).float()
    assert (low[0] - low[1]).abs().mean() < 0.01  # 8 bits of mantissa through 11 layers: seen .0025


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot make 30 px"):
        generator(30, 2)
    with pytest.raises(ValueError, match="not a multiple of the 3 chunks"):
        BigGANGenerator(16, latent_dim=64, block_out_channels=(8, 8))
    with pytest.raises(ValueError, match="none of the sides"):
        BigGANGenerator(16, latent_dim=6, block_out_channels=(8, 8), attention_resolution=4)


def straightforward(network: BigGANGenerator, latents: Tensor, labels: Tensor) -> Tensor:
    """The published forward, one operation a line, in eval mode."""
    weights = network.state_dict()

    def norm(x: Tensor, name: str, condition: Tensor | None) -> Tensor:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-4).sqrt()
        if condition is None:
            return x * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]
        gain = 1 + condition @ weights[f"{name}.gain.weight"].T
        return x * gain[:, :, None, None] + (condition @ weights[f"{name}.bias.weight"].T)[:, :, None, None]

    chunks = latents.chunk(3, dim=1)
    x = (chunks[0] @ weights["linear.weight"].T + weights["linear.bias"]).view(len(latents), 8, 4, 4)
    for number in range(2):
        condition = torch.cat([weights["class_embedding.weight"][labels], chunks[number + 1]], 1)
        block = f"blocks.{number}"
        h = F.relu(norm(x, f"{block}.norm1", condition)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = F.conv2d(h, weights[f"{block}.conv1.weight"], weights[f"{block}.conv1.bias"], padding=1)
        h = F.relu(norm(h, f"{block}.norm2", condition))
        h = F.conv2d(h, weights[f"{block}.conv2.weight"], weights[f"{block}.conv2.bias"], padding=1)
        up = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = h + F.conv2d(up, weights[f"{block}.skip.weight"], weights[f"{block}.skip.bias"])
    x = F.relu(norm(x, "out_norm", None))
    return F.conv2d(x, weights["out_conv.weight"], weights["out_conv.bias"], padding=1).tanh()


def test_the_forward_matches_a_straightforward_transcription() -> None:
    network = generator(16, 2).eval()
    for module in network.modules():  # statistics and affine parts that matter
        if isinstance(module, ConditionalBatchNorm | torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    latents, labels = torch.randn(4, 12), torch.tensor([0, 1, 4, 4])
    torch.testing.assert_close(network(latents, labels), straightforward(network, latents, labels))


def test_standing_statistics_are_the_average_over_the_batches() -> None:
    network = generator()
    batches = [(torch.randn(50, 8), torch.randint(5, (50,))) for _ in range(4)]
    set_standing_statistics(network, batches)
    inputs = torch.stack([network.linear(latents[:, :4]).view(50, 8, 4, 4) for latents, _ in batches])
    torch.testing.assert_close(network.blocks[0].norm1.running_mean, inputs.mean((0, 1, 3, 4)), atol=1e-5, rtol=1e-4)
    variances = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in inputs])
    torch.testing.assert_close(network.blocks[0].norm1.running_var, variances.mean(0))
    assert not network.training


def test_it_survives_save_pretrained_bit_for_bit(tmp_path) -> None:
    network = generator(channels=3).eval()
    network.blocks[0].norm1.running_mean.normal_()
    network.save_pretrained(tmp_path)
    again = BigGANGenerator.from_pretrained(tmp_path)
    latents, labels = torch.randn(3, 8), torch.tensor([0, 1, 2])
    assert torch.equal(network(latents, labels), again(latents, labels)) and not again.training


@pytest.mark.parametrize("size", [4, 8, 28, 32])
def test_the_discriminator_is_spectrally_normalised_and_sees_the_class(size: int) -> None:
    network = ProjectionDiscriminator(size, 1, 5, width=8)
    images, labels = torch.randn(6, 1, size, size), torch.arange(6) % 5
    for _ in range(100):  # lets the power iterations converge
        network(images, labels)
    network.eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear | torch.nn.Embedding):
            # 5 %: power iteration approaches the largest singular value from below
            assert torch.linalg.matrix_norm(module.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(network(images, labels), network(images, labels.roll(1)))
