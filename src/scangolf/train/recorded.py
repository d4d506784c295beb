"""Forward and backward passes as CUDA graphs: launched at once instead of kernel by kernel.

Launching the kernels of a pass takes a host some 30 to 40 ms, and a large GPU is done with a small
one before that (docs/LOG.md).

Shapes: B sequences, L length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, _foreach_add_, nn  # pyright: ignore[reportPrivateImportUsage]


class RecordedPass:
    """A loss and `share` of its gradients by every parameter, for micro-batches of one shape.

    Recorded while `loss` runs once, without computing anything; `replay` computes. It keeps the
    memory of one pass, its gradients' among it, and reads the parameters where they lay: they must
    only be changed in place. What `loss` calls must have run before, as compiling and tuning cannot
    be recorded, and must not wait for the GPU.

    With `after`, the recording of a step's first pass, gradients are added to that one's.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        x_BL: Tensor,
        y_BL: Tensor,
        share: float,
        after: RecordedPass | None = None,
    ) -> None:
        self.x_BL, self.y_BL = x_BL.clone(), y_BL.clone()
        self.parameters = parameters
        self.graph = torch.cuda.CUDAGraph()
        # The two of a step follow each other, so one may use what the other has left. Batches are
        # made ready in a thread of their own, whose pinned memory has no part in this.
        pool = None if after is None else after.graph.pool()
        with torch.cuda.graph(self.graph, pool, capture_error_mode="thread_local"):
            mean = loss(self.x_BL, self.y_BL)
            self.loss = mean.detach()
            self.grads = torch.autograd.grad(mean * share, parameters)
            if after is not None:
                _foreach_add_(after.grads, self.grads)
                self.grads = after.grads

    def replay(self, x_BL: Tensor, y_BL: Tensor) -> Tensor:
        """Computes the pass, sets every parameter's `grad`, and returns the loss."""
        self.x_BL.copy_(x_BL)
        self.y_BL.copy_(y_BL)
        self.graph.replay()
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad
        return self.loss.clone()
