"""Claims: one process a run, and runs of processes that are gone are taken over."""

import contextlib
import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from scangolf.experiments.claims import claimed, holder


def write_claim(folder: Path, number: int = 1, **changes: object) -> Path:
    claim = {"host": socket.gethostname(), "pid": os.getpid(), "born": None, "time": "then"}
    folder.mkdir(exist_ok=True)
    path = folder / f"claim-{number}.json"
    path.write_text(json.dumps(claim | changes))
    return path


def age(claim: Path) -> None:
    """Makes it two minutes old."""
    before = time.time() - 120
    os.utime(claim, (before, before))


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_claim_lasts_as_long_as_its_block(tmp_path: Path) -> None:
    run = tmp_path / "variant" / "seed-1"
    with claimed(run) as ours:
        assert ours
        assert f"process {os.getpid()} on {socket.gethostname()}" in str(holder(run))
        with claimed(run) as again:
            assert not again
    assert holder(run) is None
    assert list(run.iterdir()) == []
    with contextlib.suppress(ZeroDivisionError), claimed(run):
        _ = 1 / 0
    assert list(run.iterdir()) == []


def test_a_claim_of_a_process_that_is_gone_is_taken_over(tmp_path: Path, gone: int) -> None:
    write_claim(tmp_path, 1, pid=gone)
    write_claim(tmp_path, 2, pid=gone)
    assert holder(tmp_path) is None
    with claimed(tmp_path) as ours:
        assert ours
        assert (tmp_path / "claim-3.json").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_process_number_that_was_given_away_again_is_gone(tmp_path: Path) -> None:
    """As in a container that was started anew, where this process has the number of the last."""
    write_claim(tmp_path, born="1")
    assert holder(tmp_path) is None
    with claimed(tmp_path) as ours:
        assert ours


def test_another_host_is_always_respected(tmp_path: Path, gone: int) -> None:
    write_claim(tmp_path, host="elsewhere", pid=gone)
    with claimed(tmp_path) as ours:
        assert not ours
    assert "on elsewhere" in str(holder(tmp_path))


def test_a_claim_that_is_being_written_is_respected(tmp_path: Path) -> None:
    (tmp_path / "claim-1.json").touch()
    with claimed(tmp_path) as ours:
        assert not ours


def test_a_claim_that_was_never_written_is_taken_over(tmp_path: Path) -> None:
    """Its process was killed before it wrote a word, or in the middle."""
    for number, text in enumerate(("", '{"host": "here", "pi'), start=1):
        claim = tmp_path / f"claim-{number}.json"
        claim.write_text(text)
        age(claim)
    assert holder(tmp_path) is None
    with claimed(tmp_path) as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


def test_an_old_claim_of_another_version_is_respected(tmp_path: Path, gone: int) -> None:
    claim = write_claim(tmp_path, pid=gone, user="somebody")
    age(claim)
    with claimed(tmp_path) as ours:
        assert not ours


def test_a_claim_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """As on a full disk: the file can be made, and no byte written into it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match="File too large"), claimed(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def contend(start: Barrier, folders: list[Path]) -> None:
    for folder in folders:
        start.wait()
        with claimed(folder) as ours:
            if ours:
                (folder / f"won-{os.getpid()}").touch()
                time.sleep(0.02)


def test_of_many_at_once_one_wins(tmp_path: Path, gone: int) -> None:
    """Also where they find the claim of a process that is gone."""
    folders = [tmp_path / str(i) for i in range(20)]
    for folder in folders:
        write_claim(folder, pid=gone)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [context.Process(target=contend, args=(start, folders)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for folder in folders:
        assert len([*folder.iterdir()]) == len([*folder.glob("won-*")]) == 1
