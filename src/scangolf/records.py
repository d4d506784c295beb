"""JSON: files written whole, and dataclasses from plain values, strictly."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(part, path)


def from_plain(value: Any, kind: Any, name: str = "") -> Any:
    """`value` as a `kind`: the strict inverse of `dataclasses.asdict`.

    A kind is a dataclass, list, dict, Literal, int, float, str, bool, or None beside one of these.

    Nothing is converted but a whole number where a float is wanted, and nothing is passed over.
    Raises ValueError that tells where, as a dotted path below `name`; what a dataclass refuses of
    itself is raised as it is.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass(value, kind, name)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType) and NoneType in args and len(args) == 2:
        other = args[0] if args[1] is NoneType else args[1]
        return None if value is None else from_plain(value, other, name)
    if origin is list and isinstance(value, list):
        return [from_plain(one, args[0], f"{name}[{i}]") for i, one in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {
            from_plain(key, args[0], name): from_plain(one, args[1], _below(name, key))
            for key, one in value.items()
        }
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind or (origin is Literal and value in args):
        return value
    wanted = "one of " + ", ".join(map(repr, args)) if origin is Literal else _called(kind)
    raise ValueError(f"{name or 'the whole'} is {value!r:.40}, wanted {wanted}")


def _dataclass(value: Any, kind: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'the whole'} is {value!r:.40}, wanted an object")
    fields, hints = dataclasses.fields(kind), get_type_hints(kind)
    for unknown in sorted(map(str, value.keys() - {field.name for field in fields})):
        raise ValueError(f"{_below(name, unknown)} is not known")
    for field in fields:
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if field.name not in value and not optional:
            raise ValueError(f"{_below(name, field.name)} is missing")
    return kind(**{k: from_plain(v, hints[k], _below(name, k)) for k, v in value.items()})


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _called(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
