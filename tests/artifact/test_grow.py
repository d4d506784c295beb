"""How large a model may become, against plain arithmetic."""

import dataclasses

import pytest

from scangolf.artifact.grow import grow
from scangolf.config import AttentionConfig
from scangolf.model import HybridLM
from scangolf.recipes import PRESETS

CODE_BYTES = 80_000
LEFT = 8 * (16_000_000 - CODE_BYTES)


def test_each_size_is_the_largest_that_leaves_the_bits():
    config = PRESETS["hybrid"]()
    model = config.model
    grown = grow(config, CODE_BYTES, bits=4.0)
    assert [set(g.settings) for g in grown] == [{"mlp_width"}, {"n_layers"}]  # 576 wide is too much
    n_now = HybridLM(model, seed=None).n_parameters
    mlp, blocks = grown

    column = 2 * 64 * model.d_model * model.n_layers  # 64 more in every MLP
    steps = (mlp.settings["mlp_width"] - model.mlp_width) // 64
    assert mlp.room.parameters == n_now + steps * column
    assert n_now + steps * column <= LEFT / 4.0 < n_now + (steps + 1) * column

    deeper = dataclasses.replace(model, **blocks.settings)
    deepest = dataclasses.replace(model, n_layers=deeper.n_layers + 1)
    assert blocks.room.parameters == HybridLM(deeper, seed=None).n_parameters <= LEFT / 4.0
    assert HybridLM(deepest, seed=None).n_parameters > LEFT / 4.0
    assert grow(config, CODE_BYTES, bits=1.001 * LEFT / (n_now + column)) == []


def test_a_width_that_the_heads_cannot_share_out_is_passed_over():
    config = PRESETS["attention"]()
    heads = AttentionConfig(n_heads=10, n_kv_heads=10)
    model = dataclasses.replace(config.model, attention=heads, d_model=320, mlp_width=640)
    config = dataclasses.replace(config, model=model)
    wider = grow(config, CODE_BYTES, bits=4.0)[-1].settings
    assert wider == {"d_model": 640, "mlp_width": 1280}
    larger = dataclasses.replace(model, d_model=960, mlp_width=1920)
    assert HybridLM(larger, seed=None).n_parameters > LEFT / 4.0


@pytest.mark.parametrize("bits", [3.0, 4.5])
def test_fewer_bits_make_room(bits):
    config = PRESETS["tiny"]()
    for fewer, more in zip(
        grow(config, CODE_BYTES, bits), grow(config, CODE_BYTES, bits + 1), strict=True
    ):
        assert fewer.room.bits_per_weight >= bits
        assert fewer.room.parameters > more.room.parameters
