"""Hamiltonian Monte Carlo (Duane, Kennedy, Pendleton, Roweth, PLB 195, 216, 1987).

Fresh momenta p ~ N(0, M), M diagonal, then L leapfrog steps of size ε of H = −log p(x) + ½ pᵀM⁻¹p; the end
point is accepted with probability min(1, e^{−ΔH}). In the momenta v = M^{−½} p ~ N(0, 1), and with
S = M^{−½}, a leapfrog step is v += ½ε S∇log p(x), x += ε S v, v += ½ε S∇log p(x).

With a trajectory length τ the number of steps is L = max(1, ⌊2 u τ / ε⌋), u uniform in (0, 1), new in
every transition and the same for all chains: a fixed length resonates with the periods of a target (Neal,
Handbook of MCMC, ch. 5, 2011, arXiv 1206.1901, sec. 3.2).
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pysamp import reference, rng
from pysamp.mcmc import fused
from pysamp.mcmc.base import Info, State, check_steps, columns, per_chain, replace
from pysamp.mcmc.langevin import (
    Collect,
    Numbers,
    acceptance,
    check_scale,
    needed,
    noise_size,
    squared_norm,
    start,
)
from pysamp.target import Target, log_prob_and_score

MAX_LEAPFROG = (
    1024  # a trajectory is cut there, as those of NUTS are: a tiny ε must not hang a search
)
ADAPT = "adapt"


@runtime_checkable
class HasMasses(Protocol):
    """A kernel whose masses warm-up may adapt to the variances that it sees."""

    @property
    def adapts_masses(self) -> bool:
        """Whether the masses are to be adapted."""

    def coordinates(self, state: State) -> Tensor:
        """The points (n_chains, …) whose variances the inverse masses are."""

    def with_variance(self, state: State, variance: Tensor) -> State:
        """The state with other inverse masses, of the shape of one point."""


@dataclass(frozen=True, eq=False)
class HMC:
    """L = `n_leapfrog` steps of size ε = `step_size`: a number, one per chain, or None (warm-up finds it).

    trajectory_length: τ, from which L follows as above, at most 1024; n_leapfrog then plays no part.
    inverse_mass: M⁻¹, positive, of the shape of an event, or flat; None is 1. "adapt" lets warm-up set it
    to the variances of the coordinates; it is then in `state.aux["inverse_mass"]` (n_chains, *event), and 1
    without a warm-up. ε is in units of the masses.
    Cost: L gradients a step; native with masses 1.

    Raises ValueError, TypeError for arguments; ValueError at its start for masses of another size.
    """

    step_size: Tensor | float | None = None
    n_leapfrog: int = 10
    _: KW_ONLY
    trajectory_length: float | None = None
    inverse_mass: Tensor | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "step_size", check_scale(self.step_size, "step_size"))
        if type(self.n_leapfrog) is not int or self.n_leapfrog < 1:
            raise ValueError(f"n_leapfrog must be a positive integer, got {self.n_leapfrog}")
        length = self.trajectory_length
        if length is not None:
            if isinstance(length, bool) or not isinstance(length, (int, float)):
                raise TypeError(f"trajectory_length must be a number, got {length!r}")
            if not 0 < length < math.inf:
                raise ValueError(f"trajectory_length must be positive and finite, got {length}")
        if isinstance(self.inverse_mass, str):
            if self.inverse_mass != ADAPT:
                raise ValueError(
                    f'inverse_mass must be None, "{ADAPT}" or a tensor, got {self.inverse_mass!r}'
                )
        elif self.inverse_mass is not None:
            given = torch.as_tensor(self.inverse_mass)
            if not bool(((given > 0) & torch.isfinite(given)).all()):
                raise ValueError(f"inverse_mass must be positive and finite, got {given}")
            object.__setattr__(self, "inverse_mass", given)

    @property
    def adapts_masses(self) -> bool:
        return isinstance(self.inverse_mass, str)

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        state = start(self, target, x, seed, first_chain)
        self._root(state)
        return (
            replace(state, aux={"inverse_mass": torch.ones_like(x)})
            if self.adapts_masses
            else state
        )

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        check_steps(n, thin)
        eps = per_chain(needed(self.step_size, "step_size"), "step_size", state.log_prob)
        root = self._root(state)
        if self.trajectory_length is None and root is None:
            done = fused.chain("hmc", target, state, n, thin, eps, n_leapfrog=self.n_leapfrog)
            if done is not None:
                return done
        if state.score is None:
            raise ValueError("state has no score: start it with this kernel's init")
        collect = Collect(state, n, thin)
        for step in range(state.step, state.step + n):
            counts = self._counts(eps, state, step)
            done = None
            if root is None and isinstance(counts, int):
                done = fused.chain("hmc", target, state, 1, None, eps, n_leapfrog=counts)
            if done is not None:
                state, info = done
                collect.nonfinite = collect.nonfinite + info.extra["nonfinite"]
                collect.add(info.accept, torch.ones_like(info.accept) > 0, state.x, state.log_prob)
            else:
                state, probability, finite = _transition(target, state, eps, root, counts)
                collect.add(probability, finite, state.x, state.log_prob)
        return state, collect.info()

    # ------------------------------------------------------------------------ parts
    def _root(self, state: State) -> Tensor | None:
        """S = M^{−½}, of a shape that multiplies x; None for masses 1."""
        if isinstance(self.inverse_mass, str):
            found = state.aux.get("inverse_mass")
            return None if found is None else reference.sqrt_rn(found)
        if self.inverse_mass is None:
            return None
        if self.inverse_mass.numel() != state.x[0].numel():
            raise ValueError(
                f"inverse_mass must have {state.x[0].numel()} entries, as an event "
                f"{tuple(state.x.shape[1:])} has, got shape {tuple(self.inverse_mass.shape)}"
            )
        return reference.sqrt_rn(self.inverse_mass.to(state.x).reshape(1, *state.x.shape[1:]))

    def _counts(self, eps: Tensor, state: State, step: int) -> int | Tensor:
        """Leapfrog steps of a transition: one number for all chains, or one for each (n_chains,)."""
        if self.trajectory_length is None:
            return self.n_leapfrog
        u = rng.uniform(
            (1, 1), seed=state.seed, stream="momentum", step=step, substep=1, dtype=torch.float64
        )
        length = 2.0 * self.trajectory_length * float(u)
        if isinstance(self.step_size, float):
            return max(1, int(min(MAX_LEAPFROG, length / self.step_size)))
        return (length / eps.double()).clamp(1, MAX_LEAPFROG).to(torch.int64)

    # ------------------------------------------------------------------------ warm-up
    def coordinates(self, state: State) -> Tensor:
        return state.x

    def with_variance(self, state: State, variance: Tensor) -> State:
        rows = variance.to(state.x).reshape(1, *state.x.shape[1:]).expand_as(state.x)
        return replace(state, aux={**state.aux, "inverse_mass": rows.contiguous()})

    def scale(self) -> Tensor | float | None:
        return self.step_size

    def with_scale(self, scale: Tensor | float) -> HMC:
        return replace(self, step_size=scale)

    def target_accept(self, target: Target) -> float:
        return (
            0.8  # above the asymptotic 0.651 (Beskos et al., Bernoulli 19, 1501, 2013): safer tails
        )

    def initial_scale(self, target: Target) -> float:
        return 0.1

    def groups(self, state: State) -> Tensor | None:
        return None


def _transition(
    target: Target, state: State, eps: Tensor, root: Tensor | None, counts: int | Tensor
) -> tuple[State, Tensor, Tensor]:
    """One trajectory of every chain: the state, the acceptance probability, and whether ΔH was finite."""
    x, log_prob, score = state.x, state.log_prob, state.score
    assert score is not None
    ex, half = columns(eps, x), columns(eps * 0.5, x)
    if root is not None:
        ex, half = ex * root, half * root
    numbers = Numbers(state, "momentum")
    p = numbers.normal(state.step)
    log_u = numbers.log_uniform(state.step, 1, first=noise_size(x))[:, 0]
    before = squared_norm(p)
    p = p + half * score
    x_new = x + ex * p
    if isinstance(counts, int):
        for _ in range(counts - 1):
            _, score_new = log_prob_and_score(target, x_new)
            p = p + ex * score_new
            x_new = x_new + ex * p
    else:  # a chain that has made its steps waits for the others
        for k in range(1, int(counts.max())):
            _, score_new = log_prob_and_score(target, x_new)
            on = columns(counts > k, x)
            p = torch.where(on, p + ex * score_new, p)
            x_new = torch.where(on, x_new + ex * p, x_new)
    log_prob_new, score_new = log_prob_and_score(target, x_new)
    p = p + half * score_new
    log_ratio = (log_prob_new - log_prob) + (before - squared_norm(p)) * 0.5  # −ΔH
    probability, finite = acceptance(log_ratio)
    move = (log_u < log_ratio) & finite
    new = replace(
        state,
        x=torch.where(columns(move, x), x_new, x),
        log_prob=torch.where(move, log_prob_new, log_prob),
        score=torch.where(columns(move, x), score_new, score),
        step=state.step + 1,
    )
    return new, probability, finite
