"""The command line refused, and a run of a few steps."""

import pytest

from scangolf.cli import main

TRAIN = [
    "train", "tiny", "--device", "cpu", "--steps", "12", "--evals", "1",
    "--model.vocab-size", "300", "--model.d-model", "32", "--model.mlp-width", "64",
    "--batch.tokens", "512", "--batch.seq-len", "64", "--batch.micro-tokens", "512",
]  # fmt: skip


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a command line is refused with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("scangolf: ")
    assert line.count("\n") == 1
    return line
