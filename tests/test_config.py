"""Configurations: patterns, strict JSON, and refusals that name the option."""

import dataclasses
import json

import pytest

from scangolf.config import (
    ArtifactConfig,
    AttentionConfig,
    BatchConfig,
    GDNConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SSDConfig,
    expand_pattern,
    run_config_from_dict,
    to_dict,
)
from scangolf.errors import UserError
from scangolf.recipes import PRESETS


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [
        ("attention", ["attention"]),
        ("3 s6 : 1 attention", ["s6", "s6", "s6", "attention"]),
        ("s6:attention", ["s6", "attention"]),
        ("s6, s6, attention, s6", ["s6", "s6", "attention", "s6"]),
        ("3 ssd : gdn, lti", ["ssd", "ssd", "ssd", "gdn", "lti"]),
        (" 2 s6_seed:attention ", ["s6_seed", "s6_seed", "attention"]),
    ],
)
def test_pattern(pattern: str, kinds: list[str]) -> None:
    assert list(expand_pattern(pattern)) == kinds


def test_pattern_repeats_over_the_depth() -> None:
    layers = ModelConfig(n_layers=6, pattern="3 s6 : attention").layers
    assert layers == ("s6", "s6", "s6", "attention", "s6", "s6")


@pytest.mark.parametrize("pattern", ["", "mamba", "0 s6", "s6 :", "3s6", "-1 s6", "s6 attention"])
def test_an_unreadable_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match=r"cannot read"):
        expand_pattern(pattern)


def test_a_pattern_longer_than_the_model() -> None:
    with pytest.raises(UserError, match=r"names 4 layers, but model.n_layers is 2"):
        RunConfig("x", model=ModelConfig(n_layers=2, pattern="3 s6 : attention"))


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    config = PRESETS[name]()
    assert config.preset == name
    assert run_config_from_dict(json.loads(json.dumps(to_dict(config))), "config.json") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "modle"),
        ({"model": {"d_modle": 3}}, "d_modle"),
        ({"seconds": "long"}, "seconds"),
        ({"seconds": 0}, "--seconds 0.0: needs a budget above 0 seconds"),
        ({"model": {"pattern": "mamba"}}, "cannot read 'mamba'"),
    ],
)
def test_a_config_file_is_read_strictly(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        run_config_from_dict({"preset": "tiny"} | change, "runs/x/config.json")
    assert "runs/x/config.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"seconds": -1.0}, "--seconds"),
        ({"seconds": float("nan")}, "--seconds"),
        ({"steps": 0}, "--steps"),
        ({"seed": 2**63}, "--seed 9223372036854775808: needs a whole number of 64 bits"),
        ({"artifact": ArtifactConfig(limit_bytes=0)}, "--artifact.limit-bytes 0: needs at least"),
        ({"model": ModelConfig(d_model=500)}, "--model.d-model"),
        ({"model": ModelConfig(vocab_size=70_000)}, "--model.vocab-size"),
        ({"model": ModelConfig(loops=0)}, "--model.loops 0: needs at least 1"),
        ({"model": ModelConfig(n_layers=300, loops=4)}, "at most 1000 blocks passed"),
        ({"model": ModelConfig(embed_std=-1.0)}, "--model.embed-std -1.0: needs 0 or more"),
        (
            {"model": ModelConfig(pattern="999 s6," * 140_000)},
            "has 980,000 characters: needs 1,000 at most",
        ),
        ({"optim": OptimConfig(matrix_lr=-0.1)}, "--optim.matrix-lr -0.1: needs a number from 0"),
        ({"optim": OptimConfig(beta2=1.0)}, "--optim.beta2 1.0: needs 0 or more, below 1"),
        ({"optim": OptimConfig(eps=0.0)}, "--optim.eps 0.0: needs more than 0"),
        ({"batch": BatchConfig(tokens=1000)}, "--batch.tokens"),
        ({"batch": BatchConfig(micro_tokens=10)}, "--batch.micro-tokens"),
        ({"batch": BatchConfig(seq_len=0)}, "--batch.seq-len"),
        (
            {"model": ModelConfig(pattern="ssd", ssd=SSDConfig(head_dim=48))},
            "--model.ssd.head-dim 48: needs a divisor of the inner width, 2 times 512",
        ),
        (
            {"model": ModelConfig(pattern="parallel", ssd=SSDConfig(n_groups=3))},
            "--model.ssd.n-groups 3: needs a divisor of the 16 heads of 64",
        ),
        (
            {"model": ModelConfig(pattern="ssd", ssd=SSDConfig(d_state=0))},
            "--model.ssd.d-state 0: needs at least 1",
        ),
        (
            {"model": ModelConfig(pattern="gdn", gdn=GDNConfig(n_heads=-1))},
            "--model.gdn.n-heads -1: needs at least 1",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(changes: dict[str, object], option: str) -> None:
    with pytest.raises(UserError, match=option):
        dataclasses.replace(PRESETS["baseline"](), **changes)  # type: ignore[arg-type]


def test_layers_that_a_model_has_not_need_not_fit() -> None:
    RunConfig(
        "x",
        model=ModelConfig(
            d_model=48,
            attention=AttentionConfig(n_heads=3, n_kv_heads=1),
            ssd=SSDConfig(head_dim=64),
        ),
    )
