"""Find the compiled kernels, and choose between them and pure torch.

The CPU part exists once per x86-64 level from the same sources; the one that torch runs at on this
machine is imported. The CUDA part, where it was built, imports without a driver and is used for
tensors on a CUDA device. Without any compiled module everything runs in pure torch, after one warning.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import os
import pathlib
import platform
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Literal

import torch  # before the extensions: they then share torch's OpenMP runtime

Backend = Literal["native", "torch"]

_LEVELS = {  # torch's name of the CPU's level -> module, best first
    "AVX512": ("_cpu_v4", "_cpu_v3", "_cpu"),
    "AVX2": ("_cpu_v3", "_cpu"),
}


def _import(name: str) -> ModuleType | str:
    """The module, or the reason why there is none."""
    try:
        return importlib.import_module(f"pysamp.{name}")
    except ImportError as error:
        return str(error)


def _find_cpu() -> tuple[ModuleType | None, str]:
    reasons = []
    for name in _LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("_cpu",)):
        found = _import(name)
        if isinstance(found, ModuleType):
            return found, ""
        reasons.append(f"{name}: {found}")
    return None, "; ".join(reasons)


_cpu, _cpu_reason = _find_cpu()
_found = _import("_cuda")
_cuda = _found if isinstance(_found, ModuleType) else None
_cuda_reason = "" if _cuda is not None else str(_found)


def _environment(name: str, allowed: tuple[str, ...]) -> str | None:
    value = os.environ.get(name)
    if value is not None and value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def _why() -> str:
    """One cause and one cure for a missing CPU module."""
    here = pathlib.Path(__file__).resolve().parent
    if (here.parent / "pyproject.toml").exists():
        return (
            f"{here} is the source folder, which holds none and hides an installed pysamp; start Python "
            "in another folder, or install with `pip install -e .`"
        )
    return f"{_cpu_reason}; reinstall with a C++ compiler at hand, and run `pysamp doctor`"


def _start() -> Backend:
    wanted = _environment("PYSAMP_BACKEND", ("native", "torch"))
    required = _environment("PYSAMP_REQUIRE", ("cpu", "cuda"))
    if required == "cuda" and (_cuda is None or not torch.cuda.is_available()):
        raise RuntimeError(
            "PYSAMP_REQUIRE=cuda, but "
            + (
                f"the CUDA module is missing: {_cuda_reason}"
                if _cuda is None
                else "torch sees no GPU"
            )
        )
    if _cpu is None and (wanted == "native" or required is not None):
        raise RuntimeError(
            f"native kernels are required, but none could be imported: {_cpu_reason}"
        )
    if wanted == "torch":
        return "torch"
    if _cpu is None:
        warnings.warn(
            f"pysamp runs in pure torch, without its native kernels: {_why()}",
            RuntimeWarning,
            stacklevel=2,
        )
        return "torch"
    return "native"


# Of the thread or task that asks: one thread's choice is no other's.
_default = _start()
_backend: contextvars.ContextVar[Backend] = contextvars.ContextVar("backend", default=_default)


@contextlib.contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Run what is inside with the native kernels or in pure torch.

    >>> with pysamp.backend("torch"):
    ...     samples = pysamp.sample(target, kernel)

    Raises ValueError for another name, RuntimeError for "native" where no kernel was built.
    """
    if name not in ("native", "torch"):
        raise ValueError(f"backend must be 'native' or 'torch', got {name!r}")
    if name == "native" and _cpu is None and _cuda is None:
        raise RuntimeError(f"no native kernels: {_cpu_reason}")
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def backend_name() -> Backend:
    """The backend in use; a compiled function keeps the one it was compiled under."""
    return _backend.get()


# Dynamo cannot read a ContextVar and takes the name as a constant. This is what the decorator
# torch.compiler.assume_constant_result does, without its import of all of dynamo (two seconds).
backend_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def module_for(device: torch.device) -> ModuleType | None:
    """The compiled module for tensors on `device`, or None where pure torch is to be used."""
    if backend_name() != "native":
        return None
    return {"cpu": _cpu, "cuda": _cuda}.get(device.type)


def include_path() -> str:
    """Folder of the C++ headers, for a user's own native target (examples/native_target)."""
    here = pathlib.Path(__file__).resolve().parent
    installed = here / "include"
    return str(installed if installed.is_dir() else here.parent / "csrc")


def info() -> dict[str, str | bool | None]:
    """What was found on this machine."""
    return {
        "backend": backend_name(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_module": None if _cpu is None else _cpu.__name__.rsplit(".", 1)[-1],
        "cpu_isa": None if _cpu is None else _cpu.isa,
        "cpu_reason": _cpu_reason or None,
        "cuda_module": _cuda is not None,
        "cuda_architectures": None if _cuda is None else _cuda.architectures,
        "cuda_reason": _cuda_reason or None,
        "cuda_available": torch.cuda.is_available(),
    }
