"""Strict causality by perturbation: change token t, and no earlier output moves.

Shapes: B sequences, L length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scangolf.model import HybridLM
from scangolf.score.evaluate import Mode
from scangolf.submission.rules.finding import Finding, failed, passed

RULE = "causality"
LONGEST = 2048
"""Tokens of a sequence that is tried."""
RANDOM_POSITIONS = 4

Logits = Callable[[Tensor], Tensor]
"""Tokens int64 [B, L] to logits float32 [B, L, V]."""


@torch.inference_mode()
def check_causality(model: HybridLM, seq_len: int, mode: Mode) -> Finding:
    """Tries single tokens of one of two random sequences, in the model's own dtype.

    The output of a position may depend on its own sequence up to that position only: the other
    sequence of the batch counts as the future, too. Equality is exact. All calls have the same
    shapes, so a number that an output does not depend on cannot change even its rounding; only a
    device that does not repeat itself gets a tolerance, the difference between two equal calls.
    """
    L = min(seq_len, LONGEST)
    V, device = model.config.vocab_size, model.skip_weights.device
    generator = torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(V, (2, L), generator=generator)
    drawn = torch.randint(L, (RANDOM_POSITIONS,), generator=generator).tolist()
    logits = scored_logits(model, mode)

    def output(tokens_BL: Tensor) -> Tensor:
        return logits(tokens_BL.to(device))

    base_BLV = output(tokens_BL)
    noise = float((output(tokens_BL) - base_BLV).abs().max())
    evidence = {
        "positions": sorted({min(1, L - 1), L // 2, L - 1, *drawn}),
        "length": L,
        "dtype": str(model.compute_dtype).removeprefix("torch."),
        "device": device.type,
        "tolerance": noise,
    }
    if not base_BLV.isfinite().all():
        return failed(RULE, "outputs are not finite", **evidence)
    moved_after = 0
    for t in evidence["positions"]:
        changed_BL = tokens_BL.clone()
        changed_BL[1, t] = (
            changed_BL[1, t] + 1 + torch.randint(V - 1, (), generator=generator)
        ) % V
        moved_BL = (output(changed_BL) - base_BLV).abs().amax(-1).cpu()
        earlier = moved_BL.clone()
        earlier[1, t:] = 0.0
        # A comparison that NaN fails, too.
        wrong = [(int(b), int(i)) for b, i in (~(earlier <= noise)).nonzero()]
        if wrong:
            row, position = wrong[-1]
            where = f"output {position}" if row else "the other sequence of the batch"
            return failed(
                RULE,
                f"changing token {t} of {L} moves {where} by {float(earlier.max()):.3g}",
                **evidence,
                changed=t,
                moved=sorted({i for _, i in wrong})[-8:],
                largest=float(earlier.max()),
            )
        moved_after += int((moved_BL[1, t:] > noise).sum())
    exact = "exactly equal" if noise == 0 else f"equal within {noise:.3g}, the device's own noise"
    return passed(
        RULE,
        f"{len(evidence['positions'])} tokens changed one at a time: no earlier output moved "
        f"({exact})",
        **evidence,
        outputs_moved_after=moved_after,
    )


def scored_logits(model: HybridLM, mode: Mode) -> Logits:
    """The model's logits as an evaluation in that mode computes them."""
    if mode == "stateful":
        return lambda tokens_BL: model.extend(tokens_BL, model.init_state(len(tokens_BL)))[0]
    return model
