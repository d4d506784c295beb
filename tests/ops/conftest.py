"""Without a GPU the Triton kernels run in Triton's interpreter, which has to be asked for before
triton is first imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
