"""Losses and gradients of micro-batches, averaged over the processes.

Shapes: B sequences, L length.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from scangolf.model import HybridLM
from scangolf.train.recorded import RecordedPass
from scangolf.train.world import World


def mean_loss(model: HybridLM, x_BL: Tensor, y_BL: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token."""
    return model(x_BL, y_BL).mean()


class Gradients:
    """The gradients of a step, as the mean over its micro-batches and over all processes.

    Made after parameters that do not train have been told so. Processes add theirs up in one
    message after the last backward pass. DistributedDataParallel would send them during that, but
    its hooks keep the pass from being recorded, which should gain more than that (docs/LOG.md).
    """

    def __init__(self, model: HybridLM, micro_steps: int, world: World, *, compiled: bool) -> None:
        self.micro_steps, self.world = micro_steps, world
        function = mean_loss
        if compiled:
            function = torch.compile(mean_loss, fullgraph=True, dynamic=False)
        self.loss = partial(function, model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.share = 1 / (micro_steps * world.size)
        """Of one micro-batch in the mean."""
        self.recorded: tuple[RecordedPass, ...] = ()
        """A step's first pass and those after it, once they are recorded."""

    def record(self, x_BL: Tensor, y_BL: Tensor) -> None:
        """From now on passes over batches of this shape are replayed as CUDA graphs.

        After a whole step, which has compiled them.
        """
        first = RecordedPass(self.loss, self.parameters, x_BL, y_BL, self.share)
        self.recorded = (first,)
        if self.micro_steps > 1:
            later = RecordedPass(self.loss, self.parameters, x_BL, y_BL, self.share, after=first)
            self.recorded = (first, later)

    def add(self, x_BL: Tensor, y_BL: Tensor, *, last: bool) -> Tensor:
        """Adds a micro-batch's part and returns its mean loss; with the `last` all parts are in.

        Only then may `grad` be read.
        """
        if self.recorded:
            first = self.parameters[0].grad is None  # the optimiser has taken those of a step away
            loss = self.recorded[0 if first else -1].replay(x_BL, y_BL)
        else:
            loss = self.loss(x_BL, y_BL)
            (loss * self.share).backward()
        if last:
            self.world.sum_all_([p.grad for p in self.parameters if p.grad is not None])
        return loss.detach()
