"""Parallel tempering: K copies of each chain at powers p^β, 1 = β₀ > β₁ > …, that exchange their β.

After every few transitions at fixed β, neighbouring rungs i, i+1 of the ladder swap with
probability min(1, a) (Swendsen and Wang, PRL 57, 2607, 1986; Geyer, 1991),

    ln a = (β_i − β_{i+1}) (log p(x_{i+1}) − log p(x_i)),

for even i at even steps and odd i at odd ones: in this order copies travel, in a random one they
diffuse. It, and the spacing of the ladder at equal rejection by the communication barrier Λ(β), are
of Syed, Bouchard-Côté, Deligiannidis, Doucet, JRSS B 84, 321 (2022). A walker keeps its
configuration and its random numbers and changes its rung: numbers are exchanged, not fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pysamp import rng
from pysamp.mcmc.base import Info, Kernel, State, Tunable, check_steps, columns, replace
from pysamp.mcmc.langevin import MALA, acceptance
from pysamp.target import Target, Tempered, log_prob_and_score

FLUSH = 64  # swap rounds whose acceptance is evaluated at once
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


def respaced(ladder: Sequence[float], swap_accept: Sequence[float]) -> tuple[float, ...]:
    """The ladder with the same ends on which every pair would reject equally.

    The barrier up to rung i is Λ_i = Σ_{j<i} (1 − swap_accept_j); the new rungs are equidistant in
    it, with Λ linear in ln β between the old ones (in β if the ladder ends at 0). Syed et al., §5.
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
    logs = beta[-1] > 0
    new = np.interp(wanted, barrier, np.log(beta) if logs else beta)
    new = np.exp(new) if logs else new
    return (float(beta[0]), *(float(b) for b in new[1:-1]), float(beta[-1]))


