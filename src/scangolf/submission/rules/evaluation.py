"""What the submitted script does when it evaluates: where from, how long, and what it finds."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scangolf.data.shards import (
    MANIFEST,
    describe_shard,
    write_manifest,
    write_shard,
)
from scangolf.data.tokenizer import BOS
from scangolf.device import describe, pick_device
from scangolf.score.evaluate import Score
from scangolf.submission.rules.byte_count import has_text
from scangolf.submission.rules.claim import TOLERANCE, Claim
from scangolf.submission.rules.finding import (
    Finding,
    failed,
    judged,
    passed,
    plain,
    unchecked,
)
from scangolf.submission.rules.sandbox import ScriptRun
from scangolf.submission.rules.score import check_score
from scangolf.submission.rules.split import ValSplit
from scangolf.submission.rules.untrusted import finite

NETWORK, TRAINING_DATA = "no network in evaluation", "no training data in evaluation"
TIME, SCORE, UNSEEN = "evaluation time", "the script's score", "the script on other tokens"
SELF_CONTAINED = "self-contained code"
RULES = (NETWORK, TRAINING_DATA, TIME, SCORE, SELF_CONTAINED, UNSEEN)
COMMON_PACKAGES = {
    *("brotli", "_brotli", "numpy", "sentencepiece", "torch", "zstandard"),
    *("_distutils_hack", "cuda", "filelock", "fsspec", "functorch", "jinja2", "markupsafe"),
    *("mpmath", "networkx", "nvidia", "packaging", "setuptools", "sympy", "torchgen", "triton"),
    *("tqdm", "typing_extensions", "yaml"),
}
"""Libraries that hold nobody's model, and what those import: not counted as code."""
PROBE_SEQUENCES = 4


def validation_only(split: ValSplit) -> Callable[[Path], None]:
    """Fills a folder with the validation shards and the tokenizer, and nothing for training."""

    def lay_out(folder: Path) -> None:
        for path in (*split.shards, split.model, split.folder / MANIFEST):
            if path.exists():
                shutil.copyfile(path, folder / path.name)

    return lay_out


def probe_tokens(split: ValSplit, artifact: bytes, seq_len: int) -> np.ndarray:
    """A few sequences of random text tokens after BOS, uint16, drawn from the artifact's hash."""
    seed = int.from_bytes(hashlib.sha256(artifact).digest()[:8], "little")
    text = np.flatnonzero(has_text(split.tokenizer))
    tokens = np.random.default_rng(seed).choice(text, PROBE_SEQUENCES * seq_len + 1)
    tokens[0] = BOS
    return tokens.astype(np.uint16)


def probe_only(split: ValSplit, tokens: np.ndarray) -> Callable[[Path], None]:
    """The same as `validation_only`, with these tokens for the split."""

    def lay_out(folder: Path) -> None:
        shutil.copyfile(split.model, folder / split.model.name)
        write_shard(folder / split.shards[0].name, tokens)
        if split.manifest is not None:
            splits = dict(split.manifest.splits)
            splits["val"] = [describe_shard(folder / split.shards[0].name, 1, None)]
            write_manifest(folder, replace(split.manifest, splits=splits))

    return lay_out


def check_conduct(run: ScriptRun, limit: float) -> list[Finding]:
    """Network, training data, time and packages of a run."""
    where = {"isolation": run.isolation}
    device = describe(pick_device("auto"))
    if run.exit_code is None:
        time = failed(
            TIME,
            f"still ran after {limit:g} s on {device}, and was ended",
            seconds=run.seconds,
            limit=limit,
            device=device,
        )
    elif run.exit_code or run.result is None:
        time = unchecked(TIME, "it did not finish", seconds=run.seconds, limit=limit)
    else:
        time = judged(
            TIME,
            run.seconds <= limit,
            f"{run.seconds:.1f} of {limit:g} s on {device}",
            seconds=run.seconds,
            limit=limit,
            device=device,
        )
    return [
        _attempts(NETWORK, run, run.network, "tried", where),
        _attempts(TRAINING_DATA, run, run.training_data, "asked for", where),
        time,
        _self_contained(run),
    ]


