"""One run of a sampler, and the row that it leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pysamp import _native, store
from pysamp import metrics as measures
from pysamp.describe import describe
from pysamp.evaluate.distances import distances, inside_modes, known
from pysamp.evaluate.problems import Budgeted, How, Task
from pysamp.mcmc.base import Kernel, Tunable
from pysamp.samples import Samples
from pysamp.sampling import sample
from pysamp.summary import Summary, jsonable
from pysamp.target import HasLogZ, HasModes, HasSampler, Target

N_DRAWS = 16  # of a chain, where only the number of all draws is given
SMALL = 1e-2  # exact weight below which a mode that was missed is not held against a sampler
DUE = 10  # exact draws in a mode below which it may be missed by chance: e^-10
TUNING_RUNS = 4  # for each value: the best of a grid of five is then told from the next best
# Seeds of other purposes lie far above those of repetitions, so that no draw serves two.
TUNING, START, PROBE = 1 << 40, 1 << 41, 1 << 42  # repetitions: below 2**32
MAX_NUMBERS = 200  # characters of a tensor that a row spells out; of a longer one it holds a digest
LISTED = 64  # numbers of a report by level or rung that a row keeps
KNOWN = {  # of info, with an entry of their own or of no use in a row
    "accept", "evaluations", "gradients", "local_moves", "seconds", "log_z", "log_z_error", "notes",
    "warnings", "sampler", "seed", "backend", "device", "dtype", "nonfinite", "scale", "warm_up",
}  # fmt: skip


def run(task: Task, how: How, cache: dict[Any, Any]) -> dict[str, Any]:
    """The row of a run, JSON; one that raises gives a row that says why. `cache` serves later runs."""
    row = {
        **task.names(),
        "oracle": bool(task.entry.hints),
        "oracle_hints": task.entry.hints,
        "device": str(how.device),
        "dtype": str(how.dtype).removeprefix("torch."),
        "backend": _native.backend_name(),
        "versions": store.versions(),
    }
    begin = time.perf_counter()
    try:
        sampler = task.entry.make(task.problem.target)
        tuning = None
        if task.entry.tune is not None:
            tuning = _tuned(task, sampler, how, cache)
            sampler = _with(sampler, task.entry.tune[0], tuning["values"][tuning["chosen"]])
        samples, used = _draw(task, sampler, how, cache)
        found = judged(samples, task, how, cache)
        row |= {"status": "done", "description": brief(describe(used)), "tuning": tuning, **found}
    except Exception as error:  # whatever it is, it is a result of this sampler
        seconds = time.perf_counter() - begin
        reason = f"{type(error).__name__}: {error}"
        row |= {"status": "failed", "reason": reason, "seconds": seconds}
    return jsonable(row)


# ------------------------------------------------------------------------------------- drawing
def _draw(task: Task, sampler: Any, how: How, cache: dict[Any, Any]) -> tuple[Samples, Any]:
    """The draws, and the sampler as long as the budget made it."""
    target, n = task.problem.target, task.entry.n or how.n
    common: dict[str, Any] = {"seed": task.seed, "device": how.device, "dtype": how.dtype}
    common["progress"] = False
    if isinstance(sampler, Kernel):
        common |= _sizes(task, sampler, n, how, cache)
        if task.entry.x0 is not None:
            x0 = _start(target, task.entry.x0, common["n_chains"], task.seed)
            common["x0"] = x0.to(how.device, how.dtype)
        return sample(target, sampler, **common), sampler
    if task.budget is not None:
        if not isinstance(sampler, Budgeted):
            raise ValueError(f"{task.entry.label} cannot be given a budget: it has no for_budget")
        sampler = sampler.for_budget(n, task.budget)
    return sample(target, sampler, n_chains=n, n_draws=1, **common), sampler


def _sizes(
    task: Task, kernel: Kernel, n: int, how: How, cache: dict[Any, Any]
) -> dict[str, int | None]:
    """n_chains, n_draws, warmup and thin of a kernel."""
    entry = task.entry
    n_draws = entry.n_draws or max(1, min(N_DRAWS, n // (entry.n_chains or 1)))
    n_chains = entry.n_chains or max(1, n // n_draws)
    sizes: dict[str, int | None] = {"n_chains": n_chains, "n_draws": n_draws}
    if task.budget is None:
        return {**sizes, "warmup": entry.warmup, "thin": entry.thin or 1}
    key = ("cost", task.problem, entry)
    if key not in cache:
        cache[key] = _cost_of_step(kernel, task.problem.target, n_chains, how)
    cost = cache[key]
    steps = int(task.budget / (n_chains * cost)) - 1  # the start is evaluated, too
    thin = (steps - steps // 2) // n_draws
    if thin < 1:
        least = math.ceil((2 * n_draws + 1) * n_chains * cost)
        raise ValueError(
            f"budget must be at least {least} for {n_chains} chains of {n_draws} draws at {cost:g} "
            f"a step, got {task.budget}"
        )
    return {**sizes, "warmup": steps - thin * n_draws, "thin": thin}


def _cost_of_step(kernel: Kernel, target: Target, n_chains: int, how: How) -> float:
    """Gradients of one step of one chain, or evaluations where there are none: two short runs tell."""
    scale = kernel.scale() if isinstance(kernel, Tunable) else None
    rows = n_chains if isinstance(scale, Tensor) and scale.ndim else 2
    if isinstance(kernel, Tunable) and scale is None:  # any will do, and none has to be found
        kernel = kernel.with_scale(kernel.initial_scale(target))
    spent: list[dict[str, float]] = []
    for n_draws in (2, 4):
        found = sample(
            target, kernel, n_chains=rows, n_draws=n_draws, warmup=0, seed=PROBE,
            device=how.device, dtype=how.dtype, progress=False,
        )  # fmt: skip
        spent.append({k: float(found.info.get(k, 0)) for k in _COST})
    each = {k: (spent[1][k] - spent[0][k]) / (2 * rows) for k in _COST}
    size = max(1, math.prod(target.event_shape))
    return each["gradients"] or each["evaluations"] or each["local_moves"] / size or 1.0


_COST = ("gradients", "evaluations", "local_moves")


def _start(target: Target, mode: int, n: int, seed: int) -> Tensor:
    """n exact draws of one mode."""
    weights = known(target, "mode_weights", HasModes)
    if weights is None or not isinstance(target, HasSampler):
        raise ValueError(f"x0: mode {mode} needs a target with modes and exact draws")
    if not mode < len(weights):
        raise ValueError(f"x0 must be one of the {len(weights)} modes, got mode {mode}")
    size = math.ceil(1.1 * n / max(float(weights[mode]), SMALL)) + 64
    found: list[Tensor] = []
    for attempt in range(64):
        x = target.sample(size, seed=START + 64 * seed + attempt)
        found.append(x[target.mode(x) == mode])  # type: ignore[attr-defined]
        if sum(map(len, found)) >= n:
            return torch.cat(found)[:n]
    raise ValueError(f"x0: mode {mode} of weight {float(weights[mode]):.3g} is hardly ever drawn")


# ------------------------------------------------------------------------------------- tuning
def _tuned(task: Task, sampler: Any, how: How, cache: dict[Any, Any]) -> dict[str, Any]:
    """The value of the parameter with the least error, and the errors of all; an oracle.

    A value at which the sampler raises has no error and is not chosen.
    """
    key = ("tuning", task.problem, task.entry, task.budget)
    if key in cache:
        return cache[key]
    assert task.entry.tune is not None
    parameter, values = task.entry.tune
    errors: list[float | None] = []
    reason, gradients = "", 0.0
    for value in values:
        try:
            found = []
            for r in range(TUNING_RUNS):
                trial = replace(task, seed=TUNING + r)
                samples, _ = _draw(trial, _with(sampler, parameter, value), how, cache)
                found.append(_error(samples, trial, how, cache))
                gradients += float(samples.info.get("gradients", 0))
            errors.append(sum(found) / len(found))
        except (ValueError, RuntimeError, ArithmeticError) as error:
            errors.append(None)
            reason = f"{type(error).__name__}: {error}"
    good = [(e, i) for i, e in enumerate(errors) if e is not None and math.isfinite(e)]
    if not good:
        raise ValueError(f"no value of {parameter} can be used: {reason or 'no error is finite'}")
    cache[key] = {
        "parameter": parameter,
        "values": list(values),
        "errors": errors,
        "chosen": min(good)[1],
        "gradients": gradients,
    }
    return cache[key]


def _error(samples: Samples, task: Task, how: How, cache: dict[Any, Any]) -> float:
    exact = known(task.problem.target, "mode_weights", HasModes)
    if exact is not None:
        weights, _ = mode_weights(samples, task.problem.target)
        return float(measures.total_variation(weights, exact.double()))
    if not how.metrics:
        raise ValueError("tune needs a target with exact mode weights, or a metric")
    found = distances(how.metrics[:1], samples, task.problem.target, how.n_metric, task.seed, cache)
    return float(found[how.metrics[0]]["value"])


def _with(sampler: Any, parameter: str, value: Any) -> Any:
    if not dataclasses.is_dataclass(sampler) or isinstance(sampler, type):
        raise TypeError(f"tune needs a sampler that is a dataclass, got {type(sampler).__name__}")
    return replace(sampler, **{parameter: value})


# ------------------------------------------------------------------------------------- judging
def judged(samples: Samples, task: Task, how: How, cache: dict[Any, Any]) -> dict[str, Any]:
    """Everything of a row that the draws tell."""
    target = task.problem.target
    summary = samples.summary(target)
    facts = summary.facts
    weights = error = variation = collapse = exact = None
    reference = known(target, "mode_weights", HasModes)
    if reference is not None:
        reference = reference.detach().to("cpu", torch.float64)
        found, _ = mode_weights(samples, target)
        exact, weights = reference.tolist(), found.tolist()
        error = 100 * float(measures.mode_weight_error(found, reference))
        variation = float(measures.total_variation(found, reference))
        heavy = reference >= max(SMALL, DUE / samples.log_prob.numel())
        if bool(heavy.any()):
            collapse = measures.collapsed(found[heavy], reference[heavy])
    log_z = known(target, "log_z", HasLogZ)
    return {
        "n": samples.log_prob.numel(),
        **{key: _number(samples.info.get(key)) for key in (*_COST, "seconds")},
        "weights": weights,
        "weights_exact": exact,
        "mode_weight_error": error,
        "total_variation": variation,
        "collapse": collapse,
        "weighted": samples.log_weight is not None,
        "ess": _ess(samples, summary),
        "accept": facts.get("accept"),
        "log_z": facts.get("log_z"),
        "log_z_error": facts.get("log_z_error"),
        "log_z_exact": None if log_z is None else float(log_z),
        "nonfinite_draws": facts["nonfinite_draws"],
        "metrics": distances(how.metrics, samples, target, how.n_metric, task.seed, cache),
        "within_modes": inside_modes(samples, target),
        "details": {**_levels(samples.info), "swap_accept": facts.get("swap_accept")},
        "notes": summary.notes,
        "verdict": summary.verdict,
    }


def mode_weights(samples: Samples, target: Any) -> tuple[Tensor, int]:
    """Estimated weights (k,) float64 on the CPU, and the number of draws that are not finite.

    Such a draw is in no mode; its weight counts all the same.
    """
    total = torch.zeros(len(target.mode_weights), dtype=torch.float64)
    weight = torch.ones_like(samples.log_prob, dtype=torch.float64)
    if samples.log_weight is not None:
        flat = samples.log_weight.double().flatten()
        weight = torch.softmax(flat, 0).reshape(samples.log_prob.shape)
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("log_weight must have a finite entry and neither NaN nor +inf")
    first = bad = 0
    for block in samples.blocks():
        shape = block.shape[:2]
        x = block.reshape(shape[0] * shape[1], *samples.event_shape)
        finite = torch.isfinite(x.reshape(len(x), -1)).all(1)
        some = weight[:, first : first + shape[1]].reshape(-1)[finite]
        label = target.mode(x[finite])
        inside = label >= 0
        total.index_add_(0, label[inside].cpu(), some[inside].cpu())
        bad += int((~finite).sum())
        first += shape[1]
    return total / float(weight.sum()), bad


def _ess(samples: Samples, summary: Summary) -> float:
    """Effective draws: Kish's of weights, the least bulk ESS of chains, all of independent draws."""
    if samples.log_weight is not None:
        return float(summary.facts["weights_ess"])
    if not samples.info.get("markov"):
        return float(samples.log_prob.numel())
    found = [r["ess_bulk"] for r in summary.rows if not r["constant"]]
    return min((e for e in found if not math.isnan(e)), default=0.0)


def _number(value: Any) -> float | None:
    return None if value is None else float(torch.as_tensor(value).double().sum())


def _levels(info: dict[str, Any]) -> dict[str, Any]:
    """What a sampler reports besides: numbers, and one number for each of a few levels."""
    out: dict[str, Any] = {}
    for key, value in info.items():
        if key in KNOWN:
            continue
        if isinstance(value, (bool, int, float, str)):
            out[key] = value
        elif isinstance(value, Tensor) and value.ndim <= 1 and value.numel() <= LISTED:
            out[key] = value.tolist()
    return out


def brief(tree: Any) -> Any:
    """A description whose long tensors are replaced by their digest: the line stays one to read."""
    if isinstance(tree, dict):
        if isinstance(tree.get("tensor"), str) and len(tree["tensor"]) > MAX_NUMBERS:
            digest = hashlib.sha256(tree["tensor"].encode()).hexdigest()
            return {"shape": tree["shape"], "digest": digest}
        return {key: brief(value) for key, value in tree.items()}
    return [brief(value) for value in tree] if isinstance(tree, list) else tree
