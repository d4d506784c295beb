"""Which step every weight is rounded to: one number for the whole model, its level.

An error that is uniform in a step s costs g d s^2 / 24 nats a token in a weight of row curvature g
and column curvature d = 1 / U[j, j]^2 (calibrate.py, gptq.py). A code of step s takes log2(1 / s)
bits and a constant. So the fewest bits for a loss are had where the next bit saves as much in
every weight: g d s^2 is the same everywhere, s = 2^level / sqrt(g d). This is reverse water-filling
(Cover & Thomas 2006, section 10.3), with scales for rows and columns as in WaterSIC (Lifar et al.
2026, arXiv:2603.04956); widths of whole bits a tensor are its coarsest form.

What sets the memory of a scan has steps of 8 bits, or finer ones: an error there adds up over a
sequence, and its cost is known least.

Steps are 2^((row + column) / 4), row and column whole numbers: a byte for each row and column, and
under 0.1 % more bits than with any others.

Shapes: R rows, D columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from scangolf.artifact.calibrate import Curvature
from scangolf.artifact.coding import LARGEST_CODE
from scangolf.artifact.gptq import inverse_factor

FINEST = 1e-4
"""Nats a token that rounding may cost where there is room for all: finer steps gain nothing."""
UNSEEN = 0.02
"""Added to g, as a share of its mean over the rows: outputs that the text did not need."""
HEADROOM = 0.95
"""The largest weight of a row is at most this share of the largest code: rounding moves weights."""
DT_LEVELS = 127
"""Least that the largest weight of a row takes where it sets the memory of a scan."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix and what its steps follow from; exponents are in quarters of an octave."""

    weights_RD: Tensor
    """float32, as the rest on the device of its curvature."""
    g_R: Tensor
    U_DD: Tensor
    row_R: Tensor
    """The exponent of a row's steps at level 0."""
    least_R: Tensor
    """The exponent at which its largest weight takes the largest code."""
    most_R: Tensor
    """What its steps may be at most: those of 8 bits where a row sets the memory of a scan."""
    column_D: Tensor
    """The exponent of a column's steps, int8."""

    @staticmethod
    def of(weights_RD: Tensor, curvature: Curvature) -> Matrix:
        U_DD = inverse_factor(curvature.H_DD)
        weights_RD = weights_RD.detach().to(U_DD.device, torch.float32)
        g_R = curvature.g_R + UNSEEN * curvature.g_R.mean()
        column_D = _quarters(U_DD.diagonal()).round().clamp(-128, 127)
        largest_R = (weights_RD.abs() / torch.exp2(column_D / 4)).amax(dim=1)
        most_R = torch.full_like(largest_R, math.inf)
        dt = list(curvature.dt_rows)
        most_R[dt] = _quarters(largest_R[dt] / DT_LEVELS).floor()
        return Matrix(
            weights_RD,
            g_R.float(),
            U_DD.float(),
            row_R=_quarters(g_R.rsqrt()),
            least_R=_quarters(largest_R / (HEADROOM * LARGEST_CODE)).ceil(),
            most_R=most_R,
            column_D=column_D.to(torch.int8),
        )

    def rows_at(self, level: float) -> Tensor:
        """The exponents of the rows' steps, int8 [R]: no code of a row would be too large."""
        rows_R = (4 * level + self.row_R).round()
        rows_R = torch.minimum(rows_R, self.most_R)
        return torch.maximum(rows_R, self.least_R).clamp(-128, 127).to(torch.int8)


def step_sizes(exponents: Tensor) -> Tensor:
    """Steps, or their factors, in float32."""
    return torch.exp2(exponents.double() / 4).float()


def finest_level(matrices: Iterable[Matrix]) -> float:
    """The level at which rounding should cost FINEST nats a token in all."""
    n_weights = sum(matrix.weights_RD.numel() for matrix in matrices)
    return 0.5 * math.log2(24 * FINEST / max(n_weights, 1))


def _quarters(values: Tensor) -> Tensor:
    return 4 * torch.log2(values)
