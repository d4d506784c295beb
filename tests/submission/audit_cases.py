"""What an audit finds, by rule, and the one rule that a broken submission fails."""

from __future__ import annotations

import json
from typing import Any

from bundles import Bundle

from scangolf.submission.audit import audit
from scangolf.submission.rules.finding import Finding

UNCHECKED = "cannot be checked by software"
RULES = [
    "files", "byte limit", "claimed bytes", "training time", "causality", "distribution",
    "validation split", "claimed score", "byte table", "other figures", "no network in evaluation",
    "no training data in evaluation", "evaluation time", "self-contained code",
    "the script's score", "the script on other tokens", "no training on unscored tokens",
    "no n-gram cache keyed with the target", "record",
]  # fmt: skip


def check(bundle: Bundle, **options: Any) -> dict[str, Finding]:
    findings = audit(bundle.folder, data=bundle.data, **options)
    json.dumps([finding.evidence for finding in findings], allow_nan=False)
    assert sorted(finding.rule for finding in findings) == sorted(RULES)
    return {finding.rule: finding for finding in findings}


def only_failure(bundle: Bundle, **options: Any) -> Finding:
    """The one rule that a broken submission fails."""
    failed = [finding for finding in check(bundle, **options).values() if finding.failed]
    assert len(failed) == 1, failed
    return failed[0]
