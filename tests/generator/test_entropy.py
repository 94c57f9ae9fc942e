import hashlib
import math

import numpy as np
import pytest

from gencond.common.errors import InputError
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
