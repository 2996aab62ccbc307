"""Distances of draws from exact ones, each beside its noise floor, and the shape of every mode.

The floor of a distance is its value between two independent exact samples of the same size, in several
repetitions: a sampler whose value lies inside their range cannot be told from exact draws.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pysamp import metrics as measures
from pysamp.samples import Samples
from pysamp.target import HasModes, HasSampler, Target, log_prob_and_score
from pysamp.yaml_file import unknown_name

REFERENCE, FLOOR = 1 << 43, 1 << 44  # seeds of exact draws, away from those of runs
FLOOR_RUNS = 8
N_EXACT = 16_384  # exact draws for the shapes of modes: variances to 1 or 2 %
FEWEST = 50.0  # effective draws in a mode whose shape is judged: a variance is then known to 20 %
ONE_SAMPLE = ("ksd", "test_log_posterior")


@runtime_checkable
class HasTestData(Protocol):
    """A posterior with data held out: log p(test data | x) + log prior(x), (n, *event) -> (n,)."""

    def test_log_posterior(self, x: Tensor) -> Tensor: ...


def two_sample() -> dict[str, Callable[..., Any]]:
    """Name -> distance of two samples of events (n, d), of all that `pysamp.metrics` has."""
    found: dict[str, Callable[..., Any]] = {}
    for name, value in vars(measures).items():
        if inspect.isfunction(value) and not name.startswith("_"):
            given = list(inspect.signature(value).parameters.values())
            free = all(p.default is not p.empty for p in given[2:])
            if [p.name for p in given[:2]] == ["x", "y"] and free and not name.startswith("ks_"):
                found[name] = value
    return found


def known(target: Any, name: str, protocol: type) -> Any:
    """What the target knows exactly under this name; None if it does not, or cannot compute it."""
    try:
        return getattr(target, name) if isinstance(target, protocol) else None
    except ValueError:
        return None


def check_metrics(names: Sequence[str], targets: Sequence[Target]) -> None:
    """Raises ValueError for a name that is no metric, or one that no target can be judged by."""
    valid = [*two_sample(), *ONE_SAMPLE]
    for name in names:
        if name not in valid:
            raise ValueError(unknown_name("metric", name, valid))
        if not any(_applies(name, target) for target in targets):
            lacking = "test data" if name == "test_log_posterior" else "exact draws"
            raise ValueError(f"metrics has {name}, but no target has {lacking}")


def _applies(name: str, target: Target) -> bool:
    if name != "test_log_posterior":
        return name == "ksd" or isinstance(target, HasSampler)
    try:
        origin = torch.zeros(1, *target.event_shape)
        return isinstance(target, HasTestData) and len(target.test_log_posterior(origin)) == 1
    except ValueError:  # it was made without test data
        return False


def distances(
    names: Sequence[str],
    samples: Samples,
    target: Target,
    n: int,
    seed: int,
    cache: dict[Any, Any],
) -> dict[str, dict[str, Any]]:
    """{name: {"value", "n", "floor": {"mean", "low", "high"} or None}} of the metrics that apply.

    Of n draws, or of all if there are fewer: an even selection of chains and draws, and a systematic
    resampling of weighted ones; test_log_posterior is the mean over all, with their weights. A value is
    None where draws are not finite.
    """
    names = [name for name in names if _applies(name, target)]
    if not names:
        return {}
    x = _points(samples, n)
    finite = bool(torch.isfinite(x).all())
    out: dict[str, dict[str, Any]] = {}
    for name in names:
        size, value = len(x), None
        floor = _floor(name, target, x, cache) if isinstance(target, HasSampler) else None
        if name == "test_log_posterior":
            size, floor = samples.log_prob.numel(), None
            value = _test_log_posterior(samples, target)
        elif finite and isinstance(target, HasSampler):
            y = target.sample(len(x), seed=REFERENCE + seed).to(x)
            value = float(_distance(name, target)(x, y))
        elif finite:
            value = float(_distance(name, target)(x, x))
        out[name] = {"value": value, "n": size, "floor": floor}
    return out


def _distance(name: str, target: Target) -> Callable[..., Any]:
    """Of two samples; the Stein discrepancy looks at the first alone."""
    if name != "ksd":
        return two_sample()[name]
    return lambda x, _: measures.ksd(x, log_prob_and_score(target, x)[1])


def _test_log_posterior(samples: Samples, target: Any) -> float | None:
    x = samples.flat()
    if not bool(torch.isfinite(x).all()):
        return None
    value = target.test_log_posterior(x).double()
    if samples.log_weight is None:
        return float(value.mean())
    return float(torch.softmax(samples.log_weight.double().flatten(), 0) @ value)


def _points(samples: Samples, n: int) -> Tensor:
    """n draws of equal weight: (n, *event)."""
    if samples.log_weight is not None:
        return samples.resample(n)
    flat = samples.flat()
    if len(flat) <= n:
        return flat
    return flat[torch.arange(n, device=flat.device) * len(flat) // n]


def _floor(name: str, target: Any, x: Tensor, cache: dict[Any, Any]) -> dict[str, float]:
    """Of independent exact samples as large as x, on its device."""
    key = ("floor", name, id(target), len(x))
    if key not in cache:
        cache[key] = measures.noise_floor(
            _distance(name, target), target, len(x), repeats=FLOOR_RUNS, seed=FLOOR, device=x.device
        )
    floor = cache[key]
    return {"mean": floor.mean, "low": floor.low, "high": floor.high}


def inside_modes(samples: Samples, target: Any) -> dict[str, Any] | None:
    """Draws against exact ones in every mode that has 50 effective draws or more.

    {"variance_ratio": least and largest over modes and coordinates, "shift": largest of a mean, in exact
    standard deviations, "ks": largest distance of the two extreme coordinates, "draws": effective ones
    of the mode with fewest, "modes": how many}. None without modes or exact draws, where no mode has
    enough draws, and where one is too light to be drawn exactly.
    """
    modes = known(target, "mode_weights", HasModes) is not None
    if not modes or not isinstance(target, HasSampler):
        return None
    x = samples.flat()
    finite = torch.isfinite(x.flatten(1)).all(1)
    log_weight = None if samples.log_weight is None else samples.log_weight.flatten()[finite]
    if not bool(finite.any()):
        return None
    try:
        found = measures.within_modes(
            x[finite], target, log_weight=log_weight, n_exact=N_EXACT, seed=REFERENCE,  # type: ignore[arg-type]
        )  # fmt: skip
    except ValueError:
        return None
    enough = found.ess >= FEWEST
    if not bool(enough.any()):
        return None
    low, high = (extreme[enough] for extreme in found.ratio_range)
    return {
        "variance_ratio": [float(low.min()), float(high.max())],
        "shift": float(found.worst_shift[enough].max()),
        "ks": float(found.ks[enough].max()),
        "draws": float(found.ess[enough].min()),
        "modes": int(enough.sum()),
    }
