"""`--help` of every command: there, and before anyone has to wait."""

import resource
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "args",
    [
        *("", "data", "data text", "train", "train tiny", "eval", "quantize", "generate", "report"),
        *("presets", "submit", "audit", "ablate", "compare", "bench", "bench scan", "bench train"),
    ],
)
def test_help_is_instant(args: str) -> None:
    """Half a second, or what a slow machine does in that time; torch alone would take seconds."""

    def used(*command: str) -> tuple[float, str]:
        """Seconds of the processor, so that nothing else on the machine counts, and the output."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return seconds, done.stdout

    seconds_taken: list[float] = []
    for _ in range(4):
        seconds, text = used("-m", "scangolf", *args.split(), "--help")
        assert text.startswith("usage: scangolf")
        seconds_taken.append(seconds)
        if seconds < 0.5:
            return
    numpy = min(used("-c", "import numpy")[0] for _ in range(4))
    assert min(seconds_taken) < 3 * numpy, (
        f"help took {min(seconds_taken):.2f} s, numpy's import {numpy:.2f}"
    )
