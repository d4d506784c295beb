"""What a person sees in the terminal besides a run's progress: tables, samples, complaints."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from json import dumps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def one_line(box: str) -> str:
    """The complaint of a tyro error box, and what was probably meant."""
    plain = re.sub(r"[│╭╮╰╯]", "", box)
    sections = re.split(r"[─-]{4,}", plain)
    if len(sections) < 3:
        return " ".join(plain.split())
    _title, what, hint = sections[:3]
    if misplaced := re.findall(r"^\s*(\S+) \(applied to ([^)]+)\)", what, re.MULTILINE):
        words, commands = zip(*misplaced, strict=True)
        return f"{commands[0]} has no {', '.join(words)}; see {commands[0]} --help"
    line = " ".join(what.partition("Got errors:")[0].split()).rstrip(".")
    mistyped = re.search(r"Unrecognized options: ([\w.-]+)", line)
    if choices := re.search(r"Available subcommands: ([\w,\s-]+)", hint):
        offered = choices[1].replace(",", " ").split()
        meant = nearest(mistyped[1] if mistyped else "", offered)
        return f"{line}; did you mean {meant}? Choose from {', '.join(offered)}"
    if choice := re.match(r"(invalid choice '(.*)' for argument .*)\. Expected one of (.*)", line):
        offered = [word for word in re.findall(r"'(.+?)'", choice[3]) if word != "None"]
        return f"{choice[1]}; did you mean {nearest(choice[2], offered)}?"
    offered = re.findall(r"\n\s+(--[\w.-]+) ", hint)
    if mistyped and offered:
        return f"{line}; did you mean {nearest(mistyped[1], offered)}?"
    return f"{line}; see --help"


def nearest(word: str, offered: Iterable[str]) -> str:
    """What was probably meant by a word that is not among those offered."""
    return difflib.get_close_matches(word, list(offered), n=1, cutoff=0)[0]


def print_values(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(dumps(values, indent=2))
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for key, value in flat(values):
        is_name = key.rpartition(".")[2] == "seed"
        table.add_row(key, str(value) if is_name else _human(value))
    wide_console().print(table)


def wide_console() -> Console:
    """For tables: as wide as the terminal, and at least 120 characters.

    A narrower terminal breaks its lines; a table made for it would crop names and numbers.
    """
    from rich.console import Console

    width = Console().width
    return Console(highlight=False, markup=False, width=max(width, 120))


def print_whole(table: Table) -> None:
    """A table as wide as it needs, so that nothing in a column of `no_wrap` is cropped."""
    from rich.console import Console
    from rich.measure import Measurement

    out = wide_console()
    need = Measurement.get(out, out.options.update(width=10_000), table).maximum
    Console(highlight=False, markup=False, width=max(out.width, need)).print(table)


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
