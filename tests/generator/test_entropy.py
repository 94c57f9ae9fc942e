import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from gencond.common.errors import InputError
from gencond.generator import entropy
from gencond.generator.contexts import Contexts
from gencond.generator.entropy import decode, encode


def laplacian(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Wide in the first column, nearly all zeros in the last."""
    rng = np.random.default_rng(seed)
    return np.clip(np.round(rng.laplace(size=(rows, columns)) * np.geomspace(20, 0.1, columns)), -128, 127).astype("i1")


@pytest.mark.parametrize("shape", [(300, 48), (1, 1), (1, 9), (7, 1), (5, 3), (0, 4), (4, 0)])
def test_what_is_decoded_is_what_was_encoded(shape: tuple[int, int]) -> None:
    matrix = laplacian(*shape)
    back = decode(encode(matrix))
    assert back.dtype == np.int8 and back.shape == shape and np.array_equal(back, matrix)


def test_the_bytes_are_those_that_artefacts_in_the_world_hold() -> None:
    """Written by constriction 0.5.0; another coder, or another default of it, would leave them unreadable."""
    products = np.arange(600)[:, None] * np.arange(1, 9)[None]
    scale = np.array([1, 1, 2, 2, 5, 9, 20, 40])
    matrix = (((products * products * 7 + products) % 41 - 20) // scale).astype(np.int8)
    coded = encode(matrix)
    assert hashlib.sha256(coded).hexdigest() == "2084499fea226b7509bb90111618df2bb78b808ac14a8e11f8b0e02516d7ae47"
    assert np.array_equal(decode(coded), matrix)


def test_all_numbers_of_a_byte_are_coded() -> None:
    matrix = np.arange(-128, 128, dtype=np.int8).reshape(-1, 2)
    assert np.array_equal(decode(encode(matrix)), matrix)
    assert np.array_equal(decode(encode(np.full((9, 3), -128, np.int8))), np.full((9, 3), -128))


def test_columns_take_the_bits_of_their_entropy_and_their_table() -> None:
    matrix = laplacian(5000, 24)
    bits = 0.0
    for column in matrix.T:
        shares = np.unique(column, return_counts=True)[1] / len(column)
        bits -= len(column) * sum(share * math.log2(share) for share in shares)
    tables = sum(2 + int(column.max()) - int(column.min()) + 1 for column in matrix.T.astype(int))
    assert (
        bits / 8 < len(encode(matrix)) < 1.005 * bits / 8 + tables + 16
    )  # a word of the coder's state, and the header


def test_equal_neighbours_share_a_table() -> None:
    rows = laplacian(40, 6)
    shared = np.repeat(rows, 16, axis=1)  # sixteen columns after each other that are distributed alike
    rng = np.random.default_rng(1)
    shared = rng.permuted(shared, axis=0)
    assert len(encode(shared)) < len(encode(shared[:, rng.permutation(96)])) * 0.8
    assert np.array_equal(decode(encode(shared)), shared)


def test_a_column_of_zeros_costs_next_to_nothing() -> None:
    assert len(encode(np.zeros((5000, 64), np.int8))) < 64


@pytest.mark.parametrize("damage", ["cut", "empty", "more"])
def test_damaged_bytes_are_refused(damage: str) -> None:
    content = encode(laplacian(200, 12))
    broken = {"cut": content[:40], "empty": b"", "more": content + bytes(400)}[damage]
    with pytest.raises(InputError, match="coded numbers cannot be read"):
        decode(broken)


# --- images of squares ---------------------------------------------------------------------------------------------


def squares(rows: int, in_a_row: int, bands: int = 6, seed: int = 0) -> np.ndarray:
    """Images whose neighbouring squares are alike in the first band, and in how large all others are."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(rows, 1, 1)) * 20
    slope = rng.normal(size=(rows, in_a_row, in_a_row)).cumsum(1).cumsum(2) * 6
    spread = np.exp(rng.normal(size=(rows, 1, 1)))[:, None] * np.geomspace(6, 0.3, bands)[None, :, None, None]
    images = rng.laplace(size=(rows, bands, in_a_row, in_a_row)) * spread
    images[:, 0] += level + slope
    return np.clip(np.rint(images), -128, 127).astype(np.int8).reshape(rows, -1)


@pytest.mark.parametrize(("rows", "in_a_row", "bands"), [(900, 3, 6), (400, 1, 20), (500, 2, 40), (1, 2, 3), (3, 4, 1)])
def test_images_of_squares_come_back_as_they_were(rows: int, in_a_row: int, bands: int) -> None:
    matrix = squares(rows, in_a_row, bands)
    by_contexts = entropy._by_contexts(matrix, Contexts.fit(matrix, in_a_row))
    for coded in (by_contexts, encode(matrix, in_a_row)):
        assert np.array_equal(decode(coded), matrix)
    assert len(encode(matrix, in_a_row)) == min(len(by_contexts), len(encode(matrix)))


def test_every_number_of_a_byte_is_coded_though_others_are_foreseen() -> None:
    rng = np.random.default_rng(0)
    for matrix in (
        rng.integers(-128, 128, (300, 36), np.int8),
        np.tile(np.array([-128, 127, 127, -128], np.int8), (300, 9)),
    ):
        assert np.array_equal(decode(entropy._by_contexts(matrix, Contexts.fit(matrix, 3))), matrix)


def test_what_squares_have_in_common_is_not_stored_twice() -> None:
    alike = squares(4000, 4)
    assert len(encode(alike, 4)) < 0.93 * len(encode(alike))
    rng = np.random.default_rng(1)
    same = np.repeat(rng.integers(-60, 60, (2000, 2, 1), np.int8), 16, axis=2).reshape(2000, -1)  # sixteen times each
    assert len(encode(same, 4)) < 0.15 * len(encode(same))
    apart = rng.permuted(alike, axis=0)  # each column as it was, and nothing in common
    assert len(encode(apart, 4)) <= len(encode(apart)) < 1.005 * len(encode(alike))


# Weights that were not fitted, so that the bytes are those of whole numbers alone.
BESIDE = (
    (),
    (20, 9, -8),
    (30, 2, 1, -20, 2, 1),
    (20, 9, -8, 30, 2, 1, -20, 2, 1, 5, 6, 7),
)  # left, above, on its right
GIVEN = Contexts(
    2,
    np.array([2900, 700, 300]),
    tuple(tuple(np.array([3, *beside, *(11, -5)[:band]]) for band in range(2)) for beside in BESIDE),
    (np.array([90, 30, 8, 0, 0, 0, 0]),) * 4,
)


def test_the_bytes_of_squares_are_those_that_artefacts_in_the_world_hold() -> None:
    products = np.arange(400)[:, None] * np.arange(1, 13)[None]
    scale = np.array([1] * 4 + [4] * 4 + [11] * 4)
    matrix = (((products * products * 7 + products) % 41 - 20) // scale).astype(np.int8)
    coded = entropy._by_contexts(matrix, GIVEN)
    assert hashlib.sha256(coded).hexdigest() == "652d41509e22fb32bd22188624c54898b30f8f7342d89a88163c17ae13493a45"
    assert np.array_equal(decode(coded), matrix)


def test_weights_come_back_as_they_were() -> None:
    contexts = Contexts.fit(squares(500, 3), 3)
    packed = b"before" + contexts.pack()
    back, end = Contexts.unpack(packed, 6, 54, 3)
    assert end == len(packed) and back.pack() == contexts.pack() and back.in_a_row == 3


def test_numbers_are_the_same_with_other_threads() -> None:
    matrix = squares(300, 4)
    script = (
        "import sys; from gencond.generator.entropy import decode; "
        "sys.stdout.buffer.write(decode(sys.stdin.buffer.read()).tobytes())"
    )
    for threads in ("1", "3"):
        variables = {name: threads for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=encode(matrix, 4), stdout=subprocess.PIPE, check=True, env=os.environ | variables,
        )  # fmt: skip
        assert done.stdout == matrix.tobytes()


def test_damaged_bytes_of_squares_are_refused_or_other_numbers() -> None:
    """No other error, whatever was damaged: a check of the file's bytes is not the coder's."""
    matrix = squares(200, 3)
    content, rng = encode(matrix, 3), np.random.default_rng(0)
    assert content[8] == 128 + 3
    for position in [*range(80), *rng.integers(0, len(content), 200)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        for broken in (bytes(damaged), content[:position]):
            try:
                assert decode(broken, matrix.size).size == matrix.size
            except InputError as error:
                assert "coded numbers cannot be read" in str(error) and "\n" not in str(error)
