"""Markov chains in the latent space of a flow T: neutra-MCMC, and transport elliptical slice sampling.

The latent density of a target p is, with x = T(z),

    ln p_z(z) = ln p(x) + ln|det dx/dz|

(Hoffman et al. 2019, arXiv 1903.03704; Parno and Marzouk 2018, arXiv 1412.5492). A kernel that leaves it
invariant leaves p invariant in x, whatever T is; if T fits, it is close to the base density of the flow.

Elliptical slice sampling (Murray, Adams, MacKay, AISTATS 2010, arXiv 1001.0175) needs a normal prior, here
the base density of the flow, and the likelihood p_z / base: the weight p/q of the flow's density q at x.
With p_z itself in its place the law would be p_z · base. In this use: Cabezas and Nemeth 2023, arXiv
2210.10644, and Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysamp import rng
from pysamp.mcmc.base import Info, Kernel, State, Tunable, check_start, check_steps, replace
from pysamp.mcmc.hmc import HasMasses
from pysamp.mcmc.langevin import Collect, refuse_spins
from pysamp.mcmc.metropolis import Bounded
from pysamp.mcmc.proposals import (
    TILE,
    check_proposal,
    finite_rows,
    has_rows,
    in_passes,
    start_log_q,
)
from pysamp.mcmc.tempering import ParallelTempering
from pysamp.nets.bases import Normal
from pysamp.nets.flow import Flow, as_flow, check_event
from pysamp.target import HasSites, Target, log_prob_and_score, log_prob_of

MAX_SHRINKS = (
    200  # a bracket halves on average: after as many it is far below the rounding of an angle
)
LATENT = "latent_"  # of names in State.aux that belong to the inner kernel


# ------------------------------------------------------------------------------------- the latent density
@dataclass(frozen=True, eq=False)
class PulledBack:
    """ln p(T(z)) + ln|det dT/dz| on z (n, d), with d coordinates whatever the events of the target are.

    Its score is that of the target, pulled back by the flow: no graph goes through the target. A Counted
    target counts what is evaluated.

    Raises ValueError for a flow with other events than the target, and for spins; TypeError for no flow.
    """

    target: Target
    flow: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "flow", as_flow(self.flow))
        if isinstance(self.target, HasSites) and self.target.unit_length:
            refuse_spins(self.target, type(self).__name__)
        check_event(self.flow, self.target)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.flow.dim,)

    def log_prob(self, z: Tensor) -> Tensor:
        """(n, d) -> (n,); differentiable where the target is."""
        if torch.is_grad_enabled():
            x, log_det = self.flow.forward(z)
        else:
            x, log_det = in_passes(self.flow.forward, z)
        return self.target.log_prob(x) + log_det

    def log_prob_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        fill = -len(z) % TILE  # as in `in_passes`
        with torch.inference_mode(False), torch.enable_grad():
            whole = torch.cat((z, z[-1:].expand(fill, -1))) if fill else z
            leaf = (whole.clone() if whole.is_inference() else whole.detach()).requires_grad_(True)
            x, log_det = self.flow.forward(leaf)
            log_prob, score = log_prob_and_score(self.target, x.detach()[: len(z)])
            above = torch.cat((score, torch.zeros_like(x[len(z) :])))
            (pulled,) = torch.autograd.grad((x * above).sum() + log_det.sum(), leaf)
        return log_prob + log_det.detach()[: len(z)], pulled[: len(z)]


# ------------------------------------------------------------------------------------- neutra
@dataclass(frozen=True, eq=False)
class Neutra:
    """`kernel` on the pulled-back target; the states are points x = T(z) of data space.

    The state of the inner kernel is in `State.aux`: "z" (n_chains, d), and the rest by names that begin
    with "latent_". Scale and masses are those of the inner kernel, in latent space, and `Info` is its
    own. `State.log_prob` is that of the target. Cost: that of the kernel, and one pass of the flow in each
    evaluation, with its gradient where the kernel needs scores.

    Raises TypeError for no kernel, no flow, and parallel tempering; at its start ValueError for other
    events than the target's, and for a flow that does not invert there.
    """

    kernel: Kernel
    flow: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "flow", as_flow(self.flow))
        kernel = self.kernel
        if isinstance(kernel, type) or not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be a kernel, got {kernel!r}")
        if isinstance(kernel, (ParallelTempering, Neutra, TransportSlice)):
            raise TypeError(f"kernel must be one of a single point, got {type(kernel).__name__}")
        members: dict[str, Any] = {}
        if isinstance(kernel, Tunable):
            members |= {
                "scale": kernel.scale,
                "with_scale": lambda scale: replace(self, kernel=kernel.with_scale(scale)),
                "groups": lambda state: kernel.groups(self._inner(state)),
                "target_accept": lambda target: kernel.target_accept(self._pulled(target)),
                "initial_scale": lambda target: kernel.initial_scale(self._pulled(target)),
            }
        if isinstance(kernel, Bounded):
            bound = kernel.largest_scale
            members["largest_scale"] = lambda target: bound(self._pulled(target))
        if isinstance(kernel, HasMasses):
            members |= {
                "adapts_masses": kernel.adapts_masses,
                "coordinates": lambda state: kernel.coordinates(self._inner(state)),
                "with_variance": self._with_variance,
            }
        for name, member in members.items():
            object.__setattr__(self, name, member)

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        log_prob = log_prob_of(target, x)
        check_start(log_prob, first_chain)
        check_proposal(self.flow, target, x, type(self).__name__)
        z, _ = in_passes(self.flow.inverse, x)
        inner = self.kernel.init(self._pulled(target), z, seed=seed, first_chain=first_chain)
        return self._outer(inner, x, log_prob)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        check_steps(n, thin)
        if "z" not in state.aux:
            raise ValueError("state has no z: start it with this kernel's init")
        inner, info = self.kernel.step(self._pulled(target), self._inner(state), n, thin=thin)
        if info.x is None or info.log_prob is None:
            x, log_det = in_passes(self.flow.forward, inner.x)
            return self._outer(inner, x, inner.log_prob - log_det), info
        shape = info.log_prob.shape  # (n_chains, n // thin)
        x, log_det = in_passes(self.flow.forward, info.x.flatten(0, 1))
        x, log_prob = x.reshape(*shape, *x.shape[1:]), info.log_prob - log_det.reshape(shape)
        info = info._replace(x=x, log_prob=log_prob)
        return self._outer(inner, x[:, -1].contiguous(), log_prob[:, -1].contiguous()), info

    # ------------------------------------------------------------------------ parts
    def _pulled(self, target: Target) -> PulledBack:
        return PulledBack(target, self.flow)

    def _inner(self, state: State) -> State:
        """The state of the inner kernel."""
        found = {k.removeprefix(LATENT): v for k, v in state.aux.items() if k.startswith(LATENT)}
        log_prob, score = found.pop("log_prob"), found.pop("score", None)
        return State(
            state.aux["z"], log_prob, score, state.seed, state.step, state.first_chain, found
        )

    def _outer(self, inner: State, x: Tensor, log_prob: Tensor) -> State:
        latent = {"log_prob": inner.log_prob, **inner.aux}
        latent |= {} if inner.score is None else {"score": inner.score}
        aux = {"z": inner.x, **{LATENT + name: value for name, value in latent.items()}}
        return State(x, log_prob, None, inner.seed, inner.step, inner.first_chain, aux)

    def _with_variance(self, state: State, variance: Tensor) -> State:
        assert isinstance(self.kernel, HasMasses)
        inner = self.kernel.with_variance(self._inner(state), variance)
        return self._outer(inner, state.x, state.log_prob)


# ------------------------------------------------------------------------------------- elliptical slice
@dataclass(frozen=True, eq=False)
class TransportSlice:
    """Elliptical slice sampling in the latent space of a flow whose base density is normal.

    It has no scale, and never refuses: `Info.accept` is 1 but for chains that found no point of their
    slice within the rounding of an angle, which stay. `Info.extra` has "tries", the mean number of points
    evaluated in a step, and "nonfinite". `State.aux` holds "z" (n_chains, d) and "log_weight".
    Cost: one value of the target and one pass of the flow for each try, of the chains still looking.

    Raises TypeError for no flow, ValueError for a flow with another base; at its start as IMH.
    """

    flow: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "flow", as_flow(self.flow))
        if not isinstance(self.flow.base, Normal):
            raise ValueError(
                "flow must have a normal base density for elliptical slices, got "
                f"{type(self.flow.base).__name__}"
            )

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        log_prob = log_prob_of(target, x)
        check_start(log_prob, first_chain)
        check_proposal(self.flow, target, x, type(self).__name__)
        log_weight = log_prob - start_log_q(self.flow, x, first_chain)
        z, _ = in_passes(self.flow.inverse, x)
        aux = {"z": z, "log_weight": log_weight}
        return State(x, log_prob, None, seed, 0, first_chain, aux)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        check_steps(n, thin)
        if "log_weight" not in state.aux:
            raise ValueError("state has no log_weight: start it with this kernel's init")
        collect = Collect(state, n, thin)
        counts = torch.zeros((2, state.n_chains)).to(state.log_prob)  # tries, nonfinite
        for _ in range(n):
            state, found = self._slice(target, state, counts)
            collect.add(found.to(state.log_prob), found | ~found, state.x, state.log_prob)
        info = collect.info(tries=counts[0] / n)
        info.extra["nonfinite"] = info.extra["nonfinite"] + counts[1]
        return state, info

    def _slice(self, target: Target, state: State, counts: Tensor) -> tuple[State, Tensor]:
        """One transition, and which chains found a point; `counts` is added to in place."""
        flow: Flow = self.flow
        base, z = flow.base, state.aux["z"]
        assert isinstance(base, Normal)
        noise = base.draw(
            state.n_chains, seed=state.seed, stream="ellipse", step=state.step,
            first_chain=state.first_chain, device=z.device, dtype=z.dtype,
        )  # fmt: skip
        centre = base.mean.to(z)
        a, b = z - centre, noise - centre
        level = state.aux["log_weight"] + self._number(rng.log_uniform, state, 0)
        angle = 2 * math.pi * self._number(rng.uniform, state, 1)
        low, high = angle - 2 * math.pi, angle.clone()
        together = has_rows(target)
        looking = torch.ones_like(level, dtype=torch.bool)
        x, log_prob = state.x.clone(), state.log_prob.clone()
        z, log_weight = z.clone(), state.aux["log_weight"].clone()
        for k in range(MAX_SHRINKS):
            rows = torch.arange(len(z), device=z.device) if together else looking.nonzero()[:, 0]
            cos, sin = angle[rows].cos()[:, None], angle[rows].sin()[:, None]
            z_new = centre + a[rows] * cos + b[rows] * sin
            x_new, log_q = in_passes(flow.push, z_new)
            log_prob_new = log_prob_of(target, x_new)
            weight = log_prob_new - log_q
            finite = (weight < math.inf) & finite_rows(x_new)
            inside = (weight > level[rows]) & finite & looking[rows]
            counts[0, rows] += looking[rows].to(counts)
            counts[1, rows] += (looking[rows] & ~finite).to(counts)
            to = rows[inside]
            z[to], x[to] = z_new[inside], x_new[inside]
            log_prob[to], log_weight[to] = log_prob_new[inside], weight[inside]
            looking[to] = False
            if not bool(looking.any()):
                break
            negative = angle < 0
            low, high = torch.where(negative, angle, low), torch.where(negative, high, angle)
            u = self._number(rng.uniform, state, 2 + k)
            angle = torch.where(looking, low + (high - low) * u, angle)
        aux = {**state.aux, "z": z, "log_weight": log_weight}
        return replace(state, x=x, log_prob=log_prob, step=state.step + 1, aux=aux), ~looking

    def _number(self, kind: Any, state: State, index: int) -> Tensor:
        """Number `index` of each chain's stream of this step: (n_chains,)."""
        return kind(
            (state.n_chains, 1), seed=state.seed, stream="ellipse", step=state.step, substep=1,
            first=index, first_chain=state.first_chain, device=state.x.device, dtype=state.x.dtype,
        )[:, 0]  # fmt: skip


__all__ = ["Neutra", "PulledBack", "TransportSlice"]
