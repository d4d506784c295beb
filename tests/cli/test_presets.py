"""What presets are, and whether they fit."""

import json
import re

import pytest
from cli_cases import refusal

from scangolf.cli import main
from scangolf.recipes import PRESETS


def test_presets_show_what_they_are_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    main(["presets", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert rows.keys() == PRESETS.keys()
    assert rows["baseline"]["parameters"] == 17_059_912
    assert rows["seed"]["parameters"] == 30_299_152
    assert rows["tiny"]["fits"] is True
    assert rows["seed"]["fits"] is None
    for name, bits, fits in (("hybrid", 4.66, True), ("parallel", 3.69, True)):
        room = 16_000_000 - rows[name]["code_bytes_at_most"]
        assert rows[name]["bits_per_weight"] == 8 * room / rows[name]["parameters"]
        assert rows[name]["bits_per_weight"] == pytest.approx(bits, abs=0.005)
        assert rows[name]["fits"] is fits

    main(["presets"])
    lines = capsys.readouterr().out.splitlines()
    (hybrid,) = (line.split() for line in lines if line.strip().startswith("hybrid "))
    row = "hybrid 9: 3 ssd : 1 attention 27,299,696 mixed-rans 4.66 bits a weight yes"
    assert hybrid == row.split()

    main(["presets", "hybrid", "--bits", "4.0", "--json"])
    larger = json.loads(capsys.readouterr().out)
    main(["presets", "hybrid", "--bits", "4.0"])
    shown = capsys.readouterr().out
    assert larger.keys() == {"--model.mlp-width 2496", "--model.n-layers 10"}
    for options, row in larger.items():
        assert f"{options} {row['parameters']:,} {row['bits_per_weight']:.2f}" in " ".join(
            shown.split()
        )
    assert "hybrid cannot be larger" in refusal(capsys, "presets", "hybrid", "--bits", "6")
    assert "of which preset?" in refusal(capsys, "presets", "--bits", "4")
    assert "needs a number above 0" in refusal(capsys, "presets", "hybrid", "--bits", "0")

    main(["presets", "tiny", "--json"])
    assert json.loads(capsys.readouterr().out)["preset"] == "tiny"
    main(["presets", "tiny"])
    shown = capsys.readouterr().out
    assert re.search(r"^ +seed +1337 *$", shown, re.MULTILINE)  # as one would type it
    assert re.search(r"^ +model.vocab_size +1,024 *$", shown, re.MULTILINE)


def test_presets_that_fit_in_coarse_steps_only_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scangolf.artifact.room.MIXED_BITS", 4.0)
    main(["presets"])
    (parallel,) = (line for line in capsys.readouterr().out.splitlines() if "parallel" in line)
    assert parallel.split()[-8:] == ["3.69", "bits", "a", "weight", "in", "steps", "that", "cost"]
