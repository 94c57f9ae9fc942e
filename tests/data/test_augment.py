import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gencond.common.errors import InputError
from gencond.data.augment import Augmentation, AugmentParams

ALL = "color_crop_cutout_flip_scale_rotate"
# What the code that DSA and DM (VICO-UoE/DatasetCondensation at 53f63a6) and IDC (snu-mllab/
# Efficient-Dataset-Condensation at ceac95a) released gives for these images, with the uniform numbers in [0, 1], shifts
# and offsets in pixels that it drew; run with torch 2.14, whose linear maps about the center are those of its own 1.2.
RELEASED = np.load(Path(__file__).parent.parent / "golden" / "released_code.npz")
TO_RESAMPLING = {"atol": 2e-5, "rtol": 0}  # positions of a pixel in float32, 1e-6 of the side, times differences of 4


def neutral(n: int) -> AugmentParams:
    return AugmentParams(
        torch.eye(2, 3).repeat(n, 1, 1), torch.zeros(n), torch.ones(n), torch.ones(n), torch.zeros(n, 4)
    )


def images(n: int = 4, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_neutral_parameters_leave_images_as_they_are() -> None:
    x = images()
    # 1e-5: resampling at exact pixel centers, in float32
    torch.testing.assert_close(Augmentation(ALL, 16)(x, neutral(4)), x, atol=1e-5, rtol=0)


def test_crop_is_a_whole_pixel_shift_that_moves_the_mean_colour_in() -> None:
    x = images(1)
    params = neutral(1)
    params.theta[0, :, 2] = torch.tensor([2, -1]) * (2 / 16)  # reads 2 pixels to the right, 1 above
    mean = (0.3, -0.2, 0.1)
    shifted = Augmentation("crop", 16, mean=mean)(x, params)
    expected = torch.tensor(mean).view(1, 3, 1, 1).expand_as(x).clone()
    expected[:, :, 1:, :-2] = x[:, :, :-1, 2:]
    torch.testing.assert_close(shifted, expected, atol=1e-5, rtol=0)


def test_flip_mirrors_left_and_right() -> None:
    x = images(1)
    params = neutral(1)
    params.theta[:, :, 0] *= -1
    torch.testing.assert_close(Augmentation("flip", 16)(x, params), x.flip(-1), atol=1e-5, rtol=0)


def test_color_matches_the_three_published_operations_in_order() -> None:
    x = images(2)
    params = neutral(2)._replace(
        brightness=torch.tensor([0.3, -0.1]), saturation=torch.tensor([0.5, 1.7]), contrast=torch.tensor([0.8, 1.3])
    )
    expected = []
    for image, b, s, c in zip(x, params.brightness, params.saturation, params.contrast, strict=True):
        image = image + b
        image = (image - image.mean(0)) * s + image.mean(0)
        expected.append((image - image.mean()) * c + image.mean())
    torch.testing.assert_close(Augmentation("color", 16)(x, params), torch.stack(expected))


def test_cutout_blanks_a_box() -> None:
    x = images(1) + 5
    params = neutral(1)._replace(cutout=torch.tensor([[2.0, 0.0, 10.0, 8.0]]))
    cut = Augmentation("cutout", 16)(x, params)
    assert (cut[0, :, 2:10, 0:8] == 0).all()
    assert (cut == 0).sum() == 3 * 8 * 8


def test_cutout_boxes_lie_inside_and_have_up_to_half_the_side() -> None:
    boxes = Augmentation("cutout", 16).draw(500, torch.Generator().manual_seed(0)).cutout
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0 and boxes.max() <= 16
    assert sides.max() == 8 and sides.min() >= 4  # a center on the border leaves half of the box


def test_rotation_and_scale_stay_within_their_ranges() -> None:
    rng = torch.Generator().manual_seed(0)
    rotation = Augmentation("rotate", 16).draw(500, rng).theta
    angle = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0]).abs()
    assert angle.max() <= math.radians(15) and angle.max() > math.radians(14)
    scale = Augmentation("scale", 16).draw(500, rng).theta
    factors = torch.stack([scale[:, 0, 0], scale[:, 1, 1]])
    assert factors.min() >= 1 / 1.2 and factors.max() <= 1.2
    assert (scale[:, 0, 0] != scale[:, 1, 1]).any()  # the two axes are drawn apart


def test_rotation_matches_affine_resampling_of_a_single_image() -> None:
    augmentation = Augmentation("rotate", 16)
    params = augmentation.draw(3, torch.Generator().manual_seed(5))
    x = images(3)
    for row in range(3):
        grid = F.affine_grid(params.theta[row : row + 1], [1, 3, 16, 16], align_corners=False)
        alone = F.grid_sample(x[row : row + 1], grid, align_corners=False)
        torch.testing.assert_close(augmentation(x, params)[row : row + 1], alone)


