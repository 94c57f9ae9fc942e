import pytest
import torch
import torch.nn.functional as F

from gencond.generator.pixels import Pixels, decode, pack


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


def test_pixels_are_images_by_class_and_slot_with_gradient() -> None:
    start = torch.randn(6, 1, 4, 4)
    pixels = Pixels(start, ipc=2)
    images = pixels(torch.tensor([2, 0]), torch.tensor([1, 0]))
    assert torch.equal(images, start[[5, 0]])
    images.sum().backward()
    assert pixels.images.grad.flatten(1).sum(1).tolist() == [16, 0, 0, 0, 0, 16]
    with pytest.raises(ValueError, match="slot 2 of a bank that holds 2"):
        pixels(torch.tensor([0]), torch.tensor([2]))
    with pytest.raises(ValueError, match="no whole number of classes"):
        Pixels(start, ipc=4)


def test_clamping_brings_pixels_into_range_and_starting_values_are_not_touched() -> None:
    start = torch.full((2, 1, 2, 2), 3.0)
    pixels = Pixels(start, ipc=1)
    pixels.clamp_()
    assert (pixels.images == 1).all() and (start == 3).all()
