"""The weighted sum of an objective's terms."""

import functools
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def total_loss(parts: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """sum_t weights[t] * parts[t], 0 of no parts; the parts stay as they are, unweighted, for the log.

    Raises:
        KeyError: a part without a weight.
    """
    weighted = (weights[name] * part for name, part in parts.items())
    return functools.reduce(torch.add, weighted) if parts else torch.zeros(())
