"""Classes by hand, and the stream of rows and columns of very different size."""

import numpy as np
import pytest

from scangolf.artifact.coding import (
    LARGEST_CODE,
    N_CLASSES,
    UNIT,
    classes,
    decode_codes,
    encode_codes,
    predicted_bytes,
    with_sizes,
)
from scangolf.artifact.quantize import Stored


def tensor(row: np.ndarray, column: np.ndarray, codes: np.ndarray) -> Stored:
    exponents = with_sizes(row.astype(np.int8), column.astype(np.int8), codes)
    return Stored("mixed", (*exponents, codes.astype("<i2")))


def decoded(tensors: list[Stored]) -> list[np.ndarray]:
    table, excess, stream = encode_codes(tensors)
    return decode_codes(table, excess, stream, [t.parts[:4] for t in tensors])


def test_classes_by_hand():
    codes = np.array([[4, -4, 4, -4], [1, 1, -1, 1], [0, 0, 0, 0]], "<i2")
    row, column = np.array([-20, -8, 3]), np.array([0, 1, 2, 3])
    exponents = with_sizes(row.astype(np.int8), column.astype(np.int8), codes)
    # The row's root mean square is 4: two octaves, eight quarters, above its step.
    assert exponents[2].tolist() == [-20 + 8, -8 + 0, 3 - 28]
    # A column beside its rows: sqrt((1 + 1 + 0) / 3) is 2^-0.29, one quarter below 1.
    assert exponents[3].tolist() == [-1, 0, 1, 2]
    expected = np.array([[8], [0], [-28]]) - 1 + UNIT
    assert classes(exponents).tolist() == np.repeat(expected.clip(0), 4, axis=1).tolist()


def test_no_exponents_lead_out_of_the_table():
    for value in (-128, 127):
        ends = [np.full(2, v, np.int8) for v in (value, value, -1 - value, -1 - value)]
        assert set(classes(tuple(ends)).ravel()) <= {0, N_CLASSES - 1}


def test_rows_and_columns_take_the_entropy_of_their_own():
    """Rows from all zero to thousands of levels: the mixture has half a bit more than its parts."""
    rng = np.random.default_rng(0)
    row_spread, column_spread = np.exp2(rng.uniform(-1, 5, 256)), np.exp2(rng.uniform(-1, 1, 512))
    spread = np.outer(row_spread, column_spread)
    codes = np.rint(rng.standard_normal(spread.shape) * spread).clip(-127, 127).astype("<i2")
    t = tensor(np.zeros(256), np.zeros(512), codes)
    _, _, stream = encode_codes([t])
    # The entropy of a rounded Gaussian: log2(spread sqrt(2 pi e)), exact within 1e-3 above 1.
    fine = spread > 1
    exact = np.log2(spread[fine] * np.sqrt(2 * np.pi * np.e)).sum()
    _, counts = np.unique(codes, return_counts=True)
    mixture = -(counts * np.log2(counts / codes.size)).sum() / 8
    share = fine.mean()
    assert len(stream) < 0.9 * mixture
    only_fine = tensor(np.zeros(256), np.zeros(512), np.where(fine, codes, 0))
    bound = (exact + (1 - share) * codes.size) / 8
    assert len(encode_codes([only_fine])[2]) < 1.02 * bound
    assert predicted_bytes([(codes, classes(t.parts[:4]))]) == pytest.approx(len(stream), rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (0, 5), (5, 0), (33, 65)])
def test_round_trip_of_any_shape_and_size(shape):
    rng = np.random.default_rng(0)
    small = np.rint(rng.standard_normal(shape) * 2)
    large = rng.integers(-LARGEST_CODE, LARGEST_CODE + 1, shape)
    edge = rng.choice([126, 127, 128, -126, -127, -128, LARGEST_CODE, -LARGEST_CODE], shape)
    row, column = (rng.integers(-128, 128, n) for n in shape)
    tensors = [tensor(row, column, codes) for codes in (small, large, edge, np.zeros(shape))]
    for found, t in zip(decoded(tensors), tensors, strict=True):
        np.testing.assert_array_equal(found, t.parts[4])


def test_no_tensors_at_all():
    assert decoded([]) == []


def test_excesses_that_do_not_belong_to_the_codes():
    t = tensor(np.zeros(4), np.zeros(9), np.full((4, 9), 200))
    table, excess, stream = encode_codes([t])
    exponents = [t.parts[:4]]
    assert (decode_codes(table, excess, stream, exponents)[0] == 200).all()
    too_large = excess.copy()
    too_large[0] = LARGEST_CODE
    for lie in (excess[:-1], np.append(excess, excess[:1]), too_large):
        with pytest.raises(ValueError, match="excesses"):
            decode_codes(table, lie, stream, exponents)
