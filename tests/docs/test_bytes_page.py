"""docs/bytes.md: its table of bytes, counted again, and its score of a model that knows nothing."""

import math
import re

import pytest
from pages import DOCS, blocks

TEXT = (DOCS / "bytes.md").read_text()
BY_HAND, UNIFORM, _ = blocks("bytes.md", "python")
ROWS = [
    (token, int(count.replace("-", "0")))
    for token, count in re.findall(r"^\| `(\S+)` \| (\d+|-) \| .*\|$", TEXT, re.MULTILINE)
]
"""The tokens of both documents, and what the page counts for each."""


def test_the_table_is_what_the_package_counts(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(BY_HAND, names)
    shown = [line.split(" ") for line in capsys.readouterr().out.splitlines()]
    assert ROWS[0] == ("<s>", 0)
    assert [(token, int(count)) for token, count in shown] == ROWS[1:]


def test_the_table_is_the_text_itself() -> None:
    """Every row again from the characters it stands for: the sum is the length in UTF-8."""
    texts = re.findall(r'"(.*?)"', BY_HAND.split("texts = [")[1].split("]\n")[0])
    texts = [text.replace("\\n", "\n") for text in texts]
    lengths = [len(text.encode()) for text in texts]
    assert lengths == [9, 19]
    assert "Two documents of 9 and 19 bytes" in TEXT
    assert sum(count for _, count in ROWS) == sum(lengths) == 28
    spelled = b""
    for token, count in ROWS:
        byte = re.fullmatch("<0x(..)>", token)
        here = bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
        here = b"" if token == "<s>" else here
        spelled += here[len(here) - count :]
    assert spelled == "".join(texts).encode()


def test_a_leading_space_counted_twice() -> None:
    """Once more with the piece before it, where that is text or not."""
    opened = sum(token.startswith("▁") for token, _ in ROWS)
    bos = sum(token == "<s>" for token, _ in ROWS)
    assert f"here {28 + opened - bos} bytes instead of 28" in TEXT


def test_a_model_that_knows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    exec(BY_HAND + UNIFORM, {})
    tokens, n_bytes = len(ROWS[1:13]), sum(count for _, count in ROWS[1:13])
    bpb = f"{tokens * math.log2(290) / n_bytes:.4f} bits a byte"
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown == f"{tokens} targets, {n_bytes} bytes, {bpb}"
    assert f"{tokens} log2(290) bits for {n_bytes} bytes, or\n{bpb}" in TEXT
