"""Weights of a network from a file of anybody's."""

from pathlib import Path

from torch import nn

from gencond.common.errors import InputError
from gencond.common.files import read_state_dict
from gencond.common.ranges import require_finite


def load_weights(network: nn.Module, path: Path, but: nn.Module | None = None) -> None:
    """All weights of `network` from a file, no more and no fewer.

    Args:
        but: a part of it, as a head of other classes, that stays as it is whatever the file says.
    Raises:
        InputError: an unreadable file, weights missing or left over, or of another shape.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    state, own = read_state_dict(path, path), network.state_dict()
    if all(name.startswith("module.") for name in state):  # torch's data parallelism leaves this behind
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
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
    require_finite(wanted, str(path))
    try:
        network.load_state_dict(wanted, strict=False)
    except RuntimeError as error:  # tensors of another shape
        shapes = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path} does not fit this network: {shapes}") from None
