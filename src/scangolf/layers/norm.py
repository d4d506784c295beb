"""Root-mean-square normalisation without parameters (Zhang & Sennrich 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension, in x's dtype."""
    return F.rms_norm(x, (x.shape[-1],))
