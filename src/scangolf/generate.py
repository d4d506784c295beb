"""Text from a model, a token at a time, in memory that does not grow with the text."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from scangolf.data.tokenizer import Tokenizer
from scangolf.model import HybridLM


@torch.inference_mode()
def generate_tokens(
    model: HybridLM,
    prompt: list[int],
    count: int,
    *,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> Iterator[int]:
    """Yields `count` token ids that continue `prompt` (at least one id).

    Each is drawn from the `top_k` likeliest at `temperature`; temperature 0 takes the likeliest.
    The same seed gives the same text on the same device.
    """
    device = model.skip_weights.device
    generator = torch.Generator().manual_seed(seed)
    tokens_BL = torch.tensor([prompt], device=device)
    logits_BLV, state = model.extend(tokens_BL, model.init_state(1))
    logits_V = logits_BLV[0, -1]
    for i in range(count):
        token = _draw(logits_V, temperature, top_k, generator)
        yield token
        if i + 1 < count:
            logits_BV, state = model.step(torch.tensor([token], device=device), state)
            logits_V = logits_BV[0]


def generate(model: HybridLM, tokenizer: Tokenizer, prompt: str, count: int, **how: float) -> str:
    """The text that continues `prompt`; `how` as in `generate_tokens`."""
    ids = tokenizer.encode(prompt).tolist()
    tokens = list(generate_tokens(model, ids, count, **how))  # type: ignore[arg-type]
    # Decoded together with the prompt: a piece's leading space depends on what stands before it.
    return tokenizer.decode(ids + tokens)[len(tokenizer.decode(ids)) :]


def _draw(
    logits_V: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator
) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    best, ids = logits_V.float().cpu().topk(min(top_k, logits_V.numel()))
    shares = ((best - best[0]) / temperature).softmax(0)  # the largest first: nothing overflows
    chosen = torch.multinomial(shares, 1, generator=generator)
    return int(ids[chosen])
