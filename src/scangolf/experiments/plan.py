"""Plans: which runs an ablation is made of, read from a TOML file and resolved before any starts.

preset = "hybrid"               # what every run starts from
seeds = [1, 2, 3]
seconds = 180                   # or steps; the same for all

[settings]                      # common to all, named as on the command line
batch.tokens = 131072

[variants.s6-wide]              # what is compared, each with its own settings
model.s6.expand = 3

[variants.theirs]               # or from another preset
preset = "baseline"

[axes]                          # every variant (or the preset itself) at every combination
model.s6.d_state = [8, 16, 32]
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scangolf.config import SEEDS, RunConfig
from scangolf.console import flat, nearest
from scangolf.errors import UserError
from scangolf.recipes import PRESETS
from scangolf.settings import checked, with_settings

SHIPPED = Path(__file__).with_name("plans")
KEYS = ("preset", "seeds", "seconds", "steps", "settings", "variants", "axes")
LONGEST_NAME = 255
"""Bytes that a folder's name may have on common file systems."""
AT_THE_TOP = {"seed": "seeds", "seconds": "seconds", "steps": "steps"}
"""Settings that all runs share or that make the seeds of a variant, and the plan's key for each."""
ALSO_READ_BY = {
    "attention": {"parallel"},
    "s6": {"s6_seed", "lti"},
    "ssd": {"parallel"},
}
"""Which layers read the settings of model.attention, model.s6 and so on, besides the one of that
name."""


@dataclass(frozen=True)
class Plan:
    name: str
    preset: str
    """Of the variants that name none."""
    seeds: tuple[int, ...]
    common: dict[str, Any]
    """Settings of all runs by dotted name, the budget among them."""
    variants: dict[str, dict[str, Any]]
    """What each variant sets besides, not checked yet: one mistake should not hide another."""


@dataclass(frozen=True)
class Resolved:
    """The configurations of a plan, with its first seed, and what was wrong with the others."""

    configs: dict[str, RunConfig]
    problems: dict[str, str]


def find_plan(name: str) -> Path:
    """The file of that path, or the plan of that name that comes with the package."""
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}
    if Path(name).is_file():
        return Path(name)
    if name in shipped:
        return shipped[name]
    raise UserError(
        f"{name}: no such plan; name a TOML file, or a plan of the package: {', '.join(shipped)}"
    )


def read_plan(path: Path) -> Plan:
    """Reads a plan; raises UserError, in one line, where it is none."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML ({error}); correct it there") from error
    try:
        return _plan(path.stem, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def resolve(plan: Plan, *, data: str | None = None, seconds: float | None = None) -> Resolved:
    """Every variant's whole configuration; `data` and `seconds` replace the plan's own."""
    given = {} if data is None else {"data": data}
    given |= {} if seconds is None else {"seconds": seconds, "steps": None}
    configs: dict[str, RunConfig] = {}
    problems: dict[str, str] = {}
    for name, own in plan.variants.items():
        try:
            settings = checked(own)
            _refuse_what_is_at_the_top(settings)
            preset = _known(settings.pop("preset", plan.preset))
            settings = {"seed": plan.seeds[0]} | plan.common | settings | given
            config = with_settings(PRESETS[preset](), settings)
            _refuse_what_has_no_effect(checked(own), config)
            twin = next((other for other, twin in configs.items() if twin == config), None)
            if twin is not None:
                raise UserError(f"is {twin} under another name; change one, or leave it out")
        except UserError as error:
            problems[name] = str(error)
        else:
            configs[name] = config
    return Resolved(configs, problems)


def _plan(name: str, values: Mapping[str, Any]) -> Plan:
    for key in values:
        if key not in KEYS:
            raise UserError(f"{key}: no such key of a plan; did you mean {nearest(key, KEYS)}?")
    preset, seeds = _known(values.get("preset")), _seeds(values.get("seeds"))
    if "seconds" in values and "steps" in values:
        raise UserError("seconds and steps: a plan has one budget; leave one of them out")
    settings, axes = (dict(flat(_table(values, key))) for key in ("settings", "axes"))
    try:
        common = checked(settings)
        _refuse_what_is_at_the_top(common)
        if "preset" in common:
            raise UserError("preset: is no setting of all runs; set it at the plan's top")
    except UserError as error:
        raise UserError(f"settings: {error}") from error
    common |= checked({key: values[key] for key in ("seconds", "steps") if key in values})
    variants = {key: dict(flat(own)) for key, own in _variants(values).items()}
    plan = Plan(name, preset, seeds, common, _product(variants, axes))
    for variant in plan.variants:
        if not re.fullmatch(r"\w[\w.,=+-]*", variant) or len(variant.encode()) > LONGEST_NAME:
            raise UserError(
                f"variants.{variant}: names a folder; use letters, digits and any of . , = + - _, "
                f"{LONGEST_NAME} bytes at most"
            )
    return plan


def _known(preset: Any) -> str:
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UserError(f"preset = {preset!r}: needs one of {', '.join(PRESETS)}")
    return preset


def _seeds(seeds: Any) -> tuple[int, ...]:
    whole = isinstance(seeds, list) and all(type(seed) is int and seed in SEEDS for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(
            f"seeds = {seeds!r}: needs different whole numbers of 64 bits, such as [1, 2, 3]"
        )
    return tuple(seeds)


def _table(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise UserError(f"{key} = {table!r}: needs a table, [{key}]")
    return table


def _variants(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    variants = _table(values, "variants")
    for name, settings in variants.items():
        if not isinstance(settings, dict):
            raise UserError(f"variants.{name} = {settings!r}: needs a table, [variants.{name}]")
    if not variants and not _table(values, "axes"):
        raise UserError("nothing to compare; add variants or axes")
    return variants


def _product(
    variants: Mapping[str, dict[str, Any]], axes: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Every variant at every combination of the axes' values, by name."""
    for name, choices in axes.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(f"axes.{name} = {choices!r}: needs a list of values")
        for variant, own in variants.items():
            if name in own:
                raise UserError(f"axes.{name}: variant {variant} sets it too; leave one out")
    last = [name.rpartition(".")[2] for name in axes]
    labels = [
        short if last.count(short) == 1 else name for name, short in zip(axes, last, strict=True)
    ]
    rows: dict[str, dict[str, Any]] = {}
    for name, own in variants.items() or [("", {})]:
        for values in itertools.product(*axes.values()):
            at = [f"{k}={_in_a_name(v)}" for k, v in zip(labels, values, strict=True)]
            row = ",".join([name, *at] if name else at)
            if row in rows:
                raise UserError(f"two variants would be called {row}; give one another name")
            rows[row] = own | dict(zip(axes, values, strict=True))
    return rows


def _in_a_name(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")


def _refuse_what_is_at_the_top(settings: Mapping[str, Any]) -> None:
    for name, key in AT_THE_TOP.items():
        if name in settings:
            raise UserError(f"{name}: is the same for all variants; set {key} at the plan's top")


def _refuse_what_has_no_effect(own: Mapping[str, Any], config: RunConfig) -> None:
    """A variant that sets what its layers do not read would be another one under a new name."""
    layers = set(config.model.layers)
    for name in own:
        room, _, rest = name.removeprefix("model.").partition(".")
        readers = {room} | ALSO_READ_BY.get(room, set())
        if name.startswith("model.") and rest and not readers & layers:
            raise UserError(
                f"{name}: has no effect, no layer of '{config.model.pattern}' reads it; leave it "
                "out or change model.pattern"
            )
