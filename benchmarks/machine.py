"""What a row says of the software and the machine that made it."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
import torch

from benchmarks import peers
from benchmarks.bench import On
from pysamp import __version__, _native
from pysamp.quickbench import cpu_model


def about(on: On) -> dict[str, Any]:
    """Versions and machine."""
    found = _native.info()
    root = Path(__file__).parents[1]
    versions = {
        "git": _output("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"),
        "pysamp": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "numpy": numpy.__version__,
        "compiler": _compiler_of(_native._cuda if on.cuda else _native._cpu),
        "c++": (_output("g++", "--version") or "").split("\n")[0] or None,  # of torch.compile
        "nvcc": ((_output("nvcc", "--version") or "").split("\n")[-1]) or None,
        **peers.versions(),
    }
    machine = {
        "cpu": cpu(),
        "capability": found["cpu_capability"],
        "module": found["cpu_module"],
        "isa": found["cpu_isa"],
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if on.cuda else None,
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {"versions": versions, "machine": machine}


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _compiler_of(module: Any) -> str | None:
    """The compiler as it signed the module's file."""
    if module is None:
        return None
    signs = rb"GCC: \([^)]*\) [0-9.]+|clang version [0-9.]+"
    found = re.findall(signs, Path(module.__file__).read_bytes())
    return found[-1].decode() if found else None


@functools.cache
def cpu() -> dict[str, Any]:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""

    def field(name: str) -> str | None:
        found = re.search(rf"^{name}\s*:\s*(.+)$", info, re.MULTILINE)
        return found.group(1).strip() if found else None

    numbers = {n: int(field(key) or 0) for n, key in (("family", "cpu family"), ("model", "model"))}
    return {"name": cpu_model(), "vendor": field("vendor_id"), **numbers}


# Vector instructions of 512 bits a nanosecond, two a cycle: docs/decisions/0005 for the second.
ISSUED = {("GenuineIntel", 6, 167): 6.9, ("AuthenticAMD", 25, 17): 7.24}


def issued(on: On) -> float | None:
    """What limits.py counts in, on the cores that were measured and with 512-bit kernels; else None."""
    if on.cuda or on.threads != 1 or _native.info()["cpu_isa"] != "x86-64-v4":
        return None
    found = cpu()
    return ISSUED.get((found["vendor"], found["family"], found["model"]))


@functools.cache
def multiply_adds() -> float | None:
    """Fused multiply-adds a nanosecond in float32 of one core, measured; None without g++."""
    source = Path(__file__).with_name("multiply_adds.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "multiply_adds.so"
        flags = "-O3 -march=native -mprefer-vector-width=512 -ffp-contract=fast -shared -fPIC"
        if platform.machine() != "x86_64":
            flags = flags.replace("-mprefer-vector-width=512", "")
        if _output("g++", *flags.split(), str(source), "-o", str(library)) is None:
            return None
        loaded = ctypes.CDLL(str(library))
    loaded.multiply_adds.restype = ctypes.c_float
    n, seconds = 1_000_000, []
    for _ in range(9):
        begin = time.process_time()
        loaded.multiply_adds(ctypes.c_long(n), ctypes.c_float(0.5), ctypes.c_float(1.0))
        seconds.append(time.process_time() - begin)
    return n * loaded.flops_of_a_round() / 2 / min(seconds[1:]) / 1e9


def is_modelled(on: On) -> bool:
    """Is this the machine that the instruction counts of goals.py are for?"""
    if on.cuda:
        return "H200" in torch.cuda.get_device_name()
    found = cpu()
    return (found["vendor"], found["family"], found["model"]) == ("GenuineIntel", 6, 167)
