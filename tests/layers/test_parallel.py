"""Attention and SSM in one block, against the two of them alone."""

import torch
from mixer_cases import CONFIG, filled

from scangolf.config import ModelConfig
from scangolf.layers.parallel import Parallel
from scangolf.model import HybridLM


def test_parallel_is_the_mean_of_both() -> None:
    mixer = filled(Parallel(CONFIG))
    x_BLD = torch.randn(2, 7, 24, dtype=torch.float64)
    found, _ = mixer(x_BLD)

    def rms(t: torch.Tensor) -> torch.Tensor:
        return t / t.square().mean(-1, keepdim=True).sqrt()

    attended, scanned = mixer.attention(x_BLD)[0], mixer.ssm(x_BLD)[0]
    expected = (mixer.attention_scale * rms(attended) + mixer.ssm_scale * rms(scanned)) / 2
    torch.testing.assert_close(found, expected)


def test_only_its_scales_start_at_zero() -> None:
    config = ModelConfig(d_model=64, n_layers=1, pattern="parallel")
    mixer = HybridLM(config, seed=0).blocks[0].mixer
    zero = {name for name, p in mixer.named_parameters() if not p.any()}  # type: ignore[union-attr]
    assert zero == {"attention_scale", "ssm_scale"}
