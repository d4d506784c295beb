"""Training seconds, as claimed and as the log has them."""

from __future__ import annotations

import re

from scangolf.submission.rules.finding import Finding, judged, unchecked
from scangolf.submission.rules.folder import Submission
from scangolf.submission.rules.limits import Limits

RULE = "training time"
LOGGED = (
    (re.compile(r"train_time[:=]\s*([\d.]+)\s*ms"), 1e-3),
    (re.compile(r"train_seconds\"?\s*[:=]?\s*([\d.]+)"), 1.0),
)
"""How a log states training time, and the seconds of its unit: as the challenge's own script
does, or by the name that submission.json uses."""


def check_training_time(submission: Submission, limits: Limits) -> Finding:
    """The claim and the largest time in train.log, both within the budget.

    A log is text that its author wrote: that the run took as long only a second run can show.
    """
    log = submission.content.get("train.log", b"").decode(errors="replace")
    logged = [float(found) * unit for pattern, unit in LOGGED for found in _numbers(pattern, log)]
    claimed = submission.claims.get("train_seconds")
    if claimed is None:
        return unchecked(RULE, "submission.json claims no seconds")
    in_log = f"{max(logged):.1f} s in train.log" if logged else "train.log states no seconds"
    return judged(
        RULE,
        0 < max([claimed, *logged]) <= limits.training_seconds,
        f"{claimed:.1f} s claimed, {in_log}, of {limits.training_seconds:g} s; only a second run "
        "can prove it",
        claimed=claimed,
        logged=max(logged, default=None),
        limit=limits.training_seconds,
    )


def _numbers(pattern: re.Pattern[str], log: str) -> list[str]:
    return [text for text in pattern.findall(log) if re.fullmatch(r"\d+(\.\d*)?", text)]
