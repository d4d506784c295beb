"""Rounding that makes up for itself: GPTQ (Frantar et al. 2022, arXiv:2210.17323, section 3).

The columns of W_RD are rounded one after the other, and what a column loses is made up for, as
well as can be, by the columns after it: the change of the layer's outputs W x is what is kept
small, over inputs x whose second moment is H_DD = mean(x x^T).

Shapes: R rows (outputs), D columns (inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.03
"""Added to H's diagonal, as a share of its mean: inputs that the text did not show."""
BLOCK = 64
"""Columns whose effect on all later ones is applied at once."""


def inverse_factor(H_DD: Tensor) -> Tensor:
    """The upper triangular U with U^T U = (H + damping)^-1, in H's dtype, float64 at best.

    1 / U[j, j]^2 is what of input j the inputs after it cannot say: the loss that an error of 1 in
    column j leaves when the columns after it make up for it.
    """
    mean = H_DD.diagonal().mean()
    damping = DAMPING * torch.where(mean > 0, mean, 1.0)
    damped_DD = H_DD + damping * torch.eye(len(H_DD), dtype=H_DD.dtype, device=H_DD.device)
    inverse_DD = torch.cholesky_inverse(torch.linalg.cholesky(damped_DD))
    return torch.linalg.cholesky(inverse_DD, upper=True)


def round_columns(
    W_RD: Tensor, row_R: Tensor, column_D: Tensor, U_DD: Tensor, largest: int
) -> tuple[Tensor, Tensor]:
    """Codes for steps row_R[r] column_D[d], int16 [R, D], and the loss that they leave, [R].

    The loss of a row is e (H + damping) e^T, e its weights less what its codes stand for. Codes go
    from -largest to largest. All arguments share one dtype and device.
    """
    W_RD = W_RD.clone()
    codes_RD = torch.empty_like(W_RD, dtype=torch.int16)
    loss_R = torch.zeros_like(row_R)
    D = W_RD.shape[1]
    for start in range(0, D, BLOCK):
        stop = min(start + BLOCK, D)
        errors_RB = torch.empty_like(W_RD[:, start:stop])
        for j in range(start, stop):
            step_R = row_R * column_D[j]
            code_R = torch.round(W_RD[:, j] / step_R).clamp_(-largest, largest)
            error_R = (W_RD[:, j] - code_R * step_R) / U_DD[j, j]
            W_RD[:, j:stop] -= torch.outer(error_R, U_DD[j, j:stop])
            codes_RD[:, j] = code_R.to(torch.int16)
            errors_RB[:, j - start] = error_R
        W_RD[:, stop:] -= errors_RB @ U_DD[start:stop, stop:]
        loss_R += errors_RB.square().sum(dim=1)
    return codes_RD, loss_R
