"""Weights of a network from a file of anybody's."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gencond.errors import InputError


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict, from safetensors or a plain one that torch saved, bare or under `state_dict`.

    Raises:
        InputError: unreadable, or with something else than tensors in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            state: Mapping[str, Tensor] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(state.get("state_dict", state))
    except Exception as error:  # whatever a damaged file makes torch raise
        raise InputError(f"{path} cannot be read as weights of a network: {first_line(error)}") from None
    parallel = all(name.startswith("module.") for name in state)  # torch's data parallelism leaves this behind
    return {name.removeprefix("module.") if parallel else name: tensor for name, tensor in state.items()}


def load_weights(network: nn.Module, path: Path, but: nn.Module | None = None) -> None:
    """All weights of `network` from a file, no more and no fewer.

    Args:
        but: a part of it, as a head of other classes, that stays as it is whatever the file says.
    Raises:
        InputError: an unreadable file, weights missing or left over, or of another shape.
    """
    state, own = read_weights(path), network.state_dict()
    prefixes = [name for name, module in network.named_modules() if module is but and but is not None]
    skipped = {name for name in own if any(name.startswith(f"{prefix}.") for prefix in prefixes)}
    # Counters that older files do not have mean nothing to a trained network.
    skipped |= {name for name in own if name.endswith("num_batches_tracked")}
    wanted = {name: tensor for name, tensor in state.items() if name not in skipped}
    missing, left_over = own.keys() - skipped - wanted.keys(), wanted.keys() - own.keys()
    if missing or left_over:
        raise InputError(
            f"{path} does not hold the weights of this network: "
            + (f"{min(missing)} is missing" if missing else f"{min(left_over)} is left over")
        )
    try:
        network.load_state_dict(wanted, strict=False)
    except RuntimeError as error:  # tensors of another shape
        shapes = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path} does not fit this network: {shapes}") from None
