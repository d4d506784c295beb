"""A comparison for people: tables on the terminal, and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from scangolf.console import print_whole, wide_console
from scangolf.experiments.compare import RECORD_NATS, RECORD_P, Comparison, Pair, Row, View
from scangolf.experiments.statistics import Interval
from scangolf.report.page import duration
from scangolf.report.style import INK, RAW, SCORE, canvas, style, write_png

WIDTH, ROW_HEIGHT, FRAME = 640, 26, 90
"""Of the picture, in points."""


def print_comparison(comparison: Comparison) -> None:
    out = wide_console()
    for line in _settings(comparison.rows):
        out.print(line, soft_wrap=True)
    print_whole(_scores(comparison))
    out.print(
        "bits a byte of the artifact read back from disk, ± their 95 % interval; "
        f"{' and '.join(map(_view, comparison.views))}",
        soft_wrap=True,
    )
    if comparison.pairs:
        print_whole(_tests(comparison))
        for line in _notes(comparison):
            out.print(line, soft_wrap=True)
    for folder, why in comparison.left_out.items():
        out.print(f"left out: {folder}: {why}", soft_wrap=True)


def comparison_png(comparison: Comparison, path: Path) -> None:
    """Draws every configuration's runs, mean and interval, the best on top."""
    rows = comparison.rows[::-1]
    with style():
        figure, axes = canvas((WIDTH, FRAME + ROW_HEIGHT * len(rows)))
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        for y, row in enumerate(rows):
            scores = [*row.scores.values()]
            axes.plot(scores, [y] * len(scores), "o", color=RAW, markersize=5, markeredgewidth=0)
            if row.interval is not None:
                axes.plot(row.interval, [y, y], color=SCORE, linewidth=1.6)
            axes.plot(row.mean, y, "D", color=SCORE, markersize=5.5, markeredgewidth=0)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_title("bits a byte of the artifact: runs, mean and 95 % interval")
        write_png(figure, path)


def _scores(comparison: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("configuration", no_wrap=True)
    columns = ("seeds", "bits a byte", "std", "steps", "at equal steps", "at equal time", "bytes")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in comparison.rows:
        low, _ = row.interval or (None, None)
        table.add_row(
            row.name,
            str(len(row.scores)),
            f"{row.mean:.4f}" + ("" if low is None else f" ± {row.mean - low:.4f}"),
            "-" if row.std is None else f"{row.std:.4f}",
            f"{row.steps:,.0f}",
            f"{row.equal_steps:.4f}",
            f"{row.equal_seconds:.4f}",
            f"{row.total_bytes:,.0f}{'' if row.fits else ', too large'}",
        )
    return table


def _tests(comparison: Comparison) -> Table:
    """The best against all others, or all others against the one that was named."""
    best = comparison.rows[0].name
    title = f"{best}, less" if comparison.against is None else f"less {comparison.against}"
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(title, no_wrap=True)
    columns = ["bits a byte", "interval", "nats a token", "test", "p", "p, corrected"]
    for column in columns + ["record"] * (comparison.against is not None):
        table.add_column(column, justify="right", no_wrap=True)
    for pair in _shown(comparison):
        table.add_row(
            pair.b if comparison.against is None else pair.a,
            f"{pair.test.difference:+.4f}",
            _interval(pair.test.interval),
            f"{pair.nats:+.4f}",
            _how(pair),
            _p(pair.test.p),
            _p(pair.p_holm),
            *([_record(pair)] if comparison.against is not None else []),
        )
    return table


def _shown(comparison: Comparison) -> list[Pair]:
    best = comparison.rows[0].name
    return [pair for pair in comparison.pairs if comparison.against or pair.a == best]


def _notes(comparison: Comparison) -> list[str]:
    tested = [pair for pair in comparison.pairs if pair.test.p is not None]
    notes = [
        f"{row.name} has one seed: of it nothing can be said about chance"
        for row in comparison.rows
        if len(row.scores) == 1
    ]
    seeds = {row.name: len(row.scores) for row in comparison.rows}
    if max(seeds.values()) == 1:
        return ["one seed a configuration: nothing can be said about chance; train more seeds"]
    notes += [
        f"{pair.a} and {pair.b} differ by the same in every seed: no spread to test by"
        for pair in _shown(comparison)
        if pair.test.p is None and min(seeds[pair.a], seeds[pair.b]) > 1
    ]
    if not tested:
        return notes
    count = f"{len(tested)} comparison{'s' * (len(tested) > 1)}"
    if comparison.against is None:
        notes.append(
            f"p is corrected for {count}: all pairs, as the best was not known before; --against "
            "compares with one, by the challenge's rule for records as well"
        )
    else:
        notes.append(
            f"p is corrected for {count}; record: ahead of {comparison.against} by more than "
            f"{RECORD_NATS} nats a token at p < {RECORD_P}, one-sided, within the byte limit"
        )
    return notes


def _view(view: View) -> str:
    source = "validation" if view.source == "validation" else "smoothed training text"
    at = f"{view.at:,.0f} steps" if view.unit == "steps" else duration(view.at)
    return f"at equal {'steps' if view.unit == 'steps' else 'time'} after {at}, on {source}"


def _settings(rows: Sequence[Row]) -> Iterator[str]:
    """What sets the configurations apart: first what most of them have, then what each has else."""
    most = {}
    for name in rows[0].differs:
        ((value, count),) = Counter(row.differs[name] for row in rows).most_common(1)
        if 2 * count > len(rows):
            most[name] = value
    if most:
        yield f"most: {_values(most)}"
    for row in rows:
        own = {n: v for n, v in row.differs.items() if n not in most or v != most[n]}
        if row.differs:
            yield f"{row.name}: {_values(own) if own else 'as most'}"


def _values(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_value(value)}" for name, value in settings.items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def _how(pair: Pair) -> str:
    if pair.test.p is None:
        return "none"
    return f"{pair.test.pairs} pairs" if pair.test.pairs >= 2 else "Welch"


def _p(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


def _record(pair: Pair) -> str:
    if pair.record is None:
        return "-"
    p = _p(pair.record_p)
    return f"{'yes' if pair.record else 'no'}, p {p if p.startswith('<') else f'= {p}'}"
