import math

import pytest
import torch
import torch.nn.functional as F

from gencond.augment import Augmentation, AugmentParams
from gencond.errors import InputError

ALL = "color_crop_cutout_flip_scale_rotate"


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
