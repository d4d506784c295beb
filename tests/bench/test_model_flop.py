"""The operations of a model that passes its blocks several times."""

import dataclasses

from scangolf.bench.model_flop import training_flop
from scangolf.config import PRESETS
from scangolf.model import HybridLM


def test_loops_multiply_the_blocks_and_not_the_logits() -> None:
    model = dataclasses.replace(PRESETS["tiny"]().model, pattern="s6, ssd, gdn, attention")
    once, thrice = (
        training_flop(HybridLM(dataclasses.replace(model, loops=loops), None), 64)
        for loops in (1, 3)
    )
    logits = 3 * 2 * model.vocab_size * model.d_model
    assert thrice - logits == 3 * (once - logits)
