"""Without a GPU the Triton kernels run in Triton's interpreter, which has to be asked for before
triton is first imported."""

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels do not write is NaN."""

    def poison(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*shape: Any, **options: Any) -> Tensor:
            x = empty(*shape, **options)
            return x.fill_(math.nan) if x.dtype.is_floating_point else x

        return poisoned

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
