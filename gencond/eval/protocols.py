"""How a classifier is trained before it is judged. A protocol is data; the report prints it.

What is like the released code, and what is not: docs/protocols.md.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gencond.common.errors import InputError
from gencond.data.augment import Mode
from gencond.eval.records import read_record


@dataclass(frozen=True)
class Protocol:
    """One way to train a classifier on labelled images.

    Args:
        epochs: passes over the images, but at least `min_steps` and at most `max_steps` batches.
        epochs_by_ipc: (up to so many images of a class, epochs) in growing order, instead of `epochs`, which stand for
            more; with `num_classes`.
        batch_size: the whole set where that is smaller.
        smallest_batch: batches are half of the set, but no smaller and at most `batch_size`; None always takes that.
        optimizer, learning_rate, momentum, weight_decay: AdamW has no momentum.
        schedule: `cosine` to zero; `half_cosine`, its first half; `half`, a tenth after half of the steps, where the
            momentum starts anew; `thirds`, a fifth after two thirds and again after five sixths.
        augmentation: `one` operation an image of those that the data set allows (DSA), the stronger `idc`, either with
            one choice for all images of a batch (`_a_batch`), or `none`.
        left_out: operations that it does without.
        cutmix: probability that a batch is mixed.
        temperature: of the softened answers of a teacher, which are what a network learns; None learns the labels.
        source: where it comes from.
    """

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float | None = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "half_cosine", "half", "thirds"] = "cosine"
    augmentation: Mode | Literal["none"] = "one"
    left_out: tuple[str, ...] = ()
    cutmix: float = 0.0
    min_steps: int = 1
    max_steps: int | None = None
    smallest_batch: int | None = None
    temperature: float | None = None
    epochs_by_ipc: tuple[tuple[int, int], ...] = ()
    num_classes: int | None = None
    source: str = ""

    def batch_of(self, num_images: int) -> int:
        """Images in a batch of a set of `num_images`."""
        wanted = self.batch_size
        if self.smallest_batch is not None:
            wanted = min(wanted, max(self.smallest_batch, num_images // 2))
        return min(wanted, num_images)

    def num_steps(self, num_images: int) -> int:
        """Batches in a training on a set of `num_images`."""
        epochs = next(
            (epochs for ipc, epochs in self.epochs_by_ipc if num_images <= ipc * self.num_classes), self.epochs
        )
        steps = max(epochs * math.ceil(num_images / self.batch_of(num_images)), self.min_steps)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def rate_at(self, done: float) -> float:
        """Share of the steps done, in [0, 1) -> factor on the learning rate."""
        match self.schedule:
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * done))
            case "half_cosine":
                return 0.5 * (1 + math.cos(math.pi * done / 2))
            case "half":
                return 1.0 if done <= 0.5 else 0.1
            case "thirds":
                return 1.0 if done < 2 / 3 else 0.2 if done < 5 / 6 else 0.04

    @property
    def restart_at(self) -> float | None:
        """Share of the steps after which the momentum starts anew."""
        return 0.5 if self.schedule == "half" else None

    def strategy(self, allowed: str) -> str:
        """The operations of `allowed`, joined by "_", that this protocol uses."""
        if self.augmentation == "none":
            return "none"
        return "_".join(name for name in allowed.split("_") if name not in self.left_out) or "none"

    def describe(self) -> dict[str, Any]:
        """All of it, for a report and for what depends on it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Protocol":
        """What `describe` said, read from JSON."""
        return read_record(
            cls, content, left_out=tuple, epochs_by_ipc=lambda pairs: tuple((ipc, epochs) for ipc, epochs in pairs)
        )


DM = Protocol(
    "dm", 1000, 256, 0.01, schedule="half",
    source="Dataset Condensation with Distribution Matching (2110.04181), released code",
)  # fmt: skip
IDC = Protocol(
    "idc", 1000, 64, 0.01, schedule="thirds", augmentation="idc", left_out=("cutout",), cutmix=0.5,
    source="Efficient Dataset Condensation (2205.14959), released code",
)  # fmt: skip
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("quick", 300, 128, 0.05, min_steps=300, max_steps=500, source="gencond"),
        DM,
        replace(DM, name="dm_batch", augmentation="one_a_batch"),
        IDC,
        replace(IDC, name="idc_batch", augmentation="idc_a_batch"),
        Protocol(
            "soft", 300, 100, 1e-3, optimizer="adamw", momentum=None, weight_decay=0.01, schedule="half_cosine",
            cutmix=1.0, smallest_batch=10, temperature=20.0,
            source="after RDED (2312.03526), with DSA's augmentation; labels by a teacher, computed on the fly",
        ),
    )
}  # fmt: skip
# Of larger images, by images of a class after they are cut.
IDC_EPOCHS = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
IDC_EPOCHS_ABOVE = 300
IDC_SMALL_SIDE = 64
IDC_MANY_CLASSES = 100


def check_protocol(name: str, from_labels: bool = False) -> None:
    """Whether `get_protocol` will know a name, before the data is read.

    Args:
        from_labels: whether there is no teacher.
    Raises:
        InputError: an unknown name, epochs that are no whole number of at least 1, or a teacher that is not there.
    """
    base, colon, epochs = name.partition(":")
    if base not in PROTOCOLS:
        raise InputError(f"unknown protocol {base!r}; known: {', '.join(PROTOCOLS)}")
    if colon and (not epochs.isdecimal() or int(epochs) < 1):
        raise InputError(f"protocol {name!r}: after the colon stands the number of epochs, at least 1")
    if from_labels and PROTOCOLS[base].temperature is not None:
        raise InputError(f"protocol {name} learns a teacher's answers: choose one that learns from labels")


def get_protocol(name: str, num_classes: int, image_size: int) -> Protocol:
    """A protocol by name; `dm:200` is dm with 200 epochs, and says so wherever its name stands.

    Args:
        num_classes, image_size: of the data; `idc` trains otherwise on images above 64 px, and again on 100 classes.
    Raises:
        InputError: as of `check_protocol`.
    """
    check_protocol(name)
    base, colon, epochs = name.partition(":")
    protocol = PROTOCOLS[base]
    if base in ("idc", "idc_batch") and image_size > IDC_SMALL_SIDE:
        protocol = _idc_of_large_images(protocol, num_classes)
    if not colon:
        return protocol
    return replace(protocol, name=name, epochs=int(epochs), epochs_by_ipc=(), num_classes=None)


def _idc_of_large_images(protocol: Protocol, num_classes: int) -> Protocol:
    """As IDC's code trains on subsets of ImageNet."""
    protocol = replace(protocol, cutmix=1.0, num_classes=num_classes)
    if num_classes < IDC_MANY_CLASSES:
        return replace(protocol, epochs=IDC_EPOCHS_ABOVE, epochs_by_ipc=IDC_EPOCHS)
    fewer = tuple((ipc, 2 * epochs // 3 // 100 * 100) for ipc, epochs in IDC_EPOCHS)
    return replace(
        protocol, epochs=2 * IDC_EPOCHS_ABOVE // 3 // 100 * 100, epochs_by_ipc=fewer, batch_size=128, learning_rate=0.1,
        weight_decay=1e-4,
    )  # fmt: skip
