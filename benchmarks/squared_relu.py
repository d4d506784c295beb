"""Whether the squared ReLU is worth fusing into the MLP's products.

    python benchmarks/squared_relu.py

Median milliseconds on the GPU at hand for 262,144 rows, 512 channels, 1024 hidden, bfloat16: each
kernel beside the library's product of the same size, then the whole MLP with its backward pass,
compiled, both ways. Errors are relative to plain torch operations.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from scangolf.bench.timing import Stopwatch, Work
from scangolf.ops.squared_relu import squared_relu_mlp
from scangolf.ops.squared_relu_triton import hidden, hidden_backward

ROWS, CHANNELS, HIDDEN, SECONDS = 262_144, 512, 1024, 0.1


def plain_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(x, up)).square(), down)


def both(mlp: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    y = mlp(*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, dy)


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def milliseconds(work: Work, watch: Stopwatch) -> str:
    return f"{watch.time(work).median_ms:.3f} ms"


def main() -> None:
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device="cuda").bfloat16()

    x, dy = normal(ROWS, CHANNELS), normal(ROWS, CHANNELS)
    up, down = normal(HIDDEN, CHANNELS) / CHANNELS**0.5, normal(CHANNELS, HIDDEN) / HIDDEN**0.5
    watch = Stopwatch(torch.device("cuda"), SECONDS)
    print(torch.cuda.get_device_name())
    a = (x @ up.T).relu().square()
    du = (dy @ down) * (2 * a.sqrt())
    for name, library, kernel, want in (
        ("x up^T", lambda: x @ up.T, lambda: hidden(x, up), a),
        ("dy down", lambda: dy @ down, lambda: hidden_backward(dy, down, a), du),
    ):
        print(f"{name}, the library's product alone: {milliseconds(library, watch)}")
        print(f"with squares: {milliseconds(kernel, watch)}, error {error(kernel(), want):.1e}")

    inputs = [v.requires_grad_() for v in (x, up, down)]
    plain, fused = (torch.compile(mlp, fullgraph=True) for mlp in (plain_mlp, squared_relu_mlp))
    pairs = zip(both(fused, dy, *inputs), both(plain, dy, *inputs), strict=True)
    print("fused MLP, errors of y and gradients:", *(f"{error(g, w):.1e}" for g, w in pairs))
    for name, mlp in (("plain", plain), ("fused", fused)):
        took = milliseconds(lambda m=mlp: both(m, dy, *inputs), watch)
        print(f"{name} MLP, forward and backward: {took}")


if __name__ == "__main__":
    main()
