"""Keeps what a claim rests on of finished runs: small enough for the repository.

    python results/keep.py runs/hybrid-against-attention-60s results/hybrid-against-attention-60s

Of every finished run below the first folder: config.json, summary.json, command.txt (the command
that makes the run again) and metrics.jsonl, of which every tenth step is kept, the first and the
last one and all evaluations. `scangolf compare` and `scangolf report` read such folders as others.
"""

import json
import shutil
import sys
from pathlib import Path

from scangolf.report.command import command

EVERY = 10


def keep(runs: Path, kept: Path) -> None:
    finished = sorted(runs.rglob("summary.json"))
    if not finished:
        sys.exit(f"{runs}: holds no finished run; name a folder of runs")
    for summary in finished:
        run = summary.parent
        out = kept / run.relative_to(runs)
        out.mkdir(parents=True)
        for name in ("config.json", "summary.json"):
            shutil.copy(run / name, out)
        config = json.loads((run / "config.json").read_text())
        (out / "command.txt").write_text(command(config) + "\n")
        lines = (run / "metrics.jsonl").read_text().splitlines()
        last = max(i for i, line in enumerate(lines) if "train_bpb" in json.loads(line))
        (out / "metrics.jsonl").write_text(
            "".join(line + "\n" for i, line in enumerate(lines) if i == last or wanted(line))
        )
        print(out)


def wanted(line: str) -> bool:
    record = json.loads(line)
    return "val_bpb" in record or record["step"] % EVERY == 0 or record["step"] == 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python results/keep.py FOLDER_OF_RUNS FOLDER_TO_KEEP_THEM_IN")
    if Path(sys.argv[2]).exists():
        sys.exit(f"{sys.argv[2]}: exists already; remove it, or keep these runs in another folder")
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
