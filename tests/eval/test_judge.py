"""What a classifier gets to see of an artefact."""

import torch
from test_run import untrained

from gencond.common.ranges import to_uint8
from gencond.data.images import LabeledImages
from gencond.eval.subject import fresh_images


def test_classifiers_train_on_fresh_images_in_the_eight_bits_of_an_exported_image(few_digits: LabeledImages) -> None:
    condensed = untrained(few_digits)
    images, labels = fresh_images(condensed, batch_size=5, num_steps=1).batch(2, 3)
    made, of_classes = condensed.stream(5).batch(2 * 2**24 + 3)
    assert images.dtype == torch.uint8 and torch.equal(images, to_uint8(made)) and torch.equal(labels, of_classes)
    assert (images.float() / 255 - made).abs().max() > 1e-3  # what is made is no whole number of levels
