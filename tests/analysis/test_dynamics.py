"""Memory by hand: layers whose dt and A are set, and a mean of dt taken another way."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scangolf.analysis.dynamics import FOR_GOOD, QUANTILES, spectrum, watched_scans
from scangolf.config import AttentionConfig, GDNConfig, ModelConfig, S6Config, SSDConfig
from scangolf.model import HybridLM

TOKENS = torch.arange(24).reshape(2, 12) % 11


def make_model(pattern: str, seed: int = 0) -> HybridLM:
    config = ModelConfig(
        vocab_size=11,
        d_model=8,
        n_layers=len(pattern.split(":")),
        pattern=pattern,
        mlp_width=8,
        embed_std=1.0,
        attention=AttentionConfig(n_heads=2, n_kv_heads=1),
        s6=S6Config(d_state=2, dt_rank=3, expand=1),
        ssd=SSDConfig(d_state=4, head_dim=4, expand=1),
        gdn=GDNConfig(n_heads=2, key_dim=4, value_dim=4),
    )
    return HybridLM(config, seed)


def mixers(model: HybridLM) -> list[Any]:
    return [block.mixer for block in model.blocks]


def inverse_softplus(dt: list[float]) -> torch.Tensor:
    return torch.tensor(dt).expm1().log()


@torch.no_grad()
def test_memory_is_one_over_dt_times_a() -> None:
    """dt 0.1 and 0.02, A from -1 to -8: memories are the reciprocals of the products."""
    model = make_model("lti : s6 : ssd : gdn : parallel : attention")
    lti, s6, ssd, gdn, parallel, _ = mixers(model)
    for scan in (lti, s6):
        scan.delta_bias.copy_(inverse_softplus([0.1] * 4 + [0.02] * 4))
        scan.A_log.copy_(torch.tensor([1.0, 2.0]).log())
    s6.dt_proj.weight.zero_()
    for heads in (ssd, parallel.ssm):
        heads.dt_bias.copy_(inverse_softplus([0.1, 0.02]))
        heads.A_log.copy_(torch.tensor([4.0, 8.0]).log())
        heads.in_proj.weight[-2:].zero_()
    gdn.dt_bias.copy_(inverse_softplus([0.1, 0.02]))
    gdn.A_log.copy_(torch.tensor([4.0, 8.0]).log())
    gdn.ab_proj.weight[:2].zero_()

    with watched_scans(model) as scans:
        model(TOKENS)
    assert list(scans) == [0, 1, 2, 3, 4]
    by_state = np.array([[10, 5]] * 4 + [[50, 25]] * 4)
    for block in (0, 1):
        np.testing.assert_allclose(scans[block].memory(), by_state, rtol=1e-5)
    for block in (2, 3, 4):
        np.testing.assert_allclose(scans[block].memory(), [2.5, 6.25], rtol=1e-5)
        np.testing.assert_allclose(scans[block].dt(), [0.1, 0.02], rtol=1e-5)

    entry = spectrum(1, "s6", scans[1])
    assert (entry["channels"], entry["states"], len(entry["memory"])) == (8, 2, QUANTILES)
    assert (entry["memory"][0], entry["memory"][-1]) == pytest.approx((5, 50), rel=1e-5)
    assert entry["memory"] == sorted(entry["memory"])
    assert spectrum(2, "ssd", scans[2])["states"] is None


@torch.no_grad()
def test_dt_is_the_mean_of_what_the_scan_is_given() -> None:
    """Against the arguments that the layers hand to their scans, batch by batch."""
    model = make_model("s6 : s6_seed : ssd : gdn", seed=3)
    given: dict[int, list[torch.Tensor]] = {i: [] for i in range(4)}

    def keep(i: int, name: str) -> None:
        mixer = mixers(model)[i]
        original = getattr(mixer, name)

        def record(*args: torch.Tensor) -> dict[str, Any]:
            inputs = original(*args)
            if "g" in inputs:
                dt = inputs["g"] / -mixer.A_log.exp()
            else:
                r = inputs["delta" if "delta" in inputs else "dt"]
                dt = F.softplus(r + inputs.get("delta_bias", inputs.get("dt_bias", 0)))
            given[i].append(dt.flatten(0, 1))
            return inputs

        setattr(mixer, name, record)

    for i, name in enumerate(("scan_inputs", "scan_inputs", "_scan_inputs", "_rule_inputs")):
        keep(i, name)
    with watched_scans(model) as scans:
        model(TOKENS)
        model(TOKENS.flip(1)[:1])
    for i, watch in scans.items():
        assert watch.tokens == 36
        np.testing.assert_allclose(watch.dt(), torch.cat(given[i]).mean(0).numpy(), rtol=1e-5)
    model(TOKENS)
    assert scans[0].tokens == 36  # nobody watches any more


@torch.no_grad()
def test_a_decay_of_that_memory_leaves_one_over_e() -> None:
    """The definition, on a scan: an impulse, and as many tokens as its state remembers."""
    model = make_model("s6")
    (scan,) = mixers(model)
    scan.delta_bias.copy_(inverse_softplus([0.05] * 8))
    scan.A_log.copy_(torch.tensor([2.0, 4.0]).log())
    scan.dt_proj.weight.zero_()
    with watched_scans(model) as scans:
        model(TOKENS)
    memory = scans[0].memory()[0, 0]
    assert memory == pytest.approx(10, rel=1e-5)
    assert math.exp(-0.05 * 2.0) ** memory == pytest.approx(1 / math.e, rel=1e-5)


@torch.no_grad()
def test_what_never_decays_is_given_a_number() -> None:
    model = make_model("ssd")
    (scan,) = mixers(model)
    scan.dt_bias.fill_(-1000.0)
    scan.in_proj.weight[-2:].zero_()
    with watched_scans(model) as scans:
        model(TOKENS)
    assert scans[0].memory().tolist() == pytest.approx([FOR_GOOD, FOR_GOOD])
