"""Floating-point operations of a model's matrix products: what its utilisation is counted from.

Counted are the products that the mathematics asks for, twice as many in the backward pass: linear
layers, the logits, attention's two products over the positions that a query sees, and those of the
chunked scans. Not counted are the recurrence of S6 (no product), what is computed again in a
backward pass, everything done an element at a time, and the optimiser.
"""

from __future__ import annotations

from scangolf.bench import gdn, ssd
from scangolf.bench.floor import Shape
from scangolf.layers.attention import Attention
from scangolf.layers.gdn import GDN
from scangolf.layers.linear import Linear
from scangolf.layers.ssd import SSD
from scangolf.model import HybridLM


def training_flop(model: HybridLM, length: int) -> float:
    """Of a token in a sequence of this length, forward and backward."""
    flop = 0.0
    for module in model.blocks.modules():
        if isinstance(module, Linear):
            flop += 2 * module.weight.numel()
        elif isinstance(module, Attention):
            seen = (length + 1) / 2  # positions, of the average query
            flop += 2 * 2 * seen * module.n_heads * module.head_dim
        elif isinstance(module, SSD):
            width, n_groups = module.sizes[0], module.n_groups
            state = module.sizes[2] // (2 * n_groups)
            flop += ssd.SSD.flop(Shape(1, length, width, state)) / length
        elif isinstance(module, GDN):
            width = module.convolved[-1]
            flop += gdn.GDN.flop(Shape(1, length, width, module.key_dim)) / length
    head = model.embedding if model.head is None else model.head
    return 3 * (model.config.loops * flop + 2 * head.weight.numel())
