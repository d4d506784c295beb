"""What a person sees in the terminal besides a run's progress: tables, samples, complaints."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from json import dumps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def one_line(box: str) -> str:
    """The complaint of a tyro error box, and the option that was probably meant."""
    plain = re.sub(r"[│╭╮╰╯]", "", box)
    sections = re.split(r"[─-]{4,}", plain)
    if len(sections) < 2:
        return " ".join(plain.split())
    _title, what, *hints = sections
    line = " ".join(what.split()).rstrip(".")
    mistyped = re.search(r"Unrecognized options: (--[\w.-]+)", line)
    offered = re.findall(r"\n\s+(--[\w.-]+) ", "".join(hints))
    if mistyped and offered:
        nearest = difflib.get_close_matches(mistyped[1], offered, n=1, cutoff=0)
        return f"{line}; did you mean {nearest[0]}?"
    choices = re.search(r"Available subcommands: (.*?)(?:\s{2,}|$)", "".join(hints))
    return f"{line}; choose from {choices[1].strip()}" if choices else f"{line}; see --help"


def print_values(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(dumps(values, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for key, value in flat(values):
        is_name = key.rpartition(".")[2] == "seed"
        table.add_row(key, str(value) if is_name else _human(value))
    Console(highlight=False, markup=False).print(table)


def wide_console() -> Console:
    """For tables: as wide as the terminal, or 120 characters where there is none."""
    from rich.console import Console

    on_terminal = Console(highlight=False, markup=False)
    if on_terminal.is_terminal:
        return on_terminal
    return Console(highlight=False, markup=False, width=120)


def print_verdicts(rows: Iterable[tuple[str, str, str]]) -> None:
    """A table of rules: the name of each, its verdict, and why."""
    from rich import box
    from rich.table import Table

    colours = {"pass": "green", "fail": "bold red"}
    table = Table("rule", "verdict", "why", box=box.SIMPLE, show_edge=False)
    table.columns[0].no_wrap = True
    for rule, verdict, why in rows:
        table.add_row(rule, verdict, why, style=colours.get(verdict, "yellow"))
    wide_console().print(table)


def print_sample(prompt: str, text: str) -> None:
    """The prompt in bold and what the model wrote after it, as it is: no markup, no wrapping."""
    from rich.console import Console
    from rich.text import Text

    Console(soft_wrap=True).print(Text.assemble((prompt, "bold"), text))


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts by their dotted names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _human(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)
