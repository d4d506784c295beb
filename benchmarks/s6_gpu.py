"""The Triton kernels of the selective scan on a GPU: right first, then fast, over program shapes.

    python benchmarks/s6_gpu.py results.json
    python benchmarks/s6_gpu.py results.json --check-only

Checks y and every gradient against float64 at odd lengths, with documents, groups and states; then
times each kernel alone over the candidate program shapes, and forward and forward + backward with
the best of each, at B L = 65,536 tokens, 1024 channels, 16 states, bfloat16, with z, D, bias and
softplus; beside mamba_ssm where it is installed. A candidate that fails is reported and skipped.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from scangolf.ops import s6_chunked, s6_triton, s6_triton_bwd, s6_triton_fwd
from scangolf.ops.s6_slices import Sliced
from scangolf.ops.s6_triton import Block, Tuning

SHAPES = [(64, 1024), (16, 4096), (4, 16384)]
CHANNELS, STATE = 1024, 16
LIMITS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (4e-3, 1e-2), torch.float16: (1e-3, 2e-3)}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
CANDIDATES = {
    "scan": [
        Block(64, 4), Block(64, 4, False), Block(64, 2), Block(64, 8, False), Block(32, 4),
        Block(32, 8), Block(32, 4, True, 128), Block(32, 8, False, 128), Block(64, 4, False, 168),
    ],
    "states": [
        Block(64, 2, False), Block(64, 2), Block(64, 1, False), Block(64, 4, False),
        Block(32, 2), Block(32, 4), Block(32, 4, False, 128), Block(32, 2, True, 168),
    ],
    "adjoint": [
        Block(64, 2, False), Block(64, 2), Block(64, 1, False), Block(64, 4, False),
        Block(32, 2), Block(32, 4), Block(32, 4, False, 128), Block(32, 2, True, 168),
    ],
    "summary": [Block(64, 8), Block(64, 4), Block(32, 8), Block(32, 4)],
}  # fmt: skip
BASE = Tuning(Block(64, 4), Block(64, 8), Block(64, 2, False), Block(64, 2, False), 1)
CHUNKS = {64: (1, 2), 16: (1, 2, 4), 4: (4, 8, 16)}


def make_inputs(
    batch: int, length: int, channels: int, state: int, dtype: torch.dtype,
    groups: int = 1, documents: bool = False, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, generator=generator, device="cuda").to(dtype)

    seq_idx = None
    if documents:
        starts = torch.rand(batch, length, generator=generator, device="cuda") < 6 / length
        starts[:, [length // 2, length * 3 // 4]] = True
        seq_idx = starts.int().cumsum(1).int()
    return {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels) - 3,
        "A": -torch.arange(1.0, state + 1, device="cuda").repeat(channels, 1),
        "B": normal(batch, length, groups, state),
        "C": normal(batch, length, groups, state),
        "D": normal(channels, dtype=torch.float32),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels, dtype=torch.float32),
        "softplus": True,
        "initial_state": normal(batch, channels, state, dtype=torch.float32),
        "seq_idx": seq_idx,
        "grad_y": normal(batch, length, channels),
        "grad_final": normal(batch, channels, state, dtype=torch.float32),
    }


def results(backend: Any, x: dict[str, Any], *shapes: Tuning | None) -> dict[str, Tensor]:
    inputs = [x[name] for name in NAMES[:-1]]
    y, final, saved = backend.forward(
        *inputs, x["softplus"], x["initial_state"], x["seq_idx"], *shapes
    )
    grads = backend.backward(
        x["grad_y"], x["grad_final"], saved, *inputs, x["softplus"], x["seq_idx"], *shapes
    )
    return {"y": y, "final": final} | {"d" + n: g for n, g in zip(NAMES, grads, strict=True)}


def worst_errors(x: dict[str, Any], *all_shapes: Tuning | None) -> dict[str, float]:
    """Largest relative errors over the tunings given, and how much larger than allowed."""
    exact = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in x.items()
    }
    want = results(s6_chunked, exact)
    errors: dict[str, float] = {}
    large = x["A"].shape[1] > s6_triton.LARGEST_STATE  # in slices, which choose shapes themselves
    for shapes in all_shapes[:1] if large else all_shapes:
        ours: Any = (Sliced(s6_triton), x) if large else (s6_triton, x, shapes)
        got = results(*ours)
        for name, value in got.items():
            error = ((value.double() - want[name]).norm() / want[name].norm()).item()
            errors[name] = max(errors.get(name, 0.0), math.inf if math.isnan(error) else error)
        again = results(*ours)
        if not all(torch.equal(got[name], again[name]) for name in got):
            errors["moves"] = math.inf
    out, gradient = LIMITS[x["u"].dtype]
    excess = max(e / (out if name in ("y", "final") else gradient) for name, e in errors.items())
    return errors | {"excess": excess}


def check_cases() -> list[tuple[str, dict[str, Any]]]:
    f32, bf16 = torch.float32, torch.bfloat16
    return [
        ("f32 1 step", {"size": (2, 1, 96, 16), "dtype": f32}),
        ("f32 63, N 3, groups 2", {"size": (2, 63, 80, 3), "dtype": f32, "groups": 2}),
        ("f32 1000, documents", {"size": (2, 1000, 128, 16), "dtype": f32, "documents": True}),
        ("f32 1337, N 64, groups 4", {"size": (1, 1337, 256, 64), "dtype": f32, "groups": 4}),
        ("f32 3000, N 32, documents", {"size": (1, 3000, 64, 32), "dtype": f32, "documents": True}),
        ("f32 16384", {"size": (1, 16384, 64, 16), "dtype": f32}),
        ("bf16 1000, groups 2", {"size": (2, 1000, 192, 16), "dtype": bf16, "groups": 2}),
        (
            "bf16 2049, 100 channels, documents",
            {"size": (2, 2049, 100, 16), "dtype": bf16, "documents": True},
        ),
        ("bf16 512, N 256", {"size": (1, 512, 64, 256), "dtype": bf16}),
        ("f16 777", {"size": (2, 777, 128, 16), "dtype": torch.float16}),
    ]


def same(block: Block, chunks: int) -> Tuning:
    return Tuning(
        block, Block(block.channels, 8), block._replace(steps=2), block._replace(steps=2), chunks
    )


def check_one(case: dict[str, Any]) -> dict[str, Any]:
    x = make_inputs(*case["size"], **{k: v for k, v in case.items() if k != "size"})
    wide = 64 if case["size"][3] <= 16 else 32
    try:
        errors = worst_errors(x, None, same(Block(32, 4), 3), same(Block(wide, 2, False), 1))
    except Exception as error:
        return {"verdict": f"FAILED {type(error).__name__}: {str(error)[:300]}"}
    return {"verdict": "ok" if errors["excess"] < 1 else "WRONG", **errors}


def compile_one(shapes: Tuning) -> str | None:
    """Leaves the compiled kernels in Triton's cache on disk."""
    try:
        x = make_inputs(1, 512, CHANNELS, STATE, torch.bfloat16) | {"initial_state": None}
        results(s6_triton, x, shapes)
        torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return None


