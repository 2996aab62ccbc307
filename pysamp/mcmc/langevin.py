"""Langevin kernels: ULA, and MALA with its Metropolis–Hastings correction.

    x' = x + h ∇log p(x) + √(2h) ξ,   ξ ~ N(0, 1)

MALA accepts with probability min(1, a), where (Roberts and Tweedie, Bernoulli 2, 341, 1996)

    ln a = log p(x') − log p(x) + ½|ξ|² − |x − x' − h ∇log p(x')|² / (4h).

|ξ|²/2 is the forward kernel exactly, so no difference of large densities is taken; the two kernels
are subtracted coordinate by coordinate and summed once. The per-chain rule
of `Multiplicative` is that of SLIPS (Grenioux, Noble, Gabrié, Durmus, arXiv 2402.10758, code of §3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pysamp import ops, reference, rng
from pysamp.mcmc import fused
from pysamp.mcmc.base import Info, State, check_start, check_steps, columns, per_chain, replace
from pysamp.target import Counted, HasSites, Target, log_prob_and_score


def start(kernel: object, target: Target, x: Tensor, seed: int, first_chain: int) -> State:
    """The state of a kernel that moves all coordinates along the score."""
    if isinstance(target, HasSites) and target.unit_length:
        refuse_spins(target, type(kernel).__name__)
    log_prob, score = log_prob_and_score(target, x)
    check_start(log_prob, first_chain)
    return State(x, log_prob.detach(), score.detach(), seed, 0, first_chain)


def refuse_spins(target: Target, kernel: str) -> None:
    """Raises ValueError: the kernel moves points of R^d, and the target lives on spins of length 1."""
    while isinstance(target, Counted):
        target = target.base
    raise ValueError(
        f"{kernel} moves all coordinates freely, which takes spins of length 1 off their spheres: "
        f"sample {type(target).__name__} with Metropolis(), HeatBath(), OverRelaxation() in a Cycle, "
        "SwendsenWang() or Wolff()"
    )


def squared_norm(x: Tensor) -> Tensor:
    """|x|² of each row in the fixed order: (n, *event) -> (n,)."""
    return ops.sum32((x * x).reshape(x.shape[0], -1))


def acceptance(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """min(1, e^r) and whether r may be accepted at all (not NaN, not +∞)."""
    finite = log_ratio < math.inf
    probability = reference.exp_portable(torch.where(log_ratio < 0, log_ratio, 0.0))
    return torch.where(finite, probability, 0.0), finite


def noise_size(x: Tensor) -> int:
    """Numbers that a Box–Muller draw for one event takes from its stream; the next one is free."""
    return (x[0].numel() + 1) // 2 * 2 if x.shape[0] else 0


@dataclass(frozen=True)
class Numbers:
    """The random numbers of a kernel: one stream, the rows of a state."""

    state: State
    stream: str

    def normal(self, step: int) -> Tensor:
        """As many as the state has coordinates, in its shape."""
        s = self.state
        return rng.normal(
            tuple(s.x.shape), seed=s.seed, stream=self.stream, step=step,
            first_chain=s.first_chain, device=s.x.device, dtype=s.x.dtype,
        )  # fmt: skip

    def uniform(self, step: int, shape: tuple[int, ...]) -> Tensor:
        s = self.state
        return rng.uniform(
            shape, seed=s.seed, stream=self.stream, step=step,
            first_chain=s.first_chain, device=s.x.device, dtype=s.x.dtype,
        )  # fmt: skip

    def log_uniform(self, step: int, n: int, first: int = 0) -> Tensor:
        """ln u, numbers first … first + n of each row's stream: (n_chains, n)."""
        s = self.state
        return rng.log_uniform(
            (s.n_chains, n), seed=s.seed, stream=self.stream, step=step, first=first,
            first_chain=s.first_chain, device=s.x.device, dtype=s.x.dtype,
        )  # fmt: skip


class Collect:
    """Means over n transitions, and every thin-th state: what an `Info` is made of."""

    def __init__(self, state: State, n: int, thin: int | None) -> None:
        self.n, self.thin, self.done = n, thin, 0
        self.accept = torch.zeros_like(state.log_prob)
        self.nonfinite = torch.zeros_like(state.log_prob)
        self.x: list[Tensor] = []
        self.log_prob: list[Tensor] = []

    def add(self, probability: Tensor, finite: Tensor, x: Tensor, log_prob: Tensor) -> None:
        self.accept = self.accept + probability
        self.nonfinite = self.nonfinite + (~finite).to(self.nonfinite.dtype)
        self.done += 1
        if self.thin and self.done % self.thin == 0:
            self.x.append(x)
            self.log_prob.append(log_prob)

    def info(self, **extra: Tensor) -> Info:
        return Info(
            self.accept / self.n,
            {"nonfinite": self.nonfinite, **extra},
            torch.stack(self.x, dim=1) if self.thin else None,
            torch.stack(self.log_prob, dim=1) if self.thin else None,
        )


