"""Rounding that makes up for itself: GPTQ (Frantar et al. 2022, arXiv:2210.17323, section 3).

The columns of W_RD are rounded one after the other, and what a column loses is made up for, as
well as can be, by the columns after it: the change of the layer's outputs W x is what is kept
small, over inputs x whose second moment is H_DD = mean(x x^T).

Shapes: N matrices, R rows (outputs), D columns (inputs), B columns of a block.
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
    W_NRD: Tensor, row_NR: Tensor, column_ND: Tensor, U_NDD: Tensor, largest: int
) -> tuple[Tensor, Tensor]:
    """Codes for steps row[r] column[d], int16 [N, R, D], and the loss that they leave, [N, R].

    N matrices at once, as a GPU waits for the host where it does one column of a small one. The
    loss of a row is e (H + damping) e^T, e its weights less what its codes stand for. Codes go from
    -largest to largest. All arguments share one dtype and device.
    """
    W_NRD = W_NRD.clone()
    codes_NRD = torch.empty_like(W_NRD, dtype=torch.int16)
    loss_NR = torch.zeros_like(row_NR)
    D = W_NRD.shape[2]
    for start in range(0, D, BLOCK):
        stop = min(start + BLOCK, D)
        errors_NRB = torch.empty_like(W_NRD[:, :, start:stop])
        for j in range(start, stop):
            step_NR = row_NR * column_ND[:, j, None]
            code_NR = torch.round(W_NRD[:, :, j] / step_NR).clamp_(-largest, largest)
            error_NR = (W_NRD[:, :, j] - code_NR * step_NR) / U_NDD[:, j, j, None]
            W_NRD[:, :, j:stop] -= error_NR[:, :, None] * U_NDD[:, None, j, j:stop]
            codes_NRD[:, :, j] = code_NR.to(torch.int16)
            errors_NRB[:, :, j - start] = error_NR
        W_NRD[:, :, stop:] -= errors_NRB @ U_NDD[:, start:stop, stop:]
        loss_NR += errors_NRB.square().sum(dim=2)
    return codes_NRD, loss_NR
