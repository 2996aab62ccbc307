"""Samplers compared on targets whose answer is known: every run is a row, and all else is made from rows.

Targets × samplers × budgets × seeds, after Grenioux, Noble, Gabrié, Improving the evaluation of samplers
on multi-modal targets (2025, arXiv 2504.08916): a run is judged by the weights that it gives to the modes,
and by distances from exact draws, each beside its noise floor. What a sampler was told of the answer
stands in its row.

A row is a dict of JSON. target, parameters, sampler, budget and seed tell it from the others; status is
"done", or "failed" with a reason. Further: n draws; evaluations, gradients, local_moves, seconds; weights
and weights_exact, mode_weight_error in percentage points (of the worst mode), total_variation, collapse
(`metrics.collapsed`, of modes with a weight of 0.01 and 10 draws or more); ess, weighted, accept; log_z,
log_z_error, log_z_exact; nonfinite_draws; metrics {name: {value, n, floor}}; within_modes; details
(numbers by level or rung); verdict, the sentences of `Samples.summary`; notes; oracle and oracle_hints;
description, tuning; device, dtype, backend, versions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from pysamp.describe import describe
from pysamp.distributed import World, alone, barrier, gather_bytes, is_main, world
from pysamp.evaluate import rows
from pysamp.evaluate.distances import check_metrics
from pysamp.evaluate.problems import Budgeted, Entry, Exact, How, Problem, Task
from pysamp.evaluate.rows import Cell, aggregate, read
from pysamp.evaluate.run import brief, run
from pysamp.evaluate.table import table
from pysamp.mcmc.base import Kernel
from pysamp.plan import check_seed, choose_device, choose_dtype, positive
from pysamp.target import Target

__all__ = ["Cell", "Entry", "Exact", "Problem", "aggregate", "read", "suite", "table"]

Progress = Callable[[str], None]
N = 2048  # draws of a run: the weight of a mode of exact draws then has an error of 1 point
N_METRIC = 1024  # draws of which distances are taken: an exact W₂ costs n³
REPETITIONS = 8  # the spread is then known to a quarter
MAX_SEED = 1 << 32  # seeds above serve other purposes


def suite(
    problems: Sequence[Problem],
    samplers: Sequence[Entry],
    *,
    n: int = N,
    budgets: Sequence[int] | None = None,
    seeds: int | Sequence[int] = REPETITIONS,
    metrics: Sequence[str] = (),
    n_metric: int = N_METRIC,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    out: str | os.PathLike | None = None,
    config: Any = None,
    progress: Progress = lambda line: None,
) -> list[dict[str, Any]]:
    """Run every sampler on every problem, at every budget, with every seed; the rows of the header.

    budgets: gradients of a run in all, evaluations for what takes no gradients; None leaves every
    sampler at its own length. seeds: the seeds, or how many. metrics: names of distances of two samples
    in `pysamp.metrics`, taken of n_metric draws; "ksd"; "test_log_posterior" of targets that have it.
    out: a folder that gets every row as soon as it is made; the same call goes on with what it lacks,
    and tries again what failed. config: what must agree for two suites to be the same, in JSON, if not
    the arguments.

    A run that raises becomes a row with the reason, and the others go on. Under torchrun whole runs are
    shared out, and every process returns all rows.
    Raises ValueError, TypeError for arguments; ValueError for a folder of another evaluation.
    """
    here = world()
    tasks = _tasks(problems, samplers, budgets, seeds)
    check_metrics(metrics, [problem.target for problem in problems])
    how = How(
        positive(n, "n", N),
        tuple(metrics),
        positive(n_metric, "n_metric", N_METRIC, least=2),
        choose_device(device, here),
        choose_dtype(dtype),
    )
    if config is None:
        config = _config(problems, samplers, how, budgets, seeds)
    with ExitStack() as held:
        writer = None
        done: set[str] = set()
        if out is not None:
            if is_main(here):
                rows.open_folder(out, config)
            barrier(here)
            done = {rows.key(row) for row in rows.read(out) if row["status"] == "done"}
            barrier(here)  # nobody adds a row before all have read
            writer = held.enter_context(rows.writing(out, here.rank))
        made: list[dict[str, Any]] = []
        cache: dict[Any, Any] = {}
        units = _units([task for task in tasks if rows.key(task.names()) not in done])
        mine = [task for unit in units[here.rank :: here.size] for task in unit]
        for i, task in enumerate(mine, 1):
            with alone():
                row = run(task, how, cache)
            if writer is not None:
                writer.append(row)
            made.append(row)
            share = "" if here.size == 1 else f" of {here.size} shares"
            progress(f"{i}/{len(mine)}{share}  {task}: {_outcome(row)}")
    barrier(here)
    return _ordered(rows.read(out) if out is not None else _gathered(made, here), tasks)


def _tasks(
    problems: Sequence[Problem],
    samplers: Sequence[Entry],
    budgets: Sequence[int] | None,
    seeds: int | Sequence[int],
) -> list[Task]:
    """All runs, seeds innermost. Raises ValueError for those that cannot be told apart, or made."""
    listed = list(range(positive(seeds, "seeds", 1))) if isinstance(seeds, int) else list(seeds)
    for seed in listed:
        if check_seed(seed) >= MAX_SEED:
            raise ValueError(f"seeds must be below 2**32, got {seed}")
    sizes = [None] if budgets is None else [positive(b, "budgets", 1) for b in budgets]
    given = {"problems": problems, "samplers": samplers, "budgets": sizes, "seeds": listed}
    for name, values in given.items():
        if not values:
            raise ValueError(f"{name} must not be empty")
    for entry in samplers:
        _check_entry(entry, problems[0].target, budgets is not None)
    tasks = [Task(p, e, b, s) for p in problems for e in samplers for b in sizes for s in listed]
    seen: set[str] = set()
    for task in tasks:
        name = rows.key(task.names())
        if name in seen:
            raise ValueError(f"two runs have the same names ({task}): use other labels, or seeds")
        seen.add(name)
    return tasks


def _check_entry(entry: Entry, target: Target, budgeted: bool) -> None:
    try:
        made = entry.make(target)
    except ValueError:
        return  # for this target; it becomes the reason of a failed row
    if not budgeted:
        return
    if not isinstance(made, (Kernel, Budgeted)):
        raise ValueError(f"{entry.label} cannot be given a budget: it has no for_budget")
    for name in ("warmup", "thin"):
        if (value := getattr(entry, name)) is not None:
            raise ValueError(f"{name}={value} of {entry.label} has no meaning beside budgets")


def _units(tasks: list[Task]) -> list[list[Task]]:
    """Pieces for one process each: runs that share a tuning stay together."""
    units: list[list[Task]] = []
    for task in tasks:
        same = (task.problem, task.entry, task.budget)
        last = units[-1][0] if units else None
        if (
            last is not None
            and task.entry.tune is not None
            and (last.problem, last.entry, last.budget) == same
        ):
            units[-1].append(task)
        else:
            units.append([task])
    return units


def _config(
    problems: Sequence[Problem],
    samplers: Sequence[Entry],
    how: How,
    budgets: Sequence[int] | None,
    seeds: int | Sequence[int],
) -> dict[str, Any]:
    described = brief(describe(list(samplers)))
    return {
        "targets": {str(p): brief(describe(p.target)) for p in problems},
        "samplers": {entry.label: d for entry, d in zip(samplers, described, strict=True)},
        "n": how.n,
        "metrics": list(how.metrics),
        "n_metric": how.n_metric,
        "budgets": None if budgets is None else list(budgets),
        "seeds": seeds if isinstance(seeds, int) else list(seeds),
        "dtype": str(how.dtype).removeprefix("torch."),
    }


def _gathered(made: list[dict[str, Any]], here: World) -> list[dict[str, Any]]:
    parts = gather_bytes(json.dumps(made).encode(), here)
    return [row for part in parts for row in json.loads(part)]


def _ordered(found: list[dict[str, Any]], tasks: list[Task]) -> list[dict[str, Any]]:
    """In the order of the tasks, whichever process made them, and whenever."""
    place = {rows.key(task.names()): i for i, task in enumerate(tasks)}
    return sorted(found, key=lambda row: place.get(rows.key(row), len(place)))


def _outcome(row: dict[str, Any]) -> str:
    if row["status"] == "failed":
        return f"failed: {row['reason']}"
    error = row["mode_weight_error"]
    return ("" if error is None else f"error {error:.2g} points, ") + f"{row['seconds']:.1f} s"
