"""Initial values of what sets the memory of a scan."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
