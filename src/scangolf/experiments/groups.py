"""Run folders put together by what was run: the same settings, whatever the seed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from scangolf.config import RunConfig, to_dict
from scangolf.console import flat
from scangolf.errors import UserError
from scangolf.report.folder import RunFolder, read_run, without

DEFAULTS = dict(flat(to_dict(RunConfig(preset=""))))
"""What a setting was for runs from before it existed."""


@dataclass(frozen=True)
class Group:
    """Finished runs of one configuration, ordered by seed."""

    name: str
    settings: dict[str, Any]
    """All of them by dotted name, but for the seed."""
    runs: tuple[RunFolder, ...]

    @property
    def scores(self) -> dict[int, float]:
        """Bits a byte of the artifact read back from disk, by seed."""
        return {run.config["seed"]: _summary(run)["artifact_val_bpb"] for run in self.runs}

    def summaries(self, key: str) -> list[Any]:
        """One value of every run's summary."""
        return [_summary(run)[key] for run in self.runs]


def read_groups(paths: Sequence[Path]) -> tuple[list[Group], dict[str, str]]:
    """The groups of all runs in these folders and below, and why runs were left out, by folder.

    Raises UserError where no finished run is found, where two runs of a group have the same seed or
    were trained on different text, and where runs were scored on different text.
    """
    if not paths:
        raise UserError("compare: name at least one run folder, or a folder of them")
    runs: list[RunFolder] = []
    left_out: dict[str, str] = {}
    for folder in run_folders(paths):
        try:
            run = read_run(folder)
        except UserError as error:
            left_out[str(folder)] = without(folder, error)
            continue
        if run.summary is None:
            left_out[str(folder)] = f"not finished, {100 * run.training[-1]['share']:.0f} % done"
        else:
            runs.append(run)
    if not runs:
        raise UserError(
            f"{', '.join(map(str, paths))}: no finished run to compare; name run folders, or a "
            "folder of them"
        )
    _check_text(runs)
    groups: dict[Hashable, list[RunFolder]] = defaultdict(list)
    for run in runs:
        groups[_configuration(run)].append(run)
    return _named([sorted(group, key=_seed) for group in groups.values()]), left_out


def differences(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """By group, its settings that are not the same in all of them."""
    names = [
        name
        for name in groups[0].settings
        if any(group.settings[name] != groups[0].settings[name] for group in groups)
    ]
    return {group.name: {name: group.settings[name] for name in names} for group in groups}


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """These run folders, and all below folders of them; a UserError for a path without any."""
    found: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(file.parent for file in path.rglob("config.json"))
        if not inside:
            raise UserError(f"{path}: no run folder, nor a folder of them; name a training's --out")
        found |= {folder.resolve(): folder for folder in inside}
    return list(found.values())


def _check_text(runs: Sequence[RunFolder]) -> None:
    """Sequences of another length drop another tail of the text, so 1 % may be missing there.

    What was cut alike must be the same, as far as summaries tell: older ones have no fingerprints.
    """
    first = runs[0]
    n_bytes = _summary(first)["val_bytes"]
    for run in runs:
        if abs(_summary(run)["val_bytes"] - n_bytes) > 0.01 * n_bytes:
            raise UserError(
                f"{run.path}: was scored on {_summary(run)['val_bytes']:,} bytes of text, "
                f"{first.path} on {n_bytes:,}; compare runs on the same validation split"
            )
    known = [run for run in runs if "text" in _summary(run)]
    _check_same(runs, _cut, lambda run: [_summary(run)[k] for k in ("val_tokens", "val_bytes")])
    _check_same(known, lambda run: _cut(run)[0], lambda run: _summary(run)["text"]["val"])
    _check_same(known, _configuration, lambda run: _summary(run)["text"]["train"], "trained")


def _check_same(
    runs: Sequence[RunFolder],
    alike: Callable[[RunFolder], Hashable],
    text: Callable[[RunFolder], Any],
    verb: str = "scored",
) -> None:
    """Refuses runs that are alike in one thing and whose text is not the same."""
    firsts: dict[Hashable, RunFolder] = {}
    for run in runs:
        first = firsts.setdefault(alike(run), run)
        if text(run) != text(first):
            raise UserError(
                f"{run.path}: was {verb} on other text than {first.path}; compare runs on the same "
                "data"
            )


def _cut(run: RunFolder) -> tuple[str, int]:
    """How the text was cut into tokens and sequences."""
    return _summary(run)["tokenizer_sha256"], _settings(run)["batch.seq_len"]


def _named(groups: Sequence[Sequence[RunFolder]]) -> list[Group]:
    """Each by its folder's name, or by as much of its path as tells it from the others."""
    for runs in groups:
        for one, next_one in pairwise(runs):
            if _seed(one) == _seed(next_one):
                raise UserError(
                    f"{one.path} and {next_one.path}: the same configuration and seed; a seed "
                    "counts once, so name one of them"
                )
    names = [_name(runs, 1) for runs in groups]
    longest = max(len(run.path.absolute().parts) for runs in groups for run in runs)
    for length in range(2, longest + 1):
        often = Counter(names)
        names = [
            _name(runs, length) if often[name] > 1 else name
            for name, runs in zip(names, groups, strict=True)
        ]
    often = Counter(names)
    return [
        Group(name if often[name] == 1 else str(runs[0].path), _settings(runs[0]), tuple(runs))
        for name, runs in zip(names, groups, strict=True)
    ]


def _name(runs: Sequence[RunFolder], length: int) -> str:
    return " + ".join(dict.fromkeys("/".join(_label(run)[-length:]) for run in runs))


def _label(run: RunFolder) -> tuple[str, ...]:
    """The folder's path without its seed: `wide/seed-3` and `wide-seed3` are both `wide`."""
    *above, last = run.path.absolute().parts
    last = re.sub(rf"[-_.]?seed[-_.]?{_seed(run)}$", "", last)
    return (*above, last) if last else tuple(above)


def _settings(run: RunFolder) -> dict[str, Any]:
    settings: Mapping[str, Any] = DEFAULTS | dict(flat(run.config))
    return {name: value for name, value in settings.items() if name != "seed"}


def _configuration(run: RunFolder) -> Hashable:
    return tuple(sorted(_settings(run).items()))


def _seed(run: RunFolder) -> int:
    return run.config["seed"]


def _summary(run: RunFolder) -> dict[str, Any]:
    assert run.summary is not None
    return run.summary
