"""Bytes on disk, counted another way."""

import pytest

from scangolf.artifact.budget import Budget, measure
from scangolf.errors import UserError


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
    assert measure(path, 567, 16_000_000) == Budget(567, 1234, 16_000_000)


def test_a_missing_artifact(tmp_path):
    with pytest.raises(UserError, match=r"no artifact at .*artifact\.sg"):
        measure(tmp_path / "artifact.sg", 567, 16_000_000)
