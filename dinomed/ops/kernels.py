"""The compiled kernels: libraries beside this file, loaded where they are, missed where they are not.

A library registers its kernels with PyTorch's dispatcher when it is loaded; where there is none the operators run as
plain PyTorch. Which of the CPU library's instruction sets runs is chosen by the machine; the environment variable
DINOMED_CPU_KERNEL (`avx512`, `avx2`, `portable`, or `none` for plain PyTorch) chooses another, read once at import.
DINOMED_CUDA_KERNEL=none leaves plain PyTorch in place on CUDA.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent
_NAME = "_ms_deform_attn_{}.abi3.so"
_QUESTIONS = {"CPU": "dinomed_cpu_kernel", "CUDA": "dinomed_cuda_problem"}
_libraries: dict[str, ctypes.CDLL] = {}
_reasons: dict[str, str] = {}
_widest: str | None = None  # the instruction set that the machine itself chose


def load_kernels() -> None:
    """Load the libraries that are there and keep the reason for every other."""
    global _widest
    wanted = os.environ.get("DINOMED_CPU_KERNEL") or None
    if wanted == "none":
        _reasons["CPU"] = "DINOMED_CPU_KERNEL=none"
    else:
        _load("CPU")
        _widest = cpu_kernel()
        if wanted is not None:
            select_cpu_kernel(wanted)
    if torch.version.cuda is None:
        _reasons["CUDA"] = "this PyTorch is built without CUDA"
    elif os.environ.get("DINOMED_CUDA_KERNEL") == "none":
        _reasons["CUDA"] = "DINOMED_CUDA_KERNEL=none"
    else:
        _load("CUDA")
        _keep_reason_of_cuda()


def _load(device: str) -> None:
    path = _FOLDER / _NAME.format(device.lower())
    if not path.is_file():
        _reasons[device] = f"no kernel for {device} was compiled when dinomed was installed"
        return
    try:
        library = ctypes.CDLL(str(path))
        getattr(library, _QUESTIONS[device])  # what every library of ours answers
    except (OSError, AttributeError) as error:
        _reasons[device] = f"{path.name} cannot be loaded: {' '.join(str(error).split())}"
    else:
        _libraries[device] = library


def _keep_reason_of_cuda() -> None:
    """Ask the library whether it registered its kernels: it does not where the driver is absent or too old."""
    if "CUDA" not in _libraries:
        return
    function = _libraries["CUDA"].dinomed_cuda_problem
    function.restype, function.argtypes = ctypes.c_char_p, []
    problem = function()
    if problem is not None:
        _reasons["CUDA"] = problem.decode()
        del _libraries["CUDA"]


def cpu_kernel() -> str | None:
    """Name the instruction set of the CPU kernels in use: avx512, avx2 or portable; None if nothing is compiled."""
    return _name_cpu_kernel(None)


def select_cpu_kernel(name: str) -> None:
    """Use the CPU kernels of another instruction set from now on, for tests and benchmarks.

    Args:
        name: avx512, avx2 or portable.

    Raises:
        ValueError: If they are not compiled or cannot run on this machine.
    """
    if _name_cpu_kernel(name) is None:
        raise ValueError(f"the CPU kernel {name!r} is not compiled or cannot run here; use {cpu_kernel() or 'none'}")


def _name_cpu_kernel(wanted: str | None) -> str | None:
    if "CPU" not in _libraries:
        return None
    function = _libraries["CPU"].dinomed_cpu_kernel
    function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
    name = function(None if wanted is None else wanted.encode())
    return None if name is None else name.decode()


def kernel_status() -> dict[str, str]:
    """Say for CPU and CUDA which kernel of deformable attention is in use, and why that one or no compiled one."""
    status = {}
    for device in ("CPU", "CUDA"):
        why = "the widest that this machine runs" if cpu_kernel() == _widest else f"chosen in place of {_widest}"
        detail = f" ({cpu_kernel()}, {why})" if device == "CPU" else ""
        compiled = device in _libraries
        if compiled and device == "CUDA" and not torch.cuda.is_available():
            detail = ", unused, since PyTorch finds no GPU"
        status[device] = f"compiled kernel{detail}" if compiled else f"plain PyTorch, since {_reasons[device]}"
    return status
