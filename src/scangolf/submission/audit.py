"""The rules of the challenge, checked on a submission folder.

What software can check is checked from the files themselves, never from what they claim. Every
rule ends as `pass`, `fail` or `cannot be checked by software`, with its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scangolf.errors import UserError
from scangolf.model import HybridLM
from scangolf.score.bpb import ByteTable, byte_table
from scangolf.score.evaluate import Score, evaluate
from scangolf.submission.rules import (
    byte_count,
    causality,
    distribution,
    evaluation,
    figures,
    score,
    split,
)
from scangolf.submission.rules.code import check_code
from scangolf.submission.rules.finding import Finding, unchecked
from scangolf.submission.rules.folder import Submission, check_files, open_submission
from scangolf.submission.rules.limits import Limits
from scangolf.submission.rules.record import check_record
from scangolf.submission.rules.sandbox import ScriptRun, evaluate_script, read_sources
from scangolf.submission.rules.sizes import check_sizes
from scangolf.submission.rules.sources import read_script
from scangolf.submission.rules.split import ValSplit, open_split
from scangolf.submission.rules.times import check_training_time

CLAIMED_SCORE = "claimed score"
MODEL_RULES = (causality.RULE, distribution.RULE)
DATA_RULES = (split.RULE, CLAIMED_SCORE, byte_count.RULE, figures.RULE)


@dataclass(frozen=True)
class Scored:
    """The artifact read back from disk, and its score on the split."""

    model: HybridLM
    table: ByteTable[np.ndarray]
    score: Score


def audit(
    folder: Path,
    *,
    data: Path | None = None,
    baseline_nats: float | None = None,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Checks every rule; `say` is told what is under way.

    `data` is the folder of a dataset, of which the validation shards and the tokenizer are used;
    without it nothing is scored and the script is not run. `baseline_nats` is the loss a token
    that a record claim must beat. The script of the submission is run, in a process without
    network (rules/sandbox.py), with the rights of the caller. Raises UserError where the folder or
    the data are not there, or do not belong together.
    """
    limits = Limits() if limits is None else limits
    submission = open_submission(folder)
    val = None if data is None else open_split(data)
    findings = [check_files(submission), *check_sizes(submission, limits)]
    findings.append(check_training_time(submission, limits))

    scored = None
    if isinstance(submission.opened, str):
        findings += [unchecked(rule, submission.opened) for rule in MODEL_RULES]
    else:
        model, tokenizer = submission.opened
        if val is not None:
            if val.tokenizer.sha256 != tokenizer.sha256:
                raise UserError(
                    f"--data {val.folder}: was made with another tokenizer than the artifact "
                    "holds; pass the data that the submission is scored on"
                )
            say("scoring the artifact on the whole validation split")
            table = byte_table(tokenizer)
            scored = Scored(model, table, _score(submission, model, table, val.tokens))
        say("perturbing tokens")
        findings.append(causality.check_causality(model, submission.seq_len, submission.mode))
        findings.append(distribution.check_distribution(model, submission.seq_len))

    findings += _check_on_data(submission, val, scored, limits, say)
    say("reading the code")
    code = submission.content.get("train_gpt.py", b"")
    findings += check_code(read_script(code, read_sources))
    ours = None if scored is None else scored.score
    findings.append(check_record(submission, baseline_nats, ours, limits))
    return findings


def _check_on_data(
    submission: Submission,
    val: ValSplit | None,
    scored: Scored | None,
    limits: Limits,
    say: Callable[[str], None],
) -> list[Finding]:
    """The rules that need the validation split: its own, the scores, and the script's run."""
    if val is None:
        return evaluation.not_run("no --data to score on", (*DATA_RULES, *evaluation.RULES))
    findings = [split.check_split(val)]
    runs = "train_gpt.py" in submission.content and (scored or submission.is_foreign)
    if not runs:
        problem = submission.opened
        why = problem if isinstance(problem, str) else "train_gpt.py is missing"
        return findings + evaluation.not_run(why, (*DATA_RULES[1:], *evaluation.RULES))

    def evaluation_of(lay_out: Callable[[Path], None]) -> ScriptRun:
        code, seconds = submission.content["train_gpt.py"], limits.evaluation_seconds
        return evaluate_script(code, submission.artifact, lay_out, seconds)

    say("running the script's own evaluation")
    run = evaluation_of(evaluation.validation_only(val))
    findings += evaluation.check_conduct(run, limits.evaluation_seconds)
    if scored is None:
        why = "artifact.sg is not in scangolf's format"
        findings += evaluation.not_run(why, (*DATA_RULES[1:], evaluation.UNSEEN))
        return [*findings, evaluation.check_foreign_score(run, submission.claimed_score)]

    say("decoding every token")
    findings += _check_scores(submission, val, scored, run)
    if run.result is None:
        return [*findings, unchecked(evaluation.UNSEEN, "its evaluation did not finish")]
    say("running the script on tokens it has not seen")
    probe = evaluation.probe_tokens(val, submission.content["artifact.sg"], submission.seq_len)
    unseen = evaluation_of(evaluation.probe_only(val, probe))
    expected = _score(submission, scored.model, scored.table, probe)
    return [*findings, evaluation.check_unseen(unseen, expected)]


def _check_scores(
    submission: Submission, val: ValSplit, scored: Scored, run: ScriptRun
) -> list[Finding]:
    """Claimed and printed scores, and the bytes that both rest on, against the artifact's."""
    ours, claim = scored.score, submission.claimed_score
    counted = byte_count.split_bytes(
        val.tokenizer, scored.table, val.tokens[: ours.tokens + 1].astype(np.int64)
    )
    whole = evaluation.scored_targets(run) in (None, ours.tokens)
    printed = evaluation.claim_of(run) if whole else None
    bytes_finding, wrong = byte_count.check_byte_table(
        val.tokenizer,
        scored.table,
        counted,
        [c for c in (claim, printed) if c is not None],
        ours.loss * ours.tokens,
    )
    if claim is None:
        claimed = unchecked(CLAIMED_SCORE, "submission.json claims none", artifact=ours.bpb)
    else:
        how = f" in sequences of {submission.seq_len}, {submission.mode}"
        claimed = score.check_score(CLAIMED_SCORE, claim, ours, wrong, how=how)
    parameters, tokenizer = scored.model.n_parameters, val.tokenizer.sha256
    others = figures.check_figures(submission, ours, parameters, tokenizer)
    return [claimed, bytes_finding, others, evaluation.check_script_score(run, ours, wrong)]


def _score(
    submission: Submission, model: HybridLM, table: ByteTable[np.ndarray], tokens: np.ndarray
) -> Score:
    """As the submission says that it evaluates."""
    return evaluate(
        model,
        tokens,
        table,
        seq_len=submission.seq_len,
        mode=submission.mode,
        stride=submission.claims.get("stride"),
    )
