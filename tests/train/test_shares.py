"""Matrices shared out: evenly, and to the same updates as with one process."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from scangolf.config import OptimConfig
from scangolf.train.optim import Muon
from scangolf.train.shares import share_out
from scangolf.train.world import World

CONFIG = OptimConfig(momentum_start=0.5, momentum=0.9, momentum_steps=4)
SHAPES = [(6, 3), (3, 6), (6, 3), (5, 5), (6, 3)]


def test_the_costly_ones_come_first_and_nobody_is_far_ahead() -> None:
    assert share_out([1, 9, 5, 4, 1, 2], 2) == [1, 0, 1, 1, 1, 0]  # both do 11
    assert share_out([3, 3], 4) == [0, 1]
    costs = [(7 * i) % 31 + 1 for i in range(50)]
    for size in (1, 2, 3, 8):
        owners = share_out(costs, size)
        loads = [sum(c for c, o in zip(costs, owners, strict=True) if o == r) for r in range(size)]
        assert max(loads) - min(loads) <= max(costs)


@dataclass(frozen=True)
class Threads(World):
    """A world of threads, which meet at a table instead of sending."""

    table: tuple[list[Tensor | None], threading.Barrier] | None = None

    def exchange(self, shard: Tensor) -> Callable[[], Sequence[Tensor]]:
        assert self.table is not None
        places, barrier = self.table
        places[self.rank] = shard.clone()
        barrier.wait(20)
        found = [place.clone() for place in places if place is not None]
        barrier.wait(20)
        return lambda: found


def steps(world: World) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights after three steps, all momenta, and this process's own."""
    generator = torch.Generator().manual_seed(3)
    parameters = {
        str(i): torch.nn.Parameter(torch.randn(shape, generator=generator))
        for i, shape in enumerate(SHAPES)
    }
    muon = Muon(parameters, CONFIG, world)
    for _ in range(3):
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        muon.step(lr=0.1)
    return [p.detach() for p in parameters.values()], muon.all_momenta(), muon.momenta


@pytest.mark.parametrize("size", [2, 3, 7])
def test_shared_updates_are_those_of_one_process(size: int) -> None:
    """Seven processes, too, though there are five matrices."""
    weights, momenta, _ = steps(World())
    places: list[Tensor | None] = [None] * size
    table = places, threading.Barrier(size)
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(steps, [Threads(rank, size, table=table) for rank in range(size)]))
    for their_weights, their_momenta, _ in found:
        # A product of two matrices at once may round otherwise than that of one.
        torch.testing.assert_close(their_weights, weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(their_momenta, momenta, rtol=1e-5, atol=1e-6)
    for i, shape in enumerate([(6, 3), (3, 6), (5, 5)]):
        assert sum(len(own[i]) for _, _, own in found) == SHAPES.count(shape)
