"""A small configuration for every mixer, and mixers no part of which is zero."""

from typing import TypeVar

import torch

from scangolf.config import AttentionConfig, GDNConfig, ModelConfig, S6Config, SSDConfig

CONFIG = ModelConfig(
    d_model=24,
    attention=AttentionConfig(n_heads=6, n_kv_heads=2, rope_base=100.0),
    s6=S6Config(d_state=3, dt_rank=4, d_conv=4),
    ssd=SSDConfig(d_state=5, head_dim=8, n_groups=2),
    gdn=GDNConfig(n_heads=3, key_dim=4, value_dim=6),
)

M = TypeVar("M", bound=torch.nn.Module)


def filled(module: M) -> M:
    """The module in float64 with every parameter drawn anew, none of them zero."""
    generator = torch.Generator().manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module
