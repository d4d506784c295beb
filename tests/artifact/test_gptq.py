"""GPTQ against its definition: one weight after the other, the rest made up for exactly."""

import numpy as np
import pytest
import torch

from scangolf.artifact.gptq import BLOCK, DAMPING, inverse_factor, round_columns


def case(R: int, D: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Weights, steps of rows and columns, and a second moment, all float64."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(R, D, generator=generator, dtype=torch.float64)
    row, column = (torch.rand(n, generator=generator, dtype=torch.float64) + 0.3 for n in (R, D))
    X = torch.randn(3 * D, D, generator=generator, dtype=torch.float64)
    X = X @ torch.randn(D, D, generator=generator, dtype=torch.float64)
    return W, 0.7 * row, column, X.T @ X / len(X)


def damped(H: torch.Tensor) -> np.ndarray:
    return H.numpy() + DAMPING * H.diagonal().mean().item() * np.eye(len(H))


def round_one(
    W: torch.Tensor, row: torch.Tensor, column: torch.Tensor, H: torch.Tensor, largest: int = 127
) -> tuple[torch.Tensor, ...]:
    codes, loss = round_columns(W[None], row[None], column[None], inverse_factor(H)[None], largest)
    return codes[0], loss[0]


def one_by_one(W: np.ndarray, steps: np.ndarray, H: np.ndarray) -> np.ndarray:
    """Codes; after each weight the later ones solve their least-squares problem anew."""
    codes = np.zeros_like(W)
    for r in range(len(W)):
        w = W[r].copy()
        for j in range(len(w)):
            codes[r, j] = np.rint(w[j] / steps[r, j])
            error = w[j] - codes[r, j] * steps[r, j]
            w[j] -= error
            rest = slice(j + 1, None)
            # The change u of the rest that minimises (error, -u) H (error, -u)^T.
            w[rest] += np.linalg.solve(H[rest, rest], H[rest, j]) * error
    return codes


@pytest.mark.parametrize(("R", "D"), [(1, 1), (3, 2), (5, 17), (4, BLOCK + 9)])
def test_codes_are_those_of_the_definition(R, D):
    matrices = [case(R, D, seed) for seed in range(3)]
    W, row, column, H = (torch.stack(parts) for parts in zip(*matrices, strict=True))
    U = torch.stack([inverse_factor(one) for one in H])
    together = round_columns(W, row, column, U, 127)
    for (W, row, column, H), codes, loss in zip(matrices, *together, strict=True):
        steps = torch.outer(row, column)
        expected = one_by_one(W.numpy(), steps.numpy(), damped(H))
        np.testing.assert_array_equal(codes.numpy(), expected)
        error = (W - codes * steps).numpy()
        np.testing.assert_allclose(loss, np.diag(error @ damped(H) @ error.T), rtol=1e-9)


def test_two_columns_by_hand():
    """Inputs (1, 1) always: what the first weight loses the second takes over."""
    H = torch.ones(2, 2, dtype=torch.float64)
    W = torch.tensor([[0.4, 0.3]], dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    codes, _ = round_one(W, one[:1], one, H)
    # H with damping is [[1.03, 1], [1, 1.03]]: 0.3 + 0.4 / 1.03 = 0.688.
    assert codes.tolist() == [[0, 1]]


def test_unrelated_inputs_leave_plain_rounding():
    W, row, column, _ = case(6, 40)
    H = torch.eye(40, dtype=torch.float64) * torch.arange(1, 41)
    codes, _ = round_one(W, row, column, H)
    assert torch.equal(codes, torch.round(W / torch.outer(row, column)).to(torch.int16))


@pytest.mark.parametrize("seed", range(5))
def test_less_is_lost_than_by_rounding_to_nearest(seed):
    W, row, column, H = case(32, 48, seed)
    _, loss = round_one(W, row, column, H)
    steps = torch.outer(row, column)
    error = W - torch.round(W / steps) * steps
    nearest = torch.einsum("rd,de,re->r", error, torch.from_numpy(damped(H)), error)
    assert loss.sum() < 0.7 * nearest.sum()


def test_codes_are_cut_off_at_the_largest():
    W, row, column, H = case(8, 20)
    codes, loss = round_one(100 * W, row, column, H, 5)
    assert codes.abs().max() == 5
    error = (100 * W - codes * torch.outer(row, column)).numpy()
    np.testing.assert_allclose(loss, np.diag(error @ damped(H) @ error.T), rtol=1e-9)


def test_inputs_that_never_came():
    H = torch.zeros(3, 3, dtype=torch.float64)
    assert torch.isfinite(inverse_factor(H)).all()
    H[0, 0] = 2.0
    U = inverse_factor(H)
    np.testing.assert_allclose(np.linalg.inv(damped(H)), (U.T @ U).numpy(), rtol=1e-9)
