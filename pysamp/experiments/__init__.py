"""Published results beside ours: one module per paper or topic, found by its name in this package.

`lattice/ising_2d` is the module pysamp/experiments/lattice/ising_2d.py; each holds one `EXPERIMENT`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import math
import os
import pkgutil
import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pysamp import _native, store
from pysamp.experiments.base import SCALES, Experiment, Progress, with_error
from pysamp.quickbench import cpu_model
from pysamp.samples import replace_file
from pysamp.summary import jsonable

__all__ = ["find", "names", "reproduce", "text", "title"]

_PLUMBING = (
    "base",
    "scaling",
    "slips/common",
    "flow_mcmc/common",
    "flow_mcmc/learned",
    "flow_mcmc/plane",
)


def names() -> list[str]:
    """Every experiment, as `find` and the command line know it."""
    prefix = f"{__name__}."
    modules = pkgutil.walk_packages(__path__, prefix)
    found = (m.name.removeprefix(prefix).replace(".", "/") for m in modules if not m.ispkg)
    return sorted(name for name in found if name not in _PLUMBING)


def find(name: str) -> Experiment:
    """Raises ValueError with the nearest name."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), 1, 0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"name must be an experiment, got {name!r}; {hint}see --list")
    return importlib.import_module(f"{__name__}.{name.replace('/', '.')}").EXPERIMENT


def title(name: str) -> str:
    return find(name).title


def reproduce(
    name: str,
    *,
    scale: str = "quick",
    seed: int = 0,
    device: str | None = None,
    out: str | os.PathLike | None = None,
    data: str | os.PathLike | None = None,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Run an experiment; the report is what `results.json` in the folder `out` holds.

    data: the folder with the files that the experiment needs, if it needs any.
    Raises ValueError for an unknown name or scale, and for data that are missing or not needed.
    """
    experiment = find(name)
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    settings = experiment.settings[scale]
    given = {} if (folder := _data(name, experiment, data)) is None else {"data": folder}
    begin = time.perf_counter()
    outcome = experiment.run(settings, seed=seed, device=device, progress=progress, **given)
    seconds = time.perf_counter() - begin
    report = {
        "experiment": name,
        "title": experiment.title,
        "source": experiment.source,
        "scale": scale,
        "seed": seed,
        "settings": asdict(settings),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": _hardware(device),
        "backend": _native.backend_name(),
        "versions": store.versions(),
        "seconds": round(seconds, 1),
        "rows": [row.to_dict() for row in outcome.rows],
        "data": outcome.data,
        "figures": list(outcome.figures),
        "ok": bool(outcome.rows) and all(row.ok for row in outcome.rows),
    }
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        for file, draw in outcome.figures.items():
            draw(folder / file)
        content = json.dumps(jsonable(report), indent=1, ensure_ascii=False) + "\n"
        replace_file(folder / "results.json", lambda path: path.write_text(content))
    return report


def _data(name: str, experiment: Experiment, data: str | os.PathLike | None) -> Path | None:
    """The folder of the files that the experiment needs, or None if it needs none."""
    if not experiment.data:
        if data is not None:
            raise ValueError(f"data has no meaning for {name}, which needs no files, got {data}")
        return None
    wanted = ", ".join(experiment.data)
    if data is None:
        raise ValueError(f"data must be given, --data DIR: {name} reads {wanted} there")
    missing = [file for file in experiment.data if not (Path(data) / file).is_file()]
    if missing:
        raise ValueError(
            f"data must be a folder with {wanted}, got {data}, where {', '.join(missing)} is missing"
        )
    return Path(data)


def _hardware(device: str | None) -> dict[str, Any]:
    found = {
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": device or "cpu",
    }
    if device is not None and torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


# ---------------------------------------------------------------------------- text
def text(report: dict[str, Any]) -> str:
    """The report for people, at most 100 columns wide."""
    rows = report["rows"]
    lines = [f"{report['experiment']}: {report['title']}", report["source"], ""]
    lines.append(f"{'':<34}{'ours':>16}{'reference':>16}{'off by':>9}  rule")
    lines += [_line(row) for row in rows]
    good = sum(row["ok"] for row in rows)
    lines += ["", f"{good} of {len(rows)} rows pass; {report['seconds']:.0f} s"]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    ours = with_error(row["ours"], row["error"])
    reference = with_error(row["reference"], row["reference_error"])
    off = f"{row['z']:+.1f} σ" if math.isfinite(row["z"]) else f"{row['difference']:+.2g}"
    verdict = "" if row["ok"] else "  FAILED"
    return f"{row['quantity']:<34}{ours:>16}{reference:>16}{off:>9}  {row['rule']}{verdict}"
