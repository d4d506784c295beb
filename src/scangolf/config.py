"""What a run is: frozen dataclasses; `recipes.py` has the presets.

Nothing here imports torch, so that `scangolf --help` stays instant.
The string under each field is its help text on the command line.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from scangolf.errors import UserError
from scangolf.records import from_plain

LONGEST_PATTERN = 1000
LayerKind = Literal["attention", "s6", "s6_seed", "lti", "ssd", "gdn", "parallel"]


@dataclass(frozen=True)
class AttentionConfig:
    n_heads: int = 8
    """Query heads."""
    n_kv_heads: int = 4
    """Key and value heads; query heads share them in groups."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies."""
    qk_gain: float = 1.5
    """Initial gain of the normalised queries, per head."""
    window: int = 1024
    """Tokens that attention keeps when it decodes or scores with a carried state."""


@dataclass(frozen=True)
class S6Config:
    d_state: int = 16
    """State size N of a channel."""
    expand: int = 2
    """Inner width as a multiple of d_model."""
    d_conv: int = 4
    """Taps of the causal depthwise convolution."""
    dt_rank: int = 32
    """Rank of the projection that produces delta."""
    dt_min: float = 0.001
    """Smallest initial delta; delta starts log-uniform between dt_min and dt_max."""
    dt_max: float = 0.1
    """Largest initial delta."""


@dataclass(frozen=True)
class SSDConfig:
    d_state: int = 64
    """State size N of a channel."""
    expand: int = 2
    """Inner width as a multiple of d_model."""
    head_dim: int = 64
    """Size of a head; the heads share out the inner width."""
    n_groups: int = 1
    """Groups of heads that share B and C."""
    d_conv: int = 4
    """Taps of the causal depthwise convolution."""


@dataclass(frozen=True)
class GDNConfig:
    n_heads: int = 6
    """Heads; with the sizes below a layer is as large as one of ssd, 6 d_model^2, at width 512."""
    key_dim: int = 64
    """Size of a head's queries and keys."""
    value_dim: int = 128
    """Size of a head's values."""
    d_conv: int = 4
    """Taps of the causal depthwise convolution."""


@dataclass(frozen=True)
class ModelConfig:
    vocab_size: int = 1024
    """Tokens in the vocabulary; must match the tokenizer."""
    d_model: int = 512
    """Width of the residual stream."""
    n_layers: int = 9
    """Blocks."""
    pattern: str = "attention"
    """Mixers, repeated over the depth: attention, "3 s6 : 1 attention", or one kind a block."""
    loops: int = 1
    """Passes through the blocks, which share their weights: depth without parameters."""
    mlp_width: int = 1024
    """Hidden width of the MLP."""
    tie_embeddings: bool = True
    """Use the embedding as the output matrix."""
    embed_std: float = 0.005
    """Standard deviation of the initial embedding."""
    logit_softcap: float = 30.0
    """Logits are capped smoothly to this magnitude."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Layers attention and parallel."""
    s6: S6Config = field(default_factory=S6Config)
    """Layers s6, s6_seed and lti."""
    ssd: SSDConfig = field(default_factory=SSDConfig)
    """Layers ssd (Mamba-2) and parallel, whose other half is attention."""
    gdn: GDNConfig = field(default_factory=GDNConfig)
    """Layers gdn (Gated DeltaNet)."""

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """The mixer of every block, from the first to the last."""
        cycle = expand_pattern(self.pattern)
        if len(cycle) > self.n_layers:
            raise UserError(
                f"model.pattern '{self.pattern}' names {len(cycle)} layers, but model.n_layers is "
                f"{self.n_layers}: shorten the pattern or raise n_layers"
            )
        return tuple(cycle[i % len(cycle)] for i in range(self.n_layers))


def expand_pattern(pattern: str) -> tuple[LayerKind, ...]:
    """ "3 s6 : 1 attention" -> ("s6", "s6", "s6", "attention"). Commas and colons both separate."""
    kinds: list[LayerKind] = []
    if len(pattern) > LONGEST_PATTERN:  # from a file: no model is meant, and nothing is expanded
        raise UserError(
            f"model.pattern '{pattern[:40]}...' has {len(pattern):,} characters: "
            f"needs {LONGEST_PATTERN:,} at most"
        )
    for item in re.split(r"[:,]", pattern):
        match = re.fullmatch(r"\s*(?:(\d{1,3})\s+)?([a-z]\w*)\s*", item)
        if match is None or match[2] not in get_args(LayerKind) or match[1] == "0":
            raise UserError(
                f"model.pattern '{pattern}': cannot read '{item.strip()}'; write a kind "
                f"({', '.join(get_args(LayerKind))}) with an optional count before it, "
                "for example '3 s6 : 1 attention'"
            )
        kinds += [match[2]] * int(match[1] or 1)  # type: ignore[list-item]
    return tuple(kinds)


@dataclass(frozen=True)
class BatchConfig:
    tokens: int = 524_288
    """Tokens a step, over all devices."""
    seq_len: int = 1024
    """Tokens in a sequence."""
    micro_tokens: int = 131_072
    """Tokens of one pass on one device, at most; a step accumulates as many as it needs."""
    order: Literal["sequential", "window", "document"] = "window"
    """An epoch as stored, by shuffled windows of seq_len, or by shuffled documents."""


@dataclass(frozen=True)
class OptimConfig:
    matrix_lr: float = 0.04
    """Muon: 2-D matrices of the blocks."""
    embedding_lr: float = 0.05
    """Adam: the token embedding."""
    head_lr: float = 0.008
    """Adam: the output matrix, when it is not tied to the embedding."""
    vector_lr: float = 0.04
    """Adam: scales, gains, mixes and skip weights."""
    dynamics_lr: float = 0.01
    """Adam: what sets the memory of a scan (A_log, D, the bias of delta) and its convolution."""
    momentum: float = 0.95
    """Muon: Nesterov momentum."""
    momentum_start: float = 0.85
    """Muon: momentum at the first step, raised linearly to the full one."""
    momentum_steps: int = 500
    """Muon: steps until the momentum is full."""
    weight_decay: float = 0.0
    """Muon: a step takes this part of a matrix away, times the learning rate."""
    newton_schulz_steps: int = 5
    """Muon: iterations of the orthogonalisation."""
    beta1: float = 0.9
    """Adam: decay of the mean."""
    beta2: float = 0.95
    """Adam: decay of the square."""
    eps: float = 1e-8
    """Adam: added to the root of the square."""


@dataclass(frozen=True)
class ScheduleConfig:
    kind: Literal["share", "challenge"] = "share"
    """By the share of the budget used, or by the steps left, as the challenge's baseline."""
    warmup: float = 0.02
    """share: part of the budget over which the learning rate rises."""
    warmdown: float = 0.6
    """share: last part of the budget, over which the learning rate falls to zero."""
    warmdown_steps: int = 1200
    """challenge: steps of warmdown, at the average speed so far."""


@dataclass(frozen=True)
class ArtifactConfig:
    scheme: Literal["int8-brotli", "int8-zlib", "mixed-rans"] = "int8-brotli"
    """mixed-rans: calibrated steps, as fine as the limit allows; int8-brotli: 8 bits a weight,
    without calibration; int8-zlib: the challenge's baseline scheme."""
    limit_bytes: int = 16_000_000
    """Code and artifact together must not be larger."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run, besides the machine."""

    preset: str
    """The preset this configuration started from."""
    seconds: float = 60.0
    """Wall-clock budget of training; compiling before it and evaluation are outside."""
    steps: int | None = None
    """Budget in steps instead of seconds: makes a run repeatable, on a CPU to the bit."""
    data: str = "data/local"
    """Folder of the dataset: train and validation shards with their tokenizer."""
    seed: int = 1337
    """Seed of initialisation and data order."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    compile: bool = True
    """Compile the model on a GPU, outside the budget; elsewhere it runs eagerly."""
    evals: int = 0
    """Evaluations on the validation split during the run; the clock stands still meanwhile."""
    checkpoint_seconds: float = 300.0
    """Seconds between checkpoints; there is always one when a run ends or is interrupted."""
    model: ModelConfig = field(default_factory=ModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    artifact: ArtifactConfig = field(default_factory=ArtifactConfig)

    def __post_init__(self) -> None:
        check(self)


SEEDS = range(-(2**63), 2**63)
"""Those that torch's generators take and that a file of TOML can hold."""


def check(config: RunConfig) -> None:
    """Refuses what cannot be run, naming the option, its value and what would be valid."""
    check_model(config.model)
    batch, schedule = config.batch, config.schedule
    _require(config.seconds > 0, "seconds", config.seconds, "a budget above 0 seconds")
    _require(config.steps is None or config.steps > 0, "steps", config.steps, "at least 1 step")
    limit_bytes = config.artifact.limit_bytes
    _require(limit_bytes > 0, "artifact.limit-bytes", limit_bytes, "at least 1 byte")
    _require(config.seed in SEEDS, "seed", config.seed, "a whole number of 64 bits")
    _require(config.evals >= 0, "evals", config.evals, "0 or more")
    _require(
        config.checkpoint_seconds > 0,
        "checkpoint-seconds",
        config.checkpoint_seconds,
        "more than 0 seconds",
    )
    _require(batch.seq_len > 0, "batch.seq-len", batch.seq_len, "at least 1")
    _require(
        batch.tokens > 0 and batch.tokens % batch.seq_len == 0,
        "batch.tokens",
        batch.tokens,
        f"a multiple of the sequence length, {batch.seq_len}",
    )
    _require(
        batch.micro_tokens >= batch.seq_len,
        "batch.micro-tokens",
        batch.micro_tokens,
        f"at least the sequence length, {batch.seq_len}",
    )
    _check_optim(config.optim)
    _require(0 <= schedule.warmup < 1, "schedule.warmup", schedule.warmup, "0 or more, below 1")
    _require(0 <= schedule.warmdown <= 1, "schedule.warmdown", schedule.warmdown, "0 to 1")
    _require(
        schedule.warmdown_steps > 0,
        "schedule.warmdown-steps",
        schedule.warmdown_steps,
        "at least 1 step",
    )


