"""Comparing ways to do the same work: first their results, then their times.

Ways that disagree are not timed: results are compared to the last bit where that is promised, else
by their law. Timed calls go round the ways in turn, so that a disturbance hits all of them alike.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


class DisagreementError(RuntimeError):
    """Two ways to do the same work gave different results: their times mean nothing."""


@contextmanager
def using_threads(n: int) -> Iterator[None]:
    """torch, and with it the native kernels, on n threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------- cases
@dataclass(frozen=True)
class Variant:
    """One way to do the work: run(n) makes n steps from the same start and returns their end."""

    name: str
    run: Callable[[int], Any]
    steps: int  # of a timed call
    agree: Literal["equal", "close", "law"] = "law"  # with the first variant of the case
    dtype: str = "float32"
    threads: int | None = None  # where it differs from that of the process


@dataclass(frozen=True)
class Case:
    """The same work in several ways; the first variant is the definition."""

    name: str
    size: str
    unit: str
    work: float  # units in one step
    variants: tuple[Variant, ...]
    observe: Callable[[Tensor], dict[str, Tensor]]  # result -> independent numbers, (n,) each
    check_steps: int = 3


def check(case: Case) -> dict[str, float]:
    """Raise DisagreementError unless every variant gives what the first one gives.

    Returns the wall seconds of these runs, the first of each variant: compilation is in them.
    """
    definition, *others = case.variants
    first: dict[str, float] = {}

    def run(variant: Variant) -> list[Tensor]:
        begin = time.perf_counter()
        result = variant.run(case.check_steps)
        parts = result if isinstance(result, tuple) else (result,)
        tensors = [torch.as_tensor(part) for part in parts]
        if tensors[0].is_cuda:
            torch.cuda.synchronize(tensors[0].device)
        first[variant.name] = time.perf_counter() - begin
        return tensors

    expected = run(definition)
    if not all(bool(torch.isfinite(t).all()) for t in expected):
        raise DisagreementError(f"{case.name}: {definition.name} gives numbers that are not finite")
    for variant in others:
        found = run(variant)
        where = f"{case.name}: {variant.name} against {definition.name}"
        if [f.shape for f in found] != [e.shape for e in expected]:
            shapes = [tuple(t.shape) for t in (*found, *expected)]
            raise DisagreementError(f"{where}: shapes {shapes}")
        found = [f.to(e.device) for f, e in zip(found, expected, strict=True)]
        if variant.agree == "law":
            _check_law(case.observe(found[0]), case.observe(expected[0]), where)
        else:
            for f, e in zip(found, expected, strict=True):
                _check_rows(f, e, where, exact=variant.agree == "equal")
    return first


def _check_rows(found: Tensor, expected: Tensor, where: str, *, exact: bool) -> None:
    if exact:
        if not torch.equal(found, expected):
            differ = float((found != expected).double().mean())
            raise DisagreementError(f"{where}: {differ:.2%} of the numbers differ")
        return
    scale = 1e-4 if expected.dtype == torch.float32 else 1e-12
    near = (found - expected).abs() <= scale * expected.abs().max().clamp_min(1)
    rows = near.reshape(len(near), -1).all(1)
    # Rounding may turn an accept decision: about one in 10⁴ where log p is of order 100 in float32.
    if float(rows.double().mean()) < 0.998:
        raise DisagreementError(f"{where}: {int((~rows).sum())} of {len(rows)} rows differ")


def _check_law(found: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    """Means over independent numbers, to five standard errors of their difference."""
    for name, e in expected.items():
        f, e = found[name].double().cpu(), e.double().cpu()
        gap = float((f.mean() - e.mean()).abs())
        bound = 5 * math.sqrt(float(f.var() / len(f) + e.var() / len(e)))
        if not gap <= bound:  # also where it is NaN
            raise DisagreementError(
                f"{where}: mean {name} {float(f.mean()):.6g} and {float(e.mean()):.6g} differ by "
                f"more than five standard errors, {bound:.2g}"
            )


# ---------------------------------------------------------------------------- clocks
@dataclass(frozen=True)
class Timing:
    """Seconds of one call, a number per repeat."""

    seconds: tuple[float, ...]  # by `clock`
    wall: tuple[float, ...]
    clock: Literal["cpu", "wall", "cuda events"]
    calls: int  # in one repeat

    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median, upper quartile."""
        if len(self.seconds) < 2:
            return (self.seconds[0],) * 3
        q1, median, q3 = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return q1, median, q3


def interleave(
    runs: Mapping[str, Callable[[], Any]], *, repeats: int, seconds: float, device: torch.device
) -> dict[str, Timing]:
    """Time several calls in turn, each for about `seconds` a repeat.

    The clock is CUDA events on a GPU; on the CPU it is the CPU time of the process where torch has
    one thread, which other processes do not disturb, and wall time where it has more.
    """
    single = torch.get_num_threads() == 1
    clock: Literal["cpu", "wall", "cuda events"] = (
        "cuda events" if device.type == "cuda" else "cpu" if single else "wall"
    )
    calls = {}
    for name, run in runs.items():
        run()  # to warm up
        once = min(_time(run, 1, device)[1] for _ in range(2))
        calls[name] = max(1, min(100_000, math.ceil(seconds / max(once, 1e-9))))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    names = list(runs)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(_time(runs[name], calls[name], device))
    return {
        name: Timing(
            tuple((wall if clock == "wall" else own) / calls[name] for own, wall in pairs),
            tuple(wall / calls[name] for _, wall in pairs),
            clock,
            calls[name],
        )
        for name, pairs in samples.items()
    }


def _time(run: Callable[[], Any], calls: int, device: torch.device) -> tuple[float, float]:
    """Device or CPU seconds, and wall seconds, of `calls` calls."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        wall = time.perf_counter()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, time.perf_counter() - wall
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        run()
    return time.process_time() - cpu, time.perf_counter() - wall
