"""How the weights of an artefact lie on disk: as they were learned, or in fewer bits, which are what it then holds."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gencond.common.errors import InputError
from gencond.generator.entropy import decode, encode

Storage = Literal["float32", "float16", "int8", "coded"]
STORAGES: tuple[str, ...] = get_args(Storage)
SCALE = ".int8_scale"  # the tensor of scales that stands beside one of int8
DTYPES = {  # as safetensors names them, in the order in which it lays them
    torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
CODED, SHAPE = ".coded", ".shape"  # entropy-coded bytes of a tensor of int8, and its shape


def check_storage(storage: str) -> None:
    """Raises InputError for a storage that there is not."""
    if storage not in STORAGES:
        raise InputError(f"unknown storage {storage!r}; known: {', '.join(STORAGES)}")


def to_stored(state: Mapping[str, Tensor], storage: str, squares: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """A state dict -> the tensors that are written.

    `float16` rounds every float. `int8` rounds each row of a tensor of two or more dimensions to 255 evenly spaced
    values around 0, the row's largest magnitude being the last; vectors stay in float16. Scales are bfloat16 and 127
    times one is a float32, so what is read back is stored as the same bytes again. Integers stay as they are, and
    floats that are whole numbers of a byte become such. `coded` is int8 with its tensors entropy-coded (`entropy`).

    Args:
        squares: for tensors whose rows are images of squares, how many lie in a row; makes `coded` shorter.
    Raises:
        InputError: an unknown storage, or a value too large for float16.
    """
    check_storage(storage)
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if storage == "float32" or not tensor.is_floating_point():
            stored[name] = tensor.contiguous()
        elif storage in ("int8", "coded") and tensor.dim() > 1:
            if not bool(tensor.isfinite().all()):
                raise InputError(f"{name} holds values that are not finite")
            numbers, stored[name + SCALE] = _quantised(tensor.float())
            in_a_row = (squares or {}).get(name)
            content = encode(numbers.flatten(1).numpy(), in_a_row) if storage == "coded" else None
            if content is None or len(content) >= numbers.nbytes:  # a table of probabilities has to pay
                stored[name] = numbers
            else:
                stored[name + CODED] = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
                stored[name + SHAPE] = torch.tensor(numbers.shape, dtype=torch.int32)
        else:
            stored[name] = tensor.half()
            if not bool(stored[name].isfinite().all()):
                raise InputError(f"{name} holds values that float16 cannot: store it as float32")
    return stored


def from_stored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `to_stored` made -> a state dict with all floats in float32.

    Raises:
        InputError: whole numbers of a byte without a scale that fits, or coded ones that cannot be read.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in _decoded(stored).items():
        if name + SCALE in stored:
            state[name] = tensor.float() * _scale_of(name, tensor, stored[name + SCALE])
        elif tensor.dtype == torch.int8:
            raise InputError(f"{name} has lost its scale: the file is damaged")
        elif not name.endswith(SCALE):
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def _scale_of(name: str, numbers: Tensor, scale: Tensor) -> Tensor:
    """What each row is multiplied with, in the shape that multiplies it."""
    if not scale.is_floating_point() or numbers.dim() == 0 or scale.shape not in ((1,), numbers.shape[:1]):
        raise InputError(
            f"{name} has {tuple(numbers.shape)} numbers and {tuple(scale.shape)} scales: the file is damaged"
        )
    return scale.float().view(-1, *[1] * (numbers.dim() - 1))


def num_stored_bytes(state: Mapping[str, Tensor], storage: str, squares: Mapping[str, int] | None = None) -> int:
    """Bytes of the file that holds the tensors which `to_stored` makes: safetensors, header and all."""
    stored = (
        state if storage == "float32" else to_stored(state, storage, squares)
    )  # those of a GPU need not be copied to count
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    order, end = list(DTYPES), 0
    for name, tensor in sorted(stored.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + end  # the header's length, the header padded to eights, the data


def _decoded(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Coded tensors as the int8 ones that they were; all others as they are."""
    decoded: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(CODED):
            own = name.removesuffix(CODED)
            if own + SHAPE not in stored:
                raise InputError(f"{own} has lost its shape: the file is damaged")
            shape = stored[own + SHAPE]
            if shape.dtype != torch.int32 or shape.dim() != 1 or bool((shape < 0).any()) or tensor.dtype != torch.uint8:
                raise InputError(f"{own} is no bytes and their shape: the file is damaged")
            numbers = decode(tensor.numpy().tobytes(), math.prod(shape.tolist()))
            decoded[own] = torch.from_numpy(numbers).view(shape.tolist())
        elif not name.endswith(SHAPE):
            decoded[name] = tensor
    return decoded


def _quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(int8, the scale of each row in bfloat16; of whole numbers one scale, 1)."""
    largest = rows.flatten(1).abs().amax(1)
    if bool((largest <= 127).all()) and torch.equal(rows, rows.round()):
        return rows.to(torch.int8), torch.ones(1, dtype=torch.bfloat16)
    scale = torch.where(largest > 0, largest / 127, 1.0).bfloat16()
    steps = rows / scale.float().view(-1, *[1] * (rows.dim() - 1))
    return steps.round().clamp(-127, 127).to(torch.int8), scale
