"""Annealed importance sampling and sequential Monte Carlo along a bridge from a Gaussian to the target.

    p_k ∝ ν^{1 − λ_k} γ^{λ_k},   0 = λ_0 < λ_1 < … < λ_{K−1} = 1,   ν = N(m, C)

Particles start as exact draws of ν. At level k a particle is first weighted, then moved by MALA of p_k:

    log w ← log w + (λ_k − λ_{k−1}) (log γ(x) − log ν(x)),   the mean of w is an estimate of Z.

AIS (Neal, Statistics and Computing 11, 125, 2001) does no more. SMC (Del Moral, Doucet and Jasra, JRSS B
68, 411, 2006, doi 10.1111/j.1467-9868.2006.00553.x) resamples in between: systematically where the
effective sample size falls below a share of the particles, or at every level. Levels are given, or chosen
so that the conditional effective sample size stays the same (Zhou, Johansen and Aston, J. Comput. Graph.
Stat. 25, 701, 2016), after which the estimate of Z is consistent, no longer unbiased.

The steps of MALA at a level are those that a few scouts were brought to there, particles that are used
for nothing else. In the comparison of SLIPS (arXiv 2402.10758) every particle adapts its own step as it
goes. Its step is then correlated with where it is, the move no longer leaves p_k invariant, and log Z
comes out too large: by 0.018 ± 0.002 on two modes in four dimensions, where scouts leave 0.002 ± 0.002.

The error of log Z takes the descendants of each start as one unit, of weight S_e, and the units as
independent (Chan and Lai, Ann. Statist. 41, 2877, 2013); with multinomial resampling, where families also
die by chance, r rounds of it are allowed for (Lee and Whiteley, Biometrika 105, 609, 2018):

    Var Z / Z² ≈ 1 − (n/(n−1))^{r+1} (1 − Σ_e S_e²),   r = 0 unless multinomial.

Without resampling it is the variance of the weights. By chance it can come out too small, so it is not
taken below the sum of the variances of the weights between resamplings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from pysamp.mcmc.langevin import Multiplicative
from pysamp.samplers.arguments import check_at_least, check_budget, check_number, check_positive
from pysamp.samplers.particles import SCOUTS, Particles
from pysamp.samples import Samples
from pysamp.target import Target
from pysamp.targets.gaussian import Gaussian

BISECTIONS = 50

Schedule = str | Sequence[float]


@dataclass(frozen=True, eq=False)
class AIS:
    """Annealed importance sampling: independent particles, with weights that are kept.

    reference: ν; left out, it is N(0, scale² I), with scale 1 if that is left out, too. It should cover
    the target: a mode that no path leads to is missed without a sign.
    n_levels: K, the reference and the target included. n_steps: MALA steps a level. step_size: the first;
    from there on 64 scouts adapt theirs, and the particles take the geometric mean. With `adapt` every
    particle adapts its own, as published, which biases log Z. schedule: "linear", or the λ_k, from 0 to 1.

    `Samples.log_weight` has the weights, of which the logarithm of the mean is log Z; `info` has
    "log_z", "log_z_error", "accept" (n,), "lam" (K,), and by level (K − 1,) "level_ess" and
    "level_accept". Cost: (n + 64) (K − 1) (n_steps + 1) gradients.

    Raises ValueError, TypeError for arguments that cannot be used.
    """

    reference: Gaussian | None = None
    scale: float | None = None
    n_levels: int = 128
    n_steps: int = 32
    step_size: float = 1e-2
    schedule: Schedule = "linear"
    adapt: Multiplicative | None = None

    def __post_init__(self) -> None:
        _check(self, ("linear",))

    def sample(
        self,
        target: Target,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Samples:
        """n particles (n, 1, *event_shape), those of chains first_chain … first_chain + n."""
        run = Particles(self, target, n, seed, first_chain, device, dtype)
        for before, lam in pairwise(_lams(self)):
            run.weigh(lam - before)
            run.move(lam)
        return run.samples()

    def for_budget(self, n: int, gradients: int) -> AIS:
        """The same method with as many levels as `gradients` gradients allow for n particles; with a
        schedule of one's own, as many steps a level. Raises ValueError if there are too few."""
        return replace(self, **_lengths(self, n, gradients))