def check_script_score(run: ScriptRun, ours: Score, wrong_bytes: list[str]) -> Finding:
    """What the script prints, against the artifact's score."""
    claim = claim_of(run)
    if claim is None or run.exit_code != 0:
        return _without_score(run)
    tokens = scored_targets(run)
    if tokens not in (None, ours.tokens):
        return failed(
            SCORE,
            f"it scored {tokens:,} targets, the whole split has {ours.tokens:,}",
            claimed=tokens,
            targets=ours.tokens,
        )
    return check_score(SCORE, claim, ours, wrong_bytes)


def check_foreign_score(run: ScriptRun, submitted: Claim | None) -> Finding:
    """What the script prints, against submission.json: for an artifact that only it can read."""
    claim = claim_of(run)
    if claim is None or run.exit_code != 0:
        return _without_score(run)
    if submitted is None:
        return unchecked(SCORE, "submission.json claims none to compare it with")
    return judged(
        SCORE,
        abs(claim.bpb - submitted.bpb) <= TOLERANCE,
        f"it prints {claim.bpb:.5f}, submission.json says {submitted.bpb:.5f}; no other "
        "computation of it was possible",
        printed=plain(claim.bpb),
        claimed=submitted.bpb,
    )


def check_unseen(run: ScriptRun, ours: Score) -> Finding:
    """The script on tokens that it has never seen, against the artifact's model.

    That model is tested by itself for causality and for a normalised distribution. A script that
    adds what is neither (a peek at the target, a cache, an answer it has by heart) parts from it
    here. Random text costs many bits a byte, so the tolerance grows with them.
    """
    claim = claim_of(run)
    if claim is None or run.exit_code != 0:
        end = "ran into the time limit" if run.exit_code is None else "did not evaluate them"
        return unchecked(UNSEEN, f"the script {end}", exit_code=run.exit_code, said=run.last_words)
    return check_score(UNSEEN, claim, ours, [], TOLERANCE * max(1.0, ours.bpb))


def claim_of(run: ScriptRun) -> Claim | None:
    """The score that a run printed."""
    if run.result is None:
        return None
    n_bytes, bpb = run.result.get("val_bytes"), finite(run.result["val_bpb"])
    counted = n_bytes if isinstance(n_bytes, int) and (finite(n_bytes) or 0) > 0 else None
    return Claim("train_gpt.py", math.inf if bpb is None else bpb, counted)


def scored_targets(run: ScriptRun) -> int | None:
    """How many targets a run says that it scored."""
    tokens = None if run.result is None else run.result.get("val_tokens")
    return tokens if isinstance(tokens, int) else None


def not_run(why: str, rules: Iterable[str] = RULES) -> list[Finding]:
    return [unchecked(rule, why) for rule in rules]


def _attempts(
    rule: str, run: ScriptRun, attempts: tuple[str, ...], verb: str, where: dict[str, Any]
) -> Finding:
    if attempts:
        return failed(rule, f"it {verb} {', '.join(attempts[:3])}", attempts=attempts, **where)
    if run.result is None:
        return unchecked(rule, "none, but it did not finish", **where)
    return passed(rule, f"none needed ({run.isolation})", **where)


def _without_score(run: ScriptRun) -> Finding:
    """The finding on the score of a run that has none: failed unless another rule says why."""
    if run.exit_code is None:
        return unchecked(SCORE, "it was ended at the time limit")
    said = run.last_words or "it printed no JSON line with val_bpb"
    if run.was_refused:
        return unchecked(SCORE, f"it stopped where it was refused: {said}")
    return failed(SCORE, f"exit code {run.exit_code}: {said}", exit_code=run.exit_code, said=said)


def _self_contained(run: ScriptRun) -> Finding:
    if run.result is None:
        return unchecked(SELF_CONTAINED, "it did not finish")
    others = sorted(set(run.packages) - COMMON_PACKAGES)
    if not others:
        return passed(SELF_CONTAINED, "only common libraries", imported=run.packages)
    return unchecked(
        SELF_CONTAINED,
        f"it imports {', '.join(others)}, whose bytes are not counted: read what they do for it",
        imported=run.packages,
    )