def prepare(report: dict[str, Any], tunings: list[Tuning]) -> bool:
    """The checks, and all compilation, in many processes: Triton compiles one kernel at a time."""
    names, cases = zip(*check_cases(), strict=True)
    passed, start = True, time.perf_counter()
    processes = min(16, os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        checks = pool.map(check_one, cases)
        compiled = pool.map(compile_one, tunings)
        for name, found in zip(names, checks, strict=True):
            report["checks"][name] = found
            passed &= found["verdict"] == "ok"
            errors = [(e, n) for n, e in found.items() if n not in ("excess", "verdict")]
            worst = (f"{n} {e:.1e}" for e, n in sorted(errors, reverse=True)[:3])
            print(f"check {name:36} {found['verdict']}", *worst, flush=True)
        for shapes, failure in zip(tunings, compiled, strict=True):
            if failure:
                report["failures"][str(shapes)] = failure
    seconds = report["prepare_seconds"] = time.perf_counter() - start
    print(f"checked, and compiled {len(tunings)} variants, in {seconds:.0f} s", flush=True)
    return passed


# --- speed --------------------------------------------------------------------------------------


class Flush:
    """Writes more than the L2 holds, and holds the GPU until the host has queued what is timed."""

    def __init__(self) -> None:
        self.junk = torch.empty(1 << 28, dtype=torch.int8, device="cuda")

    def __call__(self) -> None:
        self.junk.zero_()
        torch.cuda._sleep(6_000_000)  # cycles: about 3 ms


def milliseconds(work: Any, flush: Flush, repeats: int = 15) -> float:
    for _ in range(2):
        work()
    times = []
    for _ in range(repeats):
        flush()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(s.elapsed_time(e) for s, e in times)


def with_block(kernel: str, block: Block, chunks: int, base: Tuning) -> Tuning:
    return base._replace(**{kernel: block, "chunks": chunks})


class Timer:
    """Times single launches inside forward and backward, by name of the kernel."""

    def __init__(self) -> None:
        self.launch = s6_triton._Scan.launch
        self.events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}

    def __enter__(self) -> "Timer":
        events, launch = self.events, self.launch

        def timed(scan: Any, kernel: Any, block: Block, **arguments: Any) -> None:
            name = kernel.fn.__name__ + ("_adjoint" if arguments.get("ADJOINT") else "")
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch(scan, kernel, block, **arguments)
            end.record()
            events.setdefault(name, []).append((start, end))

        s6_triton._Scan.launch = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        s6_triton._Scan.launch = self.launch  # type: ignore[method-assign]

    def medians(self) -> dict[str, float]:
        torch.cuda.synchronize()
        return {
            name: statistics.median(s.elapsed_time(e) for s, e in pairs[1:])
            for name, pairs in self.events.items()
        }


