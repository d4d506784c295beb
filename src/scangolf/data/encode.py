"""Documents to tokens on every core, in their order."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from scangolf.data.shards import Split
from scangolf.data.tokenizer import BOS, Tokenizer

CHARACTERS_AT_ONCE = 2**20
"""Text that one process tokenizes at a time."""


@dataclass(frozen=True)
class Document:
    split: Split
    tokens: np.ndarray
    """uint16, BOS and then its pieces."""
    n_bytes: int
    """UTF-8 bytes of its text."""


Batch = list[tuple[str, Split]]


def encode_documents(
    documents: Iterable[tuple[str, Split]], tokenizer: Tokenizer, workers: int | None = None
) -> Iterator[list[Document]]:
    """Yields the documents tokenized, some at a time, whatever `workers` says in the same order.

    What fits one batch is tokenized here, more by one process a core. Processes are spawned, as
    forking one with threads is unsafe: a script needs its `if __name__ == "__main__"`.
    """
    batches = _batches(documents)
    first = list(itertools.islice(batches, 2))
    batches = itertools.chain(first, batches)
    workers = _cores() if workers is None else workers
    if workers == 1 or len(first) < 2:
        yield from (_encode(tokenizer, batch) for batch in batches)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (tokenizer.model_bytes,))
    try:
        under_way: deque[Future[list[Document]]] = deque()
        for batch in batches:
            under_way.append(pool.submit(_encode_in_worker, batch))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(tokenizer: Tokenizer, batch: Batch) -> list[Document]:
    encoded = tokenizer.processor.encode([text for text, _ in batch])
    return [
        Document(split, np.array([BOS, *ids], np.uint16), len(text.encode()))
        for (text, split), ids in zip(batch, encoded, strict=True)
    ]


def _start_worker(model_bytes: bytes) -> None:
    global _worker_tokenizer
    _worker_tokenizer = Tokenizer(model_bytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits


def _encode_in_worker(batch: Batch) -> list[Document]:
    return _encode(_worker_tokenizer, batch)


def _batches(documents: Iterable[tuple[str, Split]]) -> Iterator[Batch]:
    batch: Batch = []
    characters = 0
    for text, split in documents:
        batch.append((text, split))
        characters += len(text)
        if characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
