"""Annealed importance sampling and sequential Monte Carlo along a bridge from a Gaussian to the target.

    p_k ∝ ν^{1 − λ_k} γ^{λ_k},   0 = λ_0 < λ_1 < … < λ_{K−1} = 1,   ν = N(m, C)

Particles start as exact draws of ν. At level k a particle is first weighted, then moved by MALA of p_k:

    log w ← log w + (λ_k − λ_{k−1}) (log γ(x) − log ν(x)),   the mean of w is an estimate of Z.

AIS (Neal, Statistics and Computing 11, 125, 2001) does no more. SMC (Del Moral, Doucet and Jasra, JRSS B
68, 411, 2006, doi 10.1111/j.1467-9868.2006.00553.x) resamples in between: systematically where the
effective sample size falls below a share of the particles, or at every level. Levels are given, or chosen
so that the conditional effective sample size stays the same (Zhou, Johansen and Aston, J. Comput. Graph.
Stat. 25, 701, 2016), after which the estimate of Z is consistent, no longer unbiased. MALA adapts the
step of every particle as SLIPS does (arXiv 2402.10758); that and the levels chosen are the only
approximations.

The error of log Z takes the descendants of each start as one unit, of weight S_e, and the units as
independent (Chan and Lai, Ann. Statist. 41, 2877, 2013); with multinomial resampling, where families also
die by chance, r rounds of it are allowed for (Lee and Whiteley, Biometrika 105, 609, 2018):

    Var Z / Z² ≈ 1 − (n/(n−1))^{r+1} (1 − Σ_e S_e²),   r = 0 unless multinomial.

Without resampling it is the variance of the weights. By chance it can come out too small, so it is not
taken below the sum of the variances of the weights between resamplings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pysamp import metrics, rng
from pysamp.mcmc.langevin import MALA, Multiplicative
from pysamp.samples import Samples
from pysamp.target import Counted, Target, log_prob_of
from pysamp.targets.gaussian import Bridged, Gaussian, check_reference

FEW = 0.01  # share of the particles; below it a few of them decide every mean
FEW_STARTS, VERY_FEW_STARTS = 100, 20  # the weight of a mode is known to ± 5 %, ± 11 %
BISECTIONS = 50

Schedule = str | Sequence[float]


@dataclass(frozen=True, eq=False)
class AIS:
    """Annealed importance sampling: independent particles, with weights that are kept.

    reference: ν; left out, it is N(0, scale² I), with scale 1 if that is left out, too. It should cover
    the target: a mode that no path leads to is missed without a sign.
    n_levels: K, the reference and the target included. n_steps: MALA steps a level. step_size: the first,
    adapted from there on by `adapt`; left out, by the rule of SLIPS with the largest variance of ν (or 1)
    as the largest step. schedule: "linear", or the λ_k, from 0 to 1.

    `Samples.log_weight` has the weights, of which the logarithm of the mean is log Z; `info` has
    "log_z", "log_z_error", "accept" (n,), "lam" (K,), and by level (K − 1,) "level_ess" and
    "level_accept". Cost: n (K − 1) (n_steps + 1) gradients.

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
        run = _Run(self, target, n, seed, first_chain, device, dtype)
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
        run = _Run(self, target, n, seed, 0, device, dtype)
        given = None if self.schedule == "adaptive" else _lams(self)
        while run.lam < 1:
            lam = self._next(run) if given is None else given[run.level + 1]
            run.weigh(lam - run.lam)
            if self.threshold == 1 or run.ess() < self.threshold * n:
                run.resample(self.resample)
            run.move(lam)
        return run.samples(genealogy=True)

    def for_budget(self, n: int, gradients: int) -> SMC:
        """As that of AIS; an adaptive schedule stops earlier if it can."""
        return replace(self, **_lengths(self, n, gradients))

    def _next(self, run: _Run) -> float:
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


# ---------------------------------------------------------------------------- the particles
@dataclass
class _Levels:
    """What is known of each level so far."""

    lam: list[float] = field(default_factory=lambda: [0.0])
    ess: list[float] = field(default_factory=list)
    accept: list[float] = field(default_factory=list)
    resampled: list[int] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)


