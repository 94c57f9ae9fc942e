"""How a classifier is trained before it is judged. A protocol is data; the report prints it."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from gencond.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """One way to train a classifier on labelled images.

    Args:
        epochs: passes over the images, but at least `min_steps` and at most `max_steps` batches.
        batch_size: the whole set where that is smaller.
        learning_rate, momentum, weight_decay: of SGD.
        schedule: `cosine` to zero, or `half` (a tenth from half of the steps on).
        augmentation: whether images are augmented (with the operations that the data set allows, DSA: one operation
            an image).
    """

    name: str
    epochs: int
    min_steps: int
    max_steps: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    augmentation: bool

    def num_steps(self, num_images: int) -> int:
        per_epoch = math.ceil(num_images / self.batch_size)
        return min(max(self.epochs * per_epoch, self.min_steps), self.max_steps)

    def rate_at(self, done: float) -> float:
        """Share of the steps done, in [0, 1) -> factor on the learning rate."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0 if done <= 0.5 else 0.1

    def describe(self) -> dict[str, Any]:
        return asdict(self)


PROTOCOLS = {
    protocol.name: protocol for protocol in (Protocol("quick", 300, 300, 500, 128, 0.05, 0.9, 5e-4, "cosine", True),)
}


def get_protocol(name: str) -> Protocol:
    """Raises InputError for an unknown name."""
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
