"""Parallel tempering: K copies of each chain on a ladder of densities, that exchange their rungs.

Rung i has the density p_i ∝ p₀ exp(c_i E) of one of the families of ladders.py: a power p^β with
1 = β₀ > β₁ > …, a soft field of a larger r₀ < r₁ < …, or p^λ ν^{1−λ} with a Gaussian reference ν.

After every few transitions on fixed rungs, neighbours i, i+1 of the ladder swap with probability
min(1, a) (Swendsen and Wang, PRL 57, 2607, 1986; Geyer, 1991),

    ln a = (c_i − c_{i+1}) (E(x_{i+1}) − E(x_i)),

for even i at even steps and odd i at odd ones: in this order copies travel, in a random one they
diffuse (Syed, Bouchard-Côté, Deligiannidis, Doucet, JRSS B 84, 321, 2022). A walker keeps its
configuration and its random numbers and changes its rung: numbers are exchanged, not fields. On the rung
of the reference itself a walker becomes an independent draw of it after every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp import rng
from pysamp.mcmc.base import Info, Kernel, State, Tunable, check_steps, replace
from pysamp.mcmc.cycle import Cycle
from pysamp.mcmc.ladders import (
    Bridge,
    Family,
    Masses,
    Powers,
    check_soft,
    checked,
    ladder_geometric,
    ladder_linear,
    respaced,
)
from pysamp.mcmc.langevin import MALA, ULA, acceptance
from pysamp.mcmc.metropolis import Bounded
from pysamp.target import Target, log_prob_and_score
from pysamp.targets.gaussian import Gaussian, check_reference

FLUSH = 64  # swap rounds whose acceptance is evaluated at once


@dataclass(frozen=True, eq=False)
class ParallelTempering:
    """Replica exchange around a kernel; the draws are those of rung 0, the target itself.

    betas: the ladder, 1 = β₀ > β₁ > … ≥ 0. Without it, n_rungs powers from 1 to beta_min with a
    constant ratio, which warm-up spaces so that all pairs swap equally often. β = 0 is the flat
    density: it needs a target of bounded support.
    r: instead of powers, the values r₀ < r₁ < … of the term ½ r φ² of a soft field (`ON.soft`), r₀
    being that of the target. reference: instead of powers, a bridge to this Gaussian; betas are then
    the λ of the rungs, without them n_rungs equidistant ones from 1 to 0, and beta_min plays no part.
    `adapt_ladder` says whether warm-up moves the inner rungs; left out, it moves those not given.
    swap_every: transitions of the kernel between swaps; one step of this kernel is all of them.
    The scale of `kernel`, if it has one, is a number, one per rung (K,), or one per chain and rung
    (n_chains, K), which is what warm-up finds; it belongs to the rung, not to the walker.

    The state has n_chains rows, the copies on rung 0, and in `aux`, chain first: by walker "x"
    (n_chains, K, …), "log_prob" of p itself, "score" of its p_i and "rung"; by rung "ladder" (β or r)
    and "label"; and "round_trips" so far. `Info.accept` is that of rung 0; `Info.extra` has
    "swap_accept" (n_chains, K − 1), the mean probability to swap, "rung_accept" (n_chains, K), and
    "round_trip_rate" (n_chains,), how often per step a copy was back on rung 0 from the other end.
    "nonfinite" sums over the rungs, but not that of β = 0.
    Cost: K · swap_every transitions of the kernel a step, and with r, a reference or β = 0 K values of
    the target (gradients, too, for a kernel that needs them).

    Raises ValueError, TypeError for a ladder, a count or a kernel that cannot be used.
    """

    kernel: Kernel
    betas: tuple[float, ...] | None = None
    n_rungs: int = 10
    beta_min: float = 0.1
    swap_every: int = 1
    adapt_ladder: bool | None = None
    r: tuple[float, ...] | None = None
    reference: Gaussian | None = None

    def __post_init__(self) -> None:
        if isinstance(self.kernel, type) or not isinstance(self.kernel, Kernel):
            raise TypeError(f"kernel must be a Kernel, got {self.kernel!r}")
        inner = self.kernel.kernels if isinstance(self.kernel, Cycle) else (self.kernel,)
        if any(isinstance(kernel, ULA) for kernel in inner):
            raise TypeError("kernel must leave its target invariant, got ULA")
        if isinstance(self.kernel, ParallelTempering):
            raise TypeError("kernel must not be a ParallelTempering itself")
        if isinstance(self.kernel, MALA) and self.kernel.adapt is not None:
            raise ValueError(
                "kernel must not adapt its step by itself inside a ladder, where walkers change "
                f"their rung, got adapt={self.kernel.adapt}"
            )
        if isinstance(self.swap_every, bool) or not isinstance(self.swap_every, int):
            raise TypeError(f"swap_every must be an int, got {self.swap_every!r}")
        if self.swap_every < 1:
            raise ValueError(f"swap_every must be at least 1, got {self.swap_every}")
        if self.betas is not None and self.r is not None:
            raise ValueError(f"betas and r exclude each other, got {self.betas} and {self.r}")
        if self.reference is not None and not isinstance(self.reference, Gaussian):
            raise TypeError(f"reference must be a Gaussian, got {type(self.reference).__name__}")
        if self.reference is not None and self.r is not None:
            raise ValueError(f"reference and r exclude each other, got r={self.r}")
        for name, given in (("betas", self.betas), ("r", self.r)):
            if given is not None:
                object.__setattr__(self, name, checked(given, name))
        self.ladder()
        if isinstance(self.kernel, Tunable):  # a ladder has a scale where its kernel has one
            own = {"with_scale": self._with_scale, "groups": self._groups}
            bound = ("largest_scale",) if isinstance(self.kernel, Bounded) else ()
            for name in (*own, "scale", "target_accept", "initial_scale", *bound):
                object.__setattr__(self, name, own.get(name) or getattr(self.kernel, name))

    def ladder(self) -> tuple[float, ...]:
        """The ladder that a run starts with; the one in use is in the state."""
        given = self.betas or self.r
        if given is None and self.reference is not None:
            return ladder_linear(self.n_rungs)
        return given or ladder_geometric(self.n_rungs, self.beta_min)

    def _family(self) -> Family:
        if self.reference is not None:
            return Bridge(self.reference)
        return Powers(self.ladder()[-1] == 0) if self.r is None else Masses()

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        """All copies of a chain begin at its start.

        Raises as the kernel; TypeError, ValueError where r or reference is not one of this target.
        """
        family = self._family()
        if self.r is not None:
            check_soft(target, self.r)
        if self.reference is not None:
            check_reference(self.reference, target)
        coldest = family.coldest(target, x)
        state = self.kernel.init(coldest, x, seed=seed, first_chain=first_chain)
        if state.aux:
            raise TypeError(
                f"kernel must keep nothing in State.aux, got {type(self.kernel).__name__} with "
                f"{sorted(state.aux)}"
            )
        n, k = state.n_chains, len(self.ladder())
        ladder = x.new_tensor(self.ladder()).repeat(n, 1)
        rung = torch.arange(k, device=x.device).repeat(n, 1)
        label = (rung == 0).to(torch.int64)
        trips = torch.zeros(n, dtype=torch.int64, device=x.device)
        aux = {"x": _copies(x, k), "log_prob": _copies(state.log_prob, k)}
        aux |= {"rung": rung, "ladder": ladder, "label": label, "round_trips": trips}
        if state.score is not None:
            score = _copies(state.score, k).flatten(0, 1)  # (rows, *event_shape)
            score = family.score(family.c(ladder).reshape(-1), score, aux["x"].flatten(0, 1))
            aux["score"] = score.reshape(aux["x"].shape)
        return replace(state, aux=aux)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        check_steps(n, thin)
        aux, chains = state.aux, state.n_chains
        ladder, rung, label = aux["ladder"], aux["rung"], aux["label"].clone()
        trips = aux["round_trips"].clone()
        k = ladder.shape[1]
        x = aux["x"].reshape(chains * k, *state.x.shape[1:])
        log_prob = aux["log_prob"].reshape(-1)  # (rows,) of p itself
        score = aux["score"].reshape(x.shape) if "score" in aux else None  # of p_i
        family = self._family()
        drawn = self.reference is not None and self.ladder()[-1] == 0

        order = torch.arange(k, device=x.device).expand(chains, k)
        walker = torch.empty_like(rung).scatter_(1, rung, order)  # the walker on each rung
        strength = family.c(ladder)
        gap = strength[:, :-1] - strength[:, 1:]
        first_row = torch.arange(chains, device=x.device) * k
        turn = [(order[:1, :-1] + parity) % 2 == 0 for parity in (0, 1)]
        # c and scale of each walker are written in place: what holds them is then made only once.
        c = strength.gather(1, rung).reshape(-1)  # (rows,)
        scales = self._scales(ladder)
        scale = None if scales is None else scales.gather(1, rung).reshape(-1)
        kernel = self.kernel if scale is None else _tunable(self.kernel).with_scale(scale)
        rungs = family.rungs(target, c, x)
        energy = family.energy(x, log_prob)
        accept, nonfinite = torch.zeros_like(ladder), torch.zeros_like(ladder)
        swaps = _Mean(gap)
        trips_before = trips.clone()
        kept_x: list[Tensor] = []
        kept_log_prob: list[Tensor] = []
        for step in range(state.step, state.step + n):
            density = family.log_prob(c, x, log_prob, energy)
            inner = State(
                x, density, score, state.seed, step * self.swap_every, state.first_chain * k
            )
            inner, info = kernel.step(rungs, inner, self.swap_every)
            x, score = inner.x, inner.score
            unit = None  # the score of p itself, where it is needed
            if drawn:
                x = x.index_copy(0, first_row + walker[:, -1], self._draw(state, step))
            if family.lost:
                log_prob, unit = _evaluate(target, x, score)
            else:  # a walker that stood still keeps its number, so that no rounding adds up
                still = inner.log_prob == density
                log_prob = torch.where(still, log_prob, inner.log_prob / c)
            energy = family.energy(x, log_prob)
            accept += info.accept.reshape(chains, k).gather(1, walker)
            if "nonfinite" in info.extra:
                nonfinite += info.extra["nonfinite"].reshape(chains, k).gather(1, walker)

            by_rung = energy.reshape(chains, k).gather(1, walker)
            log_ratio = gap * (by_rung[:, 1:] - by_rung[:, :-1])
            log_u = rng.log_uniform(
                (chains, k - 1), seed=state.seed, stream="swap", step=step,
                first_chain=state.first_chain, device=x.device, dtype=x.dtype,
            )  # fmt: skip
            swap = ((log_u < log_ratio) & turn[step % 2]).to(torch.int64)
            source = order.clone()
            source[:, :-1] += swap
            source[:, 1:] -= swap
            walker, label = walker.gather(1, source), label.gather(1, source)
            rung = torch.empty_like(rung).scatter_(1, walker, order)
            swaps.add(log_ratio)
            _follow(label, trips)

            old = c.clone()
            torch.gather(strength, 1, rung, out=c.view(chains, k))
            if scales is not None and scale is not None:
                torch.gather(scales, 1, rung, out=scale.view(chains, k))
            if unit is not None:
                score = family.score(c, unit, x)
            elif score is not None:
                score = family.moved(old, c, score, x)
            if thin and (step - state.step + 1) % thin == 0:
                cold = first_row + walker[:, 0]
                kept_x.append(x[cold])
                kept_log_prob.append(log_prob[cold])

        cold = first_row + walker[:, 0]
        aux = {**aux, "rung": rung, "label": label, "round_trips": trips}
        aux |= {"x": x.reshape(aux["x"].shape), "log_prob": log_prob.reshape(chains, k)}
        if score is not None:
            aux["score"] = score.reshape(aux["x"].shape)
        cold_score = None if score is None else score[cold]
        new = State(
            x[cold], log_prob[cold], cold_score, state.seed, state.step + n, state.first_chain, aux
        )
        extra = {
            # Out in the flat, where nothing holds a walker, an overflow is no fault of the target.
            "nonfinite": (nonfinite * (torch.ones_like(ladder) if self.r else ladder > 0)).sum(1),
            "swap_accept": swaps.mean(),
            "rung_accept": accept / n,
            "round_trip_rate": (trips - trips_before).to(x.dtype) / n,
        }
        info = Info(accept[:, 0] / n, extra)
        if thin:
            info = info._replace(x=torch.stack(kept_x, 1), log_prob=torch.stack(kept_log_prob, 1))
        return new, info

    def _draw(self, state: State, step: int) -> Tensor:
        """Of the reference, one for each chain (n_chains, *event_shape)."""
        assert self.reference is not None
        return self.reference.place(
            rng.normal(
                tuple(state.x.shape), seed=state.seed, stream="importance", step=step,
                first_chain=state.first_chain, device=state.x.device, dtype=state.x.dtype,
            )
        )  # fmt: skip

    # ------------------------------------------------------------------------ warm-up
    def _with_scale(self, scale: Tensor | float) -> ParallelTempering:
        return replace(self, kernel=_tunable(self.kernel).with_scale(scale))

    def _groups(self, state: State) -> Tensor | None:
        """(n_chains, K): the rung to which each entry of `rung_accept` and of the scale belongs."""
        ladder = state.aux["ladder"]
        return torch.arange(ladder.shape[1], device=ladder.device).repeat(len(ladder), 1)

    @property
    def respaces(self) -> bool:
        given = self.betas is not None or self.r is not None
        return not given if self.adapt_ladder is None else self.adapt_ladder

    def respace(self, state: State, swap_accept: Tensor) -> State:
        """All chains on the ladder of equal rejection; walkers stay on their rungs."""
        aux, family = dict(state.aux), self._family()
        old, powers = aux["ladder"], isinstance(family, Powers)
        numbers = respaced(old[0].tolist(), swap_accept.tolist(), powers=powers)
        new = old.new_tensor(numbers).repeat(len(old), 1)
        if "score" in aux:
            before, after = (family.c(v).gather(1, aux["rung"]).reshape(-1) for v in (old, new))
            x, score = (aux[name].flatten(0, 1) for name in ("x", "score"))
            aux["score"] = family.moved(before, after, score, x).reshape(aux["x"].shape)
        aux["ladder"] = new
        return replace(state, aux=aux)

    def _scales(self, ladder: Tensor) -> Tensor | None:
        """The scale of each chain and rung (n_chains, K), or None where one number serves all."""
        scale = self.kernel.scale() if isinstance(self.kernel, Tunable) else None
        if not isinstance(scale, Tensor) or scale.ndim == 0:
            return None
        if scale.shape not in (ladder.shape[1:], ladder.shape):
            raise ValueError(
                f"scale of the kernel must be a number, one per rung ({ladder.shape[1]},) or one "
                f"per chain and rung {tuple(ladder.shape)}, got shape {tuple(scale.shape)}"
            )
        return scale.to(ladder).expand_as(ladder)


# ---------------------------------------------------------------------------- parts
class _Mean:
    """Mean probability to swap of every pair, also of those whose turn it was not."""

    def __init__(self, like: Tensor) -> None:
        self.total, self.n = torch.zeros_like(like), 0
        self.waiting: list[Tensor] = []

    def add(self, log_ratio: Tensor) -> None:
        self.waiting.append(log_ratio)
        self.n += 1
        if len(self.waiting) == FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self.waiting:
            for probability in acceptance(torch.stack(self.waiting))[0]:
                self.total += probability
            self.waiting.clear()

    def mean(self) -> Tensor:
        self._flush()
        return self.total / self.n


def _tunable(kernel: Kernel) -> Tunable:
    assert isinstance(kernel, Tunable)
    return kernel


def _copies(value: Tensor, k: int) -> Tensor:
    """(n, …) -> (n, k, …)"""
    return value[:, None].expand(-1, k, *value.shape[1:]).contiguous()


def _evaluate(target: Target, x: Tensor, score: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if score is not None:
        return log_prob_and_score(target, x)
    with torch.no_grad():
        return target.log_prob(x), None


def _follow(label: Tensor, trips: Tensor) -> None:
    """Round trips, in place: a copy is labelled 1 on rung 0, and 2 at the hot end if it was 1."""
    trips += label[:, 0] == 2
    label[:, 0] = 1
    label[:, -1] = (label[:, -1] * 2).clamp_(max=2)


__all__ = ["ParallelTempering", "ladder_geometric", "respaced"]
