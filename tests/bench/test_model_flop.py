"""The operations of a model, by hand, and of one that passes its blocks several times."""

import dataclasses

from scangolf.bench.model_flop import training_flop
from scangolf.model import HybridLM
from scangolf.recipes import PRESETS


def test_loops_multiply_the_blocks_and_not_the_logits() -> None:
    model = dataclasses.replace(PRESETS["tiny"]().model, pattern="s6, ssd, gdn, attention")
    once, thrice = (
        training_flop(HybridLM(dataclasses.replace(model, loops=loops), None), 64)
        for loops in (1, 3)
    )
    logits = 3 * 2 * model.vocab_size * model.d_model
    assert thrice - logits == 3 * (once - logits)


def test_the_baseline_by_hand() -> None:
    """Nine blocks of 512: q and out 512 x 512, k and v 512 x 256, the MLP 512 x 1024 twice; logits
    512 x 1024; a query of a sequence of 1024 sees 512.5 positions, eight heads of 64, two products.
    """
    block = 2 * 512 * 512 + 2 * 512 * 256 + 2 * 512 * 1024
    seen = 2 * 512.5 * 8 * 64
    wanted = 3 * 2 * (9 * (block + seen) + 512 * 1024)
    assert training_flop(HybridLM(PRESETS["baseline"]().model, None), 1024) == wanted
