"""A small model that has learned something and the text it learned from; an artifact to break."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from artifact_cases import TOKENIZER
from codec_cases import CONFIG, SCHEMES, stored_state

from scangolf.artifact.codec import encode
from scangolf.config import AttentionConfig, ModelConfig, S6Config, SSDConfig
from scangolf.model import HybridLM


@dataclass(frozen=True)
class Trained:
    model: HybridLM
    shards: list[np.ndarray]
    """Tokens of a second-order Markov chain."""
    seq_len: int

    def batches(self, first: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """`count` batches of 8 sequences, from sequence `first` on."""
        rows = self.shards[0][: len(self.shards[0]) // self.seq_len * self.seq_len]
        rows_BL = torch.from_numpy(rows.astype(np.int64)).view(-1, self.seq_len)[first:]
        return [(r[:, :-1], r[:, 1:]) for r in rows_BL.split(8)[:count]]


@pytest.fixture(scope="session")
def trained() -> Trained:
    V, n = TOKENIZER.vocab_size, 60_000
    config = ModelConfig(
        vocab_size=V,
        d_model=64,
        n_layers=3,
        pattern="s6 : ssd : attention",
        mlp_width=128,
        embed_std=0.1,
        attention=AttentionConfig(n_heads=2, n_kv_heads=1),
        s6=S6Config(d_state=4, dt_rank=4),
        ssd=SSDConfig(d_state=8, head_dim=32),
    )
    rng = np.random.default_rng(0)
    likely = rng.integers(0, V, (4, V, 3))
    tokens = rng.integers(0, V, n).astype(np.uint16)
    choice, familiar = rng.integers(0, 3, n), rng.random(n) < 0.9
    for i in np.flatnonzero(familiar)[2:]:
        tokens[i] = likely[tokens[i - 2] % 4, tokens[i - 1], choice[i]]
    found = Trained(HybridLM(config, 0), [tokens], 64)
    optimiser = torch.optim.Adam(found.model.parameters(), 0.006)
    for x_BL, y_BL in found.batches(0, 100):
        found.model(x_BL, y_BL).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return found


@pytest.fixture(scope="module", params=SCHEMES)
def scheme(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def content(scheme) -> bytes:
    return encode(stored_state(scheme), CONFIG, TOKENIZER, scheme)


@pytest.fixture
def path(tmp_path, content):
    """An artifact to break."""
    path = tmp_path / "artifact.sg"
    path.write_bytes(content)
    return path
