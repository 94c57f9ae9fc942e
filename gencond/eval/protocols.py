"""How a classifier is trained before it is judged. A protocol is data, and the report prints it.

docs/protocols.md says where they are like the released code and where they are not.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gencond.common.errors import InputError
from gencond.data.augment import Mode
from gencond.eval.records import read_record
from gencond.networks.training import cosine


@dataclass(frozen=True)
class Protocol:
    """One way to train a classifier on labelled images, before it is judged.

    Args:
        name: as it is asked for; `dm:200` where the number of epochs was given.
        epochs: passes over the images, but no fewer than `min_steps` and no more than `max_steps` batches.
        epochs_by_ipc: pairs (ipc, epochs) with growing ipc, which replace `epochs` for sets of up to `ipc` images of
            each of `num_classes` classes; `epochs` then holds for larger sets.
        batch_size: images in a batch; a smaller set is one batch.
        smallest_batch: where it is given, a batch is half of the set, but no smaller than this and no larger than
            `batch_size`.
        optimizer, learning_rate, momentum, weight_decay: `sgd` or `adamw`, which has no momentum.
        schedule: of the learning rate. `cosine` falls to zero; `half_cosine` is the first half of that; `half` falls to
            a tenth after half of the steps, where the momentum starts anew; `thirds` falls to a fifth after two thirds
            of the steps and again after five sixths.
        augmentation: `one` operation for each image, among those that the data set allows (DSA); the stronger mix of
            `idc`; either of them with one choice for all images of a batch (`one_a_batch`, `idc_a_batch`); or `none`.
        left_out: operations of the data set that are not used.
        cutmix: probability in [0, 1] that a batch is mixed by CutMix.
        temperature: of the softened answers of a teacher, which the network then learns; None learns the labels.
        source: the paper or code that it follows.
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
        """How many images a batch has, for a set of `num_images`."""
        wanted = self.batch_size
        if self.smallest_batch is not None:
            wanted = min(wanted, max(self.smallest_batch, num_images // 2))
        return min(wanted, num_images)

    def num_steps(self, num_images: int) -> int:
        """How many batches a training takes, for a set of `num_images`."""
        epochs = self.epochs
        if self.epochs_by_ipc:
            classes = self.num_classes
            assert classes is not None, f"protocol {self.name} has epochs by IPC and no number of classes"
            epochs = next((given for ipc, given in self.epochs_by_ipc if num_images <= ipc * classes), epochs)
        steps = max(epochs * math.ceil(num_images / self.batch_of(num_images)), self.min_steps)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def rate_at(self, done: float) -> float:
        """The factor on the learning rate after the share `done` of the steps, in [0, 1)."""
        match self.schedule:
            case "cosine":
                return cosine(done)
            case "half_cosine":
                return cosine(done / 2)
            case "half":
                return 1.0 if done <= 0.5 else 0.1
            case "thirds":
                return 1.0 if done < 2 / 3 else 0.2 if done < 5 / 6 else 0.04

    @property
    def restart_at(self) -> float | None:
        """The share of the steps after which the momentum starts anew; None where it never does."""
        return 0.5 if self.schedule == "half" else None

    def strategy(self, allowed: str) -> str:
        """The operations that this protocol uses, out of `allowed`; both are joined by "_"."""
        if self.augmentation == "none":
            return "none"
        return "_".join(name for name in allowed.split("_") if name not in self.left_out) or "none"

    def describe(self) -> dict[str, Any]:
        """All fields by name, as they stand in report.json."""
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
    """Checks the name of a protocol before the data is read.

    Args:
        name: as of `get_protocol`.
        from_labels: whether classifiers have to learn from labels, since there is no teacher.
    Raises:
        InputError: an unknown name; epochs that are no whole number of at least 1; with `from_labels`, a protocol that
            learns from a teacher.
    """
    base, colon, epochs = name.partition(":")
    if base not in PROTOCOLS:
        raise InputError(f"unknown protocol {base!r}; known: {', '.join(PROTOCOLS)}")
    if colon and (not epochs.isdecimal() or int(epochs) < 1):
        raise InputError(f"protocol {name!r}: after the colon stands the number of epochs, at least 1")
    if from_labels and PROTOCOLS[base].temperature is not None:
        raise InputError(f"protocol {name} learns a teacher's answers: choose one that learns from labels")


def get_protocol(name: str, num_classes: int, image_size: int) -> Protocol:
    """Returns the protocol of a name, for images of one data set.

    Args:
        name: one of `PROTOCOLS`. A number of epochs may follow: `dm:200` is `dm` with 200 epochs, and is called so in
            every report.
        num_classes: of the data; `idc` trains otherwise on 100 classes and more, above 64 px.
        image_size: side in pixels; `idc` trains otherwise above 64 px.
    Raises:
        InputError: an unknown name, or epochs that are no whole number of at least 1.
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
    """The protocol as IDC's code trains on subsets of ImageNet."""
    protocol = replace(protocol, cutmix=1.0, num_classes=num_classes)
    if num_classes < IDC_MANY_CLASSES:
        return replace(protocol, epochs=IDC_EPOCHS_ABOVE, epochs_by_ipc=IDC_EPOCHS)
    fewer = tuple((ipc, 2 * epochs // 3 // 100 * 100) for ipc, epochs in IDC_EPOCHS)
    return replace(
        protocol, epochs=2 * IDC_EPOCHS_ABOVE // 3 // 100 * 100, epochs_by_ipc=fewer, batch_size=128, learning_rate=0.1,
        weight_decay=1e-4,
    )  # fmt: skip
