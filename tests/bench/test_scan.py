"""The benchmark of the scan on a CPU: what is wrong gets no times, floors are arithmetic."""

import dataclasses
import json
import re
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from scangolf.bench import contenders, scan
from scangolf.bench.check import compare, make_inputs, results, truth
from scangolf.bench.floor import Rates, Shape, floors, scan_bytes
from scangolf.bench.timing import Stopwatch
from scangolf.cli import main
from scangolf.errors import UserError
from scangolf.ops import s6_chunked, selective_scan

CPU = torch.device("cpu")
SMALL = Shape(2, 40, 6, 3)
ARGS = ["bench", "scan", "--device", "cpu", "--shape", "2x40", "--channels", "6", "--state", "3",
        "--seconds", "0.01"]  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bandwidth of this machine is no part of what is tested."""
    monkeypatch.setattr(Stopwatch, "copy_rate", lambda self: 1e10)


def wrong_backward(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    backward = s6_chunked.backward

    def changed(*args: Any) -> tuple[Tensor, ...]:
        grads = list(backward(*args))
        grads[2] = change(grads[2])  # of A
        return tuple(grads)

    monkeypatch.setattr(s6_chunked, "backward", changed)


def test_json_has_every_documented_field(capsys: pytest.CaptureFixture[str]) -> None:
    main([*ARGS, "--json"])
    report = json.loads(capsys.readouterr().out)

    def names(kind: Any) -> list[str]:
        return [field.name for field in dataclasses.fields(kind)]

    assert list(report) == names(scan.Report)
    assert report["passed"] is True
    assert report["dtype"] == "float32"
    assert report["command"].startswith("scangolf bench scan --shape 2x40 --channels 6 --state 3")
    (part,) = report["shapes"]
    assert part["shape"] == {"batch": 2, "length": 40, "channels": 6, "state": 3}
    assert part["floors"]["both"]["bytes"] == sum(scan_bytes(SMALL, torch.float32))
    assert [(row["name"], row["form"]) for row in part["rows"]] == [
        ("auto", "reference"),
        ("loop", "plain recurrence"),
    ]
    for row in part["rows"]:
        assert list(row) == names(scan.Row)
        assert row["passed"] is True
        assert row["repeatable"] is True
        assert sorted(row["errors"]) == sorted(
            ["y", "u", "delta", "A", "B", "C", "D", "z", "delta_bias"]
        )
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


def test_other_bits_the_second_time_get_no_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_backward(monkeypatch, lambda g: g * (1 + 1e-6 * torch.rand(())))
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parts_of_the_truth_make_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    inputs, dy = make_inputs(SMALL, CPU, dtype)
    whole = truth(inputs, dy)
    for room in (40 * 3 * 4, 40 * 6 * 3):  # four channels at a time; one sequence at a time
        monkeypatch.setattr("scangolf.bench.check.ROOM_CPU", room)
        parts = truth(inputs, dy)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-12)
    got = results(lambda x: selective_scan(**x, delta_softplus=True), inputs, dy)  # type: ignore[call-overload]
    assert compare(got, got, whole, dtype).within_limits


def test_floors_by_hand() -> None:
    """16 x 4096 tokens, 1024 channels, 16 states in bf16: u, delta, z and y are 128 MiB each, B
    and C 2 MiB each, A 64 KiB, D and the bias 4 KiB each."""
    mib = 1 << 20
    inputs = 3 * 128 * mib + 2 * 2 * mib + (64 + 2 * 4) * 1024
    shape = Shape(16, 4096, 1024, 16)
    forward, backward = scan_bytes(shape, torch.bfloat16)
    assert forward == inputs + 128 * mib
    assert backward == inputs + 128 * mib + inputs
    assert scan_bytes(shape, torch.float32)[0] == 4 * 256 * mib + 2 * 4 * mib + 72 * 1024

    assert shape.updates == 1 << 30
    rates = Rates(4.2e12, 16 * 132 * 1.98e9, 1.98e9, "", 132)
    below = floors(shape, torch.bfloat16, rates)
    assert below.forward.memory_ms == pytest.approx(0.129, abs=0.001)
    assert below.forward.exponentials_ms == pytest.approx(0.257, abs=0.001)
    assert below.forward.ms == below.forward.exponentials_ms
    assert below.both.memory_ms == pytest.approx(1e3 * (forward + backward) / 4.2e12)
    assert below.both.exponentials_ms == pytest.approx(0.514, abs=0.001)
    unknown = floors(shape, torch.bfloat16, dataclasses.replace(rates, exponentials=None))
    assert unknown.forward.exponentials_ms is None
    assert unknown.forward.ms == unknown.forward.memory_ms


def test_the_peer_reads_time_last_and_answers_in_our_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        assert all(x.is_contiguous() for x in (u, delta, B, C, z))
        u, delta, B, C, z = (x.mT for x in (u, delta, B, C, z))
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus).mT

    name = "mamba_ssm.ops.selective_scan_interface"
    fake = types.SimpleNamespace(selective_scan_fn=selective_scan_fn)
    for module in ("mamba_ssm", "mamba_ssm.ops", name):
        monkeypatch.setitem(sys.modules, module, fake)
    inputs, dy = make_inputs(SMALL, CPU, torch.float32)
    peer = contenders.mamba_ssm(inputs, dy)
    assert peer is not None
    got = peer.results()
    assert compare(got, got, truth(inputs, dy), torch.float32).within_limits
    assert peer.both()[0].shape == (2, 6, 40)


def test_attention_is_as_wide() -> None:
    other = contenders.attention(Shape(2, 8, 128, 16), CPU, torch.float32)
    assert other is not None
    assert other.forward().shape == (2, 2, 8, 64)
    assert len(other.both()) == 3
    assert contenders.attention(SMALL, CPU, torch.float32) is None


@pytest.mark.parametrize("text", ["64", "0x4", "4x", "4x-1", "2x3x4", "axb"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="expected batch x length"):
        contenders.parse_shape(text)


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for args, message in ((["--seconds", "0"], "--seconds 0.0"), (["--state", "0"], "--state 0")):
        with pytest.raises(SystemExit) as end:
            main(["bench", "scan", "--device", "cpu", *args])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "scan", "--help"])
    assert end.value.code in (0, None)
    assert "--shape" in capsys.readouterr().out