@dataclass(frozen=True, eq=False)
class ParallelTempering:
    """Replica exchange around a kernel with a scale; the draws are those of the rung at β = 1.

    betas: the ladder, 1 = β₀ > β₁ > … ≥ 0. Without it, n_rungs powers from 1 to beta_min with a
    constant ratio, which warm-up spaces so that all pairs swap equally often. β = 0 is the flat
    density: it needs a target of bounded support. `adapt_ladder` says whether warm-up moves the
    inner rungs, if not by this rule.
    swap_every: transitions of the kernel between swaps; one step of this kernel is all of them.
    The scale of `kernel` is a number, one per rung (K,), or one per chain and rung (n_chains, K),
    which is what warm-up finds; it belongs to the rung, not to the walker.

    The state has n_chains rows, the copies at β = 1, and in `aux`, chain first: by walker "x"
    (n_chains, K, …), "log_prob" of p itself, "score" of p^β and "rung"; by rung "ladder" and
    "label"; and "round_trips" so far. `Info.accept` is that of the rung at β = 1; `Info.extra` has
    "swap_accept" (n_chains, K − 1), the mean probability to swap, "rung_accept" (n_chains, K), and
    "round_trip_rate" (n_chains,), how often per step a copy was back at β = 1 from the other end.
    "nonfinite" sums over the rungs of β > 0.
    Cost: K · swap_every transitions of the kernel a step.

    Raises ValueError, TypeError for a ladder, a count or a kernel that cannot be used.
    """

    kernel: Kernel
    betas: tuple[float, ...] | None = None
    n_rungs: int = 10
    beta_min: float = 0.1
    swap_every: int = 1
    adapt_ladder: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.kernel, type) or not isinstance(self.kernel, Kernel):
            raise TypeError(f"kernel must be a Kernel, got {self.kernel!r}")
        if not isinstance(self.kernel, Tunable):
            raise TypeError(
                "kernel must have a scale for each rung and leave its target invariant, got "
                f"{type(self.kernel).__name__}"
            )
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
        if self.betas is None:
            ladder_geometric(self.n_rungs, self.beta_min)
            return
        given = torch.as_tensor(self.betas, dtype=torch.float64)
        betas = tuple(given.reshape(-1).tolist())
        if given.ndim != 1 or len(betas) < 2:
            raise ValueError(f"betas must be a sequence of at least 2 powers, got {self.betas}")
        if betas[0] != 1.0:
            raise ValueError(f"betas must start at 1, got {betas[0]}")
        if not betas[-1] >= 0 or not all(a > b for a, b in pairwise(betas)):
            raise ValueError(f"betas must decrease from 1 and not be negative, got {betas}")
        object.__setattr__(self, "betas", betas)

    def ladder(self) -> tuple[float, ...]:
        """The ladder that a run starts with; the one in use is in the state."""
        return self.betas or ladder_geometric(self.n_rungs, self.beta_min)

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        """All copies of a chain begin at its start."""
        state = self.kernel.init(target, x, seed=seed, first_chain=first_chain)
        if state.aux:
            raise TypeError(
                f"kernel must keep nothing in State.aux, got {type(self.kernel).__name__} with "
                f"{sorted(state.aux)}"
            )
        n, k = state.n_chains, len(self.ladder())
        ladder = torch.tensor(self.ladder(), dtype=x.dtype, device=x.device).repeat(n, 1)
        rung = torch.arange(k, device=x.device).repeat(n, 1)
        label = torch.zeros_like(rung)
        label[:, 0] = 1
        aux = {
            "x": _copies(x, k),
            "log_prob": _copies(state.log_prob, k),
            "rung": rung,
            "ladder": ladder,
            "label": label,
            "round_trips": torch.zeros(n, dtype=torch.int64, device=x.device),
        }
        if state.score is not None:
            score = _copies(state.score, k)  # (n_chains, K, *event_shape)
            aux["score"] = ladder.reshape(n, k, *[1] * (score.ndim - 2)) * score
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
        score = aux["score"].reshape(x.shape) if "score" in aux else None  # of p^β
        flat = self.ladder()[-1] == 0

        order = torch.arange(k, device=x.device).expand(chains, k)
        walker = torch.empty_like(rung).scatter_(1, rung, order)  # the walker on each rung
        gap = ladder[:, :-1] - ladder[:, 1:]
        first_row = torch.arange(chains, device=x.device) * k
        turn = [(order[:1, :-1] + parity) % 2 == 0 for parity in (0, 1)]
        # β and scale of each walker are written in place: what holds them is then made only once.
        beta = ladder.gather(1, rung).reshape(-1)  # (rows,)
        scales = self._scales(ladder)
        scale = None if scales is None else scales.gather(1, rung).reshape(-1)
        kernel = self.kernel if scale is None else _tunable(self.kernel).with_scale(scale)
        powers = Tempered(target, beta)
        accept = torch.zeros_like(ladder)
        nonfinite = torch.zeros_like(ladder)
        swaps = _Mean(gap)
        trips_before = trips.clone()
        kept_x: list[Tensor] = []
        kept_log_prob: list[Tensor] = []
        for step in range(state.step, state.step + n):
            powered = beta * log_prob
            inner = State(
                x, powered, score, state.seed, step * self.swap_every, state.first_chain * k
            )
            inner, info = kernel.step(powers, inner, self.swap_every)
            x, score = inner.x, inner.score
            unit = None  # the score of p itself, where it is needed
            if flat:
                log_prob, unit = _evaluate(target, x, score)
            else:  # a walker that stood still keeps its number, so that no rounding adds up
                still = inner.log_prob == powered
                log_prob = torch.where(still, log_prob, inner.log_prob / beta)
            accept += info.accept.reshape(chains, k).gather(1, walker)
            if "nonfinite" in info.extra:
                nonfinite += info.extra["nonfinite"].reshape(chains, k).gather(1, walker)

            by_rung = log_prob.reshape(chains, k).gather(1, walker)
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

            old = beta.clone()
            torch.gather(ladder, 1, rung, out=beta.view(chains, k))
            if scales is not None and scale is not None:
                torch.gather(scales, 1, rung, out=scale.view(chains, k))
            if score is not None:
                score = columns(beta / old, x) * score if unit is None else columns(beta, x) * unit
            if thin and (step - state.step + 1) % thin == 0:
                cold = first_row + walker[:, 0]
                kept_x.append(x[cold])
                kept_log_prob.append(log_prob[cold])

        cold = first_row + walker[:, 0]
        new_aux = {
            "x": x.reshape(aux["x"].shape),
            "log_prob": log_prob.reshape(chains, k),
            "rung": rung,
            "ladder": ladder,
            "label": label,
            "round_trips": trips,
        }
        if score is not None:
            new_aux["score"] = score.reshape(aux["x"].shape)
        new = replace(
            state,
            x=x[cold],
            log_prob=log_prob[cold],
            score=None if score is None else score[cold],
            step=state.step + n,
            aux=new_aux,
        )
        extra = {
            # Out in the flat, where nothing holds a walker, an overflow is no fault of the target.
            "nonfinite": (nonfinite * (ladder > 0)).sum(1),
            "swap_accept": swaps.mean(),
            "rung_accept": accept / n,
            "round_trip_rate": (trips - trips_before).to(x.dtype) / n,
        }
        return new, Info(
            accept[:, 0] / n,
            extra,
            torch.stack(kept_x, dim=1) if thin else None,
            torch.stack(kept_log_prob, dim=1) if thin else None,
        )

    # ------------------------------------------------------------------------ warm-up
    def scale(self) -> Tensor | float | None:
        return _tunable(self.kernel).scale()

    def with_scale(self, scale: Tensor | float) -> ParallelTempering:
        return replace(self, kernel=_tunable(self.kernel).with_scale(scale))

    def target_accept(self, target: Target) -> float:
        return _tunable(self.kernel).target_accept(target)

    def initial_scale(self, target: Target) -> float:
        return _tunable(self.kernel).initial_scale(target)

    def groups(self, state: State) -> Tensor | None:
        """(n_chains, K): the rung to which each entry of `rung_accept` and of the scale belongs."""
        ladder = state.aux["ladder"]
        return torch.arange(ladder.shape[1], device=ladder.device).repeat(len(ladder), 1)

    @property
    def respaces(self) -> bool:
        return self.betas is None if self.adapt_ladder is None else self.adapt_ladder

    def respace(self, state: State, swap_accept: Tensor) -> State:
        """All chains on the ladder of equal rejection; walkers stay on their rungs."""
        aux = dict(state.aux)
        old = aux["ladder"]
        new = old.new_tensor(respaced(old[0].tolist(), swap_accept.tolist())).repeat(len(old), 1)
        if "score" in aux:
            ratio = torch.where(old > 0, new / old, 1.0).gather(1, aux["rung"])
            aux["score"] = ratio.reshape(*ratio.shape, *[1] * (state.x.ndim - 1)) * aux["score"]
        aux["ladder"] = new
        return replace(state, aux=aux)

    def _scales(self, ladder: Tensor) -> Tensor | None:
        """The scale of each chain and rung (n_chains, K), or None where one number serves all."""
        scale = self.scale()
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
    """Round trips, in place: a copy is labelled 1 at β = 1, and 2 at the hot end if it was 1."""
    trips += label[:, 0] == 2
    label[:, 0] = 1
    label[:, -1] = (label[:, -1] * 2).clamp_(max=2)


__all__ = ["ParallelTempering", "ladder_geometric", "respaced"]