@dataclass(frozen=True, eq=False)
class SMC:
    """Sequential Monte Carlo: AIS whose particles are resampled when their weights have grown unequal.

    reference, scale, n_levels, n_steps, step_size, adapt: as in AIS. resample: "systematic" (Kitagawa,
    J. Comput. Graph. Stat. 5, 1, 1996), or "multinomial", which adds noise of its own to the weight of
    every mode. threshold: the share of n below which the effective sample size triggers it; 1.0 is at
    every level. schedule: "linear", the λ_k, or "adaptive", where each level keeps the share
    `conditional_ess` of the particles, and n_levels is the most that there may be: the last of them is the
    target, whatever that costs in weights.

    Weights of the last levels are kept. `info` is that of AIS with, by level, "resampled" (0 or 1) and
    "level_starts", the effective number of starts that the particles descend from; also "ancestor" (n,),
    the start of each particle. Particles depend on each other: an error that is computed from
    draws alone is too small by about √(n/starts).

    Raises ValueError, TypeError for arguments that cannot be used.
    """

    reference: Gaussian | None = None
    scale: float | None = None
    n_levels: int = 128
    n_steps: int = 32
    step_size: float = 1e-2
    schedule: Schedule = "linear"
    resample: str = "systematic"
    threshold: float = 0.5
    conditional_ess: float = 0.9
    adapt: Multiplicative | None = None

    def __post_init__(self) -> None:
        _check(self, ("linear", "adaptive"))
        if self.resample not in ("systematic", "multinomial"):
            raise ValueError(
                f"resample must be 'systematic' or 'multinomial', got {self.resample!r}"
            )
        for name in ("threshold", "conditional_ess"):
            check_number(getattr(self, name), name)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}")
        if not 0 < self.conditional_ess < 1:
            raise ValueError(f"conditional_ess must lie in (0, 1), got {self.conditional_ess}")

    def sample(
        self,
        target: Target,
        n: int,
        *,
        seed: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Samples:
        """n particles (n, 1, *event_shape)."""
        run = Particles(self, target, n, seed, 0, device, dtype)
        given = None if self.schedule == "adaptive" else _lams(self)
        while run.lam < 1:
            lam = self._next(run) if given is None else given[run.level + 1]
            run.weigh(lam - run.lam)
            if self.threshold == 1 or run.ess() < self.threshold * n:
                run.resample(self.resample)
            run.move(lam)
        return run.samples(genealogy=True)

    def for_budget(self, n: int, gradients: int) -> SMC:
        """As that of AIS; with an adaptive schedule, steps for the most levels there may be."""
        return replace(self, **_lengths(self, n, gradients))

    def _next(self, run: Particles) -> float:
        """The largest λ at which the conditional effective sample size is still the share wanted."""
        left = 1.0 - run.lam
        if run.conditional_ess(left) >= self.conditional_ess:
            return 1.0
        if run.level + 2 >= self.n_levels:
            run.warnings.append(
                f"the adaptive ladder stood at λ = {run.lam:.3g} when {self.n_levels} levels were used "
                "up, and went on to the target in one step: allow more levels"
            )
            return 1.0
        low, high = 0.0, left
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            enough = run.conditional_ess(middle) >= self.conditional_ess
            low, high = (middle, high) if enough else (low, middle)
        return run.lam + high


# ---------------------------------------------------------------------------- settings
def _check(s: AIS | SMC, words: tuple[str, ...]) -> None:
    for name, least in (("n_levels", 2), ("n_steps", 1)):
        check_at_least(getattr(s, name), least, name)
    if s.reference is not None and not isinstance(s.reference, Gaussian):
        raise TypeError(f"reference must be a Gaussian or None, got {type(s.reference).__name__}")
    if s.reference is not None and s.scale is not None:
        raise ValueError(f"scale must be left out beside a reference, got {s.scale}")
    check_positive(s.step_size, "step_size")
    if s.scale is not None:
        check_positive(s.scale, "scale")
    if s.adapt is not None and not isinstance(s.adapt, Multiplicative):
        raise TypeError(f"adapt must be a Multiplicative or None, got {s.adapt!r}")
    if isinstance(s.schedule, str):
        if s.schedule not in words:
            raise ValueError(
                f"schedule must be {' or '.join(map(repr, words))} or the levels from 0 to 1, got "
                f"{s.schedule!r}"
            )
        return
    lams = tuple(float(lam) for lam in s.schedule)
    if len(lams) < 2 or (lams[0], lams[-1]) != (0, 1) or not all(a < b for a, b in pairwise(lams)):
        raise ValueError(f"schedule must increase from 0 to 1, got {s.schedule}")
    object.__setattr__(s, "schedule", lams)
    object.__setattr__(s, "n_levels", len(lams))


def _lams(s: AIS | SMC) -> tuple[float, ...]:
    if not isinstance(s.schedule, str):
        return tuple(s.schedule)
    last = s.n_levels - 1
    return tuple(k / last for k in range(s.n_levels))


def _lengths(s: AIS | SMC, n: int, gradients: int) -> dict[str, Any]:
    """The number of levels, or of steps where levels are not counted, whose cost is at most `gradients`."""
    check_budget(n, gradients)
    particles = n if s.adapt is not None else n + SCOUTS
    by_steps = s.schedule != "linear"
    if s.schedule == "adaptive" and gradients < 2 * particles * (s.n_levels - 1):
        by_steps = False  # then there are fewer levels at most
    # gradients of one more of them, and the least number
    unit, least = (s.n_levels - 1, 2) if by_steps else (s.n_steps + 1, 1)
    count = gradients // (particles * unit)
    if count < least:
        least *= particles * unit
        raise ValueError(f"gradients must be at least {least} for {n} particles, got {gradients}")
    return {"n_steps": count - 1} if by_steps else {"n_levels": count + 1}


__all__ = ["AIS", "SMC"]
