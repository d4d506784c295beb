"""What the tests of fused operators share: gradients of a random weighting, and their errors."""

from collections.abc import Callable

import torch
from scan_cases import relative_error
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter cuts off what does not fit a bfloat16
TOLERANCE = {
    torch.float64: 1e-14,
    torch.float32: 2e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def weights(like: Tensor) -> Tensor:
    """Numbers that bfloat16 has, so that every dtype gets the same."""
    return normal(*like.shape, dtype=torch.bfloat16, seed=1).to(like)


def with_gradients(function: Callable[..., Tensor], x: dict[str, Tensor]) -> dict[str, Tensor]:
    """y, and the gradients of a weighting of it, by the names of the inputs."""
    x = {k: v.detach().requires_grad_() for k, v in x.items()}
    y = function(**x)
    return {"y": y.detach()} | dict(
        zip(x, torch.autograd.grad(y, list(x.values()), weights(y)), strict=True)
    )


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    """Within what the dtype of the inputs can hold; dtypes as those of the inputs."""
    limit = max(TOLERANCE[v.dtype] for v in like.values())
    first = next(iter(like.values()))
    for name, value in got.items():
        assert value.dtype == like.get(name, first).dtype, name
        assert value.shape == want[name].shape, name
        assert relative_error(value, want[name]) < limit, name
