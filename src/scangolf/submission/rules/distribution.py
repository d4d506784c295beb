"""A full, normalised distribution at every position, made before the target is known.

Shapes: B rows, L length, V vocabulary.
"""

from __future__ import annotations

import torch

from scangolf.model import HybridLM
from scangolf.submission.rules.finding import Finding, judged, plain

RULE = "distribution"
TARGETS_AT_MOST = 16_384
"""Targets that are tried in all, every token of the vocabulary at some positions."""
NUMBERS_AT_ONCE = 2**24
SUM_TOLERANCE = 1e-3
"""Of a sum of probabilities; float32 leaves 1e-6, other batch shapes in bf16 a few 1e-4."""
LOSS_TOLERANCE = 1e-4
"""Nats between a loss and the distribution it is taken from, both in float32."""


@torch.inference_mode()
def check_distribution(model: HybridLM, seq_len: int) -> Finding:
    """Gives every token of the vocabulary as the target of the same positions.

    The probabilities that the losses stand for must sum to one over the vocabulary: a model that
    sees its target gives more. And each loss must be the negative log-probability of its target
    in the logits that the model gives when it is told no target, which are the same for all.
    """
    V, device = model.config.vocab_size, model.skip_weights.device
    L = max(1, min(seq_len, 16, TARGETS_AT_MOST // V))
    generator = torch.Generator().manual_seed(1)
    tokens_L = torch.randint(V, (L,), generator=generator).to(device)
    sum_L = torch.zeros(L, dtype=torch.float64)
    largest, finite = 0.0, True
    for targets_B in torch.arange(V, device=device).split(max(1, NUMBERS_AT_ONCE // (V * L))):
        tokens_BL = tokens_L.expand(len(targets_B), L).contiguous()
        targets_BL = targets_B[:, None].expand_as(tokens_BL).contiguous()
        logits_BLV = model(tokens_BL)
        loss_BL = model(tokens_BL, targets_BL).double()
        blind_BL = -logits_BLV.double().log_softmax(-1).gather(-1, targets_BL[..., None])[..., 0]
        finite &= bool(logits_BLV.isfinite().all())
        largest = max(largest, float((loss_BL - blind_BL).abs().max()))
        sum_L += (-loss_BL).exp().sum(0).cpu()
    excess = float((sum_L - 1).abs().max())
    problems = []
    if not finite:
        problems.append("some tokens have no finite logit")
    if not excess <= SUM_TOLERANCE:
        worst = float(sum_L[(sum_L - 1).abs().argmax()])
        problems.append(f"probabilities sum to {worst:.6g} over the vocabulary")
    if not largest <= LOSS_TOLERANCE:
        problems.append(f"losses differ by up to {largest:.3g} nats from blind probabilities")
    return judged(
        RULE,
        not problems,
        "; ".join(problems)
        or f"{V} targets at {L} positions: sums within {excess:.1g} of 1, losses as when blind",
        positions=L,
        vocabulary=V,
        largest_sum_error=plain(excess),
        largest_loss_error=plain(largest),
    )
