"""The figures of README and docs, and the runs in results/ that they come from."""

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
EXPERIMENTS = (ROOT / "docs" / "experiments.md").read_text()
MINUTE, LONG = "hybrid-against-attention-60s", "hybrid-against-attention"
PLANS = sorted(folder.name for folder in RESULTS.iterdir() if folder.is_dir())
MISSING = {"seed-ablation": {("lti-only", 3), ("parallel", 3)}}
"""Runs that results/README.md says are not there."""

ROWS = [
    ("challenge-60s/seed", "`train seed`: the hybrid as first published"),
    ("challenge-60s/baseline", "`train baseline`: its model, batch, schedule and artifact"),
    (f"{MINUTE}/attention-4096", "attention, sequences of 4096"),
    (f"{MINUTE}/attention", "attention"),
    (f"{MINUTE}/hybrid-4096", "hybrid, sequences of 4096"),
    (f"{MINUTE}/hybrid", "hybrid, 3 Mamba-2 : 1 attention"),
    (f"{LONG}/attention", "attention"),
    (f"{LONG}/hybrid", "hybrid, 3 Mamba-2 : 1 attention"),
]


def summaries(variant: str) -> list[dict[str, Any]]:
    paths = sorted((RESULTS / variant).glob("*/summary.json"))
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


def test_the_table_of_the_ablation_is_that_of_the_comparison() -> None:
    rows = compare([RESULTS / "seed-ablation"]).rows
    for row in rows:
        runs = summaries(f"seed-ablation/{row.name}")
        spread = statistics.stdev(run["artifact_val_bpb"] for run in runs)
        millions = runs[0]["parameters"] / 1e6
        assert (
            f"| {row.name} | {millions:.1f} M | {len(runs)} | {row.steps:,.0f} | "
            f"{row.mean:.4f} ± {spread:.4f} | {row.equal_steps:.4f} |"
        ) in EXPERIMENTS
    assert EXPERIMENTS.count(" M | ") == len(rows)


def lead(name: str) -> str:
    comparison = compare([RESULTS / name], against="attention")
    (pair,) = (pair for pair in comparison.pairs if pair.a == "hybrid")
    assert pair.test.interval is not None
    assert pair.record is False
    half = (pair.test.interval[1] - pair.test.interval[0]) / 2
    return f"{-pair.test.difference:.4f} ± {half:.4f} (95 %, three pairs; p = {pair.p_holm:.3f}"


def test_the_lead_is_that_of_the_comparison() -> None:
    longer = mean_bits(f"{MINUTE}/attention-4096") - mean_bits(f"{MINUTE}/hybrid-4096")
    corrected = "corrected for three comparisons"
    assert f"leads by {lead(MINUTE)}, {corrected}), in sequences of 4096 by {longer:.4f}" in README
    assert f"In 180 seconds it leads by {lead(LONG)})" in README


@pytest.mark.parametrize("name", PLANS)
def test_the_plan_still_makes_the_kept_runs(name: str) -> None:
    """Every variant with the same seeds; a budget may have been given on the command line."""
    kept = [read_config(path.parent) for path in (RESULTS / name).glob("*/*/config.json")]
    plan = read_plan(find_plan(name))
    configs = resolve(plan, data=kept[0].data, seconds=kept[0].seconds).configs
    seeds = sorted({config.seed for config in kept})
    runs = {(variant, seed) for variant in configs for seed in seeds} - MISSING.get(name, set())
    assert len(kept) == len(runs)
    for variant, seed in runs:
        run = RESULTS / name / variant / f"seed-{seed}"
        assert read_config(run) == dataclasses.replace(configs[variant], seed=seed)
