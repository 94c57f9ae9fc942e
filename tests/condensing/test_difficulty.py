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


def of(data: LabeledImages, cache: Path, seed: int = 0, num_steps: int = 60) -> Tensor:
    maker = ExtractorMaker(make, *data.mean_std)
    return Ranking(maker, "convnet", num_steps, "crop", seed).difficulties(data, cache)


def test_images_under_a_false_label_are_the_hardest(few_digits: LabeledImages, tmp_path: Path) -> None:
    labels = few_digits.labels.clone()
    is_false = torch.arange(len(labels)) % 20 == 0
    labels[is_false] = (labels[is_false] + 5) % 10
    losses = of(replace(few_digits, labels=labels), tmp_path)
    assert losses.shape == labels.shape and bool((losses >= 0).all())
    assert losses[is_false].median() > losses[~is_false].quantile(0.9)


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
