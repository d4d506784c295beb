"""A record claim: several seeds against the last record."""

from __future__ import annotations

import math
from typing import Any

from scipy import stats

from scangolf.submission.rules.finding import Finding, judged, unchecked
from scangolf.submission.rules.folder import Submission
from scangolf.submission.rules.limits import Limits

RULE = "record"


def check_record(
    submission: Submission,
    baseline_nats: float | None,
    bytes_a_token: float | None,
    limits: Limits,
) -> Finding:
    """Losses of several seeds beat `baseline_nats` by 0.005 nats a token at p < 0.01.

    A one-sided t-test of their mean against the baseline less that margin. Seeds that state
    val_bpb alone need `bytes_a_token` of the split.
    """
    runs = submission.claims.get("seeds")
    if runs is None:
        return unchecked(RULE, "one run is claimed; a record needs `seeds` in submission.json")
    losses = [_nats(run, bytes_a_token) for run in runs]
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses):
        return unchecked(
            RULE,
            f"{len(losses) - len(known)} of {len(losses)} seeds state no val_loss, nor val_bpb "
            "with a split to convert it by",
        )
    seeds = [run.get("seed") for run in runs]
    if len(set(map(str, seeds))) < max(2, len(runs)):
        return unchecked(RULE, f"{len(runs)} runs of seeds {seeds}: needs two or more seeds")
    if baseline_nats is None:
        return unchecked(RULE, "nothing to beat was given: pass --baseline-nats", losses=known)
    if len(set(known)) == 1:
        return unchecked(RULE, f"all seeds state {known[0]}: no spread to test", losses=known)
    goal = baseline_nats - limits.record_nats
    test: Any = stats.ttest_1samp(known, goal, alternative="less")
    p, mean = float(test.pvalue), math.fsum(known) / len(known)
    return judged(
        RULE,
        p < limits.record_p,
        f"mean of {len(known)} seeds {mean:.4f}, {baseline_nats - mean:+.4f} nats below "
        f"{baseline_nats:.4f} where {limits.record_nats} is needed: p = {p:.2g}",
        losses=known,
        mean=mean,
        baseline=baseline_nats,
        margin=limits.record_nats,
        p=p,
        p_needed=limits.record_p,
    )


def _nats(run: Any, bytes_a_token: float | None) -> float | None:
    """Nats a token of one run of the list."""
    if not isinstance(run, dict):
        return None
    loss, bpb = run.get("val_loss"), run.get("val_bpb")
    if isinstance(loss, int | float) and math.isfinite(loss):
        return float(loss)
    if isinstance(bpb, int | float) and math.isfinite(bpb) and bytes_a_token is not None:
        return bpb * math.log(2) * bytes_a_token
    return None
