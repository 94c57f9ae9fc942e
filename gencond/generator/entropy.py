"""Small whole numbers in as many bits as they surprise: entropy coding, column by column."""

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without annotations

from gencond.common.errors import InputError
from gencond.generator.contexts import Contexts, Place, histogram, less, num_bytes, plus

Matrix = npt.NDArray[np.int8]  # [rows, columns]
Coder = Any  # `stream.stack.AnsCoder`
Histograms = npt.NDArray[np.int64]  # [n, 256], of numbers from -128 on

# A table holds -8 log2 of each probability in a byte. Their powers of two, exact on any machine, and so is decoding.
_EIGHTHS = np.array(
    [1.0, 0.9170040432046712, 0.8408964152537145, 0.7711054127039704, 0.7071067811865476, 0.6484197773255048,
     0.5946035575013605, 0.5452538663326288]
)  # fmt: skip
_PROBABILITIES = np.ldexp(_EIGHTHS[np.arange(256) % 8], -(np.arange(256) // 8)).astype(np.float32)
_HEADER = struct.Struct("<IIB")  # rows, columns, log2 of how many columns share a table; or how many squares in a row:
_SQUARES = 128  # is added to these, and this follows:
_STEPS = struct.Struct("<BHH")  # log2 of how many steps share a table, the first of these, tables
MOST_IN_A_ROW = 127
COUNTED_AT_ONCE = 64  # columns


def encode(matrix: Matrix, squares_in_a_row: int | None = None) -> bytes:
    """A matrix whose columns differ in how large their numbers are, as bytes that `decode` reads.

    Neighbouring columns share a table of probabilities, as many of them as make the fewest bytes. Where squares are
    given, numbers are foreseen by those around them, if that makes fewer bytes.

    Args:
        squares_in_a_row: where each row is an image of so many squares squared, as `Contexts` says.
    Source: asymmetric numeral systems, Duda (0902.0271), as `constriction` codes them.
    """
    by_columns = _by_columns(matrix)
    if squares_in_a_row is None or not matrix.size or squares_in_a_row > MOST_IN_A_ROW:
        return by_columns
    return min(by_columns, _by_contexts(matrix, Contexts.fit(matrix, squares_in_a_row)), key=len)


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
        if shared > _SQUARES:
            matrix, coder = _of_contexts(content, rows, columns, shared - _SQUARES)
        else:
            matrix, coder = _of_columns(content, rows, columns, shared)
        whole = coder.is_empty()
    except (ValueError, IndexError, OverflowError, struct.error, MemoryError) as error:
        raise InputError(f"coded numbers cannot be read: {error}") from None
    if not whole:
        raise InputError("coded numbers cannot be read: something is left over")
    return matrix


# --- each column alone ---------------------------------------------------------------------------------------------


def _by_columns(matrix: Matrix) -> bytes:
    rows, columns = matrix.shape
    each = np.array([histogram(column) for column in matrix.T], np.int64).reshape(columns, 256)
    shared, histograms = _fewest_bytes(each) if rows else (0, each[:0])
    coder, tables = stream.stack.AnsCoder(), _tables(histograms)
    for group, (lowest, costs) in reversed(list(enumerate(tables))):  # what was coded last is decoded first
        values = matrix[:, group << shared : group + 1 << shared]
        coder.encode_reverse(values.T.ravel().astype(np.int32) - lowest, _model(costs))
    return _HEADER.pack(rows, columns, shared) + _packed(tables) + _words(coder)


def _of_columns(content: bytes, rows: int, columns: int, shared: int) -> tuple[Matrix, Coder]:
    groups = -(-columns // (1 << shared)) if rows else 0
    tables, position = _unpacked(content, _HEADER.size, groups)
    coder, matrix = _coder(content, position), np.empty((rows, columns), np.int8)
    for group, (lowest, costs) in enumerate(tables):
        own = matrix[:, group << shared : group + 1 << shared]
        values = coder.decode(_model(costs), own.size) + lowest
        own[:] = values.reshape(own.shape[1], rows).T
    return matrix, coder


# --- each number by those around it --------------------------------------------------------------------------------


def _by_contexts(matrix: Matrix, contexts: Contexts) -> bytes:
    rows, columns = matrix.shape
    surprises, steps = np.empty((columns, rows), np.int8), np.empty((columns, rows), np.int16)
    order: list[int] = []  # of the columns

    def look_at(place: Place) -> Matrix:
        numbers = matrix[:, place.column]
        surprises[place.column], steps[place.column] = less(numbers, place.foreseen), contexts.steps(place)
        order.append(place.column)
        return numbers

    contexts.walk(rows, look_at)
    first, count = int(steps.min()), int(steps.max()) - int(steps.min()) + 1
    seen = np.zeros(count * 256, np.int64)
    for some in range(0, columns, COUNTED_AT_ONCE):
        near = (steps[some : some + COUNTED_AT_ONCE] - first).astype(np.int64)
        values = surprises[some : some + COUNTED_AT_ONCE].view(np.uint8) ^ 128
        seen += np.bincount((near * 256 + values).ravel(), minlength=len(seen))
    shared, histograms = _fewest_bytes(seen.reshape(count, 256))
    tables = _tables(histograms)
    models = [_model(costs) for _, costs in tables]
    coder = stream.stack.AnsCoder()
    for column in reversed(order):
        for table, which in reversed(_by_table(steps[column] - first >> shared, len(tables))):
            coder.encode_reverse(surprises[column, which].astype(np.int32) - tables[table][0], models[table])
    header = _HEADER.pack(rows, columns, _SQUARES + contexts.in_a_row) + contexts.pack()
    return header + _STEPS.pack(shared, first, len(tables)) + _packed(tables) + _words(coder)


def _of_contexts(content: bytes, rows: int, columns: int, in_a_row: int) -> tuple[Matrix, Coder]:
    contexts, position = Contexts.unpack(content, _HEADER.size, columns, in_a_row)
    shared, first, count = _STEPS.unpack_from(content, position)
    tables, position = _unpacked(content, position + _STEPS.size, count)
    models = [_model(costs) for _, costs in tables]
    coder, matrix = _coder(content, position), np.empty((rows, columns), np.int8)
    surprises = np.empty(rows, np.int64)

    def read(place: Place) -> Matrix:
        for table, which in _by_table(contexts.steps(place) - first >> shared, count):
            surprises[which] = coder.decode(models[table], len(which)) + tables[table][0]
        matrix[:, place.column] = plus(surprises, place.foreseen)
        return matrix[:, place.column]

    contexts.walk(rows, read)
    return matrix, coder


def _by_table(tables: npt.NDArray[np.signedinteger], count: int) -> list[tuple[int, npt.NDArray[np.intp]]]:
    """(table, the numbers that it is of), for numbers that each have one of `count` tables."""
    if len(tables) and not 0 <= int(tables.min()) <= int(tables.max()) < count:
        raise ValueError("a number is of none of the tables")
    order, sizes = tables.astype(np.uint16).argsort(kind="stable"), np.bincount(tables, minlength=count)
    used = sizes.nonzero()[0]
    return list(zip(used.tolist(), np.split(order, sizes[used].cumsum()[:-1]), strict=True)) if len(used) else []


# --- tables --------------------------------------------------------------------------------------------------------

Table = tuple[int, npt.NDArray[np.uint8]]  # the lowest number, -8 log2 of the probability of it and each above it


def _model(costs: npt.NDArray[np.uint8]) -> object:
    probabilities = _PROBABILITIES[costs]
    return stream.model.Categorical(
        probabilities if len(costs) > 1 else np.append(probabilities, np.float32(0)), perfect=False
    )


def _tables(histograms: Histograms) -> list[Table]:
    """Of each histogram; of one without numbers the shortest one."""
    tables: list[Table] = []
    for one in histograms:
        seen = one.nonzero()[0] if one.any() else np.array([128])
        counts = one[seen[0] : seen[-1] + 1]
        with np.errstate(divide="ignore"):
            costs = -8 * np.log2(counts / max(1, counts.sum()))
        tables.append((int(seen[0]) - 128, np.minimum(costs, 255).round().astype(np.uint8)))
    return tables


def _packed(tables: Iterable[Table]) -> bytes:
    return b"".join(struct.pack("<bB", lowest, len(costs) - 1) + costs.tobytes() for lowest, costs in tables)


def _unpacked(content: bytes, position: int, count: int) -> tuple[Sequence[Table], int]:
    """(so many tables, the position after them)."""
    tables = []
    for _ in range(count):
        lowest, last = struct.unpack_from("<bB", content, position)
        position += 2
        tables.append((lowest, np.frombuffer(content, np.uint8, last + 1, position)))
        position += last + 1
    return tables, position


def _words(coder: Coder) -> bytes:
    return coder.get_compressed().astype("<u4").tobytes()


def _coder(content: bytes, position: int) -> Coder:
    return stream.stack.AnsCoder(np.frombuffer(content, "<u4", offset=position).astype(np.uint32))


def _fewest_bytes(histograms: Histograms) -> tuple[int, Histograms]:
    """(log2 of how many neighbours share a table, the histogram of each group of them)."""
    best: tuple[float, int, Histograms] | None = None
    shared = 0
    while len(histograms):
        seen = histograms > 0
        widths = np.where(seen.any(1), 256 - seen.argmax(1) - seen[:, ::-1].argmax(1), 1)
        size = num_bytes(histograms) + float((2 + widths).sum())
        if best is None or size < best[0]:
            best = size, shared, histograms
        if len(histograms) == 1:
            break
        shared += 1
        histograms = np.concatenate([histograms, np.zeros((len(histograms) % 2, 256), np.int64)])
        histograms = histograms[0::2] + histograms[1::2]
    return best[1:] if best else (0, histograms)