def kernel_times(
    x: dict[str, Any], shapes: Tuning, flush: Flush, repeats: int = 7
) -> dict[str, float]:
    with Timer() as timer:
        for _ in range(repeats + 1):
            flush()
            results(s6_triton, x, shapes)
        return timer.medians()


def resources(report: dict[str, Any]) -> None:
    """Registers and spills of every kernel loaded in this process."""
    for kernel in (
        s6_triton_fwd.scan_kernel, s6_triton_fwd.summary_kernel,
        s6_triton_bwd.states_kernel, s6_triton_bwd.adjoint_kernel,
    ):  # fmt: skip
        try:
            for caches in kernel.device_caches.values():
                for compiled in caches[0].values():
                    constants = {
                        kernel.arg_names[path[0]]: value
                        for path, value in compiled.src.constants.items()
                        if kernel.arg_names[path[0]] in ("C", "T", "N", "AHEAD", "HAS_PENALTY")
                    }
                    report["resources"].append({
                        "kernel": kernel.fn.__name__, "registers": compiled.n_regs,
                        "spills": compiled.n_spills, "variant": str(constants),
                        "maxnreg": compiled.metadata.maxnreg,
                    })  # fmt: skip
        except Exception as error:
            report["failures"][f"resources of {kernel}"] = f"{type(error).__name__}: {error}"


def best(rows: dict[Block, float]) -> tuple[Block, float]:
    return min(rows.items(), key=lambda item: item[1])


def sweep(report: dict[str, Any], lines: list[str], deadline: float) -> None:
    flush = Flush()
    base = BASE
    kernels = {"scan": "scan_kernel", "states": "states_kernel", "adjoint": "adjoint_kernel",
               "summary": "summary_kernel"}  # fmt: skip
    for batch, length in SHAPES:
        x = make_inputs(batch, length, CHANNELS, STATE, torch.bfloat16) | {"initial_state": None}
        label = f"B={batch} L={length}"
        for chunks in CHUNKS[batch]:
            chosen, parts, shown = base._replace(chunks=chunks), {}, {}
            for kernel, blocks in CANDIDATES.items():
                if kernel == "summary" and chunks == 1:
                    continue
                rows: dict[Block, float] = {}
                for block in blocks:
                    shapes = with_block(kernel, block, chunks, base)
                    if str(with_block(kernel, block, 2, base)) in report["failures"]:
                        continue
                    if time.perf_counter() > deadline:
                        break
                    try:
                        found = kernel_times(x, shapes, flush)
                        rows[block] = found[kernels[kernel]] + found.get(
                            kernels[kernel] + "_adjoint", 0.0
                        )
                    except Exception as error:
                        report["failures"][f"{label} {shapes}"] = str(error)[:300]
                if rows:
                    block, ms = best(rows)
                    chosen = chosen._replace(**{kernel: block})
                    parts[kernel] = ms
                    shown[kernel] = {str(tuple(b)): round(t, 4) for b, t in rows.items()}
            report["kernels"][f"{label} K={chunks}"] = shown
            try:
                report["scans"].append(whole(x, label, chosen, parts, flush))
                lines.append(line_of(report["scans"][-1]))
                print(lines[-1], flush=True)
            except Exception as error:
                report["failures"][f"{label} {chosen}"] = str(error)[:300]
        peer(x, label, flush, report, lines)


