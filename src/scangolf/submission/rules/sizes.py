"""Bytes on disk, against the limit and against what submission.json says of them."""

from __future__ import annotations

from scangolf.submission.rules.finding import Finding, judged, unchecked
from scangolf.submission.rules.folder import Submission
from scangolf.submission.rules.limits import Limits

LIMIT, CLAIM = "byte limit", "claimed bytes"


def check_sizes(submission: Submission, limits: Limits) -> list[Finding]:
    """Code and artifact within the limit; each claimed size equal to the file's, to the byte."""
    missing = [n for n in ("train_gpt.py", "artifact.sg") if n not in submission.content]
    if missing:
        why = f"{' and '.join(missing)} missing"
        return [unchecked(LIMIT, why), unchecked(CLAIM, why)]
    code, artifact = (len(submission.content[n]) for n in ("train_gpt.py", "artifact.sg"))
    found = {"bytes_code": code, "bytes_artifact": artifact, "bytes_total": code + artifact}
    excess = found["bytes_total"] - limits.total_bytes
    verdict = f"{excess:,} bytes too many" if excess > 0 else f"{-excess:,} bytes left"
    limit = judged(
        LIMIT,
        excess <= 0,
        f"code {code:,} + artifact {artifact:,} = {code + artifact:,} of "
        f"{limits.total_bytes:,} bytes: {verdict}",
        **found,
        limit=limits.total_bytes,
    )
    claimed = {key: submission.claims[key] for key in found if key in submission.claims}
    wrong = [key for key, n_bytes in claimed.items() if n_bytes != found[key]]
    if len(claimed) < len(found):
        return [limit, unchecked(CLAIM, "submission.json does not claim every size", found=found)]
    why = "; ".join(f"{k} says {claimed[k]:,}, is {found[k]:,}" for k in wrong)
    return [limit, judged(CLAIM, not wrong, why or "exact", claimed=claimed, found=found)]
