"""Ridge regression, which says what linear function of some numbers others are."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Linear(NamedTuple):
    """x -> (x - center) @ weights + mean.

    Args:
        center: mean of what was given.
        mean: of what was wanted.
    """

    center: Float[Tensor, " d"]
    weights: Float[Tensor, "d k"]
    mean: Float[Tensor, " k"]

    def __call__(self, given: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return (given - self.center) @ self.weights + self.mean


def ridge_regression(given: Float[Tensor, "n d"], wanted: Float[Tensor, "n k"], ridge: float) -> Linear:
    """The linear function from one to the other of least squared error, in the arithmetic that they come in.

    Args:
        ridge: as a share of the mean variance of a given number, which keeps weights small where little is known.
    """
    center, mean = given.mean(0), wanted.mean(0)
    products = (given - center).T @ (given - center)
    products += ridge * products.diagonal().mean() * torch.eye(len(products))
    return Linear(center, torch.linalg.solve(products, (given - center).T @ (wanted - mean)), mean)
