"""Weighted particles on a bridge from a Gaussian to a target: what AIS and SMC do level by level.

Neal, Annealed importance sampling, Statistics and Computing 11, 125 (2001), arXiv physics/9803008; Del
Moral, Doucet, Jasra, JRSS B 68, 411 (2006), doi 10.1111/j.1467-9868.2006.00553.x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pysamp import metrics, rng
from pysamp.mcmc.langevin import MALA, Multiplicative
from pysamp.samplers.arguments import check_n, counted
from pysamp.samples import Samples
from pysamp.target import Target, log_prob_of
from pysamp.targets.gaussian import Bridged, Gaussian, check_reference

SCOUTS = 64
SCOUT_CHAIN = 1 << 31  # their number: no particle has it
FEW = 0.01  # share of the particles; below it a few of them decide every mean
FEW_STARTS, VERY_FEW_STARTS = 100, 20  # the weight of a mode is known to ± 5 %, ± 11 %


class Annealing(Protocol):
    """What the particles take from AIS and SMC."""

    @property
    def reference(self) -> Gaussian | None: ...
    @property
    def scale(self) -> float | None: ...
    @property
    def n_steps(self) -> int: ...
    @property
    def step_size(self) -> float: ...
    @property
    def adapt(self) -> Multiplicative | None: ...


@dataclass
class Levels:
    """What is known of each level so far."""

    lam: list[float] = field(default_factory=lambda: [0.0])
    ess: list[float] = field(default_factory=list)
    accept: list[float] = field(default_factory=list)
    resampled: list[int] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)


class Particles:
    """n particles on their way from ν to the target."""

    def __init__(
        self,
        settings: Annealing,
        target: Target,
        n: int,
        seed: int,
        first_chain: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_n(n)
        self.target, self.settings = counted(target, type(settings).__name__), settings
        self.n, self.seed, self.first_chain = n, seed, first_chain
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.reference = self._reference(target)
        self.kernel = MALA(adapt=settings.adapt)
        how: dict[str, Any] = {"seed": seed, "stream": "start", "device": device}
        how["dtype"] = dtype or torch.float32
        z = rng.normal((n, *target.event_shape), first_chain=first_chain, **how)
        self.x = self.reference.place(z)  # (n, *event)
        self.step_size = z.new_full((n,), settings.step_size)
        z = rng.normal((SCOUTS, *target.event_shape), first_chain=SCOUT_CHAIN, **how)
        self.scouts, self.scout_steps = (
            self.reference.place(z),
            z.new_full((SCOUTS,), settings.step_size),
        )
        self.log_weight = torch.zeros(n, dtype=torch.float64, device=z.device)  # whose mean is Z
        self.start = torch.arange(n, device=z.device)  # of which each particle is a descendant
        self.between = 0.0  # Σ of Var w / w² over the resamplings
        self.multinomial = 0  # resamplings of that kind
        self.accept = torch.zeros(n, dtype=torch.float64, device=z.device)
        self.nonfinite = torch.zeros(n, dtype=torch.float64, device=z.device)
        self.lam, self.level, self.levels = 0.0, 0, Levels()
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
        bridged = Bridged(self.target, self.reference, lam)
        at = {"seed": self.seed, "step": self.level * steps}
        if self.settings.adapt is None:
            self.step_size = self._scout(bridged, steps, at).expand(self.n)
        moved = self.kernel.advance(
            bridged, self.x, self.step_size, steps, first_chain=self.first_chain, **at
        )
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

    def _scout(self, bridged: Bridged, steps: int, at: dict[str, int]) -> Tensor:
        """The step that the scouts find good at this level: (1,)."""
        rule = Multiplicative(cap=max(1.0, self.reference.largest_variance))
        moved = MALA(adapt=rule).advance(
            bridged, self.scouts, self.scout_steps, steps, first_chain=SCOUT_CHAIN, **at
        )
        self.scouts, self.scout_steps = moved.x, moved.step_size
        return moved.step_size.log().mean().exp()[None]

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
            "nonfinite": int(self.nonfinite.sum()),
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
        starts = self.levels.starts[-1]
        if genealogy and starts < min(FEW_STARTS, self.n / 2):
            (self.warnings if starts < VERY_FEW_STARTS else self.notes).append(
                f"the {self.n} particles descend from about {starts:.0f} starts: the weights of modes that "
                f"no particle travels between may be off by {50 / math.sqrt(starts):.0f} %; resample less "
                "often, use more particles or levels"
            )
