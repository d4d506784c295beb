"""`scangolf bench`: speed on the machine at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from scangolf.cli.app import PresetName, Verb, app

bench_app = SubcommandApp()
app.command(bench_app, name="bench", help="Speed, checked first, beside the peers installed.")


@bench_app.command(name="scan")
def bench_scan(
    op: Literal["s6", "ssd", "gdn"] = "s6",
    shape: tuple[str, ...] = (),
    channels: int | None = None,
    state: int | None = None,
    dtype: Literal["bf16", "float16", "float32"] | None = None,
    seconds: float = 2.0,
    device: str = "auto",
    crossing: bool = False,
    png: Path | None = None,
    json: bool = False,
) -> Verb:
    """Speed of a scan, forward and backward, beside its peers and its floor.

    Outputs and gradients are compared with float64 first: what fails gets no times, and exit
    code 1.

    Args:
        op: s6 (Mamba's selective scan), ssd (Mamba-2's) or gdn (the gated delta rule).
        shape: Shapes, each batch x length (16x4096); on a GPU 64x1024 16x4096, and for s6 4x16384,
            unless given.
        channels: 1024 on a GPU, 256 on a CPU, unless given; in heads of 64 for ssd and gdn.
        state: States of a channel; 16 for s6, 64 for the others, unless given.
        dtype: Of the activations; bf16 on a GPU, float32 on a CPU, unless given.
        seconds: Of repetitions, for each figure.
        device: auto, cpu or cuda.
        crossing: From which length on is the scan faster than attention? At one number of tokens,
            65536 and lengths 512 to 32768 on a GPU, 2048 and 128 to 2048 on a CPU, unless shapes
            are given.
        png: Also draw the crossing, as this picture.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.bench.scan import bench_scan as measure

        if not measure(op, shape, channels, state, dtype, seconds, device, crossing, png, json):
            sys.exit(1)

    return verb


@bench_app.command(name="train")
def bench_train(
    presets: Positional[tuple[PresetName, ...]] = (),
    lengths: tuple[int, ...] = (),
    set: tuple[str, ...] = (),
    data: Path | None = None,
    tokens: int | None = None,
    micro_tokens: int | None = None,
    seconds: float = 5.0,
    device: str = "auto",
    profile: bool = False,
    json: bool = False,
) -> Verb:
    """Speed of training: tokens a second, memory and utilisation, presets by lengths.

    Args:
        presets: tiny on a CPU, else baseline, attention, hybrid and hybrid-s6, unless given.
        lengths: Tokens in a sequence; each preset's own unless given.
        set: Settings of all presets, as in --set model.ssd.expand=2 model.mlp-width=1024.
        data: Folder of the dataset; each preset's own unless given.
        tokens: Tokens of a step; each preset's own unless given.
        micro_tokens: Tokens of one pass at most; each preset's own unless given.
        seconds: Of training, for each figure.
        device: auto, cpu, cuda or mps.
        profile: Also list the kernels that a GPU ran, and their time in a step.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.bench.train import bench_train as measure

        measure(presets, lengths, set, data, tokens, micro_tokens, seconds, device, profile, json)

    return verb


@bench_app.command(name="decode")
def bench_decode(
    presets: Positional[tuple[PresetName, ...]] = (),
    contexts: tuple[int, ...] = (),
    batch: int = 1,
    seconds: float = 1.0,
    device: str = "auto",
    json: bool = False,
) -> Verb:
    """Speed of generating text, and what is remembered for it, presets by tokens before.

    Logits are compared with those of the whole sequence first; exit code 1 if they differ.

    Args:
        presets: tiny on a CPU, else attention, hybrid and ssm, unless given.
        contexts: Tokens that came before; 128, 1024 and 8192 unless given.
        batch: Sequences generated at the same time.
        seconds: Of repetitions, for each figure.
        device: auto, cpu, cuda or mps.
        json: Print JSON.
    """

    def verb() -> None:
        from scangolf.bench.decode import bench_decode as measure

        if not measure(presets, contexts, batch, seconds, device, json):
            sys.exit(1)

    return verb
