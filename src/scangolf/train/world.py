"""The processes of a run as the training sees them: their number, and what they tell each other.

There are two roads between them. Tensors on GPUs go through NCCL, in the order of the stream, and
the host does not wait. All that hosts decide or report goes through gloo: it waits for the slowest
host but for no GPU, and hosts run a step ahead of theirs. On CPUs gloo carries both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scangolf.device import pick_device
from scangolf.errors import UserError
from scangolf.train.checkpoint import HOW_TO_GO_ON

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all of the run. Every method but `device` is called by all of them.

    In a world of one each returns at once what it was given.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """The number of this process on its machine, and of its GPU there."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of that name that is this process's own; a UserError where there is none."""
        if self.size == 1:
            device = pick_device(name)
            if device.index is not None and device.type == "cuda":
                torch.cuda.set_device(device)  # events and pinned memory take the current one
            return device
        if name not in ("auto", "cpu", "cuda"):
            raise UserError(
                f"--device {name}: with several processes needs auto, cpu or cuda; each takes the "
                "GPU of its number"
            )
        if name == "cpu" or not (torch.cuda.is_available() or name == "cuda"):
            return torch.device("cpu")
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"--device {name}: process {self.local_rank} of this machine finds "
                f"{torch.cuda.device_count()} GPUs; give torchrun as many with --nproc-per-node"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, or raises there, for all of them.

        Only the first one calls it: what it returns must be picklable.
        """
        if self.size == 1:
            return make()
        told: list[Any] = [None, None]
        if self.is_first:
            try:
                told[0] = make()
            except (UserError, OSError) as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        if told[1] is not None:
            raise told[1]
        return told[0]

    def together(self, make: Callable[[], T]) -> T:
        """What `make` returns; where it raises in any process, the same error is raised in all."""
        result, error = None, None
        try:
            result = make()
        except (UserError, OSError) as raised:
            error = raised
        for one in self.gather(error):
            if one is not None:
                raise one
        return result  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; they must be picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over the processes, exactly."""
        if self.size == 1:
            return list(values)
        most = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return most.tolist()

    def sum_(self, values: Tensor) -> None:
        """Replaces a tensor by its sum over the processes, to the same bits in each."""
        if self.size > 1:
            dist.all_reduce(values)

    def sum_all_(self, tensors: Sequence[Tensor]) -> None:
        """The same for many tensors of one dtype, in one message."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            sums = flat.split([tensor.numel() for tensor in tensors])
            for tensor, total in zip(tensors, sums, strict=True):
                tensor.copy_(total.view_as(tensor))

    def copy_first_(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors by those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def exchange(self, shard: Tensor) -> Callable[[], Sequence[Tensor]]:
        """Sends a tensor to every process; what is returned waits for theirs, by rank.

        The tensors have one shape and dtype. On a GPU only the stream waits, not the host.
        """
        if self.size == 1:
            return lambda: [shard]
        shards = list(shard.new_empty(self.size, *shard.shape).unbind())
        work = dist.all_gather(shards, shard, async_op=True)

        def wait() -> list[Tensor]:
            assert work is not None
            work.wait()
            return shards

        return wait

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turns the error that a collective raises when another process is gone into a line."""
        try:
            yield
        except RuntimeError as error:
            # gloo's errors have no type of their own, but the file that raised them.
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise UserError(
                f"another process of this run ended before it was done; {HOW_TO_GO_ON}"
            ) from error


ALONE = World()