@dataclass(frozen=True)
class Multiplicative:
    """After every step of a chain: h ← h·factor if its acceptance probability exceeds target +
    tolerance, h/factor if it falls below target − tolerance; never above cap."""

    target: float = 0.75
    factor: float = 1.03
    tolerance: float = 0.01
    cap: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.target - self.tolerance <= self.target + self.tolerance < 1:
            raise ValueError(
                f"target ± tolerance must lie in (0, 1), got {self.target} ± {self.tolerance}"
            )
        if not 1 < self.factor < math.inf:
            raise ValueError(f"factor must be finite and exceed 1, got {self.factor}")
        if not self.cap > 0:
            raise ValueError(f"cap must be positive, got {self.cap}")

    def thresholds(self) -> tuple[float, float]:
        return math.log(self.target - self.tolerance), math.log(self.target + self.tolerance)

    def apply(self, step_size: Tensor, log_ratio: Tensor) -> Tensor:
        low, high = self.thresholds()
        smaller = torch.where(log_ratio >= low, step_size, step_size / self.factor)
        new = torch.where(log_ratio > high, step_size * self.factor, smaller)
        return torch.where(new < self.cap, new, self.cap)


class Advance(NamedTuple):
    """Where rows of independent chains are after n transitions from given points."""

    x: Tensor  # (rows, *event)
    log_prob: Tensor  # (rows,)
    step_size: Tensor  # (rows,)
    mean: Tensor | None  # (rows, *event): over the last n_mean states
    accept: Tensor  # (rows,) mean acceptance probability
    nonfinite: Tensor  # (rows,) proposals whose density was NaN or +inf


