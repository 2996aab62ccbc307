"""Rows of an evaluation: how a folder keeps them, and what repetitions say of a sampler.

    evaluation.json      what is compared; a folder belongs to one comparison
    rows-<rank>.jsonl    one JSON object a line for each run of a sampler, from one process

A line is on disk before the next run begins. A kill may tear the last one: it is left out, and that run
is made again. For K repetitions with estimates ŵ of the mode weights w, in percentage points,

    error = mean |ŵ − w|,     spread = sd ŵ,     collapse: a mode is missed in more than half of them,

as in Grenioux, Noble, Gabrié, Improving the evaluation of samplers on multi-modal targets (2025, arXiv
2504.08916). With more than two modes the error is that of the worst mode of each repetition, and the
spread that of the mode which spreads most.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from pysamp.describe import differences
from pysamp.samples import fsync, read_json, replace_file
from pysamp.summary import jsonable

FORMAT = 1
KEY = ("target", "parameters", "sampler", "budget", "seed")  # what tells one run from another
SIGMAS = 5.0  # standard errors beyond which a deviation is called a bias
LEAST = 1.0  # percentage points below which none is
RARE = 1e-3  # of one side, by chance, where few runs make more than 5 standard errors needed
SPREAD = 2.0  # times the spread of independent exact draws: a quarter of the draws would do as well
OFF = 2.5  # times the error of independent exact draws: 5 standard errors of it for 8 runs
LOW_ESS = 0.01  # of the draws: a few weights then decide every mean (verdict.MIN_WEIGHT_ESS)
SHAPE = (0.9, 1.1)  # variance inside a mode over the exact one, per coordinate


# ------------------------------------------------------------------------------------- the folder
def open_folder(path: str | os.PathLike, config: dict[str, Any]) -> None:
    """Make the folder of an evaluation, or go on with the one that it holds.

    Raises ValueError that prints every difference if it holds another evaluation, FileExistsError if it
    holds something else.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"out must be a folder, but {path} is a file")
    file = path / "evaluation.json"
    if file.exists():
        if lines := differences(read_config(path), json.loads(json.dumps(config))):
            raise ValueError(
                f"out={path} holds another evaluation; choose a new folder. It differs in\n  "
                + "\n  ".join(lines)
            )
        return
    if path.exists() and any(p for p in path.iterdir() if p.suffix != ".tmp"):
        raise FileExistsError(f"out={path} is not empty and holds no evaluation")
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "config": config}, indent=1, ensure_ascii=False) + "\n"
    replace_file(file, lambda temporary: temporary.write_text(text))


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    file = Path(path) / "evaluation.json"
    try:
        found = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{path} is no folder of an evaluation: it has no evaluation.json"
        ) from None
    if found["format"] != FORMAT:
        raise ValueError(f"{path} has the format {found['format']}, this pysamp reads {FORMAT}")
    return json.loads(json.dumps(found["config"]))  # plain dicts, without the care of read_json


class Writer:
    """Appends rows to the file of one process; made by `writing`."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Write one line; it is on disk when this returns."""
        line = json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode()
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)


@contextmanager
def writing(path: str | os.PathLike, rank: int) -> Iterator[Writer]:
    """The writer of one process. Raises RuntimeError if another process has the same file open."""
    file = Path(path) / f"rows-{rank}.jsonl"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{file} is being written by another process") from None
        whole = file.read_bytes().rfind(b"\n") + 1
        os.ftruncate(descriptor, whole)  # what a kill left of a line
        fsync(file.parent)
        yield Writer(descriptor, file)
    finally:
        os.close(descriptor)


def key(row: dict[str, Any]) -> str:
    """What tells a run from all others of the evaluation."""
    return json.dumps([row[name] for name in KEY], sort_keys=True)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of all processes, one a run: a run that failed once and is done since is done.

    Raises FileNotFoundError for a folder without an evaluation, ValueError for a damaged line.
    """
    read_config(path)
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(Path(path).glob("rows-*.jsonl")):
        lines = file.read_bytes().split(b"\n")[:-1]  # what follows the last line end is torn
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                name = key(row)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}, line {number} is damaged: {error}") from None
            if name not in found or row["status"] == "done":
                found[name] = row
    return list(found.values())


# ------------------------------------------------------------------------------------- repetitions
@dataclass(frozen=True)
class Cell:
    """The repetitions of one sampler on one target at one budget. None: not known or not defined."""

    target: str
    parameters: dict[str, Any]
    sampler: str
    oracle: list[str]
    budget: int | None
    runs: int  # that were done
    failed: int
    n: float | None  # draws of a run
    error: float | None  # percentage points, as all four
    error_se: float | None
    spread: float | None
    bias: float | None  # mean of ŵ − w, of the mode where it is largest
    floor_error: float | None  # of n independent exact draws
    floor_spread: float | None
    collapse: bool
    evaluations: float | None  # means over runs, as the next three
    gradients: float | None
    local_moves: float | None
    seconds: float | None
    ess: float | None  # median
    accept: float | None
    log_z_bias: float | None
    log_z_se: float | None
    metrics: dict[str, dict[str, float | None]]  # mean, sd, and mean and range of the noise floor
    faults: list[str]  # a few words each; empty where nothing wrong was found

    @property
    def cost(self) -> float | None:
        """Gradients of a run, or evaluations of the density where there are none."""
        return self.gradients or self.evaluations

    def to_dict(self) -> dict[str, Any]:
        return jsonable(asdict(self))


def aggregate(rows: Iterable[dict[str, Any]]) -> list[Cell]:
    """One `Cell` for every target, sampler and budget, in the order in which they come first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = json.dumps([row[k] for k in KEY[:-1]], sort_keys=True)
        groups.setdefault(name, []).append(row)
    return [_cell(group) for group in groups.values()]


