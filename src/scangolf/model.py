"""HybridLM: a stack of blocks, each a sequence mixer and an MLP, with skips as in a U-Net.

- any pattern of mixers over the depth; one interface for all of them
- token embedding tied to the output, RMS norms without weights, no biases
- every block mixes the residual stream with the normalised embedding, per channel
- the first half of the blocks hands its output to the second half, innermost first
- the stack may be passed several times with the same weights (Universal Transformers, Dehghani et
  al. 2018, arXiv:1807.03819): skips stay within a pass, each block meets the embedding anew
- float32 weights; the stream is in `compute_dtype`, the loss in float32
- one initialisation from one seed, independent of torch's global random state

Shapes: B batch, L length, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scangolf.config import ModelConfig
from scangolf.layers import MIXERS
from scangolf.layers.linear import Linear
from scangolf.layers.mixer import State
from scangolf.layers.mlp import MLP
from scangolf.layers.norm import rms_norm


class Block(nn.Module):
    groups = {"resid_mix": "vector"}

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.mixer = MIXERS[config.layers[layer]](config)
        self.mlp = MLP(config)
        self.resid_mix = nn.Parameter(torch.empty(2, config.d_model))

    def init_weights(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.resid_mix.copy_(torch.tensor([[1.0], [0.0]]).expand_as(self.resid_mix))

    def forward(
        self, x: Tensor, x0: Tensor, state: State | None = None, *, step: bool = False
    ) -> tuple[Tensor, State | None]:
        """x and x0 are [B, L, D], or [B, D] when `step` says that they are a single position."""
        mixer = self.mixer.step if step else self.mixer
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        y, state = mixer(rms_norm(x), state)
        x = x + y
        return x + self.mlp(rms_norm(x)), state


class Embedding(nn.Module):
    groups = {"weight": "embedding"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.std = config.embed_std
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))

    def init_weights(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.weight, std=self.std, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)

    def as_head(self, x: Tensor) -> Tensor:
        """Logits by the same matrix: tied embeddings."""
        return F.linear(x, self.weight.to(x.dtype))


class HybridLM(nn.Module):
    """A causal language model over `config.vocab_size` tokens.

    Its parameters are drawn from `seed`, or left as they are in memory with None, to be loaded.

    `compute_dtype` (float32 unless set) is the dtype of the residual stream and of every product.
    """

    groups = {"skip_weights": "vector"}

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.n_skips = config.n_layers // 2
        self.skip_weights = nn.Parameter(torch.empty(self.n_skips, config.d_model))
        self.head = None
        if not config.tie_embeddings:
            self.head = Linear(config.d_model, config.vocab_size, zero=True)
            self.head.groups = {"weight": "head"}
        if seed is not None:
            self.initialise(seed)

    def initialise(self, seed: int) -> None:
        """Draws every parameter anew; modules are visited in the order they were made."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            init_weights: Any = getattr(module, "init_weights", None)
            if init_weights is not None:
                init_weights(generator)

    def init_weights(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.skip_weights)

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def parameter_groups(self) -> dict[str, str]:
        """The optimiser group of every parameter, by name. A parameter without one is an error."""
        found: dict[str, str] = {}
        for path, module in self.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                full_name = f"{path}.{name}" if path else name
                group = getattr(module, "groups", {}).get(name)
                if group is None:
                    raise ValueError(f"parameter {full_name} is in no optimiser group")
                found[full_name] = group
        return found

    def forward(self, tokens_BL: Tensor, targets_BL: Tensor | None = None) -> Tensor:
        """Logits [B, L, V] in float32, or with targets the loss of each, in nats, [B, L]."""
        logits_BLV, _ = self._logits(tokens_BL, [None] * (len(self.blocks) * self.config.loops))
        if targets_BL is None:
            return logits_BLV
        losses = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="none")
        return losses.view_as(targets_BL)

    def extend(self, tokens_BL: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """Logits [B, L, V] of a sequence that continues where `state` stands, and the new state."""
        return self._logits(tokens_BL, state)

    def step(self, tokens_B: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """Logits [B, V] after one more token, and the new state: decoding in constant memory."""
        return self._logits(tokens_B, state, step=True)

    def init_state(self, batch: int) -> list[State]:
        """The state before the first token, for `extend` and `step`.

        One a block and pass: a block that is passed again has seen other inputs there.
        """
        device = self.skip_weights.device
        mixers = [block.mixer for block in self.blocks] * self.config.loops
        return [mixer.init_state(batch, device, self.compute_dtype) for mixer in mixers]  # type: ignore[union-attr,operator]

    def _logits(
        self, tokens: Tensor, state: Sequence[State | None], *, step: bool = False
    ) -> tuple[Tensor, list[State]]:
        x = x0 = rms_norm(self.embedding(tokens).to(self.compute_dtype))
        new_state = []
        for _ in range(self.config.loops):
            stored = []
            for i, block in enumerate(self.blocks):
                if i >= self.n_skips and stored:
                    x = x + self.skip_weights[i - self.n_skips].to(x.dtype) * stored.pop()
                x, block_state = block(x, x0, state[len(new_state)], step=step)
                new_state.append(block_state)
                if i < self.n_skips:
                    stored.append(x)
        x = rms_norm(x)
        head = self.embedding.as_head if self.head is None else self.head
        logits = head(x)
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits.float() / cap), new_state
