"""Ladders of parallel tempering: densities p_i ∝ p₀ exp(c_i E) from the target to one that mixes, and
where their rungs stand.

    powers of p          c = β          E = log p              p₀ = 1
    a mass term          c = r − r₀     E = −½ Σ φ²            p₀ = p
    a bridge to N(m, C)  c = λ          E = log p − log ν      p₀ = ν, the Gaussian without its constant

Powers: Swendsen and Wang, PRL 57, 2607 (1986). An exchange in a parameter: Hukushima and Nemoto, J. Phys.
Soc. Jpn. 65, 1604 (1996). The path from a reference, and the spacing of rungs at equal rejection by the
communication barrier Λ: Syed, Bouchard-Côté, Deligiannidis, Doucet, JRSS B 84, 321 (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pysamp import ops
from pysamp.mcmc.base import columns
from pysamp.target import Counted, Target, Tempered, Tilted
from pysamp.targets.gaussian import Bridged, Gaussian
from pysamp.targets.on import SoftON

LEAST_REJECTION = 0.01  # of a pair, in the barrier: no rung is stretched without bound


def ladder_geometric(n: int, beta_min: float) -> tuple[float, ...]:
    """n powers from 1 down to beta_min with a constant ratio.

    Raises ValueError unless n ≥ 2 and 0 < beta_min < 1.
    """
    if not isinstance(n, int) or n < 2:
        raise ValueError(f"n must be at least 2 rungs, got {n}")
    if not 0 < beta_min < 1:
        raise ValueError(f"beta_min must lie in (0, 1), got {beta_min}")
    return (*(beta_min ** (i / (n - 1)) for i in range(n - 1)), beta_min)


def ladder_linear(n: int) -> tuple[float, ...]:
    """n equidistant numbers from 1 down to 0. Raises ValueError unless n ≥ 2."""
    if not isinstance(n, int) or n < 2:
        raise ValueError(f"n must be at least 2 rungs, got {n}")
    return tuple((n - 1 - i) / (n - 1) for i in range(n))


def respaced(
    ladder: Sequence[float], swap_accept: Sequence[float], *, powers: bool = True
) -> tuple[float, ...]:
    """The ladder with the same ends on which every pair would reject equally.

    The barrier up to rung i is Λ_i = Σ_{j<i} (1 − swap_accept_j); the new rungs are equidistant in
    it, with Λ linear in ln β between the old ones (in β if the ladder ends at 0, and in what is no
    power). Syed et al., §5.
    """
    beta = np.asarray(ladder, dtype=np.float64)
    rejection = np.maximum(1.0 - np.asarray(swap_accept, dtype=np.float64), LEAST_REJECTION)
    if rejection.shape != (len(beta) - 1,):
        raise ValueError(
            f"swap_accept must have {len(beta) - 1} entries for {len(beta)} rungs, "
            f"got {rejection.shape}"
        )
    barrier = np.concatenate([[0.0], np.cumsum(rejection)])
    wanted = np.linspace(0.0, barrier[-1], len(beta))
    logs = powers and beta[-1] > 0
    new = np.interp(wanted, barrier, np.log(beta) if logs else beta)
    new = np.exp(new) if logs else new
    return (float(beta[0]), *(float(b) for b in new[1:-1]), float(beta[-1]))


class Family(Protocol):
    """The densities of a ladder, of rows of walkers: c, x, log_prob and score have one row for each.

    log_prob and score are those of p, where nothing else is said.
    """

    @property
    def lost(self) -> bool:
        """Whether log p does not follow from log p_i on every rung, or not to its last digit."""

    def c(self, ladder: Tensor) -> Tensor: ...

    def coldest(self, target: Target, x: Tensor) -> Target:
        """The target as a rung of the ladder, for a kernel to refuse."""

    def rungs(self, target: Target, c: Tensor, x: Tensor) -> Target: ...

    def energy(self, x: Tensor, log_prob: Tensor) -> Tensor: ...

    def log_prob(self, c: Tensor, x: Tensor, log_prob: Tensor, energy: Tensor) -> Tensor:
        """log p_i."""

    def score(self, c: Tensor, score: Tensor, x: Tensor) -> Tensor:
        """The score of p_i."""

    def moved(self, old: Tensor, new: Tensor, score: Tensor, x: Tensor) -> Tensor:
        """The score of p_i at c = new, from that at c = old."""


@dataclass(frozen=True)
class Powers:
    """p^β; `flat` says whether the last β is 0."""

    flat: bool

    @property
    def lost(self) -> bool:
        return self.flat

    def c(self, ladder: Tensor) -> Tensor:
        return ladder

    def coldest(self, target: Target, x: Tensor) -> Target:
        return target

    def rungs(self, target: Target, c: Tensor, x: Tensor) -> Target:
        return Tempered(target, c)

    def energy(self, x: Tensor, log_prob: Tensor) -> Tensor:
        return log_prob

    def log_prob(self, c: Tensor, x: Tensor, log_prob: Tensor, energy: Tensor) -> Tensor:
        return c * log_prob

    def score(self, c: Tensor, score: Tensor, x: Tensor) -> Tensor:
        return columns(c, x) * score

    def moved(self, old: Tensor, new: Tensor, score: Tensor, x: Tensor) -> Tensor:
        return columns(torch.where(old > 0, new / old, 1.0), x) * score


@dataclass(frozen=True)
class Masses:
    """p exp(−½ (r − r₀) Σ φ²)."""

    lost = True

    def c(self, ladder: Tensor) -> Tensor:
        return ladder - ladder[:, :1]

    def coldest(self, target: Target, x: Tensor) -> Target:
        return self.rungs(target, x.new_zeros(len(x)), x)

    def rungs(self, target: Target, c: Tensor, x: Tensor) -> Target:
        return Tilted(target, x.new_zeros(x.shape[1:]), c)

    def energy(self, x: Tensor, log_prob: Tensor) -> Tensor:
        return ops.sum32((x * x).flatten(1)) * -0.5

    def log_prob(self, c: Tensor, x: Tensor, log_prob: Tensor, energy: Tensor) -> Tensor:
        return log_prob + c * energy

    def score(self, c: Tensor, score: Tensor, x: Tensor) -> Tensor:
        return score - columns(c, x) * x

    def moved(self, old: Tensor, new: Tensor, score: Tensor, x: Tensor) -> Tensor:
        return score - columns(new - old, x) * x


@dataclass(frozen=True, eq=False)
class Bridge:
    """p^λ ν^{1−λ}, ν without its constant."""

    reference: Gaussian
    lost = True

    def c(self, ladder: Tensor) -> Tensor:
        return ladder

    def coldest(self, target: Target, x: Tensor) -> Target:
        return Bridged(target, self.reference, 1.0)

    def rungs(self, target: Target, c: Tensor, x: Tensor) -> Target:
        return Bridged(target, self.reference, c)

    def energy(self, x: Tensor, log_prob: Tensor) -> Tensor:
        return log_prob + self._half_square(x)

    def log_prob(self, c: Tensor, x: Tensor, log_prob: Tensor, energy: Tensor) -> Tensor:
        tempered = torch.where(c == 0, 0.0, c * log_prob)
        return tempered - (1 - c) * self._half_square(x)

    def score(self, c: Tensor, score: Tensor, x: Tensor) -> Tensor:
        felt, pull = columns(c, x), self.reference.offset_and_pull(x)[1]
        return torch.where(felt == 0, 0.0, felt * score) - (1 - felt) * pull

    def moved(self, old: Tensor, new: Tensor, score: Tensor, x: Tensor) -> Tensor:
        a, b, pull = columns(old, x), columns(new, x), self.reference.offset_and_pull(x)[1]
        return torch.where(a > 0, (score + (1 - a) * pull) * (b / a) - (1 - b) * pull, score)

    def _half_square(self, x: Tensor) -> Tensor:
        offset, pull = self.reference.offset_and_pull(x)
        return ops.sum32((offset * pull).flatten(1)) * 0.5


def checked(given: object, name: str) -> tuple[float, ...]:
    """betas or r as a tuple, if they are a ladder."""
    numbers = torch.as_tensor(given, dtype=torch.float64)
    values = tuple(numbers.flatten().tolist())
    if numbers.ndim != 1 or len(values) < 2:
        raise ValueError(f"{name} must be a sequence of at least 2 numbers, got {given}")
    if name == "r" and not (np.isfinite(values).all() and all(a < b for a, b in pairwise(values))):
        raise ValueError(f"r must be finite and increase, got {values}")
    if name == "betas" and values[0] != 1.0:
        raise ValueError(f"betas must start at 1, got {values[0]}")
    if name == "betas" and not (values[-1] >= 0 and all(a > b for a, b in pairwise(values))):
        raise ValueError(f"betas must decrease from 1 and not be negative, got {values}")
    return values


def check_soft(target: Target, r: tuple[float, ...]) -> None:
    while isinstance(target, Counted):
        target = target.base
    if not isinstance(target, SoftON):
        raise TypeError(f"r needs a soft field, ON.soft(...), got {type(target).__name__}")
    if target.r != r[0]:
        raise ValueError(f"r must start at that of the target, {target.r}, got {r[0]}")
