"""What numbers of squares say of those that are read after them: about which value, and how far from it."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int8]
Ints = npt.NDArray[np.int64]
Small = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

FORESEEN = 12  # bands at most whose values are foreseen, by the values of so many
VALUE_UNIT = 64  # of weights of values, which are bytes: they lie in [-2, 2)
ACTIVITY_UNIT, MOST_ACTIVE = 256, 50  # a band's mean magnitude is one unit; so many times that count at most
OWN_BANDS, NEAR_BANDS = (32, 8), (4, 0)  # before a number in its square; on either side of it in squares beside it
WEIGHT_UNIT = 128  # of weights of activities
LEAST = ACTIVITY_UNIT * WEIGHT_UNIT // 128  # that is expected, of the mean magnitude
PARTS_OF_AN_OCTAVE = 16  # of expected magnitudes
FITTED_SQUARES, FITTED_NUMBERS = 32_000, 1_600_000  # at most, of as many rows: memory is some hundred bytes of each
REFITTED, SMALLEST_ERROR, MOST_COUNTED = 2, 0.3, 3.0  # times; of magnitudes that are expected; of means, at first
_BYTE = struct.Struct("<B")


class Place(NamedTuple):
    """A column, and what is known of its numbers before they are read.

    Args:
        column: of the matrix.
        band: of its square.
        kind: of the square, see `_kind`.
        foreseen: the value that each number is likely to lie at, not yet a byte.
        around: activities before each number, in 1 / ACTIVITY_UNIT, a row each; the first are all one unit. The same
            array serves the next place.
    """

    column: int
    band: int
    kind: int
    foreseen: Ints
    around: Ints


@dataclass(frozen=True)
class Contexts:
    """Weights by which numbers are foreseen; whole ones, so that they say the same on any machine.

    A row of a matrix holds an image: squares, and of each square numbers from coarse to fine, its bands. They lie as
    feature maps do, a number of each square and then the next of each. They are read square by square, band by band.

    Args:
        in_a_row: squares of an image, beside each other.
        scales: mean magnitude of what is not foreseen of each band, in 1 / ACTIVITY_UNIT, at least 1.
        of_values: for each kind of square and each foreseen band, weights of the values before it.
        of_activities: for each kind of square, weights of the magnitudes before a number, in means of their bands.
    """

    in_a_row: int
    scales: Ints
    of_values: tuple[tuple[Ints, ...], ...]
    of_activities: tuple[Ints, ...]

    @classmethod
    def fit(cls, matrix: Numbers, in_a_row: int) -> "Contexts":
        """Those of least squares, which foresee the values of as many bands as save bytes by it."""
        bands = matrix.shape[1] // in_a_row**2
        kinds = sorted({_kind(square, in_a_row) for square in range(in_a_row**2)})
        of_values = _fit_values(matrix, in_a_row, len(kinds))
        start = cls(in_a_row, np.full(bands, ACTIVITY_UNIT), of_values, ())
        magnitudes = np.zeros(bands)
        few = _some(matrix, FITTED_SQUARES // in_a_row**2)

        def weigh(place: Place) -> Numbers:
            numbers = few[:, place.column]
            magnitudes[place.band] += np.abs(less(numbers, place.foreseen).astype(int)).mean() / in_a_row**2
            return numbers

        start.walk(len(few), weigh)
        scales = np.maximum(1, np.rint(ACTIVITY_UNIT * magnitudes)).astype(np.int64)
        of_activities = cls(in_a_row, scales, of_values, ())._fit_activities(
            _some(matrix, FITTED_NUMBERS // matrix.shape[1])
        )
        return cls(in_a_row, scales, of_values, of_activities)

    def walk(self, num_rows: int, read: Callable[[Place], Numbers]) -> None:
        """Goes through the columns in the order in which they are read.

        Args:
            read: gives the numbers of a column by what is known of them; called once for each.
        """
        bands, squares = len(self.scales), self.in_a_row**2
        known = min(FORESEEN, bands)
        values: list[Ints] = []  # of each square that was read, the first bands: [known, rows]
        near: list[Small] = []  # of each of the last squares, mean activities of bands: [len(NEAR_BANDS), bands, rows]
        for square in range(squares):
            kind = _kind(square, self.in_a_row)
            before = _values_before(square, self.in_a_row, values, np.zeros((known, num_rows), np.int64))
            own = before[-known:]  # a view: it is filled in as numbers are read
            beside = [near[-1] if kind & 1 else None, near[-self.in_a_row] if kind & 2 else None]
            sums = np.zeros((bands + 1, num_rows), np.int32)  # of activities, of the bands before each
            around = np.zeros((1 + len(OWN_BANDS) + 2 * len(NEAR_BANDS), num_rows), np.int64)
            around[0] = ACTIVITY_UNIT
            weights = self.of_values[kind]
            for band, scale in enumerate(self.scales):
                foreseen = np.zeros(num_rows, np.int64)
                if band < len(weights):
                    some = before[: len(weights[band])]
                    foreseen = (weights[band] @ some + VALUE_UNIT // 2) // VALUE_UNIT
                for row, width in enumerate(OWN_BANDS, start=1):
                    first = max(0, band - width)
                    around[row] = (sums[band] - sums[first]) // max(1, band - first)
                for number, means in enumerate(beside):
                    if means is not None:
                        first = 1 + len(OWN_BANDS) + number * len(NEAR_BANDS)
                        around[first : first + len(NEAR_BANDS)] = means[:, band]
                numbers = read(Place(band * squares + square, band, kind, foreseen, around))
                if band < known:
                    own[band] = numbers
                sums[band + 1] = sums[band] + _activity(less(numbers, foreseen), int(scale))
            values.append(own.copy())
            near = [*near[1 - self.in_a_row :], _means(sums)] if self.in_a_row > 1 else []

    def steps(self, place: Place) -> Ints:
        """How far from what is foreseen numbers may lie: steps of an even scale, PARTS_OF_AN_OCTAVE to a doubling."""
        active = np.maximum(self.of_activities[place.kind] @ place.around, LEAST)
        mantissa, exponent = np.frexp((active * self.scales[place.band] // WEIGHT_UNIT + 1).astype(np.float64))
        return exponent * PARTS_OF_AN_OCTAVE + ((2 * mantissa - 1) * PARTS_OF_AN_OCTAVE).astype(np.int64)

    def pack(self) -> bytes:
        """As bytes that `unpack` reads."""
        weights = [weight for of_kind in self.of_values for weight in of_kind]
        return b"".join([
            _BYTE.pack(len(self.of_values[0])),
            self.scales.astype("<u2").tobytes(),
            *(weight.astype("i1").tobytes() for weight in weights),
            *(weight.astype("<i2").tobytes() for weight in self.of_activities),
        ])  # fmt: skip

    @classmethod
    def unpack(cls, content: bytes, position: int, columns: int, in_a_row: int) -> tuple["Contexts", int]:
        """(what was packed, the position after it).

        Raises:
            ValueError, struct.error: not enough bytes, or columns that are not of so many squares.
        """
        bands, rest = divmod(columns, in_a_row**2)
        (foreseen,) = _BYTE.unpack_from(content, position)
        if rest or foreseen > min(FORESEEN, bands):
            raise ValueError(f"{columns} columns of {in_a_row} squares in a row, {foreseen} bands foreseen")
        position += _BYTE.size

        def read(dtype: str, count: int) -> Ints:
            nonlocal position
            found = np.frombuffer(content, dtype, count, position)
            position += found.nbytes
            return found.astype(np.int64)

        scales = np.maximum(1, read("<u2", bands))
        kinds = range(4 if in_a_row > 1 else 1)
        of_values = tuple(
            tuple(read("i1", _num_values_before(kind, min(FORESEEN, bands)) + band) for band in range(foreseen))
            for kind in kinds
        )
        of_activities = tuple(read("<i2", 1 + len(OWN_BANDS) + 2 * len(NEAR_BANDS)) for _ in kinds)
        return cls(in_a_row, scales, of_values, of_activities), position

    def _fit_activities(self, matrix: Numbers) -> tuple[Ints, ...]:
        """Weights with which magnitudes are expected, for each kind of square."""
        known: list[list[tuple[Floats, Floats, Floats]]] = [[] for _ in self.of_values]

        def collect(place: Place) -> Numbers:
            numbers, scale = matrix[:, place.column], int(self.scales[place.band])
            active = _activity(less(numbers, place.foreseen), scale).astype(np.float64)
            means = np.full(len(numbers), scale / ACTIVITY_UNIT)
            known[place.kind].append((place.around.T.astype(np.float64), active, means))
            return numbers

        self.walk(len(matrix), collect)
        return tuple(_weights_of_activities(*map(np.concatenate, zip(*of_kind, strict=True))) for of_kind in known)


def less(numbers: npt.NDArray[np.signedinteger], foreseen: Ints) -> Numbers:
    """What is not foreseen of numbers: the difference as a byte, which wraps around, so that `plus` undoes it."""
    return (numbers.astype(np.int64) - foreseen).astype(np.uint8).view(np.int8)


def plus(surprises: npt.NDArray[np.signedinteger], foreseen: Ints) -> Numbers:
    """Numbers of which `less` is known."""
    return (surprises.astype(np.int64) + foreseen).astype(np.uint8).view(np.int8)


def num_bytes(histograms: npt.NDArray[np.int64]) -> float:
    """That numbers of these histograms [n, values] take, each in the bits of its surprise."""
    sums = histograms.sum(-1, keepdims=True)
    return -float((histograms * np.log2(np.where(histograms, histograms / np.maximum(sums, 1), 1))).sum()) / 8


def histogram(numbers: Numbers) -> npt.NDArray[np.int64]:
    """How often each of the 256 values is there, from -128 on."""
    return np.bincount(numbers.ravel().view(np.uint8) ^ 128, minlength=256)


# --- what lies around a number -------------------------------------------------------------------------------------


def _kind(square: int, in_a_row: int) -> int:
    """Which squares lie beside one that were read before it: 1 on its left, 2 above it, 3 both, 0 none."""
    return (square % in_a_row > 0) + 2 * (square >= in_a_row)


def _num_values_before(kind: int, known: int) -> int:
    """How many values are known before the first band of a square is read, and a constant."""
    return 1 + known * (0, 1, 2, 4)[kind]


def _values_before(square: int, in_a_row: int, values: list[Ints], own: Ints) -> Ints:
    """A constant, values of the squares on the left, above, above on the right, above on the left, and the own ones."""
    kind, none = _kind(square, in_a_row), np.zeros_like(own)
    beside: list[Ints] = []
    if kind & 1:
        beside.append(values[square - 1])
    if kind & 2:
        is_last = square % in_a_row == in_a_row - 1
        beside += [values[square - in_a_row], none if is_last else values[square - in_a_row + 1]]
    if kind == 3:
        beside.append(values[square - in_a_row - 1])
    return np.concatenate([np.ones_like(own[:1]), *beside, own])


def _activity(surprises: Numbers, scale: int) -> Ints:
    """Magnitudes in means of their band, in 1 / ACTIVITY_UNIT."""
    return np.minimum(np.abs(surprises.astype(np.int64)) * ACTIVITY_UNIT**2 // scale, MOST_ACTIVE * ACTIVITY_UNIT)


def _means(sums: Small) -> Small:
    """Mean activities of the bands around each, from sums over all before: [len(NEAR_BANDS), bands, rows]."""
    bands = len(sums) - 1
    means = []
    for reach in NEAR_BANDS:
        first = np.maximum(np.arange(bands) - reach, 0)
        last = np.minimum(np.arange(bands) + reach + 1, bands)
        means.append((sums[last] - sums[first]) // (last - first).astype(np.int32)[:, None])
    return np.stack(means)


# --- fitting -------------------------------------------------------------------------------------------------------


def _some(matrix: Numbers, at_most: int) -> Numbers:
    """Some rows, evenly spaced, at least a few."""
    return matrix[:: max(1, -(-len(matrix) // max(at_most, 16)))]


def _whole(weights: npt.NDArray[np.floating], unit: int, dtype: type[np.signedinteger]) -> Ints:
    """Weights as whole numbers of a type."""
    range_of = np.iinfo(dtype)
    return np.clip(np.rint(weights * unit), range_of.min, range_of.max).astype(np.int64)


def _weights_of_activities(around: Floats, active: Floats, means: Floats) -> Ints:
    """Those of least squares, in which an error counts for less where more is expected.

    Args:
        around: [n, features].
        active: what is to be expected from them.
        means: magnitude that one unit of it is.
    """
    weights, counts_for = np.zeros(around.shape[1]), np.minimum(means, MOST_COUNTED)
    for _ in range(1 + REFITTED):
        root = np.sqrt(counts_for)
        weights = np.linalg.lstsq(around * root[:, None], active * root)[0]
        expected = np.maximum(around @ weights, LEAST / WEIGHT_UNIT) / ACTIVITY_UNIT * means
        counts_for = means / (expected + SMALLEST_ERROR)
    return _whole(weights, WEIGHT_UNIT, np.int16)


def _fit_values(matrix: Numbers, in_a_row: int, num_kinds: int) -> tuple[tuple[Ints, ...], ...]:
    """For each kind of square, weights of the values before each band; of as many bands as save bytes by it."""
    few = _some(matrix, FITTED_SQUARES // in_a_row**2)
    images = few.astype(np.int64).reshape(len(few), -1, in_a_row**2)
    known = min(FORESEEN, images.shape[1])
    values = [np.ascontiguousarray(images[:, :known, square].T) for square in range(in_a_row**2)]
    weights: list[list[Ints]] = [[] for _ in range(num_kinds)]
    saved = []
    for band in range(known):
        surprises = []
        for kind in range(num_kinds):
            squares = [square for square in range(in_a_row**2) if _kind(square, in_a_row) == kind]
            before = np.concatenate(
                [_values_before(square, in_a_row, values, values[square]) for square in squares], axis=1
            )[: _num_values_before(kind, known) + band].astype(np.float64)
            own = np.concatenate([values[square][band] for square in squares])
            # Sums of whole numbers, so that they are the same on any machine.
            found = np.linalg.lstsq(before @ before.T, before @ own)[0]
            weights[kind].append(_whole(found, VALUE_UNIT, np.int8))
            foreseen = (weights[kind][-1] @ before.astype(np.int64) + VALUE_UNIT // 2) // VALUE_UNIT
            surprises.append(less(own, foreseen))
        plain = num_bytes(histogram(images[:, band].astype(np.int8))[None])
        left = num_bytes(histogram(np.concatenate(surprises))[None])
        saved.append((plain - left) * len(matrix) / len(few) - sum(len(of_kind[-1]) for of_kind in weights))
    gains = np.cumsum([0.0, *saved])
    return tuple(tuple(of_kind[: int(gains.argmax())]) for of_kind in weights)