def _cell(group: list[dict[str, Any]]) -> Cell:
    done = [row for row in group if row["status"] == "done"]
    first = (done or group)[0]
    weights = _weights(done)
    n = _mean(done, "n")
    error = spread = bias = error_se = floor_error = floor_spread = None
    if weights is not None:
        found, exact = weights
        off = found - exact  # (runs, k)
        each = np.abs(off).max(1)
        error = 100 * float(each.mean())
        bias = 100 * float(off.mean(0)[_worst(off)])
        if len(off) > 1:
            error_se = 100 * float(each.std(ddof=1)) / math.sqrt(len(off))
            spread = 100 * float(off.std(0, ddof=1).max())
        floor_error, floor_spread = floor_of(exact, n or 1.0)
    log_z = [r["log_z"] - r["log_z_exact"] for r in done if _both(r, "log_z", "log_z_exact")]
    several = len(log_z) > 1
    measured = _metrics(done)
    faults = list(_faults(group, done, weights, n))
    faults += [] if faults else _above_floor(measured)
    collapsed = [bool(row.get("collapse")) for row in done]
    return Cell(
        target=first["target"],
        parameters=first["parameters"],
        sampler=first["sampler"],
        oracle=list(first.get("oracle_hints") or []),
        budget=first["budget"],
        runs=len(done),
        failed=len(group) - len(done),
        n=n,
        error=error,
        error_se=error_se,
        spread=spread,
        bias=bias,
        floor_error=floor_error,
        floor_spread=floor_spread,
        collapse=sum(collapsed) > len(done) / 2,
        evaluations=_mean(done, "evaluations"),
        gradients=_mean(done, "gradients"),
        local_moves=_mean(done, "local_moves"),
        seconds=_mean(done, "seconds"),
        ess=_median(done, "ess"),
        accept=_mean(done, "accept"),
        log_z_bias=statistics.fmean(log_z) if log_z else None,
        log_z_se=statistics.stdev(log_z) / math.sqrt(len(log_z)) if several else None,
        metrics=measured,
        faults=faults,
    )


def floor_of(exact: Sequence[float] | np.ndarray, n: float) -> tuple[float, float]:
    """Error and spread in percentage points of n independent exact draws.

    Two modes share one fluctuation, |N(0, s²)| with mean s √(2/π). More are taken as independent: the
    mean of the largest is ∫ 1 − Π_k erf(t/(s_k √2)) dt.
    """
    sd = np.sqrt(np.asarray(exact) * (1 - np.asarray(exact)) / n)
    spread = 100 * float(sd.max())
    if len(sd) < 3:
        return spread * math.sqrt(2 / math.pi), spread
    t = np.linspace(0, 8 * sd.max(), 2001)
    below = np.ones_like(t)
    for s in sd[sd > 0]:
        below *= [math.erf(x) for x in t / (s * math.sqrt(2))]
    return 100 * float(np.trapezoid(1 - below, t)), spread


