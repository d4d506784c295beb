"""Batches of training sequences: deterministic, resumable, and there before they are asked for.

Sequence number k of a run is a function of the seed, the order and k alone, so the position in
the data is that one number, whatever the number of processes that share it.

Shapes: B sequences, L length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from scangolf.data.tokenizer import BOS
from scangolf.errors import UserError

Order = Literal["sequential", "window", "document"]

AHEAD = 4
"""Batches that are prepared ahead of use."""


class Sequences:
    """The training text as one endless list of sequences of `seq_len` tokens and their targets.

    An epoch cuts a stream into windows: the last token of one, a target, is the first input of
    the next. What does not fill a window is dropped. The stream is, by `order`,

    sequential  the shards as stored, its windows in their order
    window      the same from a random offset below `seq_len`, its windows shuffled
    document    the documents (they begin with BOS) in a random order

    Offset and shuffle are drawn anew for every epoch. Every epoch has `per_epoch` windows: as many
    as there are at the largest offset, so that an epoch is found by division.
    """

    def __init__(
        self, shards: Sequence[np.ndarray], *, seq_len: int, order: Order, seed: int
    ) -> None:
        self.seq_len, self.order, self.seed = seq_len, order, seed
        self.shards = [np.asarray(shard) for shard in shards]  # a memmap is slow to slice
        self._shard_starts = np.cumsum([0, *map(len, shards)]).tolist()
        self.n_tokens: int = self._shard_starts[-1]
        if self.n_tokens <= seq_len:
            raise UserError(
                f"the training split has {self.n_tokens:,} tokens, one sequence needs "
                f"{seq_len + 1:,}: use more text or a smaller --batch.seq-len"
            )
        last_offset = seq_len - 1 if order == "window" else 0
        self.per_epoch = max(1, (self.n_tokens - 1 - last_offset) // seq_len)
        self._epoch = -1
        if order == "document":
            starts = np.concatenate(
                [
                    np.flatnonzero(shard == BOS) + start
                    for shard, start in zip(self.shards, self._shard_starts, strict=False)
                ]
            )
            # A stream that does not begin with a document begins with the rest of one.
            starts = np.union1d([0], starts)
            self._documents = starts, np.diff(starts, append=self.n_tokens)

    def take(self, first: int, count: int) -> np.ndarray:
        """Sequences first, first + 1, ... with their targets: int32 [count, seq_len + 1]."""
        rows = np.empty((count, self.seq_len + 1), np.int32)
        done = 0
        while done < count:
            epoch, window = divmod(first + done, self.per_epoch)
            if epoch != self._epoch:
                self._begin(epoch)
            here = rows[done : done + self.per_epoch - window]
            if self.order == "document":
                self._pack(here, window * self.seq_len)
            else:
                for row, number in zip(here, self._windows[window:], strict=False):
                    self._copy(row, self._offset + int(number) * self.seq_len)
            done += len(here)
        return rows

    def _begin(self, epoch: int) -> None:
        """Draws what is random in an epoch, from the seed and its number."""
        generator = np.random.default_rng((self.seed % 2**64, epoch))
        self._offset, self._windows = 0, range(self.per_epoch)
        if self.order == "window":
            room = self.n_tokens - self.per_epoch * self.seq_len
            self._offset = int(generator.integers(min(self.seq_len, room)))
            self._windows = generator.permutation(self.per_epoch)
        elif self.order == "document":
            starts, lengths = self._documents
            shuffled = generator.permutation(len(starts))
            self._sources, self._lengths = starts[shuffled], lengths[shuffled]
            self._ends = np.cumsum(self._lengths)
        self._epoch = epoch

    def _pack(self, rows: np.ndarray, position: int) -> None:
        """Fills rows in a row from the packed documents, from `position` in their stream on."""
        span = np.empty(len(rows) * self.seq_len + 1, rows.dtype)
        stop = position + len(span)
        first, last = np.searchsorted(self._ends, (position + 1, stop))
        within = slice(first, last + 1)
        documents = (self._sources[within], self._lengths[within], self._ends[within])
        for source, length, end in zip(*(part.tolist() for part in documents), strict=True):
            begin = max(end - length, position)
            self._copy(span[begin - position : end - position], source + begin - (end - length))
        rows[:] = sliding_window_view(span, self.seq_len + 1)[:: self.seq_len]

    def _copy(self, row: np.ndarray, start: int) -> None:
        """Fills a row with stored tokens from `start` on, over the borders of shards."""
        shard = bisect_right(self._shard_starts, start) - 1
        filled = 0
        while filled < len(row):
            offset = start + filled - self._shard_starts[shard]
            part = self.shards[shard][offset : offset + len(row) - filled]
            row[filled : filled + len(part)] = part
            filled, shard = filled + len(part), shard + 1


class Batches:
    """Iterates over (inputs, targets), int64 [sequences, seq_len] on `device`, without end.

    A step of `world` processes takes world * sequences sequences in a row, `rank` its own part of
    them: together what one process with all of them would take. A thread prepares batches ahead,
    in pinned memory for a GPU; what goes wrong there is raised by the `next` it was for.
    `position` counts the sequences handed out by all processes; it is the whole state.

    Raises UserError where the shards hold less than one sequence.
    """

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        *,
        seq_len: int,
        sequences: int,
        order: Order,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        position: int = 0,
    ) -> None:
        self.text = Sequences(shards, seq_len=seq_len, order=order, seed=seed)
        self.sequences, self.rank, self.world = sequences, rank, world
        self.device = torch.device(device)
        self.position = position
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: deque[Future[Tensor]] = deque()

    @property
    def epoch(self) -> int:
        """Complete passes over the text so far."""
        return self.position // self.text.per_epoch

    def seek(self, position: int) -> None:
        """Goes on from there."""
        self.close()
        self.position = position

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "batches")
        step = self.world * self.sequences
        while len(self._ahead) < AHEAD:
            position = self.position + len(self._ahead) * step
            self._ahead.append(self._thread.submit(self._prepare, position))
        host_BL = self._ahead[0].result()
        self._ahead.popleft()
        self.position += step
        # Copied on the stream that will use it, so nothing has to be waited for; the allocator of
        # pinned memory keeps the source from being used again before the copy is done.
        tokens_BL = host_BL.to(self.device, non_blocking=True).long()
        return tokens_BL[:, :-1].contiguous(), tokens_BL[:, 1:].contiguous()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread; iterating again starts another one at `position`."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
            self._ahead.clear()

    def _prepare(self, position: int) -> Tensor:
        rows = self.text.take(position + self.rank * self.sequences, self.sequences)
        tokens_BL = torch.from_numpy(rows)
        return tokens_BL.pin_memory() if self.device.type == "cuda" else tokens_BL
