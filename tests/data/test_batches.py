"""Window contents by index arithmetic, the share of every rank, and resuming anywhere."""

import itertools
from typing import Any, get_args

import numpy as np
import pytest
import torch

from scangolf.data.batches import AHEAD, Batches, Order, Sequences
from scangolf.errors import UserError

ORDERS = get_args(Order)


def numbered(*lengths: int) -> list[np.ndarray]:
    """Shards whose tokens are 2, 3, 4 ...: a token tells its own place in the stream."""
    stream = np.arange(2, 2 + sum(lengths), dtype=np.uint16)
    return np.split(stream, np.cumsum(lengths)[:-1])


def documents(*lengths: int) -> np.ndarray:
    """BOS and then 2, 3, 4 ... on through all documents: every document is unlike the others."""
    parts, token = [], 2
    for length in lengths:
        parts.append([1, *range(token, token + length - 1)])
        token += length - 1
    return np.concatenate(parts).astype(np.uint16)


def rows(batches: Batches, count: int) -> np.ndarray:
    """The next `count` batches as sequences with their targets, and x and y checked to agree."""
    found = []
    for x_BL, y_BL in itertools.islice(batches, count):
        assert x_BL.dtype == y_BL.dtype == torch.int64
        assert torch.equal(x_BL[:, 1:], y_BL[:, :-1])
        found.append(torch.cat([x_BL, y_BL[:, -1:]], 1).numpy())
    return np.concatenate(found)


def make(shards: list[np.ndarray], order: Order = "window", **options: Any) -> Batches:
    settings: dict[str, Any] = {"seq_len": 5, "sequences": 2, "seed": 7} | options
    return Batches(shards, order=order, **settings)


def test_sequential_windows_are_the_stream_in_order_and_each_begins_with_a_target() -> None:
    # 43 tokens hold 8 windows of 5 with a target behind each; tokens 41 and 42 are dropped.
    with make(numbered(13, 1, 29), "sequential", sequences=3) as batches:
        expected = [[2 + 5 * (k % 8) + i for i in range(6)] for k in range(18)]
        np.testing.assert_array_equal(rows(batches, 6), expected)
        assert batches.epoch == 2


def test_a_stream_that_just_fills_its_windows_is_used_to_the_last_token() -> None:
    with make(numbered(41), "sequential", sequences=8) as batches:
        assert rows(batches, 1)[-1, -1] == 42


def test_shuffled_windows_are_all_the_windows_from_one_offset() -> None:
    offsets = set()
    with make(numbered(30, 23), sequences=9) as batches:
        assert batches.text.per_epoch == 9
        orders = []
        for _ in range(12):
            found = rows(batches, 1)
            np.testing.assert_array_equal(found - found[:, :1], [range(6)] * 9)
            starts = np.sort(found[:, 0]) - 2
            np.testing.assert_array_equal(starts, starts[0] + 5 * np.arange(9))
            offsets.add(int(starts[0]))
            orders.append(tuple(found[:, 0] - starts[0]))
    assert offsets == {0, 1, 2, 3, 4}
    assert len(set(orders)) == 12


@pytest.mark.parametrize("n_tokens", range(6, 24))
def test_short_streams_hold_a_window_in_every_epoch_and_end_before_their_end(
    n_tokens: int,
) -> None:
    with make(numbered(n_tokens), sequences=1) as batches:
        found = rows(batches, 40)
    np.testing.assert_array_equal(found - found[:, :1], [range(6)] * 40)
    assert found.min() == 2
    assert found.max() <= 2 + n_tokens - 1


def test_document_order_packs_whole_documents_each_once() -> None:
    lengths = (4, 9, 1, 17, 2, 30, 7, 3, 8)  # 81 tokens: 16 windows of 5 and no token over
    stream = documents(*lengths)
    with make([stream[:22], stream[22:50], stream[50:]], "document", sequences=16) as batches:
        seen = set()
        for _ in range(4):
            found = rows(batches, 1)
            packed = np.append(found[:, :-1].ravel(), found[-1, -1])
            starts = np.flatnonzero(packed == 1)
            pieces = [tuple(part) for part in np.split(packed, starts[1:])]
            borders = np.flatnonzero(stream == 1)
            assert sorted(pieces) == sorted(tuple(d) for d in np.split(stream, borders[1:]))
            seen.add(tuple(packed.tolist()))
            np.testing.assert_array_equal(found[1:, 0], found[:-1, -1])
    assert len(seen) == 4


