"""CUDA source compiled at run time: NVRTC, which every CUDA build of torch brings, and the driver.

Kernels take one structure by value. A kernel is compiled once in a process for a device and a set
of macros, in well under a second, and kept.
"""

import ctypes
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pkgutil import get_data
from typing import Any

import torch

SHARED_MEMORY, CARVEOUT = 8, 9  # CUfunction_attribute: largest dynamic size, preferred share
_lock = threading.Lock()  # the backward pass runs in threads of its own


class Kernel:
    """One compiled function on one device."""

    def __init__(
        self, name: str, function: ctypes.c_void_p, shared_memory: int, context: ctypes.c_void_p
    ) -> None:
        self.name, self.function = name, function
        self.shared_memory, self.context = shared_memory, context

    def launch(self, grid: tuple[int, int], threads: int, arguments: ctypes.Structure) -> None:
        """On the current stream of the current device."""
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        _check(_driver().cuCtxSetCurrent(self.context))
        _check(
            _driver().cuLaunchKernel(
                self.function, *grid, 1, threads, 1, 1, self.shared_memory, stream, parameters, None
            )
        )


_kernels: dict[Any, Kernel] = {}


def kernel(
    sources: tuple[str, ...], name: str, macros: Mapping[str, int], shared_memory: int = 0
) -> Kernel:
    """The function `name` of files, one after the other, under macros, for the current device.

    Args:
        sources: names of files in this folder.
        shared_memory: bytes of dynamic shared memory of a block.

    Raises:
        RuntimeError: NVRTC is not there, or the source does not compile: with the compiler's log.
    """
    key = (torch.cuda.current_device(), sources, name, tuple(macros.items()), shared_memory)
    found = _kernels.get(key)
    if found is None:
        with _lock:
            found = _kernels.get(key)
            if found is None:
                found = _kernels[key] = _load(_compile(sources, macros), name, shared_memory)
    return found


@cache
def available() -> bool:
    """Whether sources can be compiled here at all."""
    try:
        _nvrtc()
        _driver()
    except RuntimeError:
        return False
    return True


def source(name: str) -> bytes:
    """A file of this folder, through the module's loader: it need not lie on a disk."""
    text = get_data("scangolf.ops", name)
    assert text is not None
    return text


def _compile(sources: tuple[str, ...], macros: Mapping[str, int]) -> bytes:
    major, minor = torch.cuda.get_device_capability()
    options = [f"--gpu-architecture=sm_{major}{minor}", "--std=c++17", "--fmad=true"]
    options += [f"-D{name}={value}" for name, value in macros.items()]
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    text, file = b"".join(map(source, sources)), sources[-1]
    _check(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, file.encode(), 0, None, None),
        nvrtc,
    )
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    if status:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"{file} does not compile ({' '.join(options)}):\n{log.value.decode()}")
    _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), nvrtc)
    binary = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetCUBIN(program, binary), nvrtc)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return binary.raw


def _load(binary: bytes, name: str, shared_memory: int) -> Kernel:
    driver, module, function = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
    context = _context(torch.cuda.current_device())
    _check(driver.cuCtxSetCurrent(context))
    _check(driver.cuModuleLoadData(ctypes.byref(module), binary))
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
    _check(driver.cuFuncSetAttribute(function, SHARED_MEMORY, shared_memory))
    _check(driver.cuFuncSetAttribute(function, CARVEOUT, 100))
    return Kernel(name, function, shared_memory, context)


@cache
def _context(device: int) -> ctypes.c_void_p:
    """The context that torch uses, too. A new thread has none until it is told."""
    driver, handle, context = _driver(), ctypes.c_int(), ctypes.c_void_p()
    _check(driver.cuDeviceGet(ctypes.byref(handle), device))
    _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    return context


@cache
def _driver() -> ctypes.CDLL:
    return _library("libcuda.so.1", "nvcuda.dll")


@cache
def _nvrtc() -> ctypes.CDLL:
    version = (torch.version.cuda or "0").split(".")[0]
    packages = Path(torch.__file__).parents[1] / "nvidia"
    beside = sorted(map(str, packages.glob(f"*/lib/libnvrtc.so.{version}")))
    return _library(f"libnvrtc.so.{version}", f"nvrtc64_{version}0_0.dll", *beside)


def _library(*names: str) -> ctypes.CDLL:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError(f"none of these libraries was found: {', '.join(names)}")


def _check(status: int, nvrtc: ctypes.CDLL | None = None) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    if nvrtc is not None:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        text.value = nvrtc.nvrtcGetErrorString(status)
    else:
        _driver().cuGetErrorString(status, ctypes.byref(text))
    raise RuntimeError(f"CUDA error {status}: {(text.value or b'unknown').decode()}")