def _weights(done: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    """(runs, k) estimates and (k,) exact weights."""
    known = [r for r in done if r.get("weights") and r.get("weights_exact")]
    if not known:
        return None
    return np.array([r["weights"] for r in known]), np.array(known[0]["weights_exact"])


def _worst(off: np.ndarray) -> int:
    """The mode of the largest mean deviation; the first of equals, as two modes are."""
    return int(np.abs(off.mean(0)).round(9).argmax())


def _both(row: dict[str, Any], *names: str) -> bool:
    return all(row.get(name) is not None for name in names)


def _values(done: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in done if row.get(name) is not None]


def _mean(done: list[dict[str, Any]], name: str) -> float | None:
    values = _values(done, name)
    return statistics.fmean(values) if values else None


def _median(done: list[dict[str, Any]], name: str) -> float | None:
    values = _values(done, name)
    return statistics.median(values) if values else None


def _metrics(done: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    out: dict[str, dict[str, float | None]] = {}
    for name in {n: None for row in done for n in row.get("metrics") or {}}:
        found = [row["metrics"][name] for row in done if name in row["metrics"]]
        values = [f["value"] for f in found if f["value"] is not None]
        floor = next((f["floor"] for f in found if f.get("floor")), None) or {}
        out[name] = {
            "mean": statistics.fmean(values) if values else None,
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            **{f"floor_{k}": floor.get(k) for k in ("mean", "low", "high")},
        }
    return out


# ------------------------------------------------------------------------------------- faults
def _faults(
    group: list[dict[str, Any]],
    done: list[dict[str, Any]],
    weights: tuple[np.ndarray, np.ndarray] | None,
    n: float | None,
) -> Iterator[str]:
    """What went wrong, in a few words each."""
    if len(done) < len(group):
        yield f"failed {len(group) - len(done)}/{len(group)}"
    if not done:
        return
    if bad := sum(bool(row.get("nonfinite_draws")) for row in done):
        yield f"not finite {bad}/{len(done)}"
    if missed := sum(bool(row.get("collapse")) for row in done):
        yield f"missed mode {missed}/{len(done)}"
    poor = [r for r in done if r.get("weighted") and (r["ess"] or 0) < LOW_ESS * r["n"]]
    if len(poor) > len(done) / 2:
        yield f"degenerate weights (ESS {_median(poor, 'ess') or 0:.0f})"
    if weights is not None:
        yield from _weight_faults(*weights, n or 1.0, missed > len(done) / 2)
    shapes = [row["within_modes"] for row in done if row.get("within_modes")]
    if shapes:
        low, high = (statistics.fmean(s["variance_ratio"][i] for s in shapes) for i in (0, 1))
        # The extremes over coordinates of variances of m draws, each known to √(2/m).
        noise = SIGMAS * math.sqrt(2 / statistics.fmean(s["draws"] for s in shapes))
        if low < SHAPE[0] - noise or high > SHAPE[1] + noise:
            yield f"variance inside ×{low:.2g} to {high:.2g}"
    log_z = [r["log_z"] - r["log_z_exact"] for r in done if _both(r, "log_z", "log_z_exact")]
    if len(log_z) > 1:
        sd, stated = statistics.stdev(log_z), _median(done, "log_z_error") or 0.0
        noise = _sigmas(sd, stated, len(log_z)) * max(sd, stated) / math.sqrt(len(log_z))
        # An unbiased estimate of Z has a logarithm that is low by half its variance.
        if abs(statistics.fmean(log_z)) > noise + max(sd, stated) ** 2 / 2 + 1e-6:
            yield "log Z wrong"


def _sigmas(sd: float, stated: float, runs: int) -> float:
    """Standard errors beyond which a mean of runs is no chance: 5, and where their noise is not known, as
    that of exact draws is, but seen in a few runs only, those of Student's t."""
    return SIGMAS if sd <= stated else max(SIGMAS, float(student.isf(RARE, runs - 1)))


def _above_floor(measured: dict[str, dict[str, float | None]]) -> list[str]:
    """Distances that exact draws do not have. The range of the 8 values of a floor is 2.8 of their
    standard deviations; a mean over runs that is higher by as much is 4 above their mean."""
    out = []
    for name, found in measured.items():
        mean, low, high = (found[k] for k in ("mean", "floor_low", "floor_high"))
        if mean is not None and low is not None and high is not None and mean > 2 * high - low:
            out.append(f"{name} above floor")
    return out


def _weight_faults(found: np.ndarray, exact: np.ndarray, n: float, lost: bool) -> Iterator[str]:
    """Of estimates (runs, k); the last resort is an error that no other word explains."""
    off = 100 * (found - exact)
    floor_error, floor_spread = floor_of(exact, n)
    k, runs, said = _worst(off), len(off), lost
    sd = float(off[:, k].std(ddof=1)) if runs > 1 else 0.0
    widest = float(off.std(0, ddof=1).max()) if runs > 1 else 0.0
    if widest > max(SPREAD * floor_spread, LEAST):
        said = True
        yield f"spread ×{widest / floor_spread:.1f}"
    sigmas = _sigmas(sd, floor_spread, runs)
    mean = float(off[:, k].mean())
    # one run cannot tell a bias from chance
    if (
        not lost
        and runs > 1
        and abs(mean) > max(sigmas * max(sd, floor_spread) / math.sqrt(runs), LEAST)
    ):
        said = True
        yield f"biased {mean:+.1f} (mode {k})"
    error = float(np.abs(off).max(1).mean())
    if not said and error > max(OFF * floor_error, LEAST):
        yield f"error ×{error / floor_error:.1f}"
