from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import gencond
from gencond.common.errors import InputError
from gencond.generator.packing import decode, pack
from gencond.generator.pixels import CondensedPixels


def test_decoding_by_two_upsamples_the_four_quarters_in_reading_order() -> None:
    images = torch.randn(3, 2, 8, 8)
    quarters = [images[..., :4, :4], images[..., :4, 4:], images[..., 4:, :4], images[..., 4:, 4:]]
    expected = torch.stack([F.interpolate(quarter, size=(8, 8), mode="bilinear") for quarter in quarters], 1)
    assert torch.equal(decode(images, 2), expected.flatten(0, 1))
    assert decode(images, 1) is images


def test_a_side_that_does_not_divide_is_padded_with_mid_grey() -> None:
    decoded = decode(torch.ones(1, 1, 7, 7), 2)
    assert decoded.shape == (4, 1, 7, 7)
    torch.testing.assert_close(decoded[0], torch.ones(1, 7, 7))
    assert decoded[3, 0, -1, -1].item() == pytest.approx(0, abs=1e-6) and decoded[3, 0, 0, 0].item() == pytest.approx(1)


def test_packing_is_undone_by_decoding_but_for_resolution() -> None:
    flat = torch.rand(2, 4, 3, 1, 1).expand(-1, -1, -1, 8, 8)  # images of one colour lose nothing
    decoded = decode(pack(flat, 2), 2).view(2, 4, 3, 8, 8)
    torch.testing.assert_close(decoded, flat)
    with pytest.raises(ValueError, match="3 images cannot be packed by factor 2"):
        pack(torch.zeros(1, 3, 1, 4, 4), 2)


NAMES = ("ant", "bee", "cat")


def bank(factor: int = 1, **space) -> CondensedPixels:
    """Two images of each of three classes."""
    pixels = CondensedPixels(NAMES, 2, 4, 1, factor, **space)
    pixels.fill_(torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    return pixels


def test_pixels_are_images_by_class_and_slot_with_gradient() -> None:
    pixels = bank()
    images = pixels(torch.tensor([2, 0]), torch.tensor([1, 0]))
    assert torch.equal(images, pixels.pixels[[5, 0]])
    images.sum().backward()
    assert pixels.pixels.grad.flatten(1).sum(1).tolist() == [16, 0, 0, 0, 0, 16]
    with pytest.raises(ValueError, match="slot 2 of a bank that holds 2"):
        pixels(torch.tensor([0]), torch.tensor([2]))


def test_the_learned_space_changes_the_values_and_not_the_images() -> None:
    plain, normalised = bank(), bank(offset=(0.3,), scale=(0.5,))
    every = torch.arange(3).repeat_interleave(2), torch.arange(2).repeat(3)
    torch.testing.assert_close(plain(*every), normalised(*every))
    torch.testing.assert_close(normalised.pixels * 0.5 + 0.3, plain.pixels)


def test_clamping_brings_pixels_into_the_range_of_images() -> None:
    pixels = bank(offset=(0.3,), scale=(0.5,))
    pixels.fill_(torch.full((6, 1, 4, 4), 3.0))
    assert float(pixels.sample(1)[0].max()) == 1.0  # what is sampled is an image all the same
    pixels.clamp_()
    torch.testing.assert_close(pixels.pixels, torch.full((6, 1, 4, 4), (1 - 0.3) / 0.5))


def test_a_bank_samples_as_a_generator_does_up_to_its_ipc(tmp_path: Path) -> None:
    bank().save_pretrained(tmp_path / "bank")
    pixels = gencond.load(tmp_path / "bank")
    assert isinstance(pixels, CondensedPixels) and pixels.num_bytes > 4 * 6 * 16
    images, labels = pixels.sample(2)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and 0 <= float(images.min()) <= float(images.max()) <= 1
    torch.testing.assert_close(images, (pixels.pixels + 1) / 2)
    assert torch.equal(pixels.sample(1, classes=["cat"])[0], images[[4]])
    assert len(pixels.as_dataset(2)) == 6
    pixels.export(tmp_path / "out", 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == list(NAMES)
    with pytest.raises(InputError, match="holds 2 images of each class: IPC 3 is more"):
        pixels.sample(3)
    with pytest.raises(InputError, match="makes no others"):
        pixels.stream()


def test_a_factor_gives_its_square_of_images_for_each_that_is_counted() -> None:
    pixels = bank(factor=2)
    images, labels = pixels.sample(2)
    assert images.shape == (24, 1, 4, 4) and labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    torch.testing.assert_close(images, ((decode(pixels.pixels.detach(), 2) + 1) / 2).clamp(0, 1))
    assert torch.equal(pixels.sample(1)[0], torch.cat([images[start : start + 4] for start in (0, 8, 16)]))
