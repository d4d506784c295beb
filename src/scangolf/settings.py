"""Settings of a run by their dotted names, as on the command line: `model.s6.d_state`."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from scangolf.config import RunConfig
from scangolf.console import nearest
from scangolf.errors import UserError

IN_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
}


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings by the names of the fields, numbers in the types of the fields.

    Raises UserError for names that are no setting and for values of the wrong type, all of them
    in one line. Whether the values go together, only a whole configuration can tell.
    """
    kinds = dict(_kinds(RunConfig))
    found, wrong = {}, []
    for written, value in settings.items():
        name = written.replace("-", "_")
        if name not in kinds:
            wrong.append(f"{written}: no such setting; did you mean {nearest(name, kinds)}?")
        elif not _is_a(value, kinds[name]):
            wrong.append(f"{written} = {value!r}: needs {_in_words(kinds[name])}")
        else:
            found[name] = float(value) if kinds[name] is float else value
    if wrong:
        raise UserError("; ".join(wrong))
    return found


def with_settings(config: Any, settings: Mapping[str, Any]) -> Any:
    """A configuration with some of its fields, by dotted name, at other values.

    It is made at once, so that the checks of RunConfig see it as a whole; they raise UserError.
    """
    changes: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        if rest:
            parts.setdefault(first, {})[rest] = value
        else:
            changes[first] = value
    for name, inner in parts.items():
        changes[name] = with_settings(getattr(config, name), inner)
    return dataclasses.replace(config, **changes)


def from_words(words: Iterable[str]) -> dict[str, Any]:
    """ "model.ssd.d-state=32" -> {"model.ssd.d_state": 32}, checked; the value as TOML has it.

    What is no value there is text without quotes.
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{word}: needs a setting and its value, as in model.n-layers=8")
        try:
            settings[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name] = text
    return checked(settings)


def _kinds(config: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            yield from _kinds(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, kind


def _is_a(value: Any, kind: Any) -> bool:
    """Stricter than Python, in which True is an int: a slip of the pen must not train for hours."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if options := get_args(kind):
        return any(_is_a(value, option) for option in options)
    return type(value) is kind or (kind is float and type(value) is int)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    options = [option for option in get_args(kind) or (kind,) if option in IN_WORDS]
    return " or ".join(IN_WORDS[option] for option in options)
