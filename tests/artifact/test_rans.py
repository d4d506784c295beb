"""The entropy coder: its tables by hand, its streams against the entropy, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scangolf.artifact.rans import (
    LARGEST,
    STEPS,
    coded_bits,
    decode,
    encode,
    frequencies,
    most_symbols,
)


def entropy_bits(symbols: np.ndarray, classes: np.ndarray) -> float:
    """Order-0 entropy of the symbols of each class, all together."""
    bits = 0.0
    for k in np.unique(classes):
        _, counts = np.unique(symbols[classes == k], return_counts=True)
        bits -= (counts * np.log2(counts / counts.sum())).sum()
    return float(bits)


def normal(n: int, spread: float, seed: int = 0) -> np.ndarray:
    codes = np.rint(np.random.default_rng(seed).standard_normal(n) * spread)
    return codes.clip(-LARGEST, LARGEST).astype(np.int8)


def test_frequencies_by_hand():
    symbols = np.array([0, 0, 1, -1, 5, 5], np.int8)
    classes = np.array([0, 0, 0, 0, 2, 2], np.uint8)
    table = frequencies(symbols, classes, 3)
    # Half of class 0 are ones: one for the pair, and half of the other 8190 pairs.
    assert table[0, :3].tolist() == [2**14 - 2 * 4096, 4096, 0]
    assert table[1, :2].tolist() == [2**14, 0]
    assert table[2, [0, 5]].tolist() == [2, 8191]
    assert (table[:, 0] + 2 * table[:, 1:].sum(axis=1) == 2**14).all()


def test_a_stream_by_hand():
    """Symbols 0, 1, -1 of frequencies 2^13, 2^12, 2^12; -1 has the lowest slots, then 0, then 1."""
    table = np.zeros((1, 128), "<u2")
    table[0, :2] = 2**13, 2**12
    first = {-1: 0, 0: 2**12, 1: 3 * 2**12}
    for symbol in first:
        f = 2**13 if symbol == 0 else 2**12
        stream = encode(table, np.array([symbol], np.int8), np.zeros(1, np.uint8))
        assert np.frombuffer(stream, "<u4").tolist() == [(2**16 // f << 14) + first[symbol]]
    # 8193 symbols go through two states; nine of 0 bring each to 2^25, -1 and 1 take two bits.
    symbols = np.zeros(STEPS + 1, np.int8)
    stream = encode(table, symbols, np.zeros(len(symbols), np.uint8))
    assert len(stream) == pytest.approx(len(symbols) / 8 + 8, abs=4)


def test_a_decoder_that_takes_one_symbol_at_a_time():
    """As docs/artifact.md describes the stream."""
    symbols, classes = normal(20_000, 3.0), np.arange(20_000).astype(np.uint8) % 2
    table = frequencies(symbols, classes, 2)
    stream = encode(table, symbols, classes)
    f = [[int(row[abs(s)]) for s in range(-127, 128)] for row in table]
    before = [np.cumsum([0, *row]).tolist() for row in f]
    states = np.frombuffer(stream, "<u4", 3).tolist()
    words = iter(np.frombuffer(stream, "<u2", offset=12).tolist())
    found = []
    for i, k in enumerate(classes.tolist()):
        x = states[i % 3]
        slot = x % 2**14
        s = int(np.searchsorted(before[k], slot, "right")) - 1
        x = f[k][s] * (x >> 14) + slot - before[k][s]
        states[i % 3] = x if x >= 2**16 else x * 2**16 + next(words)
        found.append(s - 127)
    assert found == symbols.tolist()
    assert states == [2**16] * 3
    assert next(words, None) is None


def test_gaussian_symbols_take_their_entropy():
    spreads = 2.0 ** np.arange(-2, 5)
    symbols = np.concatenate([normal(40_000, s, i) for i, s in enumerate(spreads)])
    classes = np.repeat(np.arange(len(spreads), dtype=np.uint8), 40_000)
    order = np.random.default_rng(0).permutation(len(symbols))
    symbols, classes = symbols[order], classes[order]
    table = frequencies(symbols, classes, 9)
    stream = encode(table, symbols, classes)
    least = entropy_bits(symbols, classes) / 8
    n_states = -(-len(symbols) // STEPS)
    assert least < coded_bits(table, symbols, classes) / 8 < 1.002 * least
    assert abs(len(stream) - coded_bits(table, symbols, classes) / 8) < 4 * n_states
    assert len(stream) < 1.003 * least
    np.testing.assert_array_equal(decode(table, stream, classes), symbols)


@pytest.mark.parametrize("n", [0, 1, 2, STEPS - 1, STEPS, STEPS + 1, 3 * STEPS + 5])
@pytest.mark.parametrize("spread", [0.0, 0.3, 200.0])
def test_any_number_of_symbols(n, spread):
    symbols, classes = normal(n, spread), np.arange(n).astype(np.uint8) % 3
    table = frequencies(symbols, classes, 4)
    stream = encode(table, symbols, classes)
    np.testing.assert_array_equal(decode(table, stream, classes), symbols)
    assert n <= most_symbols(len(stream))


@given(
    symbols=st.lists(st.integers(-LARGEST, LARGEST), max_size=300),
    n_classes=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=80)
def test_any_symbols(symbols, n_classes, seed):
    symbols = np.array(symbols, np.int8)
    classes = np.random.default_rng(seed).integers(0, n_classes, len(symbols)).astype(np.uint8)
    table = frequencies(symbols, classes, n_classes)
    np.testing.assert_array_equal(decode(table, encode(table, symbols, classes), classes), symbols)


def test_streams_and_tables_that_are_refused():
    symbols, classes = normal(20_000, 3.0), np.zeros(20_000, np.uint8)
    table = frequencies(symbols, classes, 1)
    stream = encode(table, symbols, classes)
    for broken in (b"", stream[:11], stream[:12], stream[:-2], stream[:-1], stream + b"\0\0"):
        with pytest.raises(ValueError, match="a stream"):
            decode(table, broken, classes)
    for place in (0, 11, 12, len(stream) // 2, len(stream) - 1):
        flipped = bytearray(stream)
        flipped[place] ^= 4
        with pytest.raises(ValueError, match="a stream"):
            decode(table, bytes(flipped), classes)
    for change in (1, -1, 2**14):
        lie = table.copy()
        lie[0, 0] = int(lie[0, 0]) + change
        with pytest.raises(ValueError, match="do not add up"):
            decode(lie, stream, classes)
