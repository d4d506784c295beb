"""An entropy coder for small signed integers of known spread: rANS, many states side by side.

Range asymmetric numeral systems (Duda 2013, arXiv:1311.2540) in the form of Giesen (2014,
arXiv:1402.3392): a state of 32 bits that gives off words of 16. Every symbol has a class, each
class a table of frequencies. Symbol i goes through state i mod S, so that numpy takes a step of
all S states at once. The encoder runs from the last symbol to the first, the decoder back: its
states must end where the encoder's began, with no word left over, or the stream is damaged.

A stream is the S states, uint32, and the words, uint16, all little-endian.

Shapes: N symbols, K classes, M = 128 magnitudes, S states.
"""

from __future__ import annotations

import numpy as np

LARGEST = 127
"""Symbols go from -127 to 127."""
PRECISION = 14
TOTAL = 1 << PRECISION
"""What the frequencies of a class add up to."""
STEPS = 8192
"""Most steps of the coder: a step costs time, a state 4 bytes."""
START = 1 << 16
"""The encoder's first state, and the least that a state may be between steps."""


def frequencies(symbols_N: np.ndarray, classes_N: np.ndarray, n_classes: int) -> np.ndarray:
    """The frequency of every magnitude in every class: uint16 [K, M].

    A symbol s and -s have the same frequency f(|s|), so that f(0) + 2 f(1) + ... + 2 f(127) =
    2^14. Zero has at least 1 everywhere, another magnitude where it occurs.
    """
    pairs_N = classes_N.astype(np.int32) * (LARGEST + 1) + np.abs(symbols_N.astype(np.int16))
    counts = np.bincount(pairs_N, minlength=n_classes * (LARGEST + 1))
    counts_KM = counts.reshape(n_classes, LARGEST + 1)
    occurs_KM = counts_KM[:, 1:] > 0
    # One for each pair of signs that occurs; the rest is shared out in proportion.
    room_K1 = (TOTAL - 1) // 2 - occurs_KM.sum(axis=1, keepdims=True)
    total_K1 = np.maximum(counts_KM.sum(axis=1, keepdims=True), 1)
    shared_KM = np.cumsum(counts_KM[:, 1:], axis=1) * room_K1 // total_K1
    table_KM = np.empty_like(counts_KM)
    table_KM[:, 1:] = np.diff(shared_KM, axis=1, prepend=0) + occurs_KM
    table_KM[:, 0] = TOTAL - 2 * table_KM[:, 1:].sum(axis=1)
    return table_KM.astype("<u2")


def coded_bits(table_KM: np.ndarray, symbols_N: np.ndarray, classes_N: np.ndarray) -> float:
    """Bits that `encode` spends on these symbols, apart from its states: their cross-entropy."""
    frequency_N = table_KM[classes_N, np.abs(symbols_N.astype(np.int16))]
    return float((PRECISION - np.log2(frequency_N)).sum(dtype=np.float64))


def encode(table_KM: np.ndarray, symbols_N: np.ndarray, classes_N: np.ndarray) -> bytes:
    """The stream of symbols, int8 [N], of classes uint8 [N], under the tables of `frequencies`."""
    frequency_KA, before_KA = _expand(table_KM)
    place_N = _places(symbols_N, classes_N)
    frequency, before = frequency_KA.reshape(-1), before_KA.reshape(-1)
    n_states = _n_states(len(symbols_N))
    state_S = np.full(n_states, START, np.uint32)
    words: list[np.ndarray] = []
    for start in reversed(range(0, len(symbols_N), n_states)):
        place = place_N[start : start + n_states]
        f, x = frequency[place], state_S[: len(place)]
        full = (x >> (32 - PRECISION)) >= f
        words.append(x[full].astype("<u2"))
        x[full] >>= 16
        quotient, rest = np.divmod(x, f)
        x[:] = (quotient << PRECISION) + rest + before[place]
    return state_S.astype("<u4").tobytes() + b"".join(w.tobytes() for w in reversed(words))


def decode(table_KM: np.ndarray, stream: bytes, classes_N: np.ndarray) -> np.ndarray:
    """The symbols, int8 [N]: the inverse of `encode`.

    Raises ValueError for tables that do not add up and for a stream that does not end as it must.
    """
    frequency_KA, before_KA = _expand(table_KM)
    if (frequency_KA.sum(axis=1) != TOTAL).any():
        raise ValueError("frequencies that do not add up")
    # Which symbol owns each of the 2^14 slots of a class, as an index into its row.
    owner_KT = np.repeat(
        np.tile(np.arange(frequency_KA.shape[1], dtype=np.uint8), len(table_KM)),
        frequency_KA.reshape(-1),
    )
    n_states = _n_states(len(classes_N))
    if len(stream) < 4 * n_states or len(stream) % 2:
        raise ValueError(f"a stream of {len(stream)} bytes")
    state_S = np.frombuffer(stream, "<u4", n_states).astype(np.uint32)
    words = np.frombuffer(stream, "<u2", offset=4 * n_states)
    frequency, before = frequency_KA.reshape(-1), before_KA.reshape(-1)
    symbols_N = np.empty(len(classes_N), np.int8)
    position = 0
    for start in range(0, len(classes_N), n_states):
        x = state_S[: len(classes_N) - start]
        class_S = classes_N[start : start + n_states].astype(np.uint32)
        slot = x & np.uint32(TOTAL - 1)
        index = owner_KT[(class_S << PRECISION) + slot]
        place = (class_S << 8) + index
        x[:] = frequency[place] * (x >> PRECISION) + slot - before[place]
        low = x < START
        taken = words[position : position + np.count_nonzero(low)]
        if len(taken) < np.count_nonzero(low):
            raise ValueError("a stream that ends too soon")
        x[low] = (x[low] << 16) | taken
        position += len(taken)
        symbols_N[start : start + n_states] = index.astype(np.int16) - LARGEST
    if position != len(words) or (state_S != START).any():
        raise ValueError("a stream that does not end where it began")
    return symbols_N


def most_symbols(n_bytes: int) -> int:
    """How many symbols a stream of so many bytes can hold, whatever they are."""
    return n_bytes // 4 * STEPS


def _n_states(n_symbols: int) -> int:
    return max(1, -(-n_symbols // STEPS))


def _places(symbols_N: np.ndarray, classes_N: np.ndarray) -> np.ndarray:
    """Where a symbol of a class stands in the flat tables of `_expand`."""
    return (classes_N.astype(np.uint16) << 8) + (symbols_N.astype(np.int16) + LARGEST).astype(
        np.uint16
    )


def _expand(table_KM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of the symbols -127 ... 127 and 128, which has none, and the sums before each.

    Both uint32 [K, 256].
    """
    table_KM = table_KM.astype(np.uint32)
    none_K1 = np.zeros((len(table_KM), 1), np.uint32)
    frequency_KA = np.concatenate([table_KM[:, :0:-1], table_KM, none_K1], axis=1)
    before_KA = np.cumsum(frequency_KA, axis=1, dtype=np.uint32) - frequency_KA
    return frequency_KA, before_KA
