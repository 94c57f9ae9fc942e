import numpy as np
import pytest
import torch

from gencond.generator.dataset import CondensedDataset
from gencond.generator.transform import TransformGenerator

NAMES = ["ant", "bee", "cat"]


def photographs(count: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    """Smooth pictures in [-1, 1] whose squares are alike."""
    rng = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, channels, 3, 3, generator=rng) * 1.8 - 0.9
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


def with_squares(factor: int = 1) -> CondensedDataset:
    torch.manual_seed(4)
    config = {
        "_class_name": "TransformGenerator", "sample_size": 12, "out_channels": 1, "num_class_embeds": 3,
        "latent_dim": 9 * 5, "square": 4, "width": 8,
    }  # fmt: skip
    condensed = CondensedDataset(NAMES, config, 2, factor=factor, by_parts=factor > 1, fresh="mixed").eval()
    torch.nn.init.normal_(condensed.generator.mend_out.weight, std=0.01)
    return condensed


def test_images_of_all_their_numbers_are_the_images() -> None:
    images = photographs(40, channels=3)
    generator = TransformGenerator(8, 3, 4, latent_dim=4 * 48, square=4)
    squares = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4)
    numbers = generator.fit(squares, step=0.3)
    latents = numbers.unflatten(0, (40, 4)).transpose(1, 2).flatten(1)
    made = generator(latents, torch.zeros(40, dtype=torch.int64))
    torch.testing.assert_close(made, images, atol=1e-4, rtol=0)  # an orthonormal basis, in float32


def test_the_first_numbers_say_as_much_as_so_many_numbers_can() -> None:
    pieces = photographs(60)[:, :, :4, :4]
    generator = TransformGenerator(4, 1, 2, latent_dim=5, square=4)
    numbers = generator.fit(pieces, step=0.25)
    with torch.no_grad():
        made = generator(numbers, torch.zeros(60, dtype=torch.int64))
    pixels = pieces.flatten(1).double().numpy()
    centered = pixels - pixels.mean()
    _, singular, axes = np.linalg.svd(centered, full_matrices=False)
    best = centered @ axes[:5].T @ axes[:5] + pixels.mean()
    np.testing.assert_allclose(made.flatten(1).numpy(), best.clip(-1, 1), atol=1e-4)
    # A step in one number is a step in the image, and numbers come in the order of what they say.
    np.testing.assert_allclose(generator.transform.weight.flatten(1).norm(dim=1).detach(), 0.25, rtol=1e-5)
    np.testing.assert_allclose(numbers.double().square().sum(0).sqrt() * 0.25, singular[:5], rtol=1e-4)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_piece_of_a_latent_rules_its_own_square_of_the_image(factor: int) -> None:
    condensed = with_squares(factor)
    side = 12 * factor
    label, slot = torch.tensor([1]), torch.tensor([0])
    before = condensed(label, slot)[0, 0]
    numbered = torch.arange(side * side).view(1, 1, side, side).float()
    squares = condensed.cut(numbered).long()  # where each piece's square lies
    assert sorted(squares.flatten().tolist()) == list(range(side * side)) and squares.shape[1:] == (1, 4, 4)
    for number, square in enumerate(squares):
        part, place = divmod(number, 9)
        with torch.no_grad():
            codes = condensed.codes.learned.view(-1, factor**2, 5, 9)
            kept = codes[2, part, :, place].clone()
            codes[2, part, :, place] += 3
            moved = (condensed(label, slot)[0, 0] - before).abs()
            codes[2, part, :, place] = kept
        inside = torch.zeros(side * side, dtype=torch.bool)
        inside[square.flatten()] = True
        rows, columns = (inside.view(side, side).any(dim).nonzero()[:, 0] for dim in (1, 0))
        reach = torch.zeros(side, side, dtype=torch.bool)  # three convolutions look three pixels past the border
        reach[max(rows[0] - 3, 0) : rows[-1] + 4, max(columns[0] - 3, 0) : columns[-1] + 4] = True
        assert moved[inside.view(side, side)].mean() > 2 * moved[~inside.view(side, side)].mean()
        assert not moved[~reach].any()


def test_the_class_is_known_to_what_mends() -> None:
    condensed = with_squares()
    latents = torch.zeros(2, 45)
    with torch.no_grad():
        one, other = condensed.generator(latents, torch.tensor([0, 1]))
        assert torch.equal(one, other)  # at first there is nothing to know
        condensed.generator.class_embedding.weight[1] += 1
        one, other = condensed.generator(latents, torch.tensor([0, 1]))
    assert not torch.equal(one, other)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="squares of 5 px do not fill 12 px images"):
        TransformGenerator(12, 1, 3, latent_dim=9, square=5)
    with pytest.raises(ValueError, match="latent_dim 10 is not a multiple of the 9 squares"):
        TransformGenerator(12, 1, 3, latent_dim=10, square=4)
    with pytest.raises(ValueError, match="a square of 4 px has 16 numbers, not 17"):
        TransformGenerator(12, 1, 3, latent_dim=17 * 9, square=4)