def test_a_stream_that_begins_amid_a_document_keeps_that_part_together() -> None:
    stream = documents(12, 9, 11)[4:]  # 28 tokens
    with make([stream], "document", sequences=1, seq_len=27) as batches:
        packed = rows(batches, 6)
    rest = tuple(stream[:8])
    assert all(rest in list(zip(*(row[i:] for i in range(8)), strict=False)) for row in packed)


@pytest.mark.parametrize("order", ORDERS)
def test_the_ranks_together_take_what_one_process_takes(order: Order) -> None:
    shards = [documents(*range(1, 20))]
    with make(shards, order, sequences=6) as whole:
        expected = rows(whole, 9).reshape(9, 6, 6)
    for rank in range(3):
        with make(shards, order, sequences=2, rank=rank, world=3) as part:
            found = rows(part, 9).reshape(9, 2, 6)
            assert part.position == 54
        np.testing.assert_array_equal(found, expected[:, 2 * rank : 2 * rank + 2])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resuming_gives_what_would_have_followed(order: Order, stop: int) -> None:
    shards = [documents(*range(1, 20))]
    with make(shards, order) as batches:
        expected = rows(batches, stop + 60)[2 * stop :]
    with make(shards, order) as stopped:
        list(itertools.islice(stopped, stop))
    assert stopped.position == 2 * stop
    with make(shards, order, position=2 * stop) as resumed:
        np.testing.assert_array_equal(rows(resumed, 60), expected)
    with make(shards, order) as used:
        next(used)
        used.seek(2 * stop)
        np.testing.assert_array_equal(rows(used, 60), expected)


def test_the_seed_decides_the_order() -> None:
    shards = numbered(500)
    first, again, other = (rows(make(shards, seed=seed), 20) for seed in (7, 7, -8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_failure_of_the_thread_is_raised_by_the_batch_it_was_for(monkeypatch) -> None:
    take = Sequences.take

    def failing(self: Sequences, first: int, count: int) -> np.ndarray:
        if first == 4:
            raise OSError("the disk is gone")
        return take(self, first, count)

    monkeypatch.setattr(Sequences, "take", failing)
    with make(numbered(100)) as batches:
        next(batches)
        next(batches)
        for _ in range(2):
            with pytest.raises(OSError, match="disk is gone"):
                next(batches)
        assert batches.position == 4


def test_batches_ahead_are_bounded_and_closing_ends_their_thread(monkeypatch) -> None:
    taken = []
    take = Sequences.take

    def counting(self: Sequences, first: int, count: int) -> np.ndarray:
        taken.append(first)
        return take(self, first, count)

    monkeypatch.setattr(Sequences, "take", counting)
    batches = make(numbered(100))
    next(batches)
    batches.close()
    assert len(taken) <= AHEAD
    assert next(batches)[0].shape == (2, 5)
    batches.close()


def test_too_short_a_split_is_told_with_its_numbers() -> None:
    with pytest.raises(UserError, match="has 1,024 tokens, one sequence needs 1,025"):
        make(numbered(1000, 24), "sequential", seq_len=1024)
    assert rows(make(numbered(1000, 25), seq_len=1024), 1).shape == (2, 1025)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_on_the_host() -> None:
    shards = [np.random.default_rng(0).integers(1, 2**16, 200_000).astype(np.uint16)]
    options: dict[str, Any] = {"seq_len": 256, "sequences": 64}
    with make(shards, device="cuda", **options) as device, make(shards, **options) as host:
        pairs = list(itertools.islice(zip(device, host, strict=True), 50))
    for (x_BL, y_BL), (host_x_BL, host_y_BL) in pairs:
        assert torch.equal(x_BL.cpu(), host_x_BL)
        assert torch.equal(y_BL.cpu(), host_y_BL)
