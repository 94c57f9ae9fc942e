"""Small whole numbers in as many bits as they surprise: entropy coding, column by column."""

import struct

import numpy as np
import numpy.typing as npt
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without annotations

from gencond.common.errors import InputError

Matrix = npt.NDArray[np.int8]  # [rows, columns]

# A table holds -8 log2 of each probability in a byte. Their powers of two, exact on any machine, and so is decoding.
_EIGHTHS = np.array(
    [1.0, 0.9170040432046712, 0.8408964152537145, 0.7711054127039704, 0.7071067811865476, 0.6484197773255048,
     0.5946035575013605, 0.5452538663326288]
)  # fmt: skip
_PROBABILITIES = np.ldexp(_EIGHTHS[np.arange(256) % 8], -(np.arange(256) // 8)).astype(np.float32)
_HEADER = struct.Struct("<IIB")  # rows, columns, log2 of how many columns share a table


def encode(matrix: Matrix) -> bytes:
    """A matrix whose columns differ in how large their numbers are, as bytes that `decode` reads.

    Neighbouring columns share a table of probabilities, as many of them as make the fewest bytes.

    Source: asymmetric numeral systems, Duda (0902.0271), as `constriction` codes them.
    """
    rows, columns = matrix.shape
    shared, histograms = _fewest_bytes(matrix)
    coder, tables = stream.stack.AnsCoder(), []
    for group, histogram in reversed(list(enumerate(histograms))):  # what was coded last is decoded first
        values = matrix[:, group << shared : group + 1 << shared].astype(np.int16)
        lowest, costs = _table(histogram)
        tables.append(struct.pack("<bB", lowest, len(costs) - 1) + costs.tobytes())
        coder.encode_reverse((values.T.ravel() - lowest).astype(np.int32), _model(costs))
    words: npt.NDArray[np.uint32] = coder.get_compressed()
    return _HEADER.pack(rows, columns, shared) + b"".join(reversed(tables)) + words.astype("<u4").tobytes()


def decode(content: bytes, size: int | None = None) -> Matrix:
    """What `encode` was given.

    Args:
        size: how many numbers they are, where that is known: a damaged header may ask for all memory.
    Raises:
        InputError: bytes that it did not write, or not all of them, or other numbers of them.
    """
    try:
        rows, columns, shared = _HEADER.unpack_from(content)
        if size not in (None, rows * columns):
            raise ValueError(f"{rows} x {columns} of them, where {size} are expected")
        position, tables = _HEADER.size, []
        for _ in range(-(-columns // (1 << shared)) if rows else 0):
            lowest, last = struct.unpack_from("<bB", content, position)
            position += 2
            tables.append((lowest, np.frombuffer(content, np.uint8, last + 1, position)))
            position += last + 1
        coder = stream.stack.AnsCoder(np.frombuffer(content, "<u4", offset=position).astype(np.uint32))
        matrix = np.empty((rows, columns), np.int8)
        for group, (lowest, costs) in enumerate(tables):
            own = matrix[:, group << shared : group + 1 << shared]
            values = coder.decode(_model(costs), own.size) + lowest
            own[:] = values.reshape(own.shape[1], rows).T
        whole = coder.is_empty()
    except (ValueError, struct.error, MemoryError) as error:
        raise InputError(f"coded numbers cannot be read: {error}") from None
    if not whole:
        raise InputError("coded numbers cannot be read: something is left over")
    return matrix


def _model(costs: npt.NDArray[np.uint8]) -> object:
    probabilities = _PROBABILITIES[costs]
    return stream.model.Categorical(
        probabilities if len(costs) > 1 else np.append(probabilities, np.float32(0)), perfect=False
    )


def _table(histogram: npt.NDArray[np.int64]) -> tuple[int, npt.NDArray[np.uint8]]:
    """(lowest number, -8 log2 of the probability of it and each above it up to the highest)."""
    seen = histogram.nonzero()[0]
    counts = histogram[seen[0] : seen[-1] + 1]
    with np.errstate(divide="ignore"):
        costs = -8 * np.log2(counts / counts.sum())
    return int(seen[0]) - 128, np.minimum(costs, 255).round().astype(np.uint8)


def _fewest_bytes(matrix: Matrix) -> tuple[int, npt.NDArray[np.int64]]:
    """(log2 of how many columns share a table, histogram of each group [groups, 256])."""
    rows, columns = matrix.shape
    histograms = np.zeros((columns, 256), np.int64)
    for column, values in enumerate(matrix.T):
        histograms[column] = np.bincount(values.astype(np.int16) + 128, minlength=256)
    best: tuple[float, int, npt.NDArray[np.int64]] | None = None
    shared = 0
    while rows and columns:
        sums = histograms.sum(1, keepdims=True)
        bits = -(histograms * np.log2(np.where(histograms, histograms / sums, 1))).sum()
        seen = histograms > 0
        widths = 256 - seen.argmax(1) - seen[:, ::-1].argmax(1)
        size = float(bits / 8 + (2 + widths).sum())
        if best is None or size < best[0]:
            best = size, shared, histograms
        if len(histograms) == 1:
            break
        shared += 1
        histograms = np.concatenate([histograms, np.zeros((len(histograms) % 2, 256), np.int64)])
        histograms = histograms[0::2] + histograms[1::2]
    return best[1:] if best else (0, np.zeros((0, 256), np.int64))
