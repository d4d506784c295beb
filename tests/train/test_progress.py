"""The lines of a run: when there is one, and the speed that it tells."""

from pathlib import Path
from typing import Any

import pytest

from scangolf.train import progress
from scangolf.train.live import Live
from scangolf.train.progress import PLAIN_EVERY, Plain

# Read at uneven moments, as a host reads a GPU's steps: 1000 tokens in 1, 3, 1 and 3 seconds.
SECONDS = [1.0, 4.0, 5.0, 8.0]


def records() -> list[dict[str, Any]]:
    before = [0.0, *SECONDS]
    return [
        {
            "step": step, "tokens": 1000 * step, "seconds": seconds, "share": seconds / 10,
            "loss": 2.5, "train_bpb": 1.25, "tokens_per_second": 1000 / (seconds - begun),
        }
        for step, (begun, seconds) in enumerate(zip(before, SECONDS, strict=False), 1)
    ]  # fmt: skip


@pytest.mark.parametrize("display", [Plain, Live])
def test_the_speed_is_that_since_the_line_before(
    display: type[Plain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "train.log"
    shown = display(log)
    for record in records():
        monkeypatch.setattr(progress.time, "monotonic", lambda now=record["seconds"]: now)
        shown.update(record, seconds_left=62.0)
    shown.close()
    first, second = log.read_text().splitlines()
    assert SECONDS[2] - SECONDS[0] < PLAIN_EVERY <= SECONDS[3] - SECONDS[0]
    assert first == " 10.0 %  step 1  loss 2.5000  1.2500 bits/byte  1,000 tokens/s  1:02 left"
    assert second == " 80.0 %  step 4  loss 2.5000  1.2500 bits/byte  429 tokens/s  1:02 left"