def _check_optim(optim: OptimConfig) -> None:
    for name, value in dataclasses.asdict(optim).items():
        option = f"optim.{name.replace('_', '-')}"
        if name in ("momentum", "momentum_start", "beta1", "beta2"):
            _require(0 <= value < 1, option, value, "0 or more, below 1")
        elif name in ("newton_schulz_steps", "eps"):
            _require(value > 0, option, value, "more than 0")
        else:
            _require(0 <= value < math.inf, option, value, "a number from 0")


def check_model(model: ModelConfig) -> None:
    """The same for the model alone: it also guards against files that lie about a model's size."""
    heads, s6 = model.attention, model.s6
    _require(
        4 <= model.vocab_size <= 65_536,
        "model.vocab-size",
        model.vocab_size,
        "4 to 65536, as shards hold 16 bits a token",
    )
    _require(1 <= model.n_layers <= 1000, "model.n-layers", model.n_layers, "1 to 1000")
    _require(len(model.layers) > 0, "model.pattern", model.pattern, "at least one kind")
    _require(
        model.loops >= 1 and model.loops * model.n_layers <= 1000,
        "model.loops",
        model.loops,
        f"at least 1, and at most 1000 blocks passed (there are {model.n_layers})",
    )
    _require(heads.n_heads > 0, "model.attention.n-heads", heads.n_heads, "at least 1")
    _require(
        model.d_model > 0 and model.d_model % (2 * heads.n_heads) == 0,
        "model.d-model",
        model.d_model,
        f"a multiple of twice the {heads.n_heads} attention heads",
    )
    _require(
        heads.n_kv_heads > 0 and heads.n_heads % heads.n_kv_heads == 0,
        "model.attention.n-kv-heads",
        heads.n_kv_heads,
        f"a divisor of the {heads.n_heads} query heads",
    )
    _require(heads.window > 0, "model.attention.window", heads.window, "at least 1")
    _require(model.embed_std >= 0, "model.embed-std", model.embed_std, "0 or more")
    _require(model.mlp_width > 0, "model.mlp-width", model.mlp_width, "at least 1")
    _require(model.logit_softcap > 0, "model.logit-softcap", model.logit_softcap, "above 0")
    for name in ("d_state", "expand", "d_conv", "dt_rank"):
        value = getattr(s6, name)
        _require(value > 0, f"model.s6.{name.replace('_', '-')}", value, "at least 1")
    _require(0 < s6.dt_min <= s6.dt_max, "model.s6.dt-min", s6.dt_min, "above 0, up to dt_max")
    if {"ssd", "parallel"} & set(model.layers):
        _check_ssd(model)
    if "gdn" in model.layers:
        for name, value in dataclasses.asdict(model.gdn).items():
            _require(value > 0, f"model.gdn.{name.replace('_', '-')}", value, "at least 1")


def _check_ssd(model: ModelConfig) -> None:
    ssd = model.ssd
    for name, value in dataclasses.asdict(ssd).items():
        _require(value > 0, f"model.ssd.{name.replace('_', '-')}", value, "at least 1")
    inner = ssd.expand * model.d_model
    _require(
        inner % ssd.head_dim == 0,
        "model.ssd.head-dim",
        ssd.head_dim,
        f"a divisor of the inner width, {ssd.expand} times {model.d_model}",
    )
    heads = inner // ssd.head_dim
    _require(
        heads % ssd.n_groups == 0,
        "model.ssd.n-groups",
        ssd.n_groups,
        f"a divisor of the {heads} heads of {ssd.head_dim}",
    )


def _require(valid: bool, option: str, value: object, wanted: str) -> None:
    if not valid:
        raise UserError(f"--{option} {value}: needs {wanted}")


# --- JSON ---------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return dataclasses.asdict(config)


def run_config_from_dict(values: Any, source: str) -> RunConfig:
    """The strict inverse of `to_dict`; `source` names the file in the error."""
    return _from_dict(values, RunConfig, source)


def model_config_from_dict(values: Any, source: str) -> ModelConfig:
    """The same for a model's configuration alone."""
    model = _from_dict(values, ModelConfig, source)
    try:
        check_model(model)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return model


def _from_dict(values: Any, kind: type, source: str) -> Any:
    try:
        return from_plain(values, kind)
    except (ValueError, UserError) as error:
        raise UserError(f"{source}: not a configuration of this version: {error}") from error
