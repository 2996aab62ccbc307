"""What a benchmark case is made of: where it runs, its variants, and the counts of its bounds.

Counting. A unit is a site update, a step·dim, a leapfrog·dim, a step or a number. `flops` are those
of the definition per unit, random numbers apart, 0 where they were not counted. `call_bytes` and
`step_bytes` must move between memory and chip, once per call and once per step. `draws` are the random
numbers of a unit. `instructions` are the vector instructions of 16 units in float32, at least;
`multiply_adds` the fused multiplications and additions of a unit, of work that is matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from benchmarks import peers
from pysamp.quickbench import Problem
from pysamp.timing import Case, Variant


class NotHereError(Exception):
    """The case does not exist on this device or with this number of threads."""


@dataclass(frozen=True)
class On:
    """Where a run takes place."""

    device: torch.device
    threads: int = 1
    quick: bool = False  # without torch.compile

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Bench:
    """A case with its counts."""

    case: Case
    flops: float = 0.0
    call_bytes: float = 0.0
    step_bytes: float = 0.0
    draws: tuple[Literal["uniform", "normal"], float] | None = None
    instructions: float | None = None
    multiply_adds: float | None = None
    times_itself: bool = False  # run(n) returns seconds: work that needs a fresh process
    agreements: tuple[Case, ...] = ()  # smaller ones, compared in place of a case that is too large
    left_out: Mapping[str, str] = field(default_factory=dict)  # variant -> why it is not here
    repeats: int | None = None  # at most, of a case whose calls are long

    def adding(self, *variants: Variant) -> Bench:
        case = replace(self.case, variants=(*self.case.variants, *variants))
        return replace(self, case=case)


@dataclass
class Counting:
    """A run whose work differs from step to step: `call` gives its result and its units."""

    call: Callable[[int], tuple[Any, float]]
    steps: int = 0
    units: float = 0.0

    def __call__(self, n: int) -> Any:
        result, units = self.call(n)
        self.steps += n
        self.units += units
        return result


def units_per_step(case: Case, variant: Variant) -> float:
    """Counted over all calls of a run that counts, else those of the case."""
    if isinstance(variant.run, Counting):
        return variant.run.units / variant.run.steps
    return case.work


def state_bytes(problem: Problem) -> float:
    """A call reads and writes the field, and the score where the kernel has one."""
    x = problem.state.x
    fields = 1 if problem.state.score is None else 2
    return 2.0 * fields * x.numel() * x.element_size()


def compiled(on: On, function: Callable[..., Any]) -> Callable[..., Any] | None:
    if on.quick:
        return None
    torch._dynamo.reset()  # its cache of eight graphs per function is shared by all cases
    return torch.compile(function, dynamic=False)


def installed(**setups: tuple[int, Callable[[], peers.Run]]) -> list[Variant]:
    """Variants of the peers that are installed; name = (steps of a call, setup)."""
    found = [(name, *setup) for name, setup in setups.items() if peers.available(name)]
    return [Variant(name, setup(), steps) for name, steps, setup in found]