def whole(
    x: dict[str, Any], label: str, shapes: Tuning, parts: dict[str, float], flush: Flush
) -> dict[str, Any]:
    scan: Any = s6_triton.forward
    inputs = tuple(x[name] for name in NAMES[:-1])
    ahead = milliseconds(lambda: scan(*inputs, True, None, None, shapes), flush)
    both = milliseconds(lambda: results(s6_triton, x | {"grad_final": None}, shapes), flush)
    torch.cuda.synchronize()
    start = time.perf_counter()
    results(s6_triton, x | {"grad_final": None}, shapes)
    host = 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results(s6_triton, x | {"grad_final": None}, shapes)
    peak = torch.cuda.max_memory_allocated() - before
    size = sum(v.nbytes for v in inputs)
    return {"label": label, "shapes": [*map(tuple, shapes[:4]), shapes.chunks], "forward": ahead,
            "both": both, "host": host, "parts": parts,
            "peak_over_inputs": peak / size}  # fmt: skip


def line_of(row: dict[str, Any]) -> str:
    shapes = " ".join(str(s).replace(" ", "").replace(",None", "") for s in row["shapes"][:4])
    parts = " ".join(f"{k} {v:.3f}" for k, v in row["parts"].items())
    times = f"fwd {row['forward']:.3f} f+b {row['both']:.3f} host {row['host']:.1f} ms"
    memory = f"peak {row['peak_over_inputs']:.2f}x"
    return f"{row['label']:14} K={row['shapes'][4]:<2} {times} {memory} | {parts} | {shapes}"


def peer(
    x: dict[str, Any], label: str, flush: Flush, report: dict[str, Any], lines: list[str]
) -> None:
    try:
        interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except Exception:
        return
    u, delta, z, dy = (x[n].mT.contiguous().requires_grad_() for n in ("u", "delta", "z", "grad_y"))
    B, C = (x[n][:, :, 0].mT.contiguous().requires_grad_() for n in "BC")
    rest = [x[n].clone().requires_grad_() for n in ("A", "D", "delta_bias")]

    def forward() -> Tensor:
        return interface.selective_scan_fn(u, delta, rest[0], B, C, rest[1], z, rest[2], True)

    def both() -> None:
        torch.autograd.grad(forward(), [u, delta, z, B, C, *rest], dy)

    ahead, total = milliseconds(forward, flush), milliseconds(both, flush)
    report["peers"].append({"label": label, "forward": ahead, "both": total})
    lines.append(f"{label:14} mamba_ssm fwd {ahead:.3f} f+b {total:.3f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Speed of the Triton kernels of the selective scan."
    )
    parser.add_argument("out")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--seconds", type=float, default=200, help="no timing starts after that")
    options = parser.parse_args()
    started = time.perf_counter()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "checks": {}, "resources": [], "kernels": {}, "scans": [], "peers": [], "failures": {},
    }  # fmt: skip
    lines: list[str] = []
    tunings = [
        with_block(kernel, block, 2, BASE)
        for kernel, blocks in CANDIDATES.items()
        for block in blocks
    ]
    passed = prepare(report, [] if options.check_only else tunings)
    if not options.check_only:
        try:
            sweep(report, lines, started + options.seconds)
        finally:
            resources(report)
    report["seconds"] = time.perf_counter() - started
    with open(options.out, "w") as file:
        json.dump(report, file, indent=1)
    print_summary(report, lines, passed)
    return 0 if passed else 1


def print_summary(report: dict[str, Any], lines: list[str], passed: bool) -> None:
    for label, kernels in report["kernels"].items():
        for kernel, rows in kernels.items():
            ordered = sorted(rows.items(), key=lambda item: item[1])
            shown = itertools.islice(
                (f"{b.replace(' ', '').replace(',None', '')} {t:.3f}" for b, t in ordered), 6
            )
            print(f"{label} {kernel:8}", "; ".join(shown))
    for failure, message in itertools.islice(report["failures"].items(), 4):
        print("failed:", failure[-150:], "|", message[:150])
    print("\n".join(lines))
    for r in report["resources"]:
        if r.get("spills"):
            print("spills:", r["kernel"], r["registers"], r["spills"], r["variant"])
    verdict = "passed" if passed else "FAILED"
    print(f"checks {verdict}; {report['seconds']:.0f} s on {report['device']}")


if __name__ == "__main__":
    sys.exit(main())
