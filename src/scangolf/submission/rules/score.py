"""The score that the artifact on disk really has, and comparisons of claims with it."""

from __future__ import annotations

from scangolf.score.evaluate import Score
from scangolf.submission.rules.claim import TOLERANCE, Claim
from scangolf.submission.rules.finding import Finding, judged, plain, unchecked


def check_score(
    rule: str,
    claim: Claim,
    ours: Score,
    wrong_bytes: list[str],
    tolerance: float = TOLERANCE,
    how: str = "",
) -> Finding:
    """A claimed score against the artifact's, on the same split, after the same round trip.

    A claim over bytes that the byte table's rule has refused is compared in nats alone, and if
    these agree it is not failed a second time. `how` says what the artifact was scored by.
    """
    difference = claim.bpb - ours.bpb
    evidence = {
        "claimed": plain(claim.bpb),
        "artifact": ours.bpb,
        "difference": plain(difference),
        "tolerance": tolerance,
        "targets": ours.tokens,
    }
    if claim.source in wrong_bytes:
        nats = ours.loss * ours.tokens
        if claim.bytes is None or abs(claim.nats() - nats) <= tolerance * ours.bytes:
            why = f"{claim.bpb:.5f} rests on wrong bytes, see the byte table; its nats agree"
            return unchecked(rule, why, **evidence)
    return judged(
        rule,
        abs(difference) <= tolerance,
        f"{claim.source} says {claim.bpb:.5f}, the artifact gives {ours.bpb:.5f}{how} "
        f"(difference {difference:+.5f}, tolerance {tolerance:.5f})",
        **evidence,
    )
