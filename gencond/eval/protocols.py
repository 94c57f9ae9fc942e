"""How a classifier is trained before it is judged. A protocol is data; the report prints it."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gencond.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """One way to train a classifier on labelled images.

    Args:
        epochs: passes over the images, but at least `min_steps` and at most `max_steps` batches.
        batch_size: the whole set where that is smaller.
        learning_rate, momentum, weight_decay: of SGD.
        schedule: `cosine` to zero; `half`, a tenth after half of the steps, where the momentum starts anew; `thirds`, a
            fifth after two thirds and again after five sixths.
        augmentation: `one` operation an image of those that the data set allows (DSA), the stronger `idc`, or `none`.
        left_out: operations that it does without.
        cutmix: probability that a batch is mixed.
        source: where it comes from.
    """

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "half", "thirds"] = "cosine"
    augmentation: Literal["one", "idc", "none"] = "one"
    left_out: tuple[str, ...] = ()
    cutmix: float = 0.0
    min_steps: int = 1
    max_steps: int | None = None
    source: str = ""

    def num_steps(self, num_images: int) -> int:
        steps = max(self.epochs * math.ceil(num_images / self.batch_size), self.min_steps)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def rate_at(self, done: float) -> float:
        """Share of the steps done, in [0, 1) -> factor on the learning rate."""
        match self.schedule:
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * done))
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
        return asdict(self)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("quick", 300, 128, 0.05, min_steps=300, max_steps=500, source="gencond"),
        Protocol(
            "dm", 1000, 256, 0.01, schedule="half",
            source="Dataset Condensation with Distribution Matching (2110.04181), released code",
        ),
        Protocol(
            "idc", 1000, 64, 0.01, schedule="thirds", augmentation="idc", left_out=("cutout",), cutmix=0.5,
            source="Efficient Dataset Condensation (2205.14959), released code, images up to 64 px",
        ),
    )
}  # fmt: skip


def get_protocol(name: str) -> Protocol:
    """A protocol by name; `dm:200` is dm with 200 epochs, and says so wherever its name stands.

    Raises:
        InputError: an unknown name, or epochs that are no whole number of at least 1.
    """
    base, colon, epochs = name.partition(":")
    if base not in PROTOCOLS:
        raise InputError(f"unknown protocol {base!r}; known: {', '.join(PROTOCOLS)}")
    if not colon:
        return PROTOCOLS[base]
    if not epochs.isdecimal() or int(epochs) < 1:
        raise InputError(f"protocol {name!r}: after the colon stands the number of epochs, at least 1")
    return replace(PROTOCOLS[base], name=name, epochs=int(epochs))
