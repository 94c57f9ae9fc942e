"""Appending: new classes, or new images of classes that are there, join an artefact that is already condensed.

The generator stays as it is, and so do all images of the classes that nothing new is known of, bit for bit: only codes
and class embeddings are learned, those of the new images' classes. Samples of the artefact stand beside the new images
as though they were real (generative replay), so that networks learn to tell old classes from new ones.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.ranges import to_uint8
from gencond.common.regression import ridge_regression
from gencond.common.room import require_memory
from gencond.condensing.backbones import near_their_mean
from gencond.condensing.starts import COMPONENTS_OF, Representatives, rows_of_codes
from gencond.data.images import LabeledImages
from gencond.data.mapped import MappedImages
from gencond.generator.artefact import Condensed
from gencond.generator.dataset import CondensedDataset, backbone_config
from gencond.generator.loading import arguments_of

REPLAYED_WITHOUT_CODES = 10  # samples of a class where none are learned
RIDGE = 1e-2  # of the mean variance of a pixel, so that codes of few images say nothing of what these do not show


@dataclass(frozen=True)
class Growth:
    """An artefact and the classes that it is to learn from new images.

    Args:
        onto: the artefact; it stays as it is.
        new_names: class names of the new images.
    """

    onto: CondensedDataset
    new_names: tuple[str, ...]

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Of the artefact that has grown: its own, then those that it does not have."""
        own = self.onto.class_names
        return (*own, *(name for name in self.new_names if name not in own))

    @cached_property
    def learned(self) -> Int64[Tensor, " k"]:
        """Which of them are learned, ascending."""
        return torch.tensor(sorted(self.class_names.index(name) for name in self.new_names))

    @property
    def known_again(self) -> list[str]:
        """Names of the artefact's classes that there are new images of."""
        return [name for name in self.new_names if name in self.onto.class_names]

    def beside_replay(self, new: LabeledImages) -> LabeledImages:
        """New images and, as though they were real, samples of the artefact's classes, as many as those had real ones.

        A class that nothing new is known of has as many as the new classes on average.

        Raises:
            InputError: new images that are too many to be held in memory.
        """
        own = new.images
        if isinstance(own, MappedImages):
            raise InputError(
                "appending holds the new images in memory, and these are too many: lower data.image_size, or append "
                "some classes at a time"
            )
        new = new.among(self.class_names)
        samples, labels = self.onto.sample(self.onto.num_slots or REPLAYED_WITHOUT_CODES)
        images, labels = to_uint8(samples).cpu(), labels.cpu()
        of_class = len(labels) // self.onto.num_classes
        typical, again = len(new) // len(self.new_names), set(self.known_again)
        rows = [
            label * of_class + torch.arange(max(of_class, self._seen(name) if name in again else typical)) % of_class
            for label, name in enumerate(self.onto.class_names)
        ]
        chosen = torch.cat(rows)
        require_memory(
            (len(chosen) + len(new)) * images[0].numel(), f"{len(chosen) + len(new):,} images",
            "append fewer images at a time",
        )  # fmt: skip
        return replace(new, images=torch.cat([own, images[chosen]]), labels=torch.cat([new.labels, labels[chosen]]))

    def _seen(self, name: str) -> int:
        """Real images that a class of the artefact was learned from, about: a share of all that came with it."""
        made = self.onto.config.provenance or {}
        times = [(self.onto.class_names[: self.onto.class_groups[0]], made.get("data", {}))]
        times += [(one["classes"], one["data"]) for one in made.get("appended", [])]
        return sum(int(data.get("num_images", 0)) // len(names) for names, data in times if name in names)

    def start(self, about: dict[str, Any]) -> CondensedDataset:
        """The artefact with room for the new classes, of which only codes and class embeddings ask for gradients.

        New classes start from the mean of the embeddings, and their codes at random.

        Args:
            about: how the classes come to be there, for its provenance.
        """
        onto, extra = self.onto, len(self.class_names) - self.onto.num_classes
        made = onto.config.provenance or {}
        arguments = arguments_of(onto) | {
            "class_names": list(self.class_names),
            "generator_config": backbone_config(onto.generator) | {"num_class_embeds": len(self.class_names)},
            "class_groups": [*onto.class_groups, extra] if extra else onto.config.class_groups,
            "provenance": made | {"appended": [*made.get("appended", []), about | {"classes": list(self.new_names)}]},
            "storage": "float32",
        }
        grown, state = CondensedDataset(**arguments), onto.state_dict()
        if extra:
            embeddings = state["generator.class_embedding.weight"]
            started = near_their_mean(embeddings, extra, onto.config.seed)
            state["generator.class_embedding.weight"] = torch.cat([embeddings, started])
            drawn = grown.codes.learned.detach()[len(state["codes.learned"]) :]
            state["codes.learned"] = torch.cat([state["codes.learned"], drawn])
        grown.load_state_dict(state)
        for name, weight in grown.generator.named_parameters():
            weight.requires_grad_(name.startswith("class_embedding."))
        return grown.eval()

    @torch.no_grad()
    def start_codes(self, grown: CondensedDataset, representatives: Representatives) -> None:
        """Makes codes what the artefact's own codes say that images have, in place: by ridge regression on its images.

        The generator stays, so that codes have to be those that it knows.
        """
        onto = self.onto
        if not onto.num_slots or not len(representatives.labels):
            return
        slots = torch.arange(onto.num_slots).repeat(onto.num_classes)
        labels = torch.arange(onto.num_classes).repeat_interleave(onto.num_slots)
        some = torch.randperm(len(slots), generator=torch.Generator().manual_seed(0))[:COMPONENTS_OF]
        known = onto.cut(onto(labels[some], slots[some])).flatten(1)
        codes = onto.codes(labels[some], slots[some]).view(len(known), -1)
        wanted = grown.cut(representatives.images.cpu()).flatten(1)
        found = ridge_regression(known, codes, RIDGE)(wanted)
        rows = rows_of_codes(grown, representatives)
        grown.codes.learned[rows] = found.reshape(len(rows), -1)


def require_growing(onto: Condensed) -> None:
    """Raises InputError for an artefact that nothing can be appended to."""
    if not isinstance(onto, CondensedDataset) or onto.generator.whole_latents:
        kind = "a transform of its own images" if isinstance(onto, CondensedDataset) else "pixels"
        raise InputError(f"the artefact is {kind}, which nothing can be appended to: condense all images together")


def growth(onto: Condensed, new: LabeledImages, more_images: bool) -> Growth:
    """What appending to an artefact consists of.

    Args:
        new: the new images.
        more_images: whether they may be of classes that the artefact has.
    Raises:
        InputError: an artefact without a generator of the usual kind, other sizes, classes that overlap unasked.
    """
    require_growing(onto)
    assert isinstance(onto, CondensedDataset)
    ours, theirs = (onto.channels, onto.image_size), (new.channels, new.image_size)
    if ours != theirs:
        raise InputError(
            f"the artefact makes images of {ours[0]} channel(s) and {ours[1]} px, the new ones have {theirs[0]} and "
            f"{theirs[1]} px: append images of the same kind"
        )
    made = Growth(onto, tuple(new.class_names))
    if made.known_again and not more_images:
        raise InputError(
            f"the artefact has class {made.known_again[0]!r} already ({len(made.known_again)} of the new images' "
            f"{len(made.new_names)} classes): --more-images learns it again from its own samples and the new images"
        )
    return made
