"""The benchmark of the scan on a CPU: what is wrong gets no times, floors are arithmetic."""

import dataclasses
import itertools
import json
import re
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from scangolf.bench import contenders, record, scan
from scangolf.bench.check import compare, make_inputs, results, truth
from scangolf.bench.floor import Rates, Shape, floors, scan_bytes
from scangolf.bench.operators import Contender, Operator, peer_function
from scangolf.bench.scan import GDN, OPERATORS, S6, SSD
from scangolf.bench.timing import Stopwatch
from scangolf.cli import main
from scangolf.errors import UserError
from scangolf.ops import (
    gated_delta_rule,
    gdn_chunked,
    s6_chunked,
    selective_scan,
    ssd_chunked,
    ssd_scan,
)

CPU = torch.device("cpu")
SMALL = Shape(2, 40, 6, 3)
ARGS = ["bench", "scan", "--device", "cpu", "--shape", "2x40", "--channels", "6", "--state", "3",
        "--seconds", "0.01"]  # fmt: skip
HEADS = Shape(2, 70, 128, 5)  # two heads; a whole chunk and the beginning of another
HEADS_ARGS = ["bench", "scan", "--device", "cpu", "--shape", "2x70", "--channels", "128",
              "--state", "5", "--seconds", "0.01"]  # fmt: skip
