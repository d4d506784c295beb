"""The README's figures, and the runs in results/ that they come from."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from scangolf.experiments.compare import compare
from scangolf.experiments.plan import find_plan, read_plan, resolve
from scangolf.run import read_config

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
README = " ".join((ROOT / "README.md").read_text().replace("**", "").split())
PLANS = sorted(folder.name for folder in RESULTS.iterdir() if folder.is_dir())

ROWS = [
    ("hybrid-against-attention-60s", "attention-4096", "attention, sequences of 4096"),
    ("hybrid-against-attention-60s", "attention", "attention"),
    ("hybrid-against-attention-60s", "hybrid-4096", "hybrid, sequences of 4096"),
    ("hybrid-against-attention-60s", "hybrid", "hybrid, 3 Mamba-2 : 1 attention"),
]


def summaries(plan: str, variant: str) -> list[dict[str, Any]]:
    paths = sorted((RESULTS / plan / variant).glob("*/summary.json"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize(("plan", "variant", "label"), ROWS)
def test_a_row_of_the_table_is_the_mean_over_kept_runs(plan: str, variant: str, label: str) -> None:
    runs = summaries(plan, variant)
    assert all(run["total_bytes"] <= 16_000_000 for run in runs)
    assert all(run["device"] == "NVIDIA H200" for run in runs)
    bits = [run["artifact_val_bpb"] for run in runs]
    steps = statistics.fmean(run["steps"] for run in runs)
    score = f"{statistics.fmean(bits):.4f} ± {statistics.stdev(bits):.4f}"
    assert f"| {label} | {len(runs)} | {steps:,.0f} | {score} |" in README


def test_the_lead_is_that_of_the_comparison() -> None:
    found = compare([RESULTS / "hybrid-against-attention-60s"], against="attention")
    (test,) = (pair.test for pair in found.pairs if pair.a == "hybrid")
    assert test.interval is not None
    half = (test.interval[1] - test.interval[0]) / 2
    said = f"leads by {-test.difference:.4f} ± {half:.4f} (95 %, three pairs, p = {test.p:.3f})"
    assert said in README


@pytest.mark.parametrize("name", PLANS)
def test_the_plan_still_makes_the_kept_runs(name: str) -> None:
    plan = read_plan(find_plan(name))
    for variant, config in resolve(plan).configs.items():
        for seed in plan.seeds:
            kept = read_config(RESULTS / name / variant / f"seed-{seed}")
            assert kept == dataclasses.replace(config, seed=seed, data=kept.data)
