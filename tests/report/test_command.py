"""The command on the page is read by the command line as the run's own configuration."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from report_cases import Page, make_run

from scangolf.cli import main, train
from scangolf.config import GDNConfig, RunConfig, to_dict
from scangolf.recipes import PRESETS
from scangolf.report.command import command, differences
from scangolf.report.page import write_report


def parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The configuration that a command line would train."""
    found: list[RunConfig] = []

    def keep(config: RunConfig, *_: Any) -> None:
        found.append(config)

    monkeypatch.setattr(train, "_train", keep)
    name, *args = shlex.split(line.replace("\\\n", ""))
    assert name == "scangolf"
    main(args)
    return found[0]


def changed(config: RunConfig) -> RunConfig:
    model = dataclasses.replace(
        config.model, tie_embeddings=False, pattern="gdn : attention", n_layers=4, embed_std=1e-05,
        gdn=GDNConfig(n_heads=3),
    )  # fmt: skip
    return dataclasses.replace(
        config,
        steps=1200,
        data="my data",
        seed=5,
        compile=False,
        model=model,
        optim=dataclasses.replace(config.optim, matrix_lr=0.0123),
        schedule=dataclasses.replace(config.schedule, kind="challenge"),
    )


@pytest.mark.parametrize("preset", ["tiny", "baseline", "hybrid"])
def test_it_makes_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    for i, config in enumerate((PRESETS[preset](), changed(PRESETS[preset]()))):
        run = make_run(tmp_path / str(i))
        (run / "config.json").write_text(json.dumps(to_dict(config)))
        page = Page(write_report(run))
        line = command(to_dict(config))
        assert line in page.text
        assert parsed(line, monkeypatch) == config


def test_a_preset_that_is_not_known_any_more() -> None:
    config = to_dict(PRESETS["tiny"]()) | {"preset": "old", "seed": 3}
    assert command(config) == "scangolf train old --seconds 110 --seed 3 --data data/local"


def test_what_sets_configurations_apart() -> None:
    plain, other = to_dict(PRESETS["tiny"]()), to_dict(changed(PRESETS["tiny"]()))
    del plain["evals"]  # as a version that had no such setting
    found = dict(differences([("a", plain), ("b", other), ("c", plain)]))
    assert found["model.pattern"] == [
        ('"3 s6 : 1 attention"', ["a", "c"]), ('"gdn : attention"', ["b"]),
    ]  # fmt: skip
    assert found["evals"] == [("-", ["a", "c"]), ("4", ["b"])]
    assert "model.d_model" not in found
    assert differences([("a", plain), ("b", plain)]) == []


def test_what_most_of_many_have_is_not_listed_by_name() -> None:
    seeds = [to_dict(PRESETS["tiny"]()) | {"seed": seed} for seed in (7, 8, 8, 8, 9)]
    assert differences([*zip("abcde", seeds, strict=True)]) == [
        ("seed", [("7", ["a"]), ("9", ["e"]), ("8", ["the other 3"])])
    ]
    half = [to_dict(PRESETS["tiny"]()) | {"seed": seed} for seed in (7, 7, 8, 8)]
    assert differences([*zip("abcd", half, strict=True)]) == [
        ("seed", [("7", ["a", "b"]), ("8", ["c", "d"])])
    ]
