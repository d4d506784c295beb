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
MINUTE = RESULTS / "hybrid-against-attention-60s"
PLANS = sorted(folder.name for folder in RESULTS.iterdir() if folder.is_dir())

ROWS = [
    ("attention-4096", "attention, sequences of 4096"),
    ("attention", "attention"),
    ("hybrid-4096", "hybrid, sequences of 4096"),
    ("hybrid", "hybrid, 3 Mamba-2 : 1 attention"),
]


def summaries(variant: str) -> list[dict[str, Any]]:
    paths = sorted((MINUTE / variant).glob("*/summary.json"))
    return [json.loads(path.read_text()) for path in paths]


def mean_bits(variant: str) -> float:
    return statistics.fmean(run["artifact_val_bpb"] for run in summaries(variant))


@pytest.mark.parametrize(("variant", "label"), ROWS)
def test_a_row_of_the_table_is_the_mean_over_kept_runs(variant: str, label: str) -> None:
    runs = summaries(variant)
    assert all(run["total_bytes"] <= 16_000_000 for run in runs)
    assert all(run["device"] == "NVIDIA H200" for run in runs)
    spread = statistics.stdev(run["artifact_val_bpb"] for run in runs)
    steps = statistics.fmean(run["steps"] for run in runs)
    score = f"{mean_bits(variant):.4f} ± {spread:.4f}"
    assert f"| {label} | {len(runs)} | {steps:,.0f} | {score} |" in README


def test_the_lead_is_that_of_the_comparison() -> None:
    (test,) = (p.test for p in compare([MINUTE], against="attention").pairs if p.a == "hybrid")
    assert test.interval is not None
    half = (test.interval[1] - test.interval[0]) / 2
    lead = f"leads by {-test.difference:.4f} ± {half:.4f} (95 %, three pairs, p = {test.p:.3f})"
    longer = mean_bits("attention-4096") - mean_bits("hybrid-4096")
    assert f"{lead}, in sequences of 4096 by {longer:.4f}." in README


@pytest.mark.parametrize("name", PLANS)
def test_the_plan_still_makes_the_kept_runs(name: str) -> None:
    plan = read_plan(find_plan(name))
    for variant, config in resolve(plan).configs.items():
        for seed in plan.seeds:
            kept = read_config(RESULTS / name / variant / f"seed-{seed}")
            assert kept == dataclasses.replace(config, seed=seed, data=kept.data)
