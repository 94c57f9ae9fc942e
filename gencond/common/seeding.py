"""Networks whose first weights depend on a seed alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU inside come from `seed`; afterwards every generator of the process is as it was.

    `torch.manual_seed` would set those of all GPUs too, which `fork_rng` puts back for the listed ones alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
