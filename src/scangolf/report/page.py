"""The report of a run, or of several beside each other: an HTML page that needs nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from scangolf.errors import UserError
from scangolf.report import anatomy, contents
from scangolf.report.command import command
from scangolf.report.compare import comparison
from scangolf.report.curves import smooth
from scangolf.report.folder import RunFolder, read_run, without
from scangolf.report.plots import opening_is_cut, run_plots
from scangolf.report.style import PALETTE, tints
from scangolf.report.words import duration, leaves, megabytes, short, visible

TABLE_LINES = 10
"""Training steps that the table beside the curves has, at most."""


class Fact(NamedTuple):
    """A labelled value: `text` as it is read, `value` in full where it is a number."""

    label: str
    text: str
    value: float | None = None
    note: str = ""


def write_report(*runs: Path, out: Path | None = None) -> Path:
    """Writes the page of one run folder or of several, whole or not at all, and returns its path.

    `out` unless given: report.html in the run folder, or beside the first of several. A run
    without summary.json or analysis.json gets a page of what there is; of several, the page names
    those that cannot be read and shows the others. Raises UserError where there is nothing to show.
    """
    if not runs:
        raise UserError("report: name at least one run folder")
    folders, left_out = _readable(runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    environment.globals.update(palette=PALETTE, tints=tints())
    if len(runs) == 1:
        path = runs[0] / "report.html"
        html = environment.get_template("run.html").render(_run(folders[0]))
    else:
        path = runs[0].parent / "report.html"
        page = comparison(folders) | {"left_out": left_out}
        html = environment.get_template("runs.html").render(page)
    path = out or path
    part = path.with_name(path.name + ".part")
    # Half of a surrogate pair, which JSON can hold, is no character that UTF-8 could write.
    part.write_bytes(html.encode("utf-8", errors="replace"))
    os.replace(part, path)
    return path


def _readable(runs: Sequence[Path]) -> tuple[list[RunFolder], dict[str, str]]:
    """The runs that can be shown, and why others cannot, by folder. The first error if none can."""
    folders: list[RunFolder] = []
    errors: dict[Path, UserError] = {}
    for run in runs:
        try:
            folders.append(read_run(run))
        except UserError as error:
            errors[run] = error
    if not folders:
        raise next(iter(errors.values()))
    return folders, {str(run): without(run, error) for run, error in errors.items()}


def _run(folder: RunFolder) -> dict[str, Any]:
    """What the page of one run shows."""
    config, summary, last = folder.config, folder.summary, folder.training[-1]
    return {
        "preset": config["preset"],
        "seed": config["seed"],
        "device": summary and summary["device"],
        "headline": list(_headline(folder)),
        "size": summary and _size(summary),
        "share": None if summary else last["share"],
        "plots": run_plots(folder),
        "opening_is_cut": opening_is_cut(folder),
        "lines": list(_lines(folder)),
        "evaluations": folder.evaluations,
        "layers": summary and summary["layers"],
        "pattern": _pattern(config["model"]),
        "facts": list(_facts(folder)),
        "sample": summary and summary["sample"],
        "settings": [
            (name, json.dumps(value, ensure_ascii=False)) for name, value in leaves(config)
        ],
        "command": command(config),
        "analysis": _analysis(folder) if folder.analysis else None,
    }


def _analysis(folder: RunFolder) -> dict[str, Any]:
    analysis, summary = folder.analysis, folder.summary
    assert analysis is not None
    assert summary is not None
    seq_len = len(analysis["positions"]["nats"])
    layers = summary["layers"]
    return {
        "plots": anatomy.anatomy_plots(analysis, seq_len),
        "spectra": list(anatomy.spectra(analysis)),
        "gates": anatomy.GATES,
        "gate_table": anatomy.gate_table(analysis),
        "skips": anatomy.skips(analysis),
        "stretches": anatomy.stretches(analysis["positions"]),
        "positions": analysis["positions"],
        "body_bytes": contents.body_bytes(analysis),
        "parts": contents.bytes_by_part(analysis, layers),
        "places": contents.bytes_by_place(analysis, layers),
        "tensors": contents.bytes_by_tensor(analysis),
        "passage": contents.passage(analysis["passage"]),
        "sample": contents.passage(analysis["sample"], summary["sample"]["prompt"]),
        "legend": contents.legend(),
    }


def _pattern(model: dict[str, Any]) -> str:
    loops = model.get("loops", 1)
    passes = f", passed {loops} times" if loops > 1 else ""
    return f"{model['pattern']}, over {model['n_layers']} blocks{passes}"


def _headline(folder: RunFolder) -> Iterator[Fact]:
    """The numbers one looks for first."""
    summary, last = folder.summary, folder.training[-1]
    if summary:
        bits = summary["artifact_val_bpb"]
        note = f"artifact; {summary['val_bpb']:.4f} before quantising"
        yield Fact("bits per byte", f"{bits:.4f}", bits, note)
    elif folder.evaluations:
        line = folder.evaluations[-1]
        note = f"on validation after step {line['step']:,}"
        yield Fact("bits per byte so far", f"{line['val_bpb']:.4f}", line["val_bpb"], note)
    else:
        note = f"on training text at step {last['step']:,}"
        yield Fact("bits per byte so far", f"{last['train_bpb']:.4f}", last["train_bpb"], note)
    seconds = summary["train_seconds"] if summary else folder.seconds
    steps = summary["steps"] if summary else last["step"]
    yield Fact("training", duration(seconds), seconds, f"{steps:,} steps")
    tokens = summary["tokens"] if summary else last["tokens"]
    speed = summary["tokens_per_second"] if summary else tokens / seconds
    yield Fact("tokens a second", f"{speed:,.0f}", speed, f"{short(tokens)} tokens in all")
    if summary:
        count = summary["parameters"]
        yield Fact("parameters", short(count), count, f"{len(summary['layers'])} blocks")


def _size(summary: dict[str, Any]) -> dict[str, Any]:
    """The bar of bytes: widths in percent of the limit, or of the total where that is larger."""
    total, limit = summary["total_bytes"], summary["limit_bytes"]
    whole = max(total, limit)
    return {
        "artifact": 100 * summary["artifact_bytes"] / whole,
        "code": 100 * summary["code_bytes"] / whole,
        "limit": 100 * limit / whole,
        "total_bytes": total,
        "limit_bytes": limit,
        "artifact_bytes": summary["artifact_bytes"],
        "code_bytes": summary["code_bytes"],
        "percent": 100 * total / limit,
        "fits": summary["fits"],
    }


def _lines(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """Some training steps, evenly spread, with their losses smoothed as they are drawn."""
    count = len(folder.training)
    smoothed = {name: smooth(folder.curve(name)) for name in ("train_bpb", "loss")}
    for i in np.unique(np.linspace(0, count - 1, min(count, TABLE_LINES)).round().astype(int)):
        yield folder.training[i] | {name: values[i] for name, values in smoothed.items()}


def _facts(folder: RunFolder) -> Iterator[Fact]:
    """The summary, in the order in which a run produces it; nothing without one."""
    summary = folder.summary
    if summary is None:
        return

    def count(label: str, key: str, unit: str = "") -> Fact:
        return Fact(label, f"{summary[key]:,}", summary[key], unit)

    def score(label: str, key: str, unit: str) -> Fact:
        return Fact(label, f"{summary[key]:.4f}", summary[key], unit)

    def size(label: str, n_bytes: int) -> Fact:
        return Fact(label, f"{n_bytes:,}", n_bytes, f"bytes ({megabytes(n_bytes)})")

    yield Fact("Preset", summary["preset"])
    yield Fact("Seed", str(summary["seed"]), summary["seed"])
    yield Fact("Device", summary["device"])
    yield count("Parameters", "parameters")
    yield count("Steps", "steps")
    yield count("Tokens trained on", "tokens")
    if "epochs" in summary:  # newer than the first runs
        yield Fact("Times the text was read", f"{summary['epochs']:.2f}", summary["epochs"])
    seconds = summary["train_seconds"]
    yield Fact("Training time", f"{seconds:,.2f}", seconds, "s")
    speed = summary["tokens_per_second"]
    yield Fact("Throughput", f"{speed:,.0f}", speed, "tokens/s")
    peak = folder.peak_memory_bytes
    yield size("Peak GPU memory", peak) if peak else Fact("Peak GPU memory", "not recorded")
    yield count("Validation tokens", "val_tokens")
    yield size("Validation text", summary["val_bytes"])
    yield score("Validation loss", "val_loss", "nats a token")
    yield score("Validation score", "val_bpb", "bits per byte")
    yield score("Artifact's score", "artifact_val_bpb", "bits per byte")
    yield size("Artifact", summary["artifact_bytes"])
    yield size("Code", summary["code_bytes"])
    yield size("Total", summary["total_bytes"])
    yield size("Limit", summary["limit_bytes"])
    yield Fact("Fits", "yes" if summary["fits"] else "no")
    yield Fact("Tokenizer (SHA-256)", summary["tokenizer_sha256"])
