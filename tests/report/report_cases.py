"""Run folders as the report finds them, and a page as a browser would see it."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CONFIG = {
    "preset": "tiny", "seconds": 110.0, "steps": None, "data": "my data", "seed": 7,
    "model": {"pattern": "3 s6 : 1 attention", "n_layers": 4, "s6": {"d_state": 8}},
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "preset": "tiny", "seed": 7, "device": "x86_64 CPU, 2 threads",
    "layers": ["s6", "s6", "s6", "attention"], "parameters": 775684, "steps": 40,
    "tokens": 163840, "train_seconds": 109.87654321, "tokens_per_second": 1491.125,
    "val_loss": 3.2929608393, "val_bpb": 2.0304631526, "artifact_val_bpb": 2.0571283535,
    "artifact_bytes": 745419, "code_bytes": 157824, "total_bytes": 903243,
    "limit_bytes": 16000000, "fits": True, "tokenizer_sha256": "f567ea89" * 8,
    "val_tokens": 35584, "val_bytes": 83257,
    "sample": {
        "prompt": "Say <b>", "text": " & </pre><script>alert('x')</script>\x00\x1b[31m\ud83d",
    },
}  # fmt: skip


def training_line(step: int, steps: int = 40) -> dict[str, Any]:
    share = step / steps
    loss = 2.0 + 5.0 * math.exp(-9 * share) + 0.1 * math.sin(37 * step)
    return {
        "step": step, "tokens": 4096 * step, "seconds": 109.87654321 * share, "share": share,
        "loss": loss, "train_bpb": loss / 1.5, "lr": 1 - share, "tokens_per_second": 1500.0 + step,
    }  # fmt: skip


EVALUATION = {
    "step": 40, "tokens": 163840, "seconds": 109.87654321, "share": 1.0,
    "val_loss": 3.2929608393, "val_bpb": 2.0304631526,
}  # fmt: skip


def spread(low: float, high: float) -> list[float]:
    """21 quantiles between two numbers, evenly on a scale of logarithms."""
    return [low * (high / low) ** (i / 20) for i in range(21)]


def gate(name: str, block: int, median: float) -> dict[str, Any]:
    return {
        "gate": name,
        "block": block,
        "quantiles": [median + d for d in (-0.2, -0.1, 0, 0.1, 0.2)],
    }


def tensor(name: str, shape: list[int], n_bytes: int, error: float) -> dict[str, Any]:
    return {
        "name": name, "shape": shape, "coding": "float16", "bytes": n_bytes,
        "entropy_bytes": n_bytes // 2, "error": error,
    }  # fmt: skip


BLOCK_GATES = ("resid_mix_x", "resid_mix_x0", "mixer_gain", "mlp_gain")
ANALYSIS: dict[str, Any] = {
    "steps": 40, "peak_memory_bytes": 61_234_567_890, "tokenizer_bytes": 1000,
    "scans": [
        {"block": b, "kind": "s6", "channels": 256, "states": 8, "dt": spread(1e-3, 0.1),
         "memory": spread(2.0 + b, 800.0)}
        for b in range(3)
    ],
    "gates": [
        *(gate(name, b, 0.5 + 0.1 * b) for b in range(4) for name in BLOCK_GATES),
        gate("skip_weights", 2, 0.9) | {"source": 1},
        gate("skip_weights", 3, 0.8) | {"source": 0},
    ],
    "positions": {
        "targets": 35584, "split_targets": 35584,
        "nats": [2 + 3 / (1 + i) for i in range(256)], "bytes": [2.5] * 256,
    },
    "tensors": [
        tensor("embedding.weight", [1024, 128], 4000, 0.005),
        *(tensor(f"blocks.{b}.mixer.in_proj.weight", [512, 128], 1000, 0.003) for b in range(3)),
        tensor("blocks.3.mixer.q_proj.weight", [128, 128], 990, 0.004),
        tensor("blocks.3.resid_mix", [2, 128], 10, 0.0),
    ],
    "passage": [["The", 0.25], [" <b>", 1.5], ["\n&amp;", 3.0], [" owl", 12.25]],
    "sample": [["Say", 5.0], [" <b>", 6.5], [" & </pre>", 2.0]],
}  # fmt: skip


def make_run(
    folder: Path, *, steps: int = 40, done: int = 40, finished: bool = True, analysed: bool = False
) -> Path:
    lines = [training_line(step, steps) for step in range(1, done + 1)]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if finished:
        lines.append(EVALUATION | {"step": steps})
        (folder / "summary.json").write_text(json.dumps(SUMMARY | {"steps": steps}))
    if analysed:
        (folder / "analysis.json").write_text(json.dumps(ANALYSIS | {"steps": steps}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Page(HTMLParser):
    """What a browser would see: elements, attributes and text; <data> with value and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.data: list[tuple[float, str]] = []
        self.rows: dict[str, list[str]] = {}
        """By the text of the first cell; of two tables' rows with the same, the later."""
        self.lines: list[list[str]] = []
        """All rows of all tables."""
        self.text = ""
        self._row: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if tag == "data":
            self.data.append((float(values["value"]), ""))
        if tag == "tr":
            self._row = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            label, *rest = self._row
            self.rows[label] = rest
            self.lines.append(self._row)

    def handle_data(self, data: str) -> None:
        self.text += data
        if data.strip():
            self._row.append(data.strip())
            if self.tags and self.tags[-1][0] == "data" and not self.data[-1][1]:
                self.data[-1] = (self.data[-1][0], data.strip())

    def attributes(self, tag: str, name: str) -> list[str]:
        return [values[name] for found, values in self.tags if found == tag and name in values]
