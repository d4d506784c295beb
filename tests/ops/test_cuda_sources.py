"""What can be told of the CUDA kernels without a GPU: that Python and they agree."""

import ctypes
import re
from types import ModuleType

import pytest

from scangolf.ops import s6_cuda, ssd_cuda


@pytest.mark.parametrize("module", [s6_cuda, ssd_cuda])
def test_the_kernels_and_python_agree_on_the_arguments(module: ModuleType):
    name = module.__name__.split(".")[-1]
    source = (module.FOLDER / f"{name}.cu").read_text()
    body = source.split("struct Arguments {")[1].split("};")[0]
    declared = re.findall(r"((?:const )?(?:long long|\w+)) ([^;]+);", re.sub(r"//.*", "", body))
    want = []
    for kind, names in declared:
        for name in names.split(","):
            size = 8 if "*" in name else {"long long": 8, "int": 4}[kind]
            want.append((name.strip(" *"), size))
    assert [(f[0], ctypes.sizeof(f[1])) for f in module._Arguments._fields_] == want
