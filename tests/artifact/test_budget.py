"""Bytes on disk, counted another way."""

import os
from pathlib import Path

import pytest

import scangolf
from scangolf.artifact.budget import Budget, code_bytes, measure
from scangolf.errors import UserError


def test_code_bytes_are_the_files_of_the_package():
    total = 0
    for folder, _, names in os.walk(Path(scangolf.__file__).parent):
        if not folder.endswith("__pycache__"):
            total += sum(len(Path(folder, name).read_bytes()) for name in names)
    assert code_bytes() == total > 10_000


def test_the_limit_itself_fits():
    assert Budget(40, 60, 100).fits
    assert not Budget(41, 60, 100).fits


def test_one_line_tells_the_sum_and_the_verdict():
    budget = Budget(142_233, 3_412_001, 16_000_000)
    line = "artifact 3,412,001 + code 142,233 = 3,554,234 of 16,000,000 bytes: fits"
    assert budget.describe() == line
    tight = Budget(142_233, 3_412_001, 3_541_889)
    assert tight.describe().endswith("of 3,541,889 bytes: 12,345 bytes too large")


def test_measure_takes_the_file_as_it_lies_on_disk(tmp_path):
    path = tmp_path / "artifact.sg"
    path.write_bytes(bytes(1234))
    assert measure(path, 16_000_000) == Budget(code_bytes(), 1234, 16_000_000)


def test_a_missing_artifact(tmp_path):
    with pytest.raises(UserError, match=r"no artifact at .*artifact\.sg"):
        measure(tmp_path / "artifact.sg", 16_000_000)
