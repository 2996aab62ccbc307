"""What an evaluation compares: targets under a name, samplers under a label, and what they were told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from pysamp.evaluate import rows
from pysamp.mcmc.base import Kernel
from pysamp.plan import positive
from pysamp.samples import Samples
from pysamp.sampling import Sampler
from pysamp.target import HasSampler, Target, log_prob_of


@runtime_checkable
class Budgeted(Protocol):
    """A sampler that can be made as long as a number of gradients allows."""

    def for_budget(self, n: int, gradients: int) -> Sampler: ...


@dataclass(frozen=True, eq=False)
class Problem:
    """A target under the name and the parameters that tables and axes show."""

    target: Target
    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.parameters.items())])


@dataclass(frozen=True, eq=False)
class Entry:
    """A sampler of the comparison, under its label.

    sampler: a kernel or sampler, or a function that makes one for a target.
    oracle: what it is told of the answer, in words; empty for one that knows the density alone.
    n: draws of a run of this sampler, instead of those of the suite.
    n_chains, n_draws, warmup, thin: of a kernel. Without the first two, 16 draws of each of n/16 chains.
    At a budget half of the steps are warm-up and the draws are spread over the other half, so that
    neither warmup nor thin can be given.
    x0: the mode in which all chains of a kernel start, at exact draws; this is a hint, too.
    tune: a parameter and the values of which the best is taken, by the error of the mode weights (or,
    without modes, the first metric) in runs with other seeds; a hint, too.
    """

    label: str
    sampler: Kernel | Sampler | Callable[[Target], Kernel | Sampler]
    oracle: tuple[str, ...] = ()
    n: int | None = None
    n_chains: int | None = None
    n_draws: int | None = None
    warmup: int | None = None
    thin: int | None = None
    x0: int | None = None
    tune: tuple[str, tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sampler, type):
            raise TypeError(f"sampler is the class {self.sampler.__name__}: pass an instance of it")
        for name in ("n", "n_chains", "n_draws", "thin"):
            positive(getattr(self, name), name, 1)
        for name in ("warmup", "x0"):
            positive(getattr(self, name), name, 0, least=0)
        if self.tune is not None and not self.tune[1]:
            raise ValueError(f"tune must have values to choose from, got {self.tune}")

    @property
    def hints(self) -> list[str]:
        """All that the sampler is told of the answer."""
        hints = list(self.oracle)
        hints += ["exact draws"] if isinstance(self.sampler, Exact) else []
        hints += [] if self.x0 is None else [f"x0: exact draws of mode {self.x0}"]
        hints += [] if self.tune is None else [f"{self.tune[0]}: chosen by the exact answer"]
        return hints

    def make(self, target: Target) -> Kernel | Sampler:
        """The sampler for a target. Raises TypeError, ValueError if there is none."""
        given: Any = self.sampler
        made = given
        if not isinstance(given, (Kernel, Sampler)) and callable(given):
            made = given(target)
        if not isinstance(made, (Kernel, Sampler)):
            raise TypeError(f"{self.label} must be a kernel or a sampler, got {made!r}")
        kernel_only = [k for k in ("n_chains", "n_draws", "warmup", "thin", "x0")
                       if getattr(self, k) is not None]  # fmt: skip
        if kernel_only and not isinstance(made, Kernel):
            raise ValueError(f"{kernel_only[0]} of {self.label} has no meaning: it is no kernel")
        return made


@dataclass(frozen=True)
class Exact:
    """Exact independent draws in the place of a sampler: what no other can beat.

    Raises ValueError in `sample` for a target that has none.
    """

    def sample(
        self,
        target: Target,
        n: int,
        *,
        seed: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Samples:
        if not isinstance(target, HasSampler):
            raise ValueError(f"target has no exact draws, got {type(target).__name__}")
        x = target.sample(n, seed=seed).to(device, dtype or torch.float32)
        info = {"evaluations": 0, "gradients": 0}
        return Samples(x[:, None], log_prob_of(target, x)[:, None], None, info, target)

    def for_budget(self, n: int, gradients: int) -> Exact:
        return self


@dataclass(frozen=True, eq=False)
class Task:
    """One run: what is sampled, with what, at what cost, from which seed."""

    problem: Problem
    entry: Entry
    budget: int | None
    seed: int

    def names(self) -> dict[str, Any]:
        """The entries of its row that tell it from all others."""
        values = (self.problem.name, dict(self.problem.parameters), self.entry.label)
        return dict(zip(rows.KEY, (*values, self.budget, self.seed), strict=True))

    def __str__(self) -> str:
        budget = "" if self.budget is None else f", budget {self.budget:.3g}"
        return f"{self.problem}, {self.entry.label}{budget}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class How:
    """What all runs of a suite share."""

    n: int
    metrics: tuple[str, ...]
    n_metric: int
    device: torch.device
    dtype: torch.dtype
