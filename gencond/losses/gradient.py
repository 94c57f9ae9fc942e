"""Matching the gradients that real and synthetic images give a classifier."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Metric = Literal["mse", "l1"]


def gradient_matching_loss(
    real: Sequence[Float[Tensor, "..."]], syn: Sequence[Float[Tensor, "..."]], metric: Metric = "mse"
) -> Float[Tensor, ""]:
    """Distance between two lists of gradients, one entry a layer, summed over layers.

    `mse` sums squared differences, `l1` absolute ones. At least 0. Take `syn` with `create_graph=True` to get gradients
    with respect to the images behind it, and `real` detached.

    Source: Kim et al., IDC (2205.14959), equation 3, and DREAM (2302.14416), whose code sums within a layer.
    """
    differences = [one - other for one, other in zip(real, syn, strict=True)]
    if metric == "l1":
        return torch.stack([difference.abs().sum() for difference in differences]).sum()
    return torch.stack([difference.square().sum() for difference in differences]).sum()
