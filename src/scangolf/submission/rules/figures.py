"""What else submission.json states of the artifact, besides its score and its bytes."""

from __future__ import annotations

import math

from scangolf.score.evaluate import Score
from scangolf.submission.rules.claim import TOLERANCE
from scangolf.submission.rules.finding import Finding, judged
from scangolf.submission.rules.folder import Submission

RULE = "other figures"


def check_figures(submission: Submission, ours: Score, parameters: int, tokenizer: str) -> Finding:
    """Loss and targets, weights, and the tokenizer's SHA-256: each where it is stated."""
    exact = {
        "val_tokens": ours.tokens,
        "parameters": parameters,
        "tokenizer_sha256": tokenizer,
    }
    claims = submission.claims
    stated = [key for key in ("val_loss", *exact) if key in claims]
    wrong = [
        f"{key} is {claims[key]!r:.40}, the artifact's {value!r:.40}"
        for key, value in exact.items()
        if claims.get(key, value) != value
    ]
    nats = TOLERANCE * math.log(2) * ours.bytes / ours.tokens
    if abs(claims.get("val_loss", ours.loss) - ours.loss) > nats:
        wrong.append(f"val_loss is {claims['val_loss']:.5f}, the artifact's {ours.loss:.5f}")
    right = f"{', '.join(stated)}: the artifact's" if stated else "none are stated"
    return judged(RULE, not wrong, "; ".join(wrong) or right, val_loss=ours.loss, **exact)
