"""What makes a target the same target: a digest of its fields, its code and a few of its values.

It guards resuming a run and names targets in run folders.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysamp import rng
from pysamp.target import Counted, Target, Tempered, Tilted


def fingerprint(target: Target) -> str:
    """sha256 of what the target is: class name, fields, code of functions, and 4 probe values.

    It guards resuming a run. Equal in every process under one Python version (bytecode differs
    between versions). Dataclass fields with compare=False are caches and left out. The probes
    catch what no field shows, such as a global that a function reads; they are rounded (9 digits
    in float64, 4 in float32), so that another machine's last bits do not refuse a resume.
    """
    if isinstance(target, Counted):
        return fingerprint(target.base)
    digest = Digest()
    digest.add(target)
    event = tuple(target.event_shape)
    dtypes = [digest.dtype] if digest.dtype is not None else [torch.float64, torch.float32]
    for attempt, dtype in enumerate(dtypes):
        z = rng.normal((4, *event), seed=0, stream=rng.STREAMS["check"], dtype=torch.float64)
        try:
            with torch.no_grad():
                value = _unbatched(target).log_prob(z.to(device=digest.device, dtype=dtype))
        except (RuntimeError, TypeError) as error:
            if attempt + 1 < len(dtypes):
                continue
            raise ValueError(
                f"fingerprint: {type(target).__name__}.log_prob failed on {dtype} probe points: "
                f"{error}"
            ) from error
        digits = 8 if value.dtype == torch.float64 else 3
        digest.add([f"{v:.{digits}e}" for v in value.tolist()])
        break
    return digest.hash.hexdigest()


def _unbatched(target: Target) -> Target:
    """The target whose log_prob takes any number of rows: without per-chain tempering or tilt."""
    while isinstance(target, (Tempered, Tilted, Counted)):
        target = target.base
    return target


class Digest:
    """Feeds values to sha256, each as tag, length and content, so that no two values collide."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.device = torch.device("cpu")
        self.dtype: torch.dtype | None = None  # of the first floating tensor met
        self._open: list[int] = []  # objects being visited, against cycles; never hashed

    def _put(self, tag: str, content: bytes = b"") -> None:
        self.hash.update(f"{tag}:{len(content)}:".encode() + content)

    def add(self, value: Any) -> None:
        if id(value) in self._open:
            self._put("cycle", str(len(self._open) - self._open.index(id(value))).encode())
            return
        self._open.append(id(value))
        self._add(value)
        self._open.pop()

    def _add(self, value: Any) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            self._put(type(value).__name__, repr(value).encode())
        elif isinstance(value, Tensor):
            if self.dtype is None and value.is_floating_point():
                self.dtype, self.device = value.dtype, value.device
            flat = value.detach().cpu().contiguous().reshape(-1)
            self._put("tensor", f"{value.dtype}{tuple(value.shape)}".encode())
            self._put("data", flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        elif isinstance(value, (np.ndarray, np.generic)):
            self._put("array", f"{value.dtype}{value.shape}".encode())
            self._put("data", np.ascontiguousarray(value).tobytes())
        elif isinstance(value, (tuple, list)):
            self._put("sequence", str(len(value)).encode())
            for item in value:
                self.add(item)
        elif isinstance(value, (set, frozenset)):
            self._put("set", "".join(sorted(self._digest_of(item) for item in value)).encode())
        elif isinstance(value, dict):
            self._put("dict", str(len(value)).encode())
            for key in sorted(value, key=repr):
                self.add(key)
                self.add(value[key])
        else:
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, types.CodeType):
            self._put("code", value.co_code)
            self.add((value.co_names, value.co_consts))
        elif isinstance(value, types.FunctionType):
            self._put("function", value.__qualname__.encode())
            cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
            self.add((value.__code__, value.__defaults__, value.__kwdefaults__, cells))
        elif isinstance(value, types.MethodType):
            self._put("method")
            self.add((value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._put("partial")
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, ModuleType):
            self._put("module", value.__name__.encode())
        elif isinstance(value, (type, types.BuiltinFunctionType)):
            self._put("name", value.__qualname__.encode())
        elif isinstance(value, (torch.dtype, torch.device)):
            self._put("torch", str(value).encode())
        else:
            self._put("object", type(value).__qualname__.encode())
            self.add(_state(value))

    def _digest_of(self, value: Any) -> str:
        inner = Digest()
        inner.add(value)
        return inner.hash.hexdigest()


def _state(value: Any) -> dict[str, Any]:
    """The named values that make an object what it is."""
    if isinstance(value, torch.nn.Module):
        return dict(value.state_dict())
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value) if f.compare]
        return {name: getattr(value, name) for name in names}
    return dict(getattr(value, "__dict__", {}))
