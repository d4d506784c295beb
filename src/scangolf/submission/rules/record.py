"""A record claim: several seeds against the last record."""

from __future__ import annotations

import math
from typing import Any

from scipy import stats

from scangolf.score.bpb import bits_per_byte
from scangolf.score.evaluate import Score
from scangolf.submission.rules.claim import TOLERANCE
from scangolf.submission.rules.finding import Finding, failed, unchecked
from scangolf.submission.rules.folder import Submission
from scangolf.submission.rules.limits import Limits
from scangolf.submission.rules.untrusted import finite

RULE = "record"


def check_record(
    submission: Submission, baseline_nats: float | None, ours: Score | None, limits: Limits
) -> Finding:
    """Losses of several seeds beat `baseline_nats` by 0.005 nats a token at p < 0.01.

    A one-sided t-test of their mean against the baseline less that margin. What does not pass it
    fails; what does is left open, as a folder holds the artifact of one seed: its figure must be
    that of `ours`, the artifact's score, and the others' cannot be computed. Seeds that state
    val_bpb alone need the split of `ours`.
    """
    runs = submission.claims.get("seeds")
    if runs is None:
        return unchecked(RULE, "one run is claimed; a record needs `seeds` in submission.json")
    losses = [_nats(run, ours) for run in runs]
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
    own = submission.claims.get("seed")
    claimed = next((loss for seed, loss in zip(seeds, known, strict=True) if seed == own), None)
    if claimed is not None and ours is not None:
        off = bits_per_byte(abs(claimed - ours.loss) * ours.tokens, ours.bytes)
        if off > TOLERANCE:
            return failed(
                RULE,
                f"seed {own}, whose artifact this is, claims {claimed:.5f} nats a token, the "
                f"artifact gives {ours.loss:.5f}",
                losses=known,
                artifact=ours.loss,
            )
    if baseline_nats is None:
        return unchecked(RULE, "nothing to beat was given: pass --baseline-nats", losses=known)
    if len(set(known)) == 1:
        return unchecked(RULE, f"all seeds state {known[0]}: no spread to test", losses=known)
    goal = baseline_nats - limits.record_nats
    test: Any = stats.ttest_1samp(known, goal, alternative="less")
    p, mean = float(test.pvalue), math.fsum(known) / len(known)
    why = (
        f"mean of {len(known)} seeds {mean:.4f}, {baseline_nats - mean:+.4f} nats below "
        f"{baseline_nats:.4f} where {limits.record_nats} is needed: p = {p:.2g}"
    )
    evidence = {
        "losses": known,
        "mean": mean,
        "baseline": baseline_nats,
        "margin": limits.record_nats,
        "p": p,
        "p_needed": limits.record_p,
    }
    if p >= limits.record_p:
        return failed(RULE, why, **evidence)
    computed = f"seed {own}'s was computed" if claimed is not None and ours else "none was computed"
    return unchecked(RULE, f"{why}, by claims: {computed}, the others cannot be", **evidence)


def _nats(run: Any, ours: Score | None) -> float | None:
    """Nats a token of one run of the list."""
    if not isinstance(run, dict):
        return None
    loss, bpb = finite(run.get("val_loss")), finite(run.get("val_bpb"))
    if loss is None and bpb is not None and ours is not None:
        return bpb * math.log(2) * ours.bytes / ours.tokens
    return loss
