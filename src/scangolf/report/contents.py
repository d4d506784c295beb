"""What an artifact is made of, and text coloured by surprisal, by analysis.json."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from scangolf.report.style import SURPRISAL_BITS
from scangolf.report.words import visible

SMALL_PERCENT = 0.4


class Share(NamedTuple):
    """Tensors that belong together, as a row of a table."""

    name: str
    tensors: int
    bytes: int
    percent: float
    """Of the uncompressed body of the artifact, its tokenizer included."""
    bits_per_weight: str
    error: str


def bytes_by_part(analysis: dict[str, Any], layers: Sequence[str]) -> list[Share]:
    """Tensors of all blocks by their name, mixers of each kind apart; the largest first.

    Those of less than SMALL_PERCENT of the body are one row together.
    """

    def part(name: str) -> str:
        name = name.removesuffix(".weight")
        block = re.match(r"blocks\.(\d+)\.", name)
        if block is None:
            return name
        kind = f"{layers[int(block[1])]}: " if name.startswith("mixer.", block.end()) else ""
        return kind + name[block.end() :].removeprefix("mixer.")

    shares = _shares(analysis, part)
    small = {share.name for share in shares if share.percent < SMALL_PERCENT}
    shares = _shares(analysis, lambda name: "the rest" if part(name) in small else part(name))
    return sorted(shares, key=lambda share: (share.name == "the rest", -share.bytes))


def bytes_by_place(analysis: dict[str, Any], layers: Sequence[str]) -> list[Share]:
    """Tensors by the block they are in, in the order of the artifact."""

    def place(name: str) -> str:
        block = re.match(r"blocks\.(\d+)\.", name)
        if block is None:
            return name.removesuffix(".weight")
        return f"{int(block[1]) + 1} {layers[int(block[1])]}"

    return _shares(analysis, place)


def bytes_by_tensor(analysis: dict[str, Any]) -> list[tuple[dict[str, Any], Share]]:
    """Every tensor: its entry and its row."""
    *shares, _tokenizer = _shares(analysis, lambda name: name)
    return list(zip(analysis["tensors"], shares, strict=True))


def body_bytes(analysis: dict[str, Any]) -> int:
    """Bytes of the artifact's body before compression."""
    return analysis["tokenizer_bytes"] + sum(t["bytes"] for t in analysis["tensors"])


def _shares(analysis: dict[str, Any], group: Callable[[str], str]) -> list[Share]:
    """A row for each group of tensors, and at the end the tokenizer's."""
    body = body_bytes(analysis)
    groups: dict[str, list[dict[str, Any]]] = {}
    for tensor in analysis["tensors"]:
        groups.setdefault(group(tensor["name"]), []).append(tensor)
    shares = []
    for name, tensors in groups.items():
        n_bytes = sum(t["bytes"] for t in tensors)
        weights = sum(math.prod(t["shape"]) for t in tensors)
        bits = 8 * sum(t["entropy_bytes"] for t in tensors) / max(weights, 1)
        error = 100 * math.sqrt(sum(t["error"] ** 2 for t in tensors) / len(tensors))
        percent = 100 * n_bytes / body
        words = f"{error:.3f}\N{NO-BREAK SPACE}%" if error else "0"
        shares.append(Share(name, len(tensors), n_bytes, percent, f"{bits:.2f}", words))
    n_bytes = analysis["tokenizer_bytes"]
    return [*shares, Share("tokenizer", 0, n_bytes, 100 * n_bytes / body, "", "")]


# --- surprisal ----------------------------------------------------------------------------------


class Piece(NamedTuple):
    text: str
    bits: float
    tint: int
    """0 where the model expected it, len(SURPRISAL_BITS) where it was most surprised."""
    given: bool
    """Whether it is of the prompt."""


class Passage(NamedTuple):
    """A text by pieces, and what is to be said of it."""

    pieces: list[Piece]
    bits_per_byte: float
    bits_per_piece: float
    most: list[Piece]
    """The five most surprising, with the most surprising first."""


def passage(surprisal: Sequence[tuple[str, float]], prompt: str = "") -> Passage | None:
    """Pieces of text with their bits, the first ones of them the prompt; None without a piece."""
    pieces, position = [], 0
    for text, bits in surprisal:
        tint = bisect_right(SURPRISAL_BITS, bits)
        pieces.append(Piece(visible(text), bits, tint, position < len(prompt)))
        position += len(text)
    if not pieces:
        return None
    total = sum(bits for _text, bits in surprisal)
    n_bytes = sum(len(text.encode(errors="replace")) for text, _bits in surprisal)
    most = sorted(pieces, key=lambda piece: -piece.bits)[:5]
    return Passage(pieces, total / max(n_bytes, 1), total / len(pieces), most)


def legend() -> list[str]:
    """The tints in words, in bits."""
    edges = SURPRISAL_BITS
    between = [f"{a} to {b}" for a, b in pairwise(edges)]
    return [f"below {edges[0]}", *between, f"{edges[-1]} and more"]
