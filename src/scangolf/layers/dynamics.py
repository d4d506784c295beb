"""Initial values of what sets the memory of a scan: dt, and the decay A of a head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def init_dt_bias(
    bias: Tensor, generator: torch.Generator, dt_min: float = 0.001, dt_max: float = 0.1
) -> None:
    """Fills `bias` so that softplus(bias) is log-uniform in [dt_min, dt_max].

    The initialisation of Mamba (Gu & Dao 2023, section 3.6).
    """
    log_dt = torch.empty_like(bias)
    log_dt.uniform_(math.log(dt_min), math.log(dt_max), generator=generator)
    dt = log_dt.exp()
    with torch.no_grad():
        bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus


def init_A_log(A_log: Tensor, generator: torch.Generator) -> None:  # noqa: N802
    """Fills `A_log` so that A = -exp(A_log), one number a head, is log-uniform in [-16, -1]."""
    nn.init.uniform_(A_log, 0.0, math.log(16.0), generator=generator)
