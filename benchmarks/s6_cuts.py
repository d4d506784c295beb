"""How the launches of the scan's CUDA kernels are best cut: a table for the GPU at hand.

    python benchmarks/s6_cuts.py

Times each kernel alone for every candidate cut at the shapes of `scangolf bench scan` (bfloat16,
1024 channels, 16 states, z, D, bias and softplus fused): median milliseconds of launches with a
flushed L2. `tuning` in src/scangolf/ops/s6_cuda.py holds what was chosen on an H200. Whether the
results are right is not asked here: tests/ops/test_s6_cuda.py does.
"""

import statistics
from typing import Any

import torch
from torch import Tensor

from scangolf.ops import nvrtc, s6_cuda
from scangolf.ops.s6_cuda import Cut, Tuning

SHAPES = [(64, 1024), (16, 4096), (4, 16384)]
CHANNELS, STATE, REPEATS = 1024, 16, 9
FORWARD = [
    Cut(1, 8, 4, 3), Cut(1, 8, 8, 3), Cut(1, 8, 4, 4), Cut(2, 16, 4, 2), Cut(2, 16, 8, 2),
    Cut(2, 16, 8, 3), Cut(4, 16, 8, 4), Cut(4, 32, 8, 1), Cut(4, 64, 8, 1), Cut(4, 64, 16, 1),
    Cut(4, 64, 32, 1),
]  # fmt: skip
BACKWARD = [Cut(1, 8, unroll, blocks) for blocks in (3, 4) for unroll in (1, 2, 4)]


def make_inputs(batch: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*size, generator=generator, device="cuda").to(dtype)

    return {
        "u": normal(batch, length, CHANNELS),
        "delta": normal(batch, length, CHANNELS) - 3,
        "A": -torch.arange(1.0, STATE + 1, device="cuda").repeat(CHANNELS, 1),
        "B": normal(batch, length, 1, STATE),
        "C": normal(batch, length, 1, STATE),
        "D": normal(CHANNELS, dtype=torch.float32),
        "z": normal(batch, length, CHANNELS),
        "delta_bias": normal(CHANNELS, dtype=torch.float32),
    }


class Launches:
    """Times every launch of every kernel, by the kernel's name, while it is open."""

    def __enter__(self) -> "Launches":
        self.launch = launch = nvrtc.Kernel.launch
        self.events: dict[str, list[tuple[Any, Any]]] = {}

        def timed(kernel: nvrtc.Kernel, *arguments: Any) -> None:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch(kernel, *arguments)
            end.record()
            self.events.setdefault(kernel.name, []).append((start, end))

        nvrtc.Kernel.launch = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        nvrtc.Kernel.launch = self.launch  # type: ignore[method-assign]

    def medians(self) -> dict[str, float]:
        torch.cuda.synchronize()
        return {
            name: statistics.median(start.elapsed_time(end) for start, end in pairs[1:])
            for name, pairs in self.events.items()
        }


def milliseconds(x: dict[str, Tensor], cuts: Tuning, junk: Tensor) -> dict[str, float]:
    rest: Any = {"delta_softplus": True, "seq_idx": None, "shapes": cuts}
    with Launches() as launches:
        for _ in range(REPEATS + 1):
            junk.zero_()  # more than the L2 holds
            y, _, saved = s6_cuda.forward(**x, initial_state=None, **rest)
            s6_cuda.backward(y, None, saved, **x, **rest)
        return launches.medians()


def main() -> None:
    junk = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for batch, length in SHAPES:
        x = make_inputs(batch, length)
        chosen = s6_cuda.tuning(x["u"], x["A"], x["B"])
        candidates = [chosen]
        candidates += [chosen._replace(forward=cut) for cut in FORWARD]
        candidates += [chosen._replace(along=cut, against=cut) for cut in BACKWARD]
        candidates += [chosen._replace(chunks=chosen.chunks * 2)]
        print(f"{batch} x {length}, chosen: {chosen}")
        for cuts in candidates:
            times = milliseconds(x, cuts, junk)
            shown = "  ".join(f"{name} {ms:.3f}" for name, ms in times.items())
            print(
                f"  {tuple(cuts.forward)} {tuple(cuts.along)} K={cuts.chunks}: {shown}", flush=True
            )


if __name__ == "__main__":
    main()
