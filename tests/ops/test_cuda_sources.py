"""What can be told of the CUDA kernels without a GPU: that Python and they agree."""

import ctypes
import re
from types import ModuleType

import pytest

from scangolf.ops import nvrtc, s6_cuda, ssd_cuda


@pytest.mark.parametrize("module", [s6_cuda, ssd_cuda])
def test_the_kernels_and_python_agree_on_the_arguments(module: ModuleType):
    name = module.__name__.split(".")[-1]
    source = nvrtc.source(f"{name}.cu").decode()
    body = source.split("struct Arguments {")[1].split("};")[0]
    declared = re.findall(r"((?:const )?(?:long long|\w+)) ([^;]+);", re.sub(r"//.*", "", body))
    want = []
    for kind, names in declared:
        for name in names.split(","):
            size = 8 if "*" in name else {"long long": 8, "int": 4}[kind]
            want.append((name.strip(" *"), size))
    assert [(f[0], ctypes.sizeof(f[1])) for f in module._Arguments._fields_] == want


@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
@pytest.mark.parametrize("state", ssd_cuda.STATES[2:])
def test_a_state_that_shared_memory_is_too_small_for_is_cut_in_smaller_parts(
    head_dim: int, state: int
):
    hopper = 227 * 1024  # bytes of a block
    sizes = ssd_cuda._sizes(head_dim, state, hopper)
    assert sizes
    assert all(ssd_cuda.shared_memory("backward", size, state) <= hopper for size in sizes)
    assert ssd_cuda._sizes(head_dim, 256, hopper) == [16]