CHUNKED = {"s6": s6_chunked, "ssd": ssd_chunked, "gdn": gdn_chunked}
INPUTS = {
    "s6": ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"],
    "ssd": ["x", "dt", "A", "B", "C", "D", "dt_bias"],
    "gdn": ["q", "k", "v", "g", "beta"],
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates of this machine are no part of what is tested."""
    monkeypatch.setattr(Stopwatch, "copy_rate", lambda self: 1e10)
    monkeypatch.setattr(Stopwatch, "product_rate", lambda self, dtype: 1e11)


def wrong_backward(monkeypatch: pytest.MonkeyPatch, change: Any, op: str = "s6") -> None:
    backward = CHUNKED[op].backward

    def changed(*args: Any) -> tuple[Tensor, ...]:
        grads = list(backward(*args))
        grads[2] = change(grads[2])  # of A, or of v
        return tuple(grads)

    monkeypatch.setattr(CHUNKED[op], "backward", changed)


@pytest.mark.parametrize("op", OPERATORS)
def test_json_has_every_documented_field(capsys: pytest.CaptureFixture[str], op: str) -> None:
    args, shape = (ARGS, SMALL) if op == "s6" else (HEADS_ARGS, HEADS)
    main([*args, "--op", op, "--json"])
    report = json.loads(capsys.readouterr().out)

    def names(kind: Any) -> list[str]:
        return [field.name for field in dataclasses.fields(kind)]

    assert list(report) == names(record.Report)
    assert report["passed"] is True
    assert report["dtype"] == "float32"
    assert report["operator"] == op
    assert report["command"].startswith(" ".join(["scangolf bench scan", *args[4:10], "--op", op]))
    assert report["crossing"] is None
    (part,) = report["shapes"]
    assert list(part) == names(record.ShapeReport)
    assert part["shape"] == dataclasses.asdict(shape)
    inputs, dy = make_inputs(OPERATORS[op], shape, CPU, torch.float32)
    assert part["floors"]["both"]["bytes"] == sum(scan_bytes(inputs, dy))
    assert part["floors"]["both"]["flop"] == 3 * OPERATORS[op].flop(shape)
    assert (part["floors"]["both"]["products_ms"] is None) == (op == "s6")
    assert [(row["name"], row["form"]) for row in part["rows"]] == [
        ("auto", "reference"),
        ("loop", "plain recurrence"),
    ]
    for row in part["rows"]:
        assert list(row) == names(record.Row)
        assert row["passed"] is True
        assert row["repeatable"] is True
        assert sorted(row["errors"]) == sorted(["y", *INPUTS[op]])
        assert row["forward"]["median_ms"] >= row["forward"]["least_ms"] > 0
        assert row["both"]["repeats"] >= 3
        assert row["first_call_seconds"] > 0
        assert row["forward_share"] > 0
        assert row["peak_memory"] is None
    ours, loop = part["rows"]
    assert ours["speed_up"] == loop["both"]["median_ms"] / ours["both"]["median_ms"]
    assert loop["speed_up"] is None


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(ARGS)
    shown = capsys.readouterr().out
    assert "auto (reference)" in shown
    assert "loop (plain recurrence)" in shown
    assert f"torch {torch.__version__}" in shown
    again = re.search(r"again: scangolf (.*)", shown)
    assert again is not None
    assert again[1].split()[:8] == ["bench", "scan", *ARGS[4:10]]


@pytest.mark.parametrize("change", [lambda g: 1.001 * g, lambda g: g * torch.nan])
def test_a_wrong_gradient_gets_no_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: Any
) -> None:
    wrong_backward(monkeypatch, change)
    with pytest.raises(SystemExit) as end:
        main([*ARGS, "--json"])
    assert end.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    row = report["shapes"][0]["rows"][0]
    assert row["passed"] is False
    assert row["note"] == "wrong"
    for name in ("forward", "both", "forward_share", "speed_up", "first_call_seconds"):
        assert row[name] is None

    with pytest.raises(SystemExit) as end:
        main(ARGS)
    assert end.value.code == 1
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "auto (reference)  " in line]
    assert "no times" in line
    assert re.search(r"dA .*above 1e-04", shown)


@pytest.mark.parametrize("op", ["ssd", "gdn"])
def test_a_wrong_gradient_of_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], op: str
) -> None:
    wrong_backward(monkeypatch, lambda g: 1.001 * g, op)
    with pytest.raises(SystemExit) as end:
        main([*HEADS_ARGS, "--op", op, "--json"])
    assert end.value.code == 1
    ours, loop = json.loads(capsys.readouterr().out)["shapes"][0]["rows"]
    assert (ours["note"], ours["both"]) == ("wrong", None)
    assert loop["passed"] is True


def test_other_bits_the_second_time_get_no_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = itertools.count(1)
    wrong_backward(monkeypatch, lambda g: g * (1 + 1e-6 * next(calls)))
    with pytest.raises(SystemExit) as end:
        main([*ARGS, "--json"])
    assert end.value.code == 1
    row = json.loads(capsys.readouterr().out)["shapes"][0]["rows"][0]
    assert (row["note"], row["both"]) == ("two runs gave different bits", None)


def test_a_backend_that_breaks_gets_no_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_backward(monkeypatch, lambda g: g.no_such_method())
    with pytest.raises(SystemExit) as end:
        main(ARGS)
    assert end.value.code == 1
    assert "no_such_method" in capsys.readouterr().out


def test_a_peer_that_refuses_its_backward_pass_is_timed_forward(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(gradient: Tensor) -> None:
        raise RuntimeError("not on this GPU")

    def peer(operator: Operator, inputs: dict[str, Tensor], dy: Tensor) -> Contender:
        def run(x: dict[str, Tensor]) -> Tensor:
            y = wrong * operator.loop(x)
            if y.requires_grad:
                y.register_hook(refuse)
            return y

        return Contender("loop", "plain recurrence", "peer", run, inputs, dy)

    monkeypatch.setattr(contenders, "loop", peer)
    for wrong, note in ((1.0, "forward only: RuntimeError: not on this GPU"), (2.0, "wrong")):
        main([*ARGS, "--json"])
        row = json.loads(capsys.readouterr().out)["shapes"][0]["rows"][1]
        assert (row["passed"], row["note"]) == (wrong == 1, note)
        assert (row["forward"] is None, row["both"]) == (wrong != 1, None)
        assert list(row["errors"]) == ["y"]
        main(ARGS)
        assert re.search(rf"loop.*: {note}", capsys.readouterr().out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_parts_of_the_truth_make_the_whole(
    monkeypatch: pytest.MonkeyPatch, operator: Operator, dtype: torch.dtype
) -> None:
    shape = SMALL if operator is S6 else HEADS
    inputs, dy = make_inputs(operator, shape, CPU, dtype)
    whole = truth(operator, shape, inputs, dy)
    per_sequence = shape.updates // shape.batch
    for room in (2 * per_sequence // 3, per_sequence):  # some channels; one sequence at a time
        monkeypatch.setattr("scangolf.bench.check.ROOM_CPU", room)
        parts = truth(operator, shape, inputs, dy)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-12)
    got = results(lambda x: operator.scan(x, "auto"), inputs, dy)
    assert compare(got, got, whole, operator.limits(dtype)).within_limits


def test_bytes_by_hand() -> None:
    def size(operator: Operator, shape: Shape) -> tuple[int, int]:
        return scan_bytes(*make_inputs(operator, shape, CPU, torch.bfloat16))

    # u, delta, z: 2 x 40 x 6 each; B, C: 2 x 40 x 3 each; A: 6 x 3, D and the bias: 6, in float32
    inputs = 2 * (3 * 480 + 2 * 240) + 4 * (18 + 2 * 6)
    assert size(S6, SMALL) == (inputs + 2 * 480, 2 * inputs + 2 * 480)
    # x: 2 x 70 x 128; dt: 2 x 70 x 2; B, C: 2 x 70 x 5 each; A, D and the bias: 2, in float32
    inputs = 2 * (17920 + 280 + 2 * 700) + 4 * 3 * 2
    assert size(SSD, HEADS) == (inputs + 2 * 17920, 2 * inputs + 2 * 17920)
    # q, k: 2 x 70 x 2 x 5 each; v: 2 x 70 x 128; beta: 2 x 70 x 2; g the same in float32
    inputs = 2 * (2 * 1400 + 17920 + 280) + 4 * 280
    assert size(GDN, HEADS) == (inputs + 2 * 17920, 2 * inputs + 2 * 17920)


def test_flop_by_hand() -> None:
    """Two sequences of 70 steps: 64 x 65 / 2 + 6 x 7 / 2 = 2101 pairs each; two heads of 64."""
    assert SSD.flop(HEADS) == 2 * (2101 * (2 * 5 + 2 * 64 * 2) + 70 * 2 * (4 * 64 * 5))
    assert GDN.flop(HEADS) == 2 * 2 * (2101 * (2 * 5 + 2 * 5 + 2 * 64 + 2 * 64) + 70 * 6 * 64 * 5)
    assert S6.flop(SMALL) == 0


def test_floors_by_hand() -> None:
    """16 x 4096 tokens, 1024 channels, 16 states in bf16: half a gibibyte to read and write."""
    gib = 1 << 30
    inputs = {"x": torch.empty(3 * gib // 16, dtype=torch.bfloat16, device="meta")}
    dy = torch.empty(gib // 16, dtype=torch.bfloat16, device="meta")
    shape = Shape(16, 4096, 1024, 16)
    assert (S6.exponentials(shape), SSD.exponentials(shape)) == (gib, 0)
    rates = Rates(4.2e12, 16 * 132 * 1.98e9, 1.98e9, "", 132, 8e14)
    below = floors(inputs, dy, gib, 0, rates)
    assert below.forward.memory_ms == pytest.approx(1e3 * gib / 2 / 4.2e12)
    assert below.both.memory_ms == pytest.approx(1e3 * (gib / 2 + 7 * gib / 8) / 4.2e12)
    assert below.forward.exponentials_ms == pytest.approx(0.257, abs=0.001)
    assert below.both.exponentials_ms == pytest.approx(0.514, abs=0.001)
    assert (below.forward.ms, below.forward.bound) == (
        below.forward.exponentials_ms,
        "exponentials",
    )
    assert below.forward.products_ms is None
    below = floors(inputs, dy, 0, 8 * 10**11, rates)
    assert (below.forward.products_ms, below.both.products_ms) == (1.0, 3.0)
    assert (below.forward.ms, below.forward.bound) == (1.0, "products")
    below = floors(inputs, dy, gib, 0, dataclasses.replace(rates, exponentials=None))
    assert below.forward.exponentials_ms is None
    assert (below.forward.ms, below.forward.bound) == (below.forward.memory_ms, "memory")


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    parts = name.split(".")
    for i in range(len(parts)):
        whole = ".".join(parts[: i + 1])
        monkeypatch.setitem(sys.modules, whole, types.SimpleNamespace(**functions))


def test_the_peer_reads_time_last_and_answers_in_our_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        assert all(x.is_contiguous() for x in (u, delta, B, C, z))
        u, delta, B, C, z = (x.mT for x in (u, delta, B, C, z))
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus).mT

    name = "mamba_ssm.ops.selective_scan_interface"
    fake_module(monkeypatch, name, selective_scan_fn=selective_scan_fn)
    inputs, dy = make_inputs(S6, SMALL, CPU, torch.float32)
    peer = S6.peer(inputs, dy)
    got, wanted = peer.results(), truth(S6, SMALL, inputs, dy)
    assert compare(got, got, wanted, S6.limits(torch.float32)).within_limits
    assert peer.both()[0].shape == (2, 6, 40)


def test_the_peers_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def combined(x, dt, A, B, C, chunk_size, D=None, dt_bias=None, dt_softplus=False):
        assert B.shape == (2, 70, 1, 5)
        return ssd_scan(x, dt, A, B, C, D, None, dt_bias, dt_softplus, chunk_size)

    def rule(q, k, v, g, beta, scale=None):
        return gated_delta_rule(q, k, v, g, beta), None

    name = "mamba_ssm.ops.triton.ssd_combined"
    fake_module(monkeypatch, name, mamba_chunk_scan_combined=combined)
    fake_module(monkeypatch, "fla.ops.gated_delta_rule", chunk_gated_delta_rule=rule)
    for operator in (SSD, GDN):
        inputs, dy = make_inputs(operator, HEADS, CPU, torch.float32)
        got, wanted = operator.peer(inputs, dy).results(), truth(operator, HEADS, inputs, dy)
        assert compare(got, got, wanted, operator.limits(torch.float32)).within_limits


def test_a_peer_that_takes_other_arguments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_module(monkeypatch, "fla.ops.gated_delta_rule", chunk_gated_delta_rule=lambda q, k: q)
    with pytest.raises(TypeError, match="unexpected keyword argument 'scale'"):
        peer_function("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", "q", "k", "scale")
    with pytest.raises(ImportError):
        peer_function("no_such_package", "scan")


def test_attention_is_as_wide() -> None:
    other = contenders.attention(Shape(2, 8, 128, 16), CPU, torch.float32)
    assert other is not None
    assert other.forward().shape == (2, 2, 8, 64)
    assert len(other.both()) == 3
    assert contenders.attention(SMALL, CPU, torch.float32) is None


@pytest.mark.parametrize("text", ["64", "0x4", "4x", "4x-1", "2x3x4", "axb"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="expected batch x length"):
        scan.parse_shape(text)


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for args, message in (
        (["--seconds", "0"], "--seconds 0.0"),
        (["--state", "0"], "--state 0"),
        (["--op", "ssd", "--channels", "100"], "--channels 100: needs a multiple of 64"),
        (["--png", "x.png"], "--crossing, which was not asked for"),
        (["--crossing", "--shape", "1x64", "2x32"], "do not grow"),
        (["--crossing", "--shape", "1x64", "2x128"], "same number of tokens"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["bench", "scan", "--device", "cpu", *args])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "scan", "--help"])
    assert end.value.code in (0, None)
    assert "--shape" in capsys.readouterr().out