def test_by_default_an_image_goes_through_one_operation() -> None:
    params = Augmentation(ALL, 32).draw(600, torch.Generator().manual_seed(0))
    touched = torch.stack([
        (params.theta != torch.eye(2, 3)).flatten(1).any(1),
        params.saturation != 1,
        (params.cutout != 0).any(1),
    ])  # fmt: skip
    assert (touched.sum(0) <= 1).all()
    # six equally likely operations: color is drawn 100 times of 600, 5 sigma = 46
    assert abs(int(touched[1].sum()) - 100) < 46


def test_mode_all_applies_all_operations_to_every_image() -> None:
    params = Augmentation("color_cutout_rotate", 32, mode="all").draw(50, torch.Generator().manual_seed(0))
    assert (params.saturation != 1).all() and (params.cutout[:, 2] > 0).all() and (params.theta[:, 0, 1] != 0).all()


def test_mode_idc_always_colours_and_cuts_and_draws_one_resampling() -> None:
    params = Augmentation("color_crop_cutout_scale_rotate", 32, mode="idc").draw(300, torch.Generator().manual_seed(0))
    assert (params.saturation != 1).all() and (params.cutout[:, 2] > 0).all()
    shifted = (params.theta[:, :, 2] != 0).any(1)
    rotated = params.theta[:, 0, 1] != 0
    scaled = (params.theta[:, 0, 0] != 1) & ~rotated
    assert ((shifted.int() + rotated.int() + scaled.int()) <= 1).all()
    assert min(int(each.sum()) for each in (shifted, rotated, scaled)) > 60  # a third each, 5 sigma


def test_one_draw_serves_two_batches_alike() -> None:
    augmentation = Augmentation(ALL, 16)
    params = augmentation.draw(4, torch.Generator().manual_seed(1))
    x, y = images(4), images(4).flip(0)
    both = augmentation(torch.cat([x, y]), AugmentParams(*(torch.cat([field, field]) for field in params)))
    torch.testing.assert_close(both, torch.cat([augmentation(x, params), augmentation(y, params)]))


def test_a_share_of_the_draw_is_the_draw_of_the_share() -> None:
    augmentation = Augmentation(ALL, 16)
    params = augmentation.draw(6, torch.Generator().manual_seed(1))
    x = images(6)
    torch.testing.assert_close(augmentation(x[2:5], params.rows(slice(2, 5))), augmentation(x, params)[2:5])


@pytest.mark.parametrize("operation", ALL.split("_"))
def test_gradient_matches_finite_differences(operation: str) -> None:
    augmentation = Augmentation(operation, 8)
    params = augmentation.draw(2, torch.Generator().manual_seed(2))
    params = AugmentParams(*(field.double() for field in params))
    x = images(2, size=8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augmentation(x, params), x)


def test_no_strategy_returns_the_images() -> None:
    x = images()
    augmentation = Augmentation("none", 16)
    assert augmentation(x, augmentation.draw(4, torch.Generator())) is x


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(InputError, match="'blur'"):
        Augmentation("crop_blur", 16)


# --- held against the released code --------------------------------------------------------------------------------


def released(name: str) -> torch.Tensor:
    return torch.from_numpy(RELEASED[name])


