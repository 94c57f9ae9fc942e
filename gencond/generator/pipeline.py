"""An artefact as a pipeline of diffusers: called with classes, it gives pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor

from gencond.common.errors import InputError, require_count
from gencond.common.ranges import to_uint8
from gencond.generator.artefact import Condensed
from gencond.generator.dataset import load


@dataclass
class CondensedPipelineOutput(BaseOutput):
    """What a `CondensedPipeline` returns.

    Args:
        images: class by class: PIL images, or an array [n, h, w, c] or a tensor [n, c, h, w] in [0, 1].
        class_labels: the class index of each image.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    class_labels: list[int]


class CondensedPipeline(DiffusionPipeline):
    """Samples of an artefact by class, as `DiTPipeline` of diffusers gives them.

    `save_pretrained` writes a folder with the artefact in `condensed`, which `from_pretrained` and `gencond.load` read.
    `DiffusionPipeline.from_pretrained` does not: it loads parts of diffusers and transformers alone.

    Args:
        condensed: the artefact, `CondensedDataset` or `CondensedPixels`.
    """

    condensed: Condensed

    def __init__(self, condensed: Condensed) -> None:
        super().__init__()
        self.register_modules(condensed=condensed)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # an artefact has no other options
        cls, name_or_path: str | Path, device: str | torch.device | None = None
    ) -> "CondensedPipeline":
        """The pipeline of an artefact: a folder that `save_pretrained` wrote, or whatever `gencond.load` reads.

        Raises:
            InputError: as `gencond.load`.
        """
        return cls(load(name_or_path, device))

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # the same, by name
        self, save_directory: str | Path, **options: Any
    ) -> None:
        """diffusers' own, into a folder. Raises InputError for `push_to_hub`, which `gencond.push` does."""
        if options.pop("push_to_hub", False):
            raise InputError('gencond.push(folder, "owner/name") puts an artefact on the Hub: leave push_to_hub out')
        super().save_pretrained(save_directory, **options)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: SupportsIndex | str | Sequence[SupportsIndex | str] | None = None,
        num_images_per_class: SupportsIndex = 1,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> CondensedPipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """The first images of each class: those of 2 are the first two of those of 10.

        Args:
            class_labels: indices or names, in the order wanted, each once, or a single one; None for all classes.
            num_images_per_class: at least 1. An artefact whose images are several in one counts each of them here.
            generator: its seed is that of the images past the learned codes; None: the artefact's own.
            output_type: `"pil"`, `"np"` or `"pt"`.
            return_dict: False gives a tuple of the images alone.
        Raises:
            InputError: more images than there are, an unknown class or kind of output.
        """
        if output_type not in ("pil", "np", "pt"):
            raise InputError(f"unknown output_type {output_type!r}; known: pil, np, pt")
        count, in_one = require_count(num_images_per_class, "num_images_per_class"), self.condensed.images_per_slot
        if count < 1:
            raise InputError(f"num_images_per_class is {count}: at least 1")
        seed = None if generator is None else generator.initial_seed()
        wanted = [class_labels] if isinstance(class_labels, str | SupportsIndex) else class_labels
        images, labels = self.condensed.sample(-(-count // in_one), wanted, seed)
        kept = torch.arange(len(labels), device=labels.device) % (-(-count // in_one) * in_one) < count
        images, labels = images[kept], labels[kept]
        made: list[Image.Image] | np.ndarray | Tensor = images
        if output_type == "np":
            made = images.permute(0, 2, 3, 1).cpu().numpy()
        elif output_type == "pil":
            arrays = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
            made = [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]
        return CondensedPipelineOutput(made, labels.tolist()) if return_dict else (made,)
