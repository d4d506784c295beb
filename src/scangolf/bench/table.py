"""A report of the scan's speed for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from scangolf.console import wide_console

if TYPE_CHECKING:
    from scangolf.bench.floor import Floor
    from scangolf.bench.record import Report, Row, ShapeReport
    from scangolf.bench.timing import Times


def print_report(report: Report) -> None:
    console = wide_console()
    for line in _head(report):
        console.print(line, soft_wrap=True)
    if report.crossing is not None:
        console.print(_crossing_table(report))
        console.print(f"{report.crossing.words}, forward and backward", soft_wrap=True)
        return
    console.print(
        "medians; both: forward and backward; memory: of both, beyond the inputs, in their bytes; "
        "errors: of y, and the largest of a gradient; speed-up: of both, over the peer"
    )
    for part in report.shapes:
        console.print(_table(part, report))
        for note in part.notes:
            console.print(note, soft_wrap=True)
        for row in part.rows:
            if row.passed is False:
                console.print(f"{_name(row)}: {row.note}; no times", soft_wrap=True)
                for name, error in (row.errors or {}).items():
                    limit = report.limits["output" if name == "y" else "gradient"]
                    mark = "" if error <= limit else f"   above {limit:.0e}"
                    console.print(f"    {'' if name == 'y' else 'd'}{name:12}{error:.2e}{mark}")
            elif row.note and row.role != "orientation":
                console.print(f"{row.name}: {row.note}", soft_wrap=True)


def _head(report: Report) -> list[str]:
    rates = report.rates
    versions = [f"torch {report.torch}"]
    versions += [f"triton {report.triton}"] if report.triton else []
    versions += [f"mamba_ssm {report.mamba_ssm}"] if report.mamba_ssm else []
    versions += [f"fla {report.fla}"] if report.fla else []
    known = [f"copies {rates.copy_bytes / 1e9:,.0f} GB/s"]
    if rates.multiprocessors:
        known.append(f"{rates.multiprocessors} multiprocessors")
    if rates.clock_hz:
        known.append(f"{rates.clock_hz / 1e9:.2f} GHz ({rates.clock_source})")
    if rates.exponentials:
        known.append(f"{rates.exponentials / 1e12:.2f}e12 exponentials/s")
    if rates.product_flop:
        known.append(f"{report.dtype} products {rates.product_flop / 1e12:.3g} TFLOP/s")
    return [
        f"{report.device}, {', '.join(versions)}",
        f"{report.operator}, {report.dtype}, {report.about}; {', '.join(known)}",
        f"again: {report.command}",
    ]


def _table(part: ShapeReport, report: Report) -> Table:
    shape, below = part.shape, part.floors
    title = f"{shape.batch} x {shape.length}, {shape.channels} channels, {shape.state} states"
    floor = f"floor: forward {_floor(below.forward)}, both {_floor(below.both)}"
    table = Table(title=title, caption=floor, box=box.SIMPLE_HEAD, title_justify="left",
                  caption_justify="left")  # fmt: skip
    table.add_column("form", no_wrap=True)
    for column in ("forward ms", "both ms", "of floor"):
        table.add_column(column, justify="right")
    memory = any(row.peak_memory is not None for row in part.rows)
    if memory:
        table.add_column("memory", justify="right")
    table.add_column("first s", justify="right")
    table.add_column("errors", justify="right", no_wrap=True)
    table.add_column("speed-up", justify="right")
    for row in part.rows:
        cells = [_name(row), *_times(row)]
        cells += [_number(row.peak_memory, "{:.1f}x")] * memory
        cells += [_number(row.first_call_seconds, "{:.2f}"), _errors(row)]
        table.add_row(*cells, _number(row.speed_up, "{:.1f}"))
    return table


def _crossing_table(report: Report) -> Table:
    shape = report.shapes[0].shape
    title = (
        f"{shape.batch * shape.length:,} tokens, {shape.channels} channels, {shape.state} states; "
        "forward and backward, ms"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    scan, attention = report.shapes[0].rows
    for column in ("length", "batch", _name(scan), _name(attention), "attention / scan", "errors"):
        table.add_column(column, justify="right")
    for part in report.shapes:
        scan, attention = part.rows
        assert scan.both is not None
        assert attention.both is not None
        table.add_row(
            f"{part.shape.length:,}",
            f"{part.shape.batch:,}",
            f"{scan.both.median_ms:.3g}",
            f"{attention.both.median_ms:.3g}",
            f"{attention.both.median_ms / scan.both.median_ms:.2f}",
            _errors(scan),
        )
    return table


def _name(row: Row) -> str:
    return row.name if row.name == row.form else f"{row.name} ({row.form})"


def _times(row: Row) -> list[str]:
    if row.forward is None:
        return ["no times", "", ""]
    shares = (_number(share, "{:.0%}") for share in (row.forward_share, row.both_share))
    share = "-" if row.forward_share is None else " / ".join(shares)
    return [_milliseconds(row.forward), _milliseconds(row.both), share]


def _milliseconds(times: Times | None) -> str:
    if times is None:
        return "-"
    return f"{times.median_ms:.3g}" if times.median_ms < 100 else f"{times.median_ms:.0f}"


def _errors(row: Row) -> str:
    if row.errors is None:
        return "-"
    gradients = [error for name, error in row.errors.items() if name != "y"]
    worst = max(gradients, key=lambda e: (e != e, e), default=None)
    return f"{row.errors['y']:.0e} / {_number(worst, '{:.0e}')}"


def _floor(floor: Floor) -> str:
    work = f"{floor.bytes / 1e9:.3g} GB"
    if floor.flop:
        work += f", {floor.flop / 1e12:.3g} TFLOP"
    return f"{floor.ms:.3g} ms ({floor.bound}; {work})"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
