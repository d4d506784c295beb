"""Losses and gradients of micro-batches, averaged over the processes.

Shapes: B sequences, L length.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scangolf.model import HybridLM
from scangolf.train.recorded import RecordedPass
from scangolf.train.world import World


def mean_loss(model: HybridLM, x_BL: Tensor, y_BL: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token."""
    return model(x_BL, y_BL).mean()


class MeanLoss(nn.Module):
    """`mean_loss` of a model, compiled if asked to, as DistributedDataParallel takes it.

    A module that has the model's parameters and not its buffers: those are constants, which would
    be sent around before every step.
    """

    def __init__(self, model: HybridLM, compiled: bool) -> None:
        super().__init__()
        function = mean_loss
        if compiled:
            function = torch.compile(mean_loss, fullgraph=True, dynamic=False)
        self.function = partial(function, model)
        self.trained = nn.ParameterList(model.parameters())

    def forward(self, x_BL: Tensor, y_BL: Tensor) -> Tensor:
        return self.function(x_BL, y_BL)


class Gradients:
    """The gradients of a step, as the mean over its micro-batches and over all processes.

    Made after parameters that do not train have been told so. DistributedDataParallel sends the
    gradients in buckets, each as soon as the backward pass of a step's last micro-batch has filled
    it, while that goes on to earlier layers. For this the compiler, which knows of it, cuts its
    graph where a bucket ends.
    """

    def __init__(self, model: HybridLM, micro_steps: int, world: World, *, compiled: bool) -> None:
        self.micro_steps = micro_steps
        self.loss = MeanLoss(model, compiled)
        self.distributed = None
        if world.size > 1:
            self.distributed = DistributedDataParallel(
                self.loss,
                gradient_as_bucket_view=True,  # saves a copy of every gradient
            )
        self.recorded: tuple[RecordedPass, ...] = ()
        """A step's first pass and those after it, once they are recorded."""
        self.first = True
        """Whether the next micro-batch is the first of a step."""

    def record(self, x_BL: Tensor, y_BL: Tensor) -> None:
        """From now on passes over batches of this shape are replayed as CUDA graphs.

        After a whole step, which has compiled them. Not with several processes, where
        DistributedDataParallel has its part in the backward pass.
        """
        if self.distributed is not None:
            return
        parameters = [p for p in self.loss.trained if p.requires_grad]
        weight = 1 / self.micro_steps
        first = RecordedPass(self.loss, parameters, x_BL, y_BL, weight)
        self.recorded = (first,)
        if self.micro_steps > 1:
            self.recorded += (RecordedPass(self.loss, parameters, x_BL, y_BL, weight, first),)

    def add(self, x_BL: Tensor, y_BL: Tensor, *, last: bool) -> Tensor:
        """Adds a micro-batch's part and returns its mean loss; with the `last` all parts are in.

        Only then may `grad` be read.
        """
        first, self.first = self.first, last
        if self.recorded:
            return self.recorded[0 if first else -1].replay(x_BL, y_BL)
        module = self.distributed or self.loss
        with nullcontext() if last or not self.distributed else self.distributed.no_sync():
            loss = module(x_BL, y_BL)
            (loss / self.micro_steps).backward()
        return loss.detach()