def moved(operation: str, amounts: torch.Tensor) -> torch.Tensor:
    """What the released code does to the coordinates of 12 px images, from what it drew."""
    theta = torch.eye(2, 3).repeat(4, 1, 1)
    if operation == "scale":
        theta[:, 0, 0], theta[:, 1, 1] = amounts * (1.2 - 1 / 1.2) + 1 / 1.2
    elif operation == "rotate":
        angle = (amounts[0] - 0.5) * 2 * math.radians(15)
        theta[:, :, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    else:
        theta[:, :, 2] = amounts.flip(0).T * (2 / 12)  # rows come first there, columns here
    return theta


def coloured(params: AugmentParams, uniform: torch.Tensor) -> AugmentParams:
    return params._replace(brightness=uniform[0] - 0.5, saturation=uniform[1] * 2, contrast=uniform[2] + 0.5)


def cut_out(offset: torch.Tensor, size: int) -> torch.Tensor:
    """Boxes of half the side around drawn centers."""
    side = int(size * 0.5 + 0.5)
    return torch.cat([(offset.T - side // 2).clamp(0), (offset.T - side // 2 + side).clamp(max=size)], 1).float()


@pytest.mark.parametrize("operation", ["scale", "rotate", "crop"])
def test_moves_are_those_of_the_released_code(operation: str) -> None:
    drawn = released(f"dsa_{operation}_shift" if operation == "crop" else f"dsa_{operation}_uniform")
    given = neutral(4)._replace(theta=moved(operation, drawn))
    found = Augmentation(operation, 12)(released("images"), given)
    torch.testing.assert_close(found, released(f"dsa_{operation}"), **TO_RESAMPLING)


def test_colours_and_flips_are_those_of_the_released_code() -> None:
    x = released("images")
    found = Augmentation("color", 12)(x, coloured(neutral(4), released("dsa_color_uniform")))
    torch.testing.assert_close(found, released("dsa_color"))
    flipped = neutral(4)
    flipped.theta[released("dsa_flip_uniform")[0] < 0.5, :, 0] *= -1
    torch.testing.assert_close(Augmentation("flip", 12)(x, flipped), released("dsa_flip"), **TO_RESAMPLING)


@pytest.mark.parametrize("size", [12, 10])  # boxes of an even and of an odd side
def test_boxes_that_are_cut_out_are_those_of_the_released_code(size: int) -> None:
    gone, offset = released(f"dsa_cutout_{size}"), released(f"dsa_cutout_{size}_offset")
    given = neutral(len(gone))._replace(cutout=cut_out(offset, size))
    assert torch.equal(Augmentation("cutout", size)(torch.ones(len(gone), 1, size, size), given)[:, 0] == 0, gone)


@pytest.mark.parametrize("operation", ["scale", "rotate", "crop"])
def test_operations_of_idc_come_in_the_order_of_the_released_code(operation: str) -> None:
    """There an image is flipped, coloured, moved and cut out."""
    uniform, theta = released(f"idc_{operation}_uniform"), moved(operation, released(f"idc_{operation}_amount"))
    theta[uniform[0] < 0.5, 0] *= -1  # the flip comes first: it is the last that a coordinate goes through
    given = coloured(neutral(4), uniform[1:])._replace(
        theta=theta, cutout=cut_out(released(f"idc_{operation}_cutout_offset"), 12)
    )
    found = Augmentation(ALL, 12, mode="idc")(released("images"), given)
    torch.testing.assert_close(found, released(f"idc_{operation}"), **TO_RESAMPLING)


@pytest.mark.parametrize("mode", ["idc", "all"])
def test_a_flip_after_a_move_is_one_before_the_opposite_move(mode: str) -> None:
    """So images are flipped last here and first in the released code, and what may be drawn is the same."""
    drawn = Augmentation("flip_rotate", 16, mode=mode).draw(200, torch.Generator().manual_seed(0)).theta
    angle = torch.atan2(drawn[:, 1, 0], drawn[:, 0, 0])
    first = drawn[angle.abs() > math.pi / 2].clone()
    assert 60 < len(first) < 140  # half of 200, 5 sigma
    first[:, 0] *= -1  # undo a flip that came first
    turned = first[:, :, :2]
    torch.testing.assert_close(turned @ turned.transpose(1, 2), torch.eye(2).expand_as(turned))
    assert torch.linalg.det(turned).min() > 0 and turned[:, 0, 0].min() >= math.cos(math.radians(15)) - 1e-6
    assert turned[:, 1, 0].min() < 0 < turned[:, 1, 0].max()


def test_operations_are_as_frequent_as_in_the_released_code() -> None:
    """Its counts of 6000 batches; each is binomial, so two of them differ by 5 sqrt(2 n p (1 - p)) at most."""
    rng = torch.Generator().manual_seed(0)

    def counts(mode: str) -> list[int]:
        params = Augmentation(ALL, 32, mode=mode).draw(6000, rng)
        shifted = (params.theta[:, :, 2] != 0).any(1)
        rotated = params.theta[:, 0, 1] != 0
        scaled = ~rotated & ((params.theta[:, 0, 0] * params.theta[:, 1, 1]).abs() != 1)
        return [int(one.sum()) for one in (params.saturation != 1, shifted, params.cutout[:, 2] > 0, scaled, rotated)]

    crop_moves = 1 - 1 / 9**2  # a shift of up to 4 pixels each way may be none
    color, crop, cutout, _, scale, rotate = RELEASED["dsa_choices_of_6000_batches"].tolist()
    assert np.abs(np.subtract(counts("one"), [color, crop * crop_moves, cutout, scale, rotate])).max() < 5 * 41
    _, always, crop, scale, rotate = RELEASED["idc_choices_of_6000_batches"].tolist()
    found = counts("idc")
    assert found[0] == found[2] == always  # coloured and cut out
    assert np.abs(np.subtract([found[1], *found[3:]], [crop * crop_moves, scale, rotate])).max() < 5 * 52


@pytest.mark.parametrize("mode", ["one_a_batch", "idc_a_batch"])
def test_a_batch_may_share_the_operation_and_not_its_amounts(mode: str) -> None:
    rng = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(15):
        theta = Augmentation("rotate_scale", 16, mode=mode).draw(8, rng).theta
        rotated = theta[:, 0, 1] != 0
        assert rotated.all() or not rotated.any()
        assert len(theta[:, 0, 0].unique()) == 8
        seen.add(bool(rotated[0]))
    assert seen == {True, False}
