"""The presets: functions that each return a whole run; no torch here, so that --help is instant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from scangolf.config import (
    ArtifactConfig,
    AttentionConfig,
    BatchConfig,
    GDNConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    S6Config,
    ScheduleConfig,
    SSDConfig,
)


def tiny() -> RunConfig:
    """A hybrid of four blocks that learns within two minutes on two CPU cores."""
    return RunConfig(
        preset="tiny",
        seconds=110.0,
        evals=4,
        model=ModelConfig(
            d_model=128,
            n_layers=4,
            pattern="3 s6 : 1 attention",
            mlp_width=256,
            attention=AttentionConfig(n_heads=4, n_kv_heads=2, window=256),
            s6=S6Config(d_state=8, dt_rank=8),
        ),
        batch=BatchConfig(tokens=2048, seq_len=256, micro_tokens=2048),
        optim=OptimConfig(matrix_lr=0.02, embedding_lr=0.02, vector_lr=0.02, dynamics_lr=0.02),
    )


def baseline() -> RunConfig:
    """The challenge's naive baseline: nine attention blocks, its batch, schedule and artifact."""
    return RunConfig(
        preset="baseline",
        seconds=600.0,
        batch=BatchConfig(order="sequential"),
        schedule=ScheduleConfig(kind="challenge"),
        artifact=ArtifactConfig(scheme="int8-zlib"),
    )


def seed() -> RunConfig:
    """The 3:1 hybrid as it was first published, defects included, to measure against.

    Its convolution never trains, Muon orthogonalises A_log, delta starts near 0.69 for every
    channel so that the state forgets within about one token, a full matrix produces delta
    (over the byte limit once trained), and the warmdown counts steps. See layers/s6_seed.py.
    """
    return dataclasses.replace(
        baseline(),
        preset="seed",
        model=ModelConfig(pattern="3 s6_seed : 1 attention"),
        batch=BatchConfig(order="sequential", micro_tokens=65_536),
    )


def hybrid() -> RunConfig:
    """Three Mamba-2 blocks to one of attention.

    Tuned in runs that read their text two to eight times (docs/LOG.md). Such runs need weight
    decay: 0.1 did better than 0.15 in 60 seconds, 0.2 than 0.3 in 165. One that reads nothing twice
    may want none.
    """
    return RunConfig(
        preset="hybrid",
        seconds=180.0,
        model=ModelConfig(
            pattern="3 ssd : 1 attention",
            mlp_width=2048,
            tie_embeddings=False,
            attention=AttentionConfig(n_heads=4, n_kv_heads=2),
            s6=S6Config(expand=1),
            ssd=SSDConfig(d_state=32, expand=1),
            gdn=GDNConfig(n_heads=3),
        ),
        batch=BatchConfig(tokens=65_536, seq_len=2048),
        optim=OptimConfig(matrix_lr=0.02, embedding_lr=0.02, momentum_steps=200, weight_decay=0.2),
        artifact=ArtifactConfig(scheme="mixed-rans"),
    )


def _hybrid_of(preset: str, pattern: str) -> RunConfig:
    """`hybrid` with other layers."""
    model = dataclasses.replace(hybrid().model, pattern=pattern)
    return dataclasses.replace(hybrid(), preset=preset, model=model)


def attention() -> RunConfig:
    """Attention blocks only, as large as `hybrid`; decay and sequences where they did best."""
    run = _hybrid_of("attention", "attention")
    batch = dataclasses.replace(run.batch, seq_len=1024)
    return dataclasses.replace(
        run, batch=batch, optim=dataclasses.replace(run.optim, weight_decay=0.15)
    )


def ssm() -> RunConfig:
    """Mamba-2 blocks only."""
    return _hybrid_of("ssm", "ssd")


def hybrid_1to1() -> RunConfig:
    """Mamba-2 and attention blocks in turn."""
    return _hybrid_of("hybrid-1to1", "ssd : attention")


def hybrid_s6() -> RunConfig:
    """Three selective-scan (Mamba) blocks to one of attention."""
    return _hybrid_of("hybrid-s6", "3 s6 : 1 attention")


def hybrid_gdn() -> RunConfig:
    """Three Gated DeltaNet blocks to one of attention."""
    return _hybrid_of("hybrid-gdn", "3 gdn : 1 attention")


def hybrid_lti() -> RunConfig:
    """Three scans that do not select to one of attention: the control of `hybrid-s6`."""
    return _hybrid_of("hybrid-lti", "3 lti : 1 attention")


def parallel() -> RunConfig:
    """Attention and Mamba-2 side by side in every block."""
    return _hybrid_of("parallel", "parallel")


def golf() -> RunConfig:
    """`hybrid` for 8 GPUs and 600 s, without decay as it reads nothing twice; not measured yet."""
    run = hybrid()
    return dataclasses.replace(
        run,
        preset="golf",
        seconds=600.0,
        batch=dataclasses.replace(run.batch, tokens=524_288, micro_tokens=65_536),
        optim=OptimConfig(matrix_lr=0.03),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "tiny": tiny,
    "baseline": baseline,
    "seed": seed,
    "hybrid": hybrid,
    "attention": attention,
    "ssm": ssm,
    "hybrid-1to1": hybrid_1to1,
    "hybrid-s6": hybrid_s6,
    "hybrid-gdn": hybrid_gdn,
    "hybrid-lti": hybrid_lti,
    "parallel": parallel,
    "golf": golf,
}
