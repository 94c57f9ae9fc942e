from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gencond.condensing.difficulty import Ranking
from gencond.condensing.extractors import ExtractorMaker
from gencond.data.images import LabeledImages
from gencond.networks.convnet import ConvNet


def make(seed: int) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(1, 10, 8, width=16, depth=2)


def ranking(data: LabeledImages, seed: int = 0, num_steps: int = 60) -> Ranking:
    return Ranking(ExtractorMaker(make, *data.mean_std), "convnet", num_steps, "crop", seed)


def of(data: LabeledImages, cache: Path, seed: int = 0, num_steps: int = 60) -> Tensor:
    return ranking(data, seed, num_steps).difficulties(data, cache)


def test_images_under_a_false_label_are_the_hardest(few_digits: LabeledImages, tmp_path: Path) -> None:
    data, is_false = some_false(few_digits)
    losses = of(data, tmp_path)
    assert losses.shape == data.labels.shape and bool((losses >= 0).all())
    assert losses[is_false].median() > losses[~is_false].quantile(0.9)


def some_false(data: LabeledImages) -> tuple[LabeledImages, Tensor]:
    """(the images, one in twenty under a false label; which these are)."""
    labels, is_false = data.labels.clone(), torch.arange(len(data)) % 20 == 0
    labels[is_false] = (labels[is_false] + 5) % 10
    return replace(data, labels=labels), is_false


def test_images_under_a_false_label_are_not_learnable(few_digits: LabeledImages, tmp_path: Path) -> None:
    data, is_false = some_false(few_digits)
    _, kept = ranking(data).answers(data, tmp_path)
    assert kept[is_false].float().mean() < 0.2 < 0.9 < kept[~is_false].float().mean()


def test_noise_under_random_labels_is_not_learnt_by_heart(tmp_path: Path) -> None:
    """Three hundred images are seen ten times each, not two hundred times."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 1, 8, 8), generator=rng, dtype=torch.uint8)
    noise = LabeledImages(images, torch.randint(0, 10, (300,), generator=rng), tuple("abcdefghij"))
    judge = ranking(noise, num_steps=400)
    assert judge.brief(len(noise)).num_steps == 24 and judge.brief(100_000) == judge  # 24 * 128 = 10.2 * 300
    assert judge.brief(len(noise)).answers(noise, tmp_path)[1].float().mean() < 0.4


def test_they_are_read_again_bit_for_bit_and_found_anew_for_another_seed_length_or_set(
    few_digits: LabeledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    first = of(few_digits, tmp_path, num_steps=3)
    assert "reusing" not in caplog.text
    assert torch.equal(of(few_digits, tmp_path, num_steps=3), first)
    assert f"reusing those of {len(few_digits)} images" in caplog.text
    assert not torch.equal(of(few_digits, tmp_path, seed=1, num_steps=3), first)
    assert not torch.equal(of(few_digits, tmp_path, num_steps=4), first)
    other = replace(few_digits, images=few_digits.images.flip(-1))
    assert not torch.equal(of(other, tmp_path, num_steps=3), first)
    assert torch.equal(of(few_digits, tmp_path / "elsewhere", num_steps=3), first)
