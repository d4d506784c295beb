"""Turns on a GPU, by their locks: no GPU is needed."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from scangolf.experiments.turns import Turns

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="takes no turns")


class Together:
    """Threads that take turns as processes do, each with files of its own; errors are raised."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []

    def start(self, do: Callable[[], object]) -> threading.Thread:
        def noted() -> None:
            try:
                do()
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=noted, daemon=True)
        thread.start()
        self.threads.append(thread)
        return thread

    def end(self) -> None:
        for thread in self.threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
        if self.errors:
            raise self.errors[0]


def test_who_is_alone_is_alone(tmp_path: Path) -> None:
    together, users, most = Together(), [0, 0], [0]
    lock = threading.Lock()

    def use(shared: int, alone: int) -> None:
        with lock:
            users[0] += shared
            users[1] += alone
            most[0] = max(most[0], users[0])
            assert users[1] == 0 or (users[1] == 1 and users[0] == 0)

    def run() -> None:
        for _ in range(3):
            with Turns(tmp_path / "gpu") as turns:
                use(+1, 0)
                time.sleep(0.05)
                use(-1, 0)
                with turns.alone(lambda _: None):
                    use(0, +1)
                    time.sleep(0.05)
                    use(0, -1)
                use(+1, 0)
                time.sleep(0.05)
                use(-1, 0)

    for _ in range(4):
        together.start(run)
    together.end()
    assert users == [0, 0]
    assert most[0] > 1  # what is not training goes on side by side


def test_who_is_ready_comes_before_who_goes_on_or_begins(tmp_path: Path) -> None:
    together, order = Together(), []
    said: tuple[list[str], list[str]] = ([], [])
    both_are_ready = threading.Barrier(2)

    def ready(who: int) -> None:
        with Turns(tmp_path / "gpu") as turns:
            both_are_ready.wait(10)
            with turns.alone(said[who].append):
                order.append("trains")
                if len(order) == 1:
                    together.start(late)
                    while not said[1 - who]:
                        time.sleep(0.01)
                time.sleep(0.5)  # the late one has looked meanwhile
            order.append("goes on")

    def late() -> None:
        with Turns(tmp_path / "gpu"):
            order.append("begins")

    for who in (0, 1):
        together.start(partial(ready, who))
    together.end()
    assert order[:2] == ["trains", "trains"]
    assert sorted(order[2:]) == ["begins", "goes on", "goes on"]
    assert {*said[0], *said[1]} == {"ready; waiting for other runs on this GPU"}


def test_a_run_that_fails_alone_does_not_wait_to_go_on(tmp_path: Path) -> None:
    failing = Turns(tmp_path / "gpu")
    with pytest.raises(ValueError, match="diverged"), failing, failing.alone(pytest.fail):
        raise ValueError("diverged")
    with Turns(tmp_path / "gpu") as turns, turns.alone(pytest.fail):
        pass


HOLD = """
import pathlib, sys, time
from scangolf.experiments.turns import Turns
with Turns(pathlib.Path(sys.argv[1])) as turns, turns.alone(print):
    print("alone", flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "gpu")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "alone\n"
    entered = threading.Event()

    def enter() -> None:
        with Turns(tmp_path / "gpu"):
            entered.set()

    together = Together()
    together.start(enter)
    assert not entered.wait(0.5)
    holder.kill()
    holder.communicate()
    assert entered.wait(10)
    together.end()


def test_a_cpu_is_not_waited_for() -> None:
    one, other = (Turns.on(torch.device("cpu")) for _ in range(2))
    with one, other, one.alone(pytest.fail), other.alone(pytest.fail):
        assert one.path is None
