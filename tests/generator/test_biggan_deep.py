import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gencond.generator.backbone import SelfAttention
from gencond.generator.biggan_deep import BigGANDeepGenerator, StoredNorm, published_config
from gencond.generator.loading import read_model


def generator(attention: int | None = 16, **options) -> BigGANDeepGenerator:
    network = BigGANDeepGenerator(32, 3, 5, 6, 4, (32, 16, 8), attention_resolution=attention, **options).eval()
    rng = torch.Generator().manual_seed(0)
    for module in network.modules():  # statistics, affine parts and attention that matter
        if isinstance(module, StoredNorm):
            module.running_mean.normal_(generator=rng)
            module.running_var.uniform_(0.5, 2, generator=rng)
        if isinstance(module, SelfAttention):
            module.gamma.data.fill_(0.7)
    return network


def latents_and_labels(n: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 6), torch.arange(n) % 5


@pytest.mark.parametrize(("resolution", "parameters"), [(128, 50_244_484), (256, 55_736_708), (512, 56_019_780)])
def test_published_sizes_have_the_published_number_of_parameters(resolution: int, parameters: int) -> None:
    # 50,388,609, 55,880,833 and 56,163,905 are published, of which 144,125 make outputs that nothing looks at
    with torch.device("meta"):
        network = BigGANDeepGenerator(**published_config(resolution))
    assert sum(weight.numel() for weight in network.parameters()) == parameters


def straightforward(network: BigGANDeepGenerator, latents: Tensor, labels: Tensor) -> Tensor:
    """One operation a line: normalise, then gain and bias."""
    weights = network.state_dict()
    condition = torch.cat([weights["class_embedding.weight"][labels], latents], 1)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-4).sqrt()
        if name == "out_norm":
            return F.relu(x * weights["out_norm.weight"][:, None, None] + weights["out_norm.bias"][:, None, None])
        gain = 1 + condition @ weights[f"{name}.gain.weight"].T
        bias = condition @ weights[f"{name}.bias.weight"].T
        return F.relu(x * gain[:, :, None, None] + bias[:, :, None, None])

    def conv(x: Tensor, name: str) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def up(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = (condition @ weights["linear.weight"].T + weights["linear.bias"]).view(len(latents), 32, 4, 4)
    for number, outputs in enumerate((32, 32, 32, 16, 16, 8)):
        h = norm(conv(norm(x, f"blocks.{number}.norm1"), f"blocks.{number}.conv1"), f"blocks.{number}.norm2")
        h, x = (up(h), up(x)) if number % 2 else (h, x)
        h = norm(conv(h, f"blocks.{number}.conv2"), f"blocks.{number}.norm3")
        h = norm(conv(h, f"blocks.{number}.conv3"), f"blocks.{number}.norm4")
        x = x[:, :outputs] + conv(h, f"blocks.{number}.conv4")
        if number == 3:  # 16 px
            query, key, value = (conv(x, f"attention.{part}") for part in ("query", "key", "value"))
            key, value = F.max_pool2d(key, 2).flatten(2), F.max_pool2d(value, 2).flatten(2)
            looks = torch.softmax(query.flatten(2).transpose(1, 2) @ key, -1)
            attended = (value @ looks.transpose(1, 2)).view(len(x), -1, 16, 16)
            x = x + weights["attention.gamma"] * conv(attended, "attention.out")
    return conv(norm(x, "out_norm"), "out_conv").tanh()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_forward_matches_a_straightforward_transcription(memory_format: torch.memory_format) -> None:
    network = generator()
    latents, labels = latents_and_labels()
    expected = straightforward(network, latents, labels)
    # the multiply-add rounds differently; signals here are of size 1 to 100
    torch.testing.assert_close(network.to(memory_format=memory_format)(latents, labels), expected, atol=2e-5, rtol=1e-4)


def test_train_mode_changes_nothing() -> None:
    network, inputs = generator(), latents_and_labels()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert torch.equal(network(*inputs), network.train()(*inputs))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_checkpointing_gives_the_same_images_and_gradients_and_keeps_less() -> None:
    network, inputs = generator(), latents_and_labels()
    kept, gradients, images = [], [], []
    for _ in range(2):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            images.append(network(*inputs))
        gradients.append(torch.autograd.grad(images[-1].square().sum(), list(network.parameters())))
        kept.append(sum(sizes))
        network.enable_gradient_checkpointing()
    assert torch.equal(*images) and all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 2


def test_bfloat16_is_close() -> None:
    network, (latents, labels) = generator(), latents_and_labels()
    full = network(latents, labels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(latents, labels)
    low = network.to(torch.bfloat16)(latents.bfloat16(), labels)
    for images in (mixed, low):
        # 8 bits of mantissa through 26 layers: seen .006 on average, in a range of 2
        assert images.dtype == torch.bfloat16 and (images.float() - full).abs().mean() < 0.02


def test_it_survives_save_pretrained_bit_for_bit(tmp_path) -> None:
    network, inputs = generator(truncation=0.4), latents_and_labels()
    network.save_pretrained(tmp_path)
    again = read_model(BigGANDeepGenerator, tmp_path, "a generator")
    assert torch.equal(network(*inputs), again(*inputs)) and again.config.truncation == 0.4


def test_samples_follow_the_random_state_and_the_truncation() -> None:
    network = generator(truncation=0.5)

    def drawn(**options) -> Tensor:
        return network.sample([3, 0, 3], rng=torch.Generator().manual_seed(1), **options)

    images = drawn()
    assert images.shape == (3, 3, 32, 32) and 0 <= images.min() and images.max() <= 1 and not images.requires_grad
    assert torch.equal(images, drawn()) and torch.equal(images, drawn(truncation=0.5))
    assert not torch.equal(images, drawn(truncation=1.0)) and not torch.equal(images[0], images[2])


@pytest.mark.parametrize(
    ("labels", "truncation", "message"),
    [
        ([5], None, "0 .. 4"),
        ([-1], None, "0 .. 4"),
        (torch.tensor([[1]]), None, "list of class"),
        ([1], 1.5, "at most 1, not 1.5"),
    ],
)
def test_what_cannot_be_sampled_is_explained(labels: list | Tensor, truncation: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator().sample(labels, truncation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_size": 30}, "cannot make 30 px"),
        ({"block_out_channels": (8, 16, 32)}, "keeps or drops channels"),
        ({"block_out_channels": (32, 16, 6)}, None),
        ({"block_out_channels": (32, 30, 6)}, "in multiples of 4"),
        ({"attention_resolution": 4}, r"none of the sides that blocks make: \[8, 16, 32\]"),
        ({"attention_resolution": 32, "block_out_channels": (32, 16, 12)}, "a multiple of 8 channels, not 12"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict, message: str | None) -> None:
    arguments = {"sample_size": 32, "block_out_channels": (32, 16, 8)} | arguments
    if message is None:
        BigGANDeepGenerator(**arguments)
    else:
        with pytest.raises(ValueError, match=message):
            BigGANDeepGenerator(**arguments)
