"""How the weights of an artefact lie on disk: as they were learned, or in fewer bits, which are what it then holds."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from gencond.errors import InputError

Storage = Literal["float32", "float16", "int8"]
STORAGES: tuple[str, ...] = get_args(Storage)
SCALE = ".int8_scale"  # the tensor of scales that stands beside one of int8


def check_storage(storage: str) -> None:
    """Raises InputError for a storage that there is not."""
    if storage not in STORAGES:
        raise InputError(f"unknown storage {storage!r}; known: {', '.join(STORAGES)}")


def to_stored(state: Mapping[str, Tensor], storage: str) -> dict[str, Tensor]:
    """A state dict -> the tensors that are written.

    `float16` rounds every float. `int8` rounds each row of a tensor of two or more dimensions to 255 evenly spaced
    values around 0, the row's largest magnitude being the last; vectors stay in float16. Scales are bfloat16 and 127
    times one is a float32, so what is read back is stored as the same bytes again. Integers stay as they are.

    Raises:
        InputError: an unknown storage, or a value too large for float16.
    """
    check_storage(storage)
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if storage == "float32" or not tensor.is_floating_point():
            stored[name] = tensor.contiguous()
        elif storage == "int8" and tensor.dim() > 1:
            if not bool(tensor.isfinite().all()):
                raise InputError(f"{name} holds values that are not finite")
            stored[name], stored[name + SCALE] = _quantised(tensor.float())
        else:
            stored[name] = tensor.half()
            if not bool(stored[name].isfinite().all()):
                raise InputError(f"{name} holds values that float16 cannot: store it as float32")
    return stored


def from_stored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `to_stored` made -> a state dict with all floats in float32.

    Raises:
        InputError: whole numbers of a byte without their scale.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name + SCALE in stored:
            state[name] = tensor.float() * stored[name + SCALE].float().view(-1, *[1] * (tensor.dim() - 1))
        elif tensor.dtype == torch.int8:
            raise InputError(f"{name} has lost its scale: the file is damaged")
        elif not name.endswith(SCALE):
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def num_stored_bytes(state: Mapping[str, Tensor], storage: str) -> int:
    """Of the tensors that `to_stored` makes."""
    count = 0
    for tensor in state.values():
        if storage == "float32" or not tensor.is_floating_point():
            count += tensor.nbytes
        elif storage == "int8" and tensor.dim() > 1:
            count += tensor.numel() + 2 * len(tensor)
        else:
            count += 2 * tensor.numel()
    return count


def _quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(int8, the scale of each row in bfloat16)."""
    largest = rows.flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / 127, 1.0).bfloat16()
    steps = rows / scale.float().view(-1, *[1] * (rows.dim() - 1))
    return steps.round().clamp(-127, 127).to(torch.int8), scale
