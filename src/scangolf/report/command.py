"""The command that makes a run again, and what tells the configurations of runs apart."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from scangolf.config import to_dict
from scangolf.recipes import PRESETS
from scangolf.report.words import leaves

ALWAYS = ("seconds", "steps", "data", "seed")
"""Settings that the command names even where they are the preset's."""


def command(config: dict[str, Any]) -> str:
    """For a shell: the preset, budget, seed and data, then a line for each option that differs."""
    budget = ["--steps", config["steps"]]
    if config["steps"] is None:
        budget = ["--seconds", f"{config['seconds']:.12g}"]
    words = ["scangolf", "train", config["preset"], *budget]
    words += ["--seed", config["seed"], "--data", config["data"]]
    return " \\\n    ".join(shlex.join(map(str, line)) for line in [words, *_changed(config)])


def _changed(config: dict[str, Any]) -> Iterator[list[str]]:
    """The options of settings that are not the preset's; none for a preset that is not known."""
    if config["preset"] not in PRESETS:
        return
    plain = dict(leaves(to_dict(PRESETS[config["preset"]]())))
    for path, value in leaves(config):
        if path in plain and path not in ALWAYS and value != plain[path]:
            yield _option(path, value)


def _option(path: str, value: Any) -> list[str]:
    """A setting as the command line spells it: the "no" of a switch is in its name."""
    family, dot, name = path.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return [f"--{family}{dot}{'' if value else 'no-'}{name}"]
    return [f"--{family}{dot}{name}", str(value)]


def differences(
    runs: Sequence[tuple[str, dict[str, Any]]],
) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """The settings that are not the same in all of these named configurations.

    Each with its values, and the names of the runs that have each; `-` where a run has none. What
    more than half of many runs have comes last, without their names.
    """
    settings = {name: dict(leaves(config)) for name, config in runs}
    differing = []
    for path in dict.fromkeys(path for values in settings.values() for path in values):
        holders: dict[str, list[str]] = {}
        for name, values in settings.items():
            text = json.dumps(values[path], ensure_ascii=False) if path in values else "-"
            holders.setdefault(text, []).append(name)
        if len(holders) > 1:
            most = max(holders, key=lambda text: len(holders[text]))
            if len(holders[most]) > max(2, len(runs) / 2):
                holders[most] = [f"the other {len(holders.pop(most))}"]
            differing.append((path, list(holders.items())))
    return differing
