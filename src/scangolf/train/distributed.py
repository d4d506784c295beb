"""Joining the processes that torchrun started. Its environment is read here and nowhere else.

Nothing here imports torch before there is a group to join: the command line asks for its rank
before it imports anything heavy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scangolf.train.world import World


def launched() -> bool:
    """Whether torchrun started this process; other launchers set some of the same names."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """The number of this process in its run: 0 for the first, and for one that runs alone."""
    return int(os.environ["RANK"]) if launched() else 0


@contextmanager
def joined() -> Iterator[World]:
    """All processes of the run, while the block lasts; without torchrun, this one and no group.

    The death of another process becomes a UserError: what the block did since the last checkpoint
    is lost.
    """
    from scangolf.train.world import ALONE, World

    size = int(os.environ["WORLD_SIZE"]) if launched() else 1
    if size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    # Its functions keep the group there is when they are imported as a default, and the compiler
    # imports them. A group that outlives its end leaves gloo's threads to the end of the
    # interpreter, where one that frees a tensor then aborts the process.
    import torch.distributed.nn.functional

    world = World(rank(), size, int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        with world.watched():
            yield world
    finally:
        dist.destroy_process_group()
