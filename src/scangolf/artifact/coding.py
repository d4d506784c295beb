"""The codes of all mixed tensors as one stream: each under the class of its row and column.

A code is about as large as its row and its column usually are. So the size of every row's and
column's weights is stored beside their steps, all as logarithms in quarters of an octave; size less
step, of row and column together, is the class whose frequencies code it. That is nearly as short as
if every row and column had a distribution of its own.

What a code has beyond the coder's largest symbol is kept apart, as a plain number: it is rare, or
the code takes many bits anyway.

Shapes: R rows, D columns, K classes, M magnitudes, N codes, X excesses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scangolf.artifact.quantize import CODED, Stored
from scangolf.artifact.rans import LARGEST, coded_bits, decode, encode, frequencies

LARGEST_CODE = 2**15 - 1
"""Codes go from -32767 to 32767."""

N_CLASSES = 46
"""Of codes with a root mean square from 2^-5 to 2^6.25; class UNIT has 1."""
UNIT = 20
NONE = 2.0**-7
"""Added to a root mean square, for rows and columns whose codes are all zero."""

Exponents = tuple[np.ndarray, ...]
"""Four: steps of the rows, steps of the columns, sizes of the rows, sizes of the columns, int8."""


def with_sizes(row_R: np.ndarray, column_D: np.ndarray, codes_RD: np.ndarray) -> Exponents:
    """The exponents of the steps, given, and of the sizes: root mean squares of the weights."""
    squares_RD = np.square(codes_RD, dtype=np.float32)
    rows_R1 = np.sqrt(_mean(squares_RD, 1)) + NONE
    columns_1D = np.sqrt(_mean(squares_RD / rows_R1**2, 0)) + NONE  # beside what the rows say
    sizes = (
        (4 * np.log2(rms.ravel()) + steps).round().clip(-128, 127).astype(np.int8)
        for rms, steps in ((rows_R1, row_R), (columns_1D, column_D))
    )
    return row_R, column_D, *sizes


def classes(exponents: Exponents) -> np.ndarray:
    """The class of every code, uint8 [R, D], for any exponents."""
    row_step, column_step, row_size, column_size = (part.astype(np.int16) for part in exponents)
    sum_RD = (row_size - row_step + UNIT)[:, None] + (column_size - column_step)
    return sum_RD.clip(0, N_CLASSES - 1).astype(np.uint8)


def encode_codes(tensors: Sequence[Stored]) -> tuple[np.ndarray, np.ndarray, bytes]:
    """The codes of tensors, each int16 [R, D], coded.

    Returns the table of frequencies, uint16 [K, M], the excesses in the order of their codes,
    uint16 [X], and the stream.
    """
    symbols_N, classes_N, excess_X = _symbols(
        [(tensor.parts[CODED[1]], classes(tensor.parts[:4])) for tensor in tensors]
    )
    table_KM = frequencies(symbols_N, classes_N, N_CLASSES)
    return table_KM, excess_X, encode(table_KM, symbols_N, classes_N)


def decode_codes(
    table_KM: np.ndarray, excess_X: np.ndarray, stream: bytes, exponents: Sequence[Exponents]
) -> list[np.ndarray]:
    """The codes of tensors with these exponents. Raises ValueError for parts that do not agree."""
    classes_RD = [classes(e) for e in exponents]
    codes_N = decode(table_KM, stream, _join(classes_RD, np.uint8)).astype(np.int16)
    beyond_X = np.flatnonzero(np.abs(codes_N) == LARGEST)
    if len(beyond_X) != len(excess_X) or (excess_X > LARGEST_CODE - LARGEST).any():
        raise ValueError(f"{len(excess_X)} excesses of codes")
    codes_N[beyond_X] += np.sign(codes_N[beyond_X]) * excess_X.astype(np.int16)
    borders = np.cumsum([c.size for c in classes_RD])
    parts = np.split(codes_N, borders)
    return [part.reshape(c.shape) for part, c in zip(parts, classes_RD, strict=False)]


def predicted_bytes(codes_and_classes: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """About what the codes of these tensors take: their entropy within each class."""
    symbols_N, classes_N, excess_X = _symbols(codes_and_classes)
    table_KM = frequencies(symbols_N, classes_N, N_CLASSES)
    return coded_bits(table_KM, symbols_N, classes_N) / 8 + 1.5 * len(excess_X)


def _symbols(
    codes_and_classes: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Symbols int8 [N], their classes uint8 [N], and what is beyond the largest, uint16 [X]."""
    codes_N = _join([codes for codes, _ in codes_and_classes], np.int16)
    classes_N = _join([classes_RD for _, classes_RD in codes_and_classes], np.uint8)
    magnitude_N = np.abs(codes_N)
    excess_X = (magnitude_N[magnitude_N >= LARGEST] - LARGEST).astype("<u2")
    return codes_N.clip(-LARGEST, LARGEST).astype(np.int8), classes_N, excess_X


def _mean(values_RD: np.ndarray, axis: int) -> np.ndarray:
    """Zero for no values at all."""
    return values_RD.sum(axis=axis, keepdims=True) / max(values_RD.shape[axis], 1)


def _join(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *(array.reshape(-1) for array in arrays)])