@dataclass(frozen=True, eq=False)
class MALA:
    """Metropolis-adjusted Langevin; `step_size` h is a number, one per chain, or None (warm-up finds it).

    With `adapt` every chain changes its own h after every step, from `step_size` or 1e-5 on; the steps
    reached are `state.aux["step_size"]`. Cost: one value and one gradient a step.
    """

    step_size: Tensor | float | None = None
    adapt: Multiplicative | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "step_size", check_scale(self.step_size, "step_size"))

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        return start(self, target, x, seed, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        check_steps(n, thin)
        if state.score is None:
            raise ValueError("state has no score: start it with this kernel's init")
        return self._steps(target, state, n, thin, self._start_of_step(state))

    def advance(
        self, target: Target, x: Tensor, step_size: Tensor | float | None, n: int, *, seed: int,
        step: int = 0, first_chain: int = 0, n_mean: int = 0,
    ) -> Advance:  # fmt: skip
        """n transitions from points x (rows, *event) of a target that was not evaluated there yet.

        A native target takes one call, the evaluation included: what a method needs whose target
        changes every few steps. step_size: one number, or one per row; None is the kernel's own. The
        numbers drawn are those of transitions step … step + n of chains first_chain + row.

        A chain whose start has no finite density stays there: log_prob says so.
        """
        check_steps(n, None)
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must lie in 0…2^64 − 1, got {seed}")
        if not 0 <= n_mean <= n:
            raise ValueError(f"n_mean must lie in 0 … n = {n}, got {n_mean}")
        like = x.new_empty(len(x))
        if isinstance(step_size, Tensor) and step_size.shape == like.shape:
            h = step_size.to(
                like
            ).contiguous()  # from the last call: no look at its values, which waits
        else:
            given = self.scale() if step_size is None else step_size
            h = per_chain(needed(given, "step_size"), "step_size", like)
        state, info = self._steps(
            target, State(x, like, None, seed, step, first_chain), n, None, h, n_mean
        )
        h = state.aux["step_size"] if self.adapt is not None else h
        extra = info.extra
        return Advance(
            state.x, state.log_prob, h, extra.get("mean"), info.accept, extra["nonfinite"]
        )

    def _steps(
        self, target: Target, state: State, n: int, thin: int | None, h: Tensor, n_mean: int = 0
    ) -> tuple[State, Info]:
        """n transitions; a state without a score is evaluated first, and left without one."""
        rule = self.adapt
        adapt = fused.NO_ADAPTATION if rule is None else (rule.factor, rule.cap, *rule.thresholds())
        done = fused.chain("mala", target, state, n, thin, h, adapt=adapt, n_mean=n_mean)
        if done is not None:
            return done

        x, log_prob, score = state.x, state.log_prob, state.score
        fresh = score is None
        if score is None:
            log_prob, score = log_prob_and_score(target, x)
        total = torch.zeros_like(x)
        collect = Collect(state, n, thin)
        numbers = Numbers(state, "langevin")
        for step in range(state.step, state.step + n):
            xi = numbers.normal(step)
            log_u = numbers.log_uniform(step, 1, first=noise_size(x))[:, 0]
            hx = columns(h, x)
            x_new = (x + hx * score) + columns(reference.sqrt_rn(h * 2.0), x) * xi
            log_prob_new, score_new = log_prob_and_score(target, x_new)
            back = (x - x_new) - hx * score_new
            kernels = xi * xi * 0.5 - back * back * columns(1.0 / (h * 4.0), x)
            log_ratio = (log_prob_new - log_prob) + ops.sum32(kernels.reshape(len(x), -1))
            probability, finite = acceptance(log_ratio)
            move = (log_u < log_ratio) & finite
            x = torch.where(columns(move, x), x_new, x)
            score = torch.where(columns(move, x), score_new, score)
            log_prob = torch.where(move, log_prob_new, log_prob)
            if rule is not None:
                h = rule.apply(h, log_ratio)
            if step >= state.step + n - n_mean:
                total = total + x
            collect.add(probability, finite, x, log_prob)
        aux = state.aux if rule is None else {**state.aux, "step_size": h}
        kept = None if fresh else score
        new = replace(state, x=x, log_prob=log_prob, score=kept, step=state.step + n, aux=aux)
        return new, collect.info(**({"mean": total / n_mean} if n_mean else {}))

    def _start_of_step(self, state: State) -> Tensor:
        if self.adapt is not None and "step_size" in state.aux:
            return state.aux["step_size"]
        return per_chain(needed(self.scale(), "step_size"), "step_size", state.log_prob)

    def scale(self) -> Tensor | float | None:
        return 1e-5 if self.adapt is not None and self.step_size is None else self.step_size

    def with_scale(self, scale: Tensor | float) -> MALA:
        return replace(self, step_size=scale)

    def target_accept(self, target: Target) -> float:
        return 0.574  # optimal in high dimension: Roberts and Rosenthal, JRSS B 60, 255 (1998)

    def initial_scale(self, target: Target) -> float:
        return 0.1

    def groups(self, state: State) -> Tensor | None:
        return None


@dataclass(frozen=True, eq=False)
class ULA:
    """Unadjusted Langevin: no rejection, so the law it samples is biased by O(h).

    A step to a point where log p is not finite is refused and counted in `info.extra["nonfinite"]`.
    Cost: one value and one gradient a step.
    """

    step_size: Tensor | float

    def __post_init__(self) -> None:
        if self.step_size is None:
            raise ValueError(
                "step_size must be given for ULA, got None: it has no acceptance to adapt it by"
            )
        object.__setattr__(self, "step_size", check_scale(self.step_size, "step_size"))

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        return start(self, target, x, seed, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        check_steps(n, thin)
        h = per_chain(self.step_size, "step_size", state.log_prob)
        done = fused.chain("ula", target, state, n, thin, h)
        if done is not None:
            return done

        x, log_prob, score = state.x, state.log_prob, state.score
        if score is None:
            raise ValueError("state has no score: start it with this kernel's init")
        collect = Collect(state, n, thin)
        numbers = Numbers(state, "langevin")
        hx, noise = columns(h, x), columns(reference.sqrt_rn(h * 2.0), x)
        for step in range(state.step, state.step + n):
            xi = numbers.normal(step)
            x_new = (x + hx * score) + noise * xi
            log_prob_new, score_new = log_prob_and_score(target, x_new)
            probability, finite = acceptance(log_prob_new - log_prob_new)
            x = torch.where(columns(finite, x), x_new, x)
            score = torch.where(columns(finite, x), score_new, score)
            log_prob = torch.where(finite, log_prob_new, log_prob)
            collect.add(probability, finite, x, log_prob)
        new = replace(state, x=x, log_prob=log_prob, score=score, step=state.step + n)
        return new, collect.info()


def check_scale(value: Any, name: str) -> Tensor | float | None:
    """A step size or width: None, a positive number, or positive numbers (a tensor, also from a list)."""
    if value is None:
        return None
    if isinstance(value, (bool, str)):
        raise TypeError(f"{name} must be a positive number or a tensor of them, got {value!r}")
    tensor = torch.as_tensor(value)
    if not bool(((tensor > 0) & torch.isfinite(tensor)).all()):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value if isinstance(value, (Tensor, float)) else tensor if tensor.ndim else float(value)


def needed(value: Tensor | float | None, name: str) -> Tensor | float:
    if value is None:
        raise ValueError(f"{name} must be given, or be adapted in a warm-up; got None")
    return value
