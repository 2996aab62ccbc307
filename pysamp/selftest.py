"""What is installed here and whether it computes the right numbers: the report to attach to a bug.

Every native kernel is compared with its torch definition on every device. A fault has one cause and
one command that mends it. No GPU, or no compiled kernels where none were demanded, is no fault.
"""

from __future__ import annotations

import os
import platform
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pysamp import __version__ as version
from pysamp import _native, ops

WIDTH = 100
BUILD = "pip install --force-reinstall --no-deps ."  # in the source tree
DRIVER_FILE = Path("/proc/driver/nvidia/version")


def doctor() -> dict[str, Any]:
    """Look at versions, compiled modules and devices, and run the self-test.

    Returns JSON values; "ok" is False if there is a fault, "notes" are worth knowing and no fault.
    """
    found = _native.info()
    backend = found["backend"]
    report: dict[str, Any] = {
        "pysamp": version,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "numpy": np.__version__,
        "cpu": {
            "capability": found["cpu_capability"],
            "threads": torch.get_num_threads(),
            "module": found["cpu_module"],
            "isa": found["cpu_isa"],
            "reason": found["cpu_reason"],
        },
        "cuda": {
            "module": found["cuda_module"],
            "architectures": found["cuda_architectures"],
            "reason": found["cuda_reason"],
            "driver": _driver(),
            "devices": _devices(),
        },
        "backend": backend,
        "environment": {k: os.environ[k] for k in _VARIABLES if k in os.environ},
    }
    rows = ops.selftest() if backend == "native" else []
    report["selftest"] = [
        dict(zip(("op", "device", "dtype", "ok", "detail"), row, strict=True)) for row in rows
    ]
    report["faults"] = _faults(report)
    report["notes"] = _notes(report)
    report["ok"] = not report["faults"]
    return report


_VARIABLES = ("PYSAMP_BACKEND", "PYSAMP_REQUIRE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def _driver() -> str | None:
    """Version of the NVIDIA driver, whether or not torch can use it."""
    try:
        number = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", DRIVER_FILE.read_text())
    except OSError:
        return None
    return number.group() if number else None


def _devices() -> list[dict[str, Any]]:
    devices = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(i)
        memory = round(about.total_memory / 2**30, 1)
        arch = f"sm_{about.major}{about.minor}"
        devices.append({"name": about.name, "arch": arch, "memory_gib": memory})
    return devices


def _faults(report: dict[str, Any]) -> list[dict[str, str]]:
    """What makes results wrong, or breaks what the environment demands."""
    faults = []
    demands = [
        f"{k}={report['environment'][k]}" for k in _VARIABLES[:2] if k in report["environment"]
    ]
    native = report["cpu"]["module"] is not None
    if not native and demands and demands != ["PYSAMP_BACKEND=torch"]:
        cause = f"{' and '.join(demands)}, but no compiled kernels: {report['cpu']['reason']}"
        faults.append({"cause": cause, "command": BUILD})
    wrong = [row for row in report["selftest"] if not row["ok"]]
    if wrong:
        first = wrong[0]
        cause = (
            f"{len(wrong)} of {len(report['selftest'])} comparisons disagree with pure torch, first "
            f"{first['op']} on {first['device']} in {first['dtype']}: {first['detail']}"
        )
        # Rebuilding mends modules left over from other sources, by far the commonest cause.
        faults.append({"cause": cause, "command": BUILD})
    return faults


def _notes(report: dict[str, Any]) -> list[str]:
    cpu, cuda, notes = report["cpu"], report["cuda"], []
    if cpu["module"] is None:
        notes.append(
            f"no compiled kernels ({cpu['reason']}): results are the same, slower; to build them, in "
            f"the source tree: {BUILD}"
        )
    elif report["backend"] == "torch":
        notes.append("PYSAMP_BACKEND=torch: the compiled kernels are there but not used or tested")
    if cuda["devices"]:
        if not cuda["module"]:
            notes.append(
                f"there is a GPU but no CUDA part ({cuda['reason']}): tensors on it run in pure torch; "
                f"to build it, with nvcc on the PATH: PYSAMP_CUDA=ON {BUILD}"
            )
    elif cuda["driver"] is None:
        notes.append("no CUDA device found; this is fine: everything runs on the CPU")
    elif report["torch_cuda"] is None:
        notes.append(
            f"there is an NVIDIA driver ({cuda['driver']}) but torch is built without CUDA; to use the "
            "GPU: pip install --force-reinstall torch"
        )
    else:
        notes.append(
            f"there is an NVIDIA driver ({cuda['driver']}) but torch sees no device; look with: nvidia-smi"
        )
    return notes


# ---------------------------------------------------------------------------- text
def text(report: dict[str, Any]) -> str:
    """The report for people, at most 100 columns wide."""
    cpu, cuda = report["cpu"], report["cuda"]
    built = (
        f"built for CUDA {report['torch_cuda']}" if report["torch_cuda"] else "built without CUDA"
    )
    module = f"module {cpu['module']} ({cpu['isa']})" if cpu["module"] else "no compiled module"
    lines = [
        _line("pysamp", f"{report['pysamp']}, Python {report['python']}, {report['platform']}"),
        _line("torch", f"{report['torch']}, {built}; numpy {report['numpy']}"),
        _line("cpu", f"{cpu['capability']}, {cpu['threads']} threads; {module}"),
        _line("cuda part", f"built for {cuda['architectures']}" if cuda["module"] else "not built"),
    ]
    if cuda["driver"]:
        lines.append(_line("driver", cuda["driver"]))
    for i, device in enumerate(cuda["devices"]):
        about = f"{device['name']}, {device['arch']}, {device['memory_gib']} GiB"
        lines.append(_line(f"device {i}", about))
    lines += [_line(key, value) for key, value in report["environment"].items()]
    rows = report["selftest"]
    good = sum(row["ok"] for row in rows)
    lines.append(_line("backend", report["backend"]))
    if rows:
        lines.append(_line("self-test", f"{good} of {len(rows)} comparisons agree with pure torch"))
    for row in rows:
        if not row["ok"]:
            where = f"{row['op']}, {row['device']}, {row['dtype']}"
            lines.append(_line("  wrong", f"{where}: {row['detail']}"))
    lines += [_line("note", note) for note in report["notes"]]
    for fault in report["faults"]:
        lines += [_line("fault", fault["cause"]), _line("  mend", fault["command"])]
    if report["ok"]:
        lines.append(_line("verdict", "nothing wrong was found"))
    return "\n".join(lines)


def _line(head: str, body: str) -> str:
    return textwrap.fill(
        body,
        WIDTH,
        initial_indent=f"{head:<11} ",
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )
