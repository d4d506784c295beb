"""The report of a run: one HTML page that needs nothing beside itself."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from scangolf.report.folder import RunFolder, read_run
from scangolf.report.plots import opening_is_cut, svg_plots
from scangolf.report.style import PALETTE


class Fact(NamedTuple):
    """A labelled value: `text` as it is read, `value` in full where it is a number."""

    label: str
    text: str
    value: float | None = None
    note: str = ""


def write_report(run: Path) -> Path:
    """Writes report.html into a run folder, whole or not at all, and returns its path.

    A run without summary.json gets a page of what there is. Raises UserError for a folder that
    is no run.
    """
    folder = read_run(run)
    path = run / "report.html"
    part = path.with_name(path.name + ".part")
    # Half of a surrogate pair, which JSON can hold, is no character that UTF-8 could write.
    part.write_bytes(_render(folder).encode("utf-8", errors="replace"))
    os.replace(part, path)
    return path


def _render(folder: RunFolder) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    template = environment.from_string(
        Path(__file__).with_name("template.html").read_text(encoding="utf-8")
    )
    config, summary, last = folder.config, folder.summary, folder.training[-1]
    return template.render(
        palette=PALETTE,
        preset=config["preset"],
        seed=config["seed"],
        device=summary and summary["device"],
        headline=list(_headline(folder)),
        size=summary and _size(summary),
        share=None if summary else last["share"],
        plots=svg_plots(folder),
        opening_is_cut=opening_is_cut(folder),
        layers=summary and summary["layers"],
        pattern=_pattern(config["model"]),
        facts=list(_facts(summary)) if summary else [],
        sample=summary and summary["sample"],
        settings=[(name, json.dumps(value, ensure_ascii=False)) for name, value in _leaves(config)],
        command=_command(config),
    )


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


def _facts(summary: dict[str, Any]) -> Iterator[Fact]:
    """The summary, in the order in which a run produces it."""

    def count(label: str, key: str, unit: str = "") -> Fact:
        return Fact(label, f"{summary[key]:,}", summary[key], unit)

    def score(label: str, key: str, unit: str) -> Fact:
        return Fact(label, f"{summary[key]:.4f}", summary[key], unit)

    def size(label: str, key: str) -> Fact:
        return Fact(label, f"{summary[key]:,}", summary[key], f"bytes ({megabytes(summary[key])})")

    yield Fact("Preset", summary["preset"])
    yield Fact("Seed", str(summary["seed"]), summary["seed"])
    yield Fact("Device", summary["device"])
    yield count("Parameters", "parameters")
    yield count("Steps", "steps")
    yield count("Tokens trained on", "tokens")
    seconds = summary["train_seconds"]
    yield Fact("Training time", f"{seconds:,.2f}", seconds, "s")
    speed = summary["tokens_per_second"]
    yield Fact("Throughput", f"{speed:,.0f}", speed, "tokens/s")
    yield count("Validation tokens", "val_tokens")
    yield size("Validation text", "val_bytes")
    yield score("Validation loss", "val_loss", "nats a token")
    yield score("Validation score", "val_bpb", "bits per byte")
    yield score("Artifact's score", "artifact_val_bpb", "bits per byte")
    yield size("Artifact", "artifact_bytes")
    yield size("Code", "code_bytes")
    yield size("Total", "total_bytes")
    yield size("Limit", "limit_bytes")
    yield Fact("Fits", "yes" if summary["fits"] else "no")
    yield Fact("Tokenizer (SHA-256)", summary["tokenizer_sha256"])


def _command(config: dict[str, Any]) -> str:
    """The command that makes the run again, as far as its preset, budget, seed and data decide."""
    budget = ["--steps", config["steps"]]
    if config["steps"] is None:
        budget = ["--seconds", f"{config['seconds']:.12g}"]
    words = ["scangolf", "train", config["preset"], *budget]
    words += ["--seed", config["seed"], "--data", config["data"]]
    return shlex.join(map(str, words))


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a nested configuration by its dotted name."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


# --- words and numbers --------------------------------------------------------------------------


def visible(text: str) -> str:
    """Text as a page can hold it: control characters as their pictures, or as U+FFFD.

    Those of C1, halves of surrogate pairs and what turns the direction of writing have no picture.
    """
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
    ranges = (0x80, 0xA0), (0x202A, 0x202F), (0x2066, 0x206A), (0xD800, 0xE000)
    unseen = {code: 0xFFFD for start, end in ranges for code in range(start, end)}
    return text.replace("\r\n", "\n").translate(pictures | {0x7F: 0x2421} | unseen)


def duration(seconds: float) -> str:
    """Seconds to about three figures, from two minutes on as clocks say it."""
    if seconds < 119.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def short(count: float) -> str:
    """A count to three figures: 775,684 is 776 k."""
    for unit, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}\N{NO-BREAK SPACE}{sign}"
    return f"{count:,}"


def megabytes(n_bytes: int) -> str:
    """Decimal kilobytes or megabytes, as the limit is decimal."""
    space = "\N{NO-BREAK SPACE}"
    if n_bytes < 999_950:
        return f"{n_bytes / 1e3:,.1f}{space}kB"
    return f"{n_bytes / 1e6:,.2f}{space}MB"
