"""A weight tensor in the bytes it is stored in, and back.

A stored tensor is a few little-endian arrays, its parts; `CODINGS` says of which dtypes. The scheme
chooses the coding of a tensor:

- "int8-zlib", the challenge's: matrices of more than 65,536 elements as int8 with a float16 step
  per row that is at least 1/127, so that rows of small weights get few levels;
- "int8-brotli": matrices and embeddings of more than 4,096 elements as int8 with a bfloat16 step
  per row and no floor;
- "mixed-rans": the matrices that were calibrated in steps of their own for every row and column
  (steps.py, mixed.py), what is left as "int8-brotli" has it.

All keep control tensors (group "vector": scales, gains, mixes, skip weights) in float32 and
everything else in float16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from scangolf.errors import UserError

LEVELS = 127
"""Codes go from -127 to 127, symmetric about zero."""
CLIP_QUANTILE = 0.9999984
"""int8-zlib clips a row at this quantile of its absolute values."""
FLOAT16_MAX = 65_504.0
INT8_GROUPS = ("matrix", "embedding", "head")
"""Groups that int8-brotli stores in int8; what sets the memory of a scan is left in float16."""

CODINGS: dict[str, tuple[str, ...]] = {
    "int8/float16": ("|i1", "<f2"),
    "int8/bfloat16": ("|i1", "<u2"),
    "float16": ("<f2",),
    "float32": ("<f4",),
    "mixed": ("|i1", "|i1", "|i1", "|i1", "<i2"),
}
"""The dtype of each part. The int8 codings hold codes and a step per row; the codes lie row by row
beside float16 and column by column beside bfloat16. Numpy has no bfloat16: its bits are kept as
unsigned integers. Mixed holds an exponent for every row and column, whose sum in quarters of an
octave is a weight's step; another for the size of its row's and column's weights, which tells how
large codes are (coding.py); and the codes."""
CODED = ("mixed", 4)
"""The coding and the number of the part that has an entropy code of its own."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it is stored."""

    coding: str
    parts: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's."""
        values = self.parts[CODED[1] if self.coding == CODED[0] else 0]
        return values.shape[::-1] if self.coding == "int8/bfloat16" else values.shape


def part_shapes(coding: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The shape of each part of a tensor."""
    if coding == "int8/bfloat16":
        return shape[::-1], shape[:1]
    if coding == "mixed":
        return shape[:1], shape[1:], shape[:1], shape[1:], shape
    return (shape, shape[:1])[: len(CODINGS[coding])]


def quantize(name: str, tensor: torch.Tensor, group: str, scheme: str) -> Stored:
    """The stored form of a tensor of any float dtype, of the optimiser group it was trained in,
    without calibration.

    Raises UserError for weights that are not finite. A tensor whose coding needs float16 and
    which holds a weight beyond its range is kept in float32.
    """
    weights = tensor.detach().to("cpu", torch.float32).numpy()
    bad = weights.size - np.count_nonzero(np.isfinite(weights))
    if bad:
        raise UserError(
            f"tensor {name} holds {bad:,} weights that are not finite: the training diverged, "
            "lower its learning rates"
        )
    return store(weights, choose_coding(weights, group, scheme))


def store(weights: np.ndarray, coding: str) -> Stored:
    """float32 weights in a coding that needs no calibration; each row by itself."""
    if coding == "int8/float16":
        return Stored(coding, _int8_floored(weights))
    if coding == "int8/bfloat16":
        return Stored(coding, _int8(weights))
    return Stored(coding, (weights.astype(CODINGS[coding][0]),))


def dequantize(stored: Stored) -> torch.Tensor:
    """The float32 weights that a stored tensor stands for."""
    if stored.coding == "mixed":
        rows, columns, _, _, codes = stored.parts
        factors = [np.exp2(part / 4.0).astype(np.float32) for part in (rows, columns)]
        return torch.from_numpy(codes * factors[0][:, None] * factors[1])
    values, *steps = stored.parts
    weights = values.astype(np.float32)
    if stored.coding == "int8/float16":
        weights *= steps[0].astype(np.float32)[:, None]
    elif stored.coding == "int8/bfloat16":
        weights = np.ascontiguousarray((weights * _from_bfloat16(steps[0])).T)
    return torch.from_numpy(weights)


def choose_coding(weights: np.ndarray, group: str, scheme: str) -> str:
    """The coding of a tensor, float32, that is not calibrated."""
    coding = usual_coding(weights.shape, group, scheme)
    halves = coding in ("float16", "int8/float16")
    if halves and np.abs(weights).max(initial=0.0) > FLOAT16_MAX:
        return "float32"
    return coding


def usual_coding(shape: tuple[int, ...], group: str, scheme: str) -> str:
    """The coding of a tensor that is not calibrated and whose weights are in float16's range."""
    if group == "vector":
        return "float32"
    elements = math.prod(shape) if len(shape) == 2 else 0
    if scheme != "int8-zlib" and elements > 4096 and group in INT8_GROUPS:
        return "int8/bfloat16"
    return "int8/float16" if scheme == "int8-zlib" and elements > 65_536 else "float16"


def stored_bytes(shape: tuple[int, ...], coding: str) -> int:
    """Bytes of a tensor's parts, before compression."""
    shapes = part_shapes(coding, shape)
    return sum(
        math.prod(part) * np.dtype(dtype).itemsize
        for part, dtype in zip(shapes, CODINGS[coding], strict=True)
    )


def _int8_floored(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and float16 steps: rows clipped at their quantile q, step max(q / 127, 1 / 127)."""
    clip = np.quantile(np.abs(weights), CLIP_QUANTILE, axis=1, keepdims=True).astype(np.float32)
    steps = np.maximum(clip / LEVELS, np.float32(1 / LEVELS))
    codes = np.rint(np.clip(weights, -clip, clip) / steps)
    return codes.astype(np.int8), steps[:, 0].astype("<f2")


def _int8(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and bfloat16 steps, a 127th of each row's largest weight; zero for a row of zeros.

    The largest weight sets the step: to search for a clip below it would lower the squared error
    of Gaussian rows by 2 % at most. The codes belong to the rounded step, so bfloat16 need not be
    precise; in return it has the range of float32, where float16 gets coarse once the weights of
    a row stay below 0.008. It is rounded up, so that no code exceeds 127.

    Codes are stored by column because the steps have made the rows alike, while the columns of
    trained weights differ: brotli then saves 0.15 % of them, for a small model trained with Muon.
    """
    steps = _to_bfloat16_up(np.abs(weights).max(axis=1) / np.float32(LEVELS))
    divisors = _from_bfloat16(steps)
    divisors[divisors == 0] = 1
    codes = np.rint(weights / divisors[:, None]).astype(np.int8)
    return np.ascontiguousarray(codes.T), steps


def _to_bfloat16_up(values: np.ndarray) -> np.ndarray:
    """The bits of the smallest bfloat16 that is not below each value; values are not negative."""
    return ((values.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype("<u2")


def _from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)
