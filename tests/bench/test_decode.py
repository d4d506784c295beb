"""The benchmark of decoding: what it says of the state, and that it fails where steps are wrong."""

import json

import pytest
import torch

from scangolf.cli import main
from scangolf.model import HybridLM

ARGS = ("bench", "decode", "tiny", "--device", "cpu", "--seconds", "0.01")


def test_the_state_is_counted_and_the_rest_follows(capsys: pytest.CaptureFixture[str]) -> None:
    main([*ARGS, "--contexts", "5", "300", "--batch", "2", "--json"])
    cells = json.loads(capsys.readouterr().out)["cells"]
    # Three scans of 256 channels hold 8 states and 3 values of the convolution for each; attention
    # has keys and values of 2 heads of 32 for up to 256 tokens. All are float32.
    scans = 3 * 256 * (8 + 3) * 4
    assert [cell["state_bytes"] for cell in cells] == [
        scans + 2 * 2 * 32 * 5 * 4,
        scans + 2 * 2 * 32 * 256 * 4,
    ]
    for cell in cells:
        assert cell["error"] < 1e-5
        assert cell["tokens_per_second"] == pytest.approx(2 / (1e-3 * cell["token_ms"]))


def test_a_step_that_is_wrong_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = HybridLM.step

    def wrong(self: HybridLM, tokens_B: torch.Tensor, state: list) -> tuple:  # type: ignore[type-arg]
        logits_BV, state = right(self, tokens_B, state)
        return logits_BV.roll(1, -1), state

    monkeypatch.setattr(HybridLM, "step", wrong)
    with pytest.raises(SystemExit) as end:
        main([*ARGS, "--contexts", "9"])
    assert end.value.code == 1
    assert "tiny, 9: logits are off by" in capsys.readouterr().out


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*ARGS, "--contexts", "0"])
    assert end.value.code == 2
    assert "--contexts 0: needs more than 0" in capsys.readouterr().err
