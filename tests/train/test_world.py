"""One process on a GPU that is not the first."""

import pytest
import torch

from scangolf.train import world
from scangolf.train.world import ALONE


@pytest.mark.parametrize(("name", "current"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_the_gpu_of_a_run_is_the_current_one(
    monkeypatch: pytest.MonkeyPatch, name: str, current: list[str]
) -> None:
    """Events and pinned memory would belong to another one."""
    chosen: list[str] = []
    monkeypatch.setattr(world, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(str(device)))
    assert ALONE.device(name) == torch.device(name)
    assert chosen == current
