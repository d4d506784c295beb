"""Documents of a batch, as kernels number them."""

from __future__ import annotations

import torch
from torch import Tensor


def documents(seq_idx_BL: Tensor) -> Tensor:
    """int32 [batch, length]: 0 for the first document of a row, 1 for the next, and so on.

    Another one begins wherever `seq_idx_BL`, of any integer dtype, changes.
    """
    found_BL = torch.zeros_like(seq_idx_BL, dtype=torch.int32)
    found_BL[:, 1:] = (seq_idx_BL[:, 1:] != seq_idx_BL[:, :-1]).cumsum(1)
    return found_BL
