"""Whether Triton's kernels can take a tensor; where they cannot, plain torch operations do."""

from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None


def kernels_take(x: Tensor) -> bool:
    """Kernels run on a GPU and compute in float32."""
    return HAS_TRITON and x.is_cuda and x.dtype != torch.float64
