"""Sharing out the work on matrices: each is computed by one process, and everyone gets it.

Shapes: R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scangolf.train.world import World


class Shares:
    """Which of the matrices belong to which process of `world`, so that all have as much to do.

    `owned` says of each whether it is this process's.
    """

    def __init__(self, matrices: Sequence[Tensor], world: World) -> None:
        self.world = world
        self.shapes = [matrix.shape for matrix in matrices]
        self.owners = share_out([newton_schulz_cost(*shape) for shape in self.shapes], world.size)
        self.owned = [owner == world.rank for owner in self.owners]
        self._device = matrices[0].device
        sizes = [0] * world.size
        for owner, shape in zip(self.owners, self.shapes, strict=True):
            sizes[owner] += shape.numel()
        self._longest = max(sizes)

    def exchange(self, own: Sequence[Tensor], dtype: torch.dtype) -> Callable[[], Sequence[Tensor]]:
        """Sends off a tensor [R, C] of `dtype` for every matrix that this process owns, in order.

        What is returned waits for those of the others and gives one for every matrix there is. A
        process sends all of its own in one message, as long as that of the process with most.
        """
        if self.world.size == 1:
            return lambda: own
        message = torch.zeros(self._longest, dtype=dtype, device=self._device)
        if own:
            flat = torch.cat([matrix.flatten() for matrix in own])
            message[: len(flat)] = flat
        wait = self.world.exchange(message)

        def finish() -> list[Tensor]:
            messages, read = wait(), [0] * self.world.size
            matrices = []
            for owner, shape in zip(self.owners, self.shapes, strict=True):
                part = messages[owner][read[owner] :][: shape.numel()]
                matrices.append(part.view(shape))
                read[owner] += shape.numel()
            return matrices

        return finish


def share_out(costs: Sequence[int], size: int) -> list[int]:
    """An owner for each cost: from the highest down, always who has least so far.

    The same on every process, as nothing but the costs decides.
    """
    load, owners = [0] * size, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owner = load.index(min(load))
        owners[index] = owner
        load[owner] += costs[index]
    return owners


def newton_schulz_cost(rows: int, columns: int) -> int:
    """Multiplications of an iteration: two products with the long side of a matrix, one without."""
    short, long = sorted((rows, columns))
    return short * short * (2 * long + short)
