"""Bits per byte: how many bytes of text stand behind a token, and the score itself.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from scangolf.data.tokenizer import Tokenizer

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

Array = TypeVar("Array", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class ByteTable(Generic[Array]):
    """What the bytes of a piece depend on: numpy from `byte_table`, torch after `to`."""

    length: Array
    """int64 [V]: bytes of the piece without a leading U+2581; a byte token 1, a boundary 0."""
    space: Array
    """bool [V]: the piece starts with U+2581, one more byte where the space is text."""
    boundary: Array
    """bool [V]: control, unknown or unused; no text, and no space is counted after it."""

    def count(self, previous: Array, target: Array) -> Array:
        """Bytes of each target token, int64, in the shape of `target`.

        `previous` holds the token before each target, ids in any integer dtype (int32 or int64 in
        torch). On a GPU this is three gathers: nothing waits for the host.
        """
        space = self.space[target] & ~self.boundary[previous]
        return self.length[target] + space  # pyright: ignore[reportReturnType]

    def total(self, previous: Array, target: Array) -> int:
        """Bytes of all the targets together."""
        return int(self.count(previous, target).sum())

    def to(self, device: torch.device | str) -> ByteTable[torch.Tensor]:
        """The same table as tensors on a device."""
        return ByteTable(
            torch.as_tensor(self.length, device=device),
            torch.as_tensor(self.space, device=device),
            torch.as_tensor(self.boundary, device=device),
        )


def byte_table(tokenizer: Tokenizer) -> ByteTable[np.ndarray]:
    """The challenge's count of the bytes behind every token of a vocabulary.

    A document is BOS followed by its pieces, and SentencePiece may put a space before the text (the
    dummy prefix) that was never written. So the space that opens a piece counts only after a
    piece of text. Summed over a document the count is the UTF-8 length of its text, exactly, when

    - the model normalises nothing (rule "identity", `remove_extra_whitespaces` off) and the text
      itself holds no U+2581;
    - the model adds the dummy prefix; without it, a text that opens with a space counts one less;
    - no piece is unknown: an unknown piece counts nothing, nor does a space right after it;
    - U+2581 only ever opens a piece: inside of one it counts three bytes, as UTF-8 has it.

    A model that normalises or drops characters is charged for the text it is left with.
    """
    processor = tokenizer.processor
    ids = range(tokenizer.vocab_size)
    pieces = [processor.id_to_piece(i) for i in ids]
    is_byte_V = np.array([processor.is_byte(i) for i in ids])
    boundary_V = np.array(
        [processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i) for i in ids]
    )
    length_V = np.array([len(piece.removeprefix(SPACE).encode()) for piece in pieces], np.int64)
    return ByteTable(
        length=np.where(boundary_V, 0, np.where(is_byte_V, 1, length_V)),
        space=np.array([piece.startswith(SPACE) for piece in pieces]) & ~boundary_V,
        boundary=boundary_V,
    )


def bits_per_byte(nats: float, bytes: int) -> float:
    """The score: summed cross-entropy in nats, as bits, over the bytes of the text predicted.

    Bytes and not tokens are the denominator because a vocabulary decides how much text a token
    holds: a loss per token falls when tokens get shorter, though no text is predicted better.
    Bytes are the same for every tokenizer. They are only so while each is counted once: a
    leading space counted with its piece and again with the piece before it makes English about
    17 % longer, and every score as much better.
    """
    return nats / math.log(2) / bytes
