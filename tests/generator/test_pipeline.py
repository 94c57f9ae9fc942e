"""An artefact as a pipeline of diffusers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gencond
from gencond.common.errors import InputError
from gencond.common.ranges import to_uint8

CHECKPOINTS = Path(__file__).parent.parent.parent / "checkpoints"


@pytest.fixture(scope="module")
def pipeline() -> gencond.CondensedPipeline:
    """Of CIFAR-10, cut into four: four images in one."""
    return gencond.CondensedPipeline(gencond.load(CHECKPOINTS / "cifar10"))


def test_classes_become_pictures_in_the_order_asked_for(pipeline: gencond.CondensedPipeline) -> None:
    made = pipeline(class_labels=["ship", 0], num_images_per_class=3)
    images, _ = pipeline.condensed.sample(1, ["ship", 0])
    assert made.class_labels == [8, 8, 8, 0, 0, 0]
    expected = to_uint8(images)[[0, 1, 2, 4, 5, 6]].permute(0, 2, 3, 1).numpy()
    assert isinstance(made.images, list) and all(isinstance(image, Image.Image) for image in made.images)
    assert np.array_equal(np.stack([np.asarray(image) for image in made.images]), expected)


def test_fewer_images_are_the_first_of_more_in_every_kind_of_output(pipeline: gencond.CondensedPipeline) -> None:
    many = pipeline(class_labels=[1], num_images_per_class=9, output_type="pt").images
    assert torch.equal(pipeline([1], 5, output_type="pt").images, many[:5]) and many.shape == (9, 3, 32, 32)
    arrays = pipeline([1], 5, output_type="np").images
    assert np.array_equal(arrays, many[:5].permute(0, 2, 3, 1).numpy())
    assert torch.equal(pipeline([1], 5, output_type="pt", return_dict=False)[0], many[:5])
    assert len(pipeline().images) == 10
    assert pipeline(8).class_labels == pipeline("ship").class_labels == [8]


def test_a_generator_seeds_what_comes_after_the_learned_codes() -> None:
    condensed = gencond.load(CHECKPOINTS / "digits")
    pipeline, count = gencond.CondensedPipeline(condensed), condensed.num_slots + 2
    plain, seeded, again = (
        pipeline([4], count, generator=seed and torch.Generator().manual_seed(seed), output_type="pt").images
        for seed in (None, 7, 7)
    )
    assert torch.equal(seeded, again) and torch.equal(seeded[:-2], plain[:-2]) and not torch.equal(seeded, plain)
    assert pipeline([4]).images[0].mode == "L"


@pytest.mark.parametrize("name", ["digits", "cifar10_1mbit"])
def test_what_is_saved_comes_back_by_the_pipeline_and_by_load(name: str, tmp_path: Path) -> None:
    """Also an artefact of coded whole numbers, which diffusers itself could not read."""
    pipeline = gencond.CondensedPipeline(gencond.load(CHECKPOINTS / name))
    pipeline.save_pretrained(tmp_path / "saved")
    images, _ = pipeline.condensed.sample(2)
    again = gencond.CondensedPipeline.from_pretrained(tmp_path / "saved")
    assert isinstance(again, gencond.CondensedPipeline) and torch.equal(again.condensed.sample(2)[0], images)
    assert torch.equal(gencond.load(tmp_path / "saved").sample(2)[0], images)


def test_what_cannot_be_made_is_a_line(pipeline: gencond.CondensedPipeline, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown output_type 'png'; known: pil, np, pt"):
        pipeline([0], output_type="png")
    with pytest.raises(InputError, match="num_images_per_class is 0: at least 1"):
        pipeline([0], 0)
    with pytest.raises(InputError, match="gencond.push"):
        pipeline.save_pretrained(tmp_path / "saved", push_to_hub=True)
    with pytest.raises(InputError, match="zebra"):
        pipeline(["zebra"])
    with pytest.raises(InputError, match="expected a run folder, an artefact folder or a Hub id"):
        gencond.CondensedPipeline.from_pretrained(tmp_path / "nothing")
