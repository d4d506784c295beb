"""What a rule finds: a verdict, why, and the numbers it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "cannot be checked by software"]


@dataclass(frozen=True)
class Finding:
    rule: str
    verdict: Verdict
    why: str
    """One line for people."""
    evidence: dict[str, Any]
    """Plain JSON values."""

    @property
    def failed(self) -> bool:
        return self.verdict == "fail"


def plain(value: float) -> float | None:
    """A number as JSON can hold it: it has no word for what is not finite."""
    return value if math.isfinite(value) else None


def passed(rule: str, why: str, **evidence: Any) -> Finding:
    return Finding(rule, "pass", why, evidence)


def failed(rule: str, why: str, **evidence: Any) -> Finding:
    return Finding(rule, "fail", why, evidence)


def unchecked(rule: str, why: str, **evidence: Any) -> Finding:
    return Finding(rule, "cannot be checked by software", why, evidence)


def judged(rule: str, good: bool, why: str, **evidence: Any) -> Finding:
    """Pass or fail, by `good`."""
    return Finding(rule, "pass" if good else "fail", why, evidence)
