"""Asking a run to stop, so that it ends with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM puts its number in; a second Ctrl-C kills."""
    stop: list[int] = []

    def request(number: int, _frame: object) -> None:
        stop.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with handling(request):
        yield stop


@contextmanager
def handling(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `handler` meanwhile; in the main thread only."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
