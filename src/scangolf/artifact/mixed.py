"""Scheme "mixed-rans": the weights in the steps that lose least within a number of bytes.

The level (steps.py) is the only choice: the finest worth having, or where that would take too many
bytes the one at which a prediction says that they will do. Once a file was too large and another
fits, the next level lies between theirs, in proportion to their sizes. GPTQ rounds, and the size is
that of the file itself.

Shapes: N matrices, R rows, D columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scangolf.artifact.calibrate import Curvature
from scangolf.artifact.codec import encode
from scangolf.artifact.coding import LARGEST_CODE, classes, predicted_bytes, with_sizes
from scangolf.artifact.gptq import round_columns
from scangolf.artifact.quantize import INT8_GROUPS, Stored, quantize
from scangolf.artifact.steps import Matrix, finest_level, step_sizes
from scangolf.config import ModelConfig
from scangolf.data.tokenizer import Tokenizer
from scangolf.errors import UserError

SCHEME = "mixed-rans"
SLACK = 0.002
"""Share of the bytes that may be left over; to use them up would take another round."""
ROUNDS = 8
EVERY = 8
"""The prediction looks at every eighth column."""


@dataclass(frozen=True)
class Mixed:
    """An artifact's content, and what its rounding should cost."""

    content: bytes
    bits_per_weight: float
    """Of all the content, over all the weights."""
    predicted_loss: float
    """Nats a token, to second order; on text the model was trained on."""


def fit(
    state: Mapping[str, Tensor],
    groups: Mapping[str, str],
    curvature: Mapping[str, Curvature],
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    max_bytes: int,
) -> Mixed:
    """The artifact of at most `max_bytes` whose rounding should cost least.

    `state` holds every parameter once, `groups` the optimiser group of each. Smaller than
    `max_bytes` where finer steps would gain nothing. Raises UserError for weights that are not
    finite, and where no artifact is that small.
    """
    # Every tensor goes through `quantize`, which refuses weights that are not finite.
    stored = {name: quantize(name, w, groups[name], SCHEME) for name, w in state.items()}
    matrices = {
        name: Matrix.of(state[name], curvature[name])
        for name in state
        if name in curvature and groups[name] in INT8_GROUPS
    }
    n_weights = sum(w.numel() for w in state.values())
    aim = max_bytes * (1 - SLACK / 2)
    finest = finest_level(matrices.values())
    level = _level_for(matrices, aim, finest)
    too_large = fitting = best = None  # of the first two: level and bytes
    reach = 1
    for _ in range(ROUNDS):
        rounded, loss = _round(matrices, level)
        content = encode(stored | rounded, model_config, tokenizer, SCHEME)
        spare = max_bytes - len(content)
        if spare >= 0 and (best is None or len(content) > len(best.content)):
            best = Mixed(content, 8 * len(content) / n_weights, loss)
        if 0 <= spare <= SLACK * max_bytes or (spare >= 0 and level <= finest):
            break
        if spare < 0:
            too_large = level, len(content)
        else:
            fitting = level, len(content)
        if too_large and fitting:
            level = _between(too_large, fitting, aim)
        else:
            wanted = predicted_code_bytes(matrices, level) + reach * (aim - len(content))
            level = _level_for(matrices, wanted, level if spare < 0 else finest)
            reach *= 2  # had the prediction been right, it would not come to this
    if best is None:
        raise UserError(
            f"{n_weights:,} weights do not fit into {max_bytes:,} bytes: train a smaller model, or "
            "allow more bytes"
        )
    return best


def _round(matrices: Mapping[str, Matrix], level: float) -> tuple[dict[str, Stored], float]:
    """Every matrix rounded at a level, and the loss that is predicted for all of it."""
    stored, loss = {}, 0.0
    for names in _by_shape(matrices):
        some = [matrices[name] for name in names]
        rows = [m.rows_at(level) for m in some]
        codes_NRD, loss_NR = round_columns(
            torch.stack([m.weights_RD for m in some]),
            step_sizes(torch.stack(rows)),
            step_sizes(torch.stack([m.column_D for m in some])),
            torch.stack([m.U_DD for m in some]),
            LARGEST_CODE,
        )
        loss += 0.5 * float((torch.stack([m.g_R for m in some]) * loss_NR).sum())
        for name, m, row_R, codes_RD in zip(
            names, some, rows, codes_NRD.cpu().numpy(), strict=True
        ):
            exponents = with_sizes(row_R.cpu().numpy(), m.column_D.cpu().numpy(), codes_RD)
            stored[name] = Stored("mixed", (*exponents, codes_RD))
    return stored, loss


def _by_shape(matrices: Mapping[str, Matrix]) -> Iterable[list[str]]:
    """The names of the matrices, those of one shape together."""
    names: dict[torch.Size, list[str]] = {}
    for name, matrix in matrices.items():
        names.setdefault(matrix.weights_RD.shape, []).append(name)
    return names.values()


def predicted_code_bytes(matrices: Mapping[str, Matrix], level: float) -> float:
    """Bytes of the codes at a level, from the entropy of a sample of them, rounded to nearest."""
    sampled, n_all, n_sampled = [], 0, 0
    for m in matrices.values():
        row_R, column_D = m.rows_at(level), m.column_D[::EVERY]
        step_RD = step_sizes(row_R)[:, None] * step_sizes(column_D)
        codes_RD = (m.weights_RD[:, ::EVERY] / step_RD).round().clamp(-LARGEST_CODE, LARGEST_CODE)
        codes_RD = codes_RD.cpu().numpy().astype(np.int16)
        exponents = with_sizes(row_R.cpu().numpy(), column_D.cpu().numpy(), codes_RD)
        sampled.append((codes_RD, classes(exponents)))
        n_all, n_sampled = n_all + m.weights_RD.numel(), n_sampled + codes_RD.size
    return predicted_bytes(sampled) * n_all / max(n_sampled, 1)


def _level_for(matrices: Mapping[str, Matrix], n_bytes: float, low: float) -> float:
    """The level from `low` on at which the codes should take `n_bytes`, by bisection."""
    if predicted_code_bytes(matrices, low) <= n_bytes:
        return low
    high = low + 16.0
    while high - low > 0.002:
        middle = (low + high) / 2
        if predicted_code_bytes(matrices, middle) > n_bytes:
            low = middle
        else:
            high = middle
    return high


def _between(too_large: tuple[float, int], fitting: tuple[float, int], n_bytes: float) -> float:
    """The level at which a file takes `n_bytes` if its size is linear in the level in between."""
    (fine, most), (coarse, least) = too_large, fitting
    return fine + (coarse - fine) * (most - n_bytes) / (most - least)