class _Run:
    """n particles on their way from ν to the target."""

    def __init__(
        self,
        settings: AIS | SMC,
        target: Target,
        n: int,
        seed: int,
        first_chain: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be a positive int, got {n}")
        self.target, self.settings = Counted(target), settings
        self.n, self.seed, self.first_chain = n, seed, first_chain
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.reference = self._reference(target)
        adapt = settings.adapt
        if adapt is None:
            adapt = Multiplicative(cap=max(1.0, self.reference.largest_variance))
        self.kernel = MALA(adapt=adapt)
        z = rng.normal(
            (n, *target.event_shape), seed=seed, stream="start", first_chain=first_chain,
            device=device, dtype=dtype or torch.float32,
        )  # fmt: skip
        self.x = self.reference.place(z)  # (n, *event)
        self.step_size = z.new_full((n,), settings.step_size)
        self.log_weight = torch.zeros(n, dtype=torch.float64, device=z.device)  # whose mean is Z
        self.start = torch.arange(n, device=z.device)  # of which each particle is a descendant
        self.between = 0.0  # Σ of Var w / w² over the resamplings
        self.multinomial = 0  # resamplings of that kind
        self.accept = torch.zeros(n, dtype=torch.float64, device=z.device)
        self.nonfinite = torch.zeros(n, dtype=torch.float64, device=z.device)
        self.lam, self.level, self.levels = 0.0, 0, _Levels()
        self._evaluate()
        self._check_start()

    def _reference(self, target: Target) -> Gaussian:
        given, scale = self.settings.reference, self.settings.scale
        if given is not None:
            check_reference(given, target)
            return given
        if scale is None:
            self.notes.append("the start is N(0, 1), as neither reference nor scale was given")
        return Gaussian(torch.zeros(tuple(target.event_shape)), (scale or 1.0) ** 2)

    def _evaluate(self) -> None:
        self.log_prob = log_prob_of(self.target, self.x)  # (n,)
        # In float64, as differences of large numbers are added up: log γ/ν.
        self.energy = self.log_prob.double() - self.reference.log_prob(self.x.double())

    def _check_start(self) -> None:
        bad = ~(self.log_prob < math.inf)
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"target has log_prob {float(self.log_prob[row])} at {int(bad.sum())} of {self.n} draws "
                f"of the reference, first that of chain {self.first_chain + row}"
            )
        dead = int((self.log_prob == -math.inf).sum())
        if dead == self.n:
            raise ValueError(f"target has density zero at all {self.n} draws of the reference")
        if dead:
            self.notes.append(f"{dead} of {self.n} draws of the reference have density zero")

    # ------------------------------------------------------------------------ one level
    def weigh(self, step: float) -> None:
        """Weights for λ + step."""
        self.log_weight = self.log_weight + step * self.energy
        self.levels.ess.append(self.ess())
        self.levels.resampled.append(0)

    def ess(self) -> float:
        """Of particles, (Σ w)² / Σ w²."""
        return float(metrics.ess_weights(self.log_weight))

    def conditional_ess(self, step: float) -> float:
        """(Σ W u)² / Σ W u² with u = (γ/ν)^step: the share of what the weights W are worth now.

        Draws where the density is 0 are lost with the first step, whatever its length.
        """
        alive = self.energy > -math.inf
        weight = torch.softmax(self.log_weight[alive], 0)
        energy = self.energy[alive]
        u = torch.exp(step * (energy - energy.max()))
        return float((weight @ u) ** 2 / (weight @ u.square()))

    def resample(self, how: str) -> None:
        """Particles in proportion to their weights, which become equal and keep their mean."""
        mean, error = metrics.log_z(self.log_weight)
        self.between += float(error) ** 2
        weight = torch.softmax(self.log_weight, 0)
        at: dict[str, Any] = {"seed": self.seed, "stream": "resample", "step": self.level}
        at |= {"device": weight.device, "dtype": torch.float64}
        if how == "systematic":
            grid = torch.arange(self.n, device=weight.device, dtype=torch.float64)
            u = (grid + rng.uniform((1, 1), **at)[0]) / self.n
        else:
            u = rng.uniform((self.n, 1), **at)[:, 0].sort().values
            self.multinomial += 1
        edges = weight.cumsum(0)
        # Without the last edge no rounding of the sum can point past the last particle.
        parent = torch.searchsorted(edges[:-1] / edges[-1], u, right=True)
        self.log_weight = mean.expand(self.n).clone()
        self.x, self.step_size = self.x[parent], self.step_size[parent]
        self.start = self.start[parent]
        self.levels.resampled[-1] = 1

    def move(self, lam: float) -> None:
        """n_steps of MALA at λ = lam, where the particles are then."""
        steps = self.settings.n_steps
        moved = self.kernel.advance(
            Bridged(self.target, self.reference, lam), self.x, self.step_size, steps,
            seed=self.seed, step=self.level * steps, first_chain=self.first_chain,
        )  # fmt: skip
        alive = self.log_weight > -math.inf  # others never move: nothing is held against the target
        self.x, self.step_size = moved.x, moved.step_size
        self.accept += torch.where(alive, moved.accept, 0.0)
        self.nonfinite += torch.where(alive, moved.nonfinite, 0.0)
        self.lam, self.level = lam, self.level + 1
        self._evaluate()
        levels = self.levels
        levels.lam.append(lam)
        levels.accept.append(float(moved.accept[alive].mean()))
        levels.starts.append(self._starts())

    # ------------------------------------------------------------------------ the result
    def _families(self) -> Tensor:
        """Σ of the normalised weights of the descendants of each start (n,)."""
        weight = torch.softmax(self.log_weight, 0)
        return torch.zeros_like(weight).index_add(0, self.start, weight)

    def _starts(self) -> float:
        return float(1 / self._families().square().sum())

    def log_z(self) -> tuple[float, float]:
        """log Z and its error, which is relative to Z: 1 says that nothing is known."""
        value, error = metrics.log_z(self.log_weight)
        if self.n == 1:
            return float(value), math.inf
        same = float(self._families().square().sum())
        variance = 1 - (self.n / (self.n - 1)) ** (self.multinomial + 1) * (1 - same)
        return float(value), math.sqrt(max(variance, self.between + float(error) ** 2))

    def samples(self, *, genealogy: bool = False) -> Samples:
        log_z, error = self.log_z()
        levels = self.levels
        info: dict[str, Any] = {
            "log_z": log_z,
            "log_z_error": error,
            "accept": self.accept / self.level,
            "nonfinite": self.nonfinite,
            "evaluations": self.target.evaluations,
            "gradients": self.target.gradients,
            "lam": torch.tensor(levels.lam, dtype=torch.float64),
            "level_ess": torch.tensor(levels.ess, dtype=torch.float64),
            "level_accept": torch.tensor(levels.accept, dtype=torch.float64),
        }
        if genealogy:
            info["level_starts"] = torch.tensor(levels.starts, dtype=torch.float64)
            info["resampled"] = torch.tensor(levels.resampled)
            info["ancestor"] = self.start
        self._judge(genealogy)
        info |= {"notes": self.notes, "warnings": self.warnings}
        log_weight = self.log_weight[:, None]
        return Samples(self.x[:, None], self.log_prob[:, None], log_weight, info, self.target.base)

    def _judge(self, genealogy: bool) -> None:
        poor = [k for k, size in enumerate(self.levels.ess, 1) if size < FEW * self.n]
        if poor:
            level = poor[0]
            self.warnings.append(
                f"the weights degenerated at level {level} of {self.level} (λ = "
                f"{self.levels.lam[level]:.3g}), where {self.levels.ess[level - 1]:.1f} of {self.n} "
                "particles were effective: use more levels or steps, or a reference nearer to the target"
            )
        starts = self._starts()
        if genealogy and starts < min(FEW_STARTS, self.n / 2):
            (self.warnings if starts < VERY_FEW_STARTS else self.notes).append(
                f"the {self.n} particles descend from about {starts:.0f} starts: the weights of modes that "
                f"no particle travels between may be off by {50 / math.sqrt(starts):.0f} %; resample less "
                "often, use more particles or levels"
            )


# ---------------------------------------------------------------------------- settings
def _check(s: AIS | SMC, words: tuple[str, ...]) -> None:
    for name, least in (("n_levels", 2), ("n_steps", 1)):
        value = getattr(s, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if s.reference is not None and not isinstance(s.reference, Gaussian):
        raise TypeError(f"reference must be a Gaussian or None, got {type(s.reference).__name__}")
    if s.reference is not None and s.scale is not None:
        raise ValueError(f"scale must be left out beside a reference, got {s.scale}")
    for name in ("scale", "step_size"):
        value = getattr(s, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
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
    """The number of levels, or of steps a level, whose cost is at most `gradients`."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a positive int, got {n}")
    given = not isinstance(s.schedule, str)
    unit = n * (s.n_levels - 1 if given else s.n_steps + 1)  # gradients of one more of them
    count = gradients // unit
    if count < (2 if given else 1):
        raise ValueError(
            f"gradients must be at least {unit * (2 if given else 1)} for {n} particles, got {gradients}"
        )
    return {"n_steps": count - 1} if given else {"n_levels": count + 1}


__all__ = ["AIS", "SMC"]
