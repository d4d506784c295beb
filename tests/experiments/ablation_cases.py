"""Small plans, and the command that does one."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from scangolf.cli import main
from scangolf.experiments.plan import read_plan, resolve
from scangolf.experiments.work import Job

PLAN = """
preset = "tiny"
seeds = [1, 2]
steps = 3
[settings]
device = "cpu"
evals = 0
model.vocab_size = 300
model.d_model = 32
model.n_layers = 2
model.mlp_width = 32
batch.tokens = 512
batch.seq_len = 64
batch.micro_tokens = 512
[variants.attention]
model.pattern = "attention"
"""


SCAN = '[variants.scan]\nmodel.pattern = "s6"\n'


WILD = '[variants.wild]\nmodel.pattern = "attention"\noptim.matrix_lr = 1e38\n'


class Ablation:
    """A plan in a folder, and the command that does it."""

    def __init__(self, folder: Path, dataset: Path, text: str) -> None:
        self.plan, self.out = folder / "mine.toml", folder / "runs"
        self.plan.write_text(text)
        self.args = ["ablate", str(self.plan), "--out", str(self.out), "--data", str(dataset)]
        self.data = str(dataset)

    def __call__(self, *more: str) -> int:
        """Runs it to its exit code."""
        try:
            main([*self.args, *more])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "scangolf", *self.args, *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def job(self, variant: str, seed: int) -> Job:
        config = resolve(read_plan(self.plan), data=self.data).configs[variant]
        folder = self.out / variant / f"seed-{seed}"
        return Job(variant, dataclasses.replace(config, seed=seed), folder)

    def summary(self, variant: str, seed: int) -> dict[str, Any]:
        return json.loads((self.out / variant / f"seed-{seed}" / "summary.json").read_text())

    def begun(self, variant: str, seed: int) -> int:
        """How often a run was begun or continued."""
        log = (self.out / variant / f"seed-{seed}" / "train.log").read_text()
        return log.count("preparing the first step")


def steps(folder: Path) -> list[int]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "loss" in record]
