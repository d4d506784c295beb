"""The bytes behind tokens, derived anew by decoding and not from the pieces' names.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scangolf.data.tokenizer import BOS, Tokenizer
from scangolf.score.bpb import ByteTable, bits_per_byte
from scangolf.submission.rules.claim import TOLERANCE, Claim
from scangolf.submission.rules.finding import Finding, judged

RULE = "byte table"
DOCUMENTS_AT_ONCE = 256
REPLACEMENT = "\ufffd".encode()


@dataclass(frozen=True)
class SplitBytes:
    """The bytes of the scored targets, counted in three ways."""

    by_table: int
    by_decoding: int
    doubled: int
    """As a count makes them that gives every leading space to two tokens."""


def has_text(tokenizer: Tokenizer) -> np.ndarray:
    """bool [V]: not a control, unknown or unused id."""
    p = tokenizer.processor
    return np.array(
        [
            not (p.is_control(i) or p.is_unknown(i) or p.is_unused(i))
            for i in range(tokenizer.vocab_size)
        ]
    )


def decoded_lengths(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Bytes that every token adds, int64 [V]: after a token of text, and after BOS.

    The text is a piece of letters alone; ids without text add nothing. A byte that is a part of
    a character decodes to U+FFFD by itself, and is one byte.
    """
    text_V = has_text(tokenizer)
    neutral = next(
        (i for i in np.flatnonzero(text_V).tolist() if _decode(tokenizer, [BOS, i, i]).isalpha()),
        None,
    )
    after_text_V, after_control_V = (np.zeros(len(text_V), np.int64) for _ in range(2))
    for i in np.flatnonzero(text_V).tolist():
        after_control_V[i] = len(_decode(tokenizer, [BOS, i]))
        context = [BOS] if neutral is None else [BOS, neutral]
        after_text_V[i] = len(_decode(tokenizer, [*context, i])) - len(_decode(tokenizer, context))
        if tokenizer.processor.is_byte(i) and _decode(tokenizer, [BOS, i]) == REPLACEMENT:
            after_control_V[i] = after_text_V[i] = 1
    return after_text_V, after_control_V


def split_bytes(
    tokenizer: Tokenizer, table: ByteTable[np.ndarray], split: np.ndarray
) -> SplitBytes:
    """Bytes of the targets split[1:]: as scored, and as the documents' text has them.

    Documents are cut where a control, unknown or unused id stands, because those have no text
    and a space after them is not counted.
    """
    previous, target = split[:-1], split[1:]
    text_V = has_text(tokenizer)
    cuts = np.flatnonzero(~text_V[split])
    pieces = [part[~np.isin(part, np.flatnonzero(~text_V))] for part in np.split(split, cuts)]
    pieces = [part.tolist() for part in pieces if len(part)]
    decoded = 0
    for i in range(0, len(pieces), DOCUMENTS_AT_ONCE):
        batch = pieces[i : i + DOCUMENTS_AT_ONCE]
        decoded += sum(map(len, tokenizer.processor.decode(batch, out_type=bytes)))
    if text_V[split[0]]:  # the first token is no target
        decoded -= len(_decode(tokenizer, split[:1].tolist()))
    counted = table.total(previous, target)
    return SplitBytes(counted, decoded, counted + int(table.space[target].sum()))


def check_byte_table(
    tokenizer: Tokenizer,
    table: ByteTable[np.ndarray],
    found: SplitBytes,
    claims: list[Claim],
    nats: float,
) -> tuple[Finding, list[str]]:
    """No token counts more bytes than it decodes to, nor the split more than its text has.

    `nats` is the artifact's summed cross-entropy: a claim that agrees with it once every leading
    space is counted twice is found out by that. Also returns the sources of wrong counts. Counting
    less than decoding shows makes a score worse, never better, and passes: the challenge's rule
    does so where a tokenizer writes no space before a document.
    """
    after_text_V, after_control_V = decoded_lengths(tokenizer)
    text = np.flatnonzero(after_text_V)
    ids = np.arange(tokenizer.vocab_size)
    neutral = int(text[~table.boundary[text]][0]) if len(text) else BOS
    counted_text_V = table.count(np.full_like(ids, neutral), ids)
    counted_control_V = table.count(np.full_like(ids, BOS), ids)
    over = (counted_text_V > after_text_V) | (counted_control_V > after_control_V)
    under = (counted_text_V < after_text_V) | (counted_control_V < after_control_V)
    problems = []
    if over.any():
        first = int(np.flatnonzero(over)[0])
        problems.append(
            f"{int(over.sum())} tokens count more bytes than they decode to, "
            f"{tokenizer.processor.id_to_piece(first)!r} among them"
        )
    if found.by_table > found.by_decoding:
        problems.append(f"{found.by_table:,} bytes counted, the text has {found.by_decoding:,}")
    wrong = {claim.source: _wrong_bytes(claim, found, nats) for claim in claims}
    wrong = {source: why for source, why in wrong.items() if why}
    problems += [f"{source}: {why}" for source, why in wrong.items()]
    good = f"{found.by_table:,} bytes, as decoding gives; {len(ids)} tokens compared"
    if found.by_table < found.by_decoding:
        good = (
            f"{found.by_table:,} bytes, {found.by_decoding - found.by_table:,} less than decoding "
            f"gives, to the score's disadvantage; {len(ids)} tokens compared"
        )
    finding = judged(
        RULE,
        not problems,
        "; ".join(problems) or good,
        bytes_by_table=found.by_table,
        bytes_by_decoding=found.by_decoding,
        bytes_with_spaces_doubled=found.doubled,
        tokens_over=int(over.sum()),
        tokens_under=int(under.sum()),
        claimed={claim.source: claim.bytes for claim in claims},
    )
    return finding, list(wrong)


def _wrong_bytes(claim: Claim, found: SplitBytes, nats: float) -> str:
    if claim.bytes is not None:
        if claim.bytes == found.by_table:
            return ""
        share = 100 * (claim.bytes / found.by_table - 1)
        spaces = ", every leading space counted twice" * (claim.bytes == found.doubled)
        return f"{claim.bytes:,} bytes, the split has {found.by_table:,} ({share:+.2f} %){spaces}"
    right, doubled = (bits_per_byte(nats, n) for n in (found.by_table, found.doubled))
    if abs(claim.bpb - doubled) <= TOLERANCE < abs(claim.bpb - right):
        return f"{claim.bpb:.4f} is the score with every leading space counted twice"
    return ""


def _decode(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    return tokenizer.processor.decode(ids, out_type=bytes)
