"""Reverse-diffusion Monte Carlo: the time-reversed Ornstein–Uhlenbeck process, its score by MCMC.

    forward   X_s = e^−s X_0 + √(1 − e^−2s) ξ,   X_0 ~ π          (dX = −X ds + √2 dB)
    score     ∇ log p_s(x) = E_q[e^−s x_0 − x] / (1 − e^−2s)
    posterior q(x_0 | x) ∝ γ(x_0) exp(−|x_0 − e^s x|² / (2 (e^2s − 1)))
    reverse   x ← e^δ x + 2 (e^δ − 1) ∇ log p_s(x) + √(e^2δ − 1) ξ,   s ← s − δ

Huang, Dong, Hao, Ma, Zhang, Reverse diffusion Monte Carlo (2023), arXiv 2307.02037, with the settings of
the comparison in Grenioux, Noble, Gabrié, Durmus (2024), arXiv 2402.10758: times T … 0 equally spaced; for
each x a few MALA chains, each started from one of many normal points around e^s x picked by their weights
γ; x at T from N(0, 1 − e^−2T) by Langevin steps of size (1 − e^−2T)/2.

The reverse step is the exact solution for a frozen score of dx = (x + 2 ∇ log p) dt + √2 dB. The code that
was published with the comparison has (e^δ − 1) in place of 2 (e^δ − 1), and evaluates γ at x, not at x_0:
its numbers are not those of this method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pysamp import rng
from pysamp.distributed import show_progress, world
from pysamp.mcmc.base import columns
from pysamp.mcmc.langevin import MALA, Multiplicative
from pysamp.samplers.arguments import check_at_least, check_budget, check_n, check_positive, counted
from pysamp.samplers.importance import (
    around,
    blocks,
)
from pysamp.samples import Samples
from pysamp.target import Target, Tilted, log_prob_of

ADAPT = Multiplicative()  # 0.75 ± 0.01, by 3 percent, at most 1: those of the comparison
FEW_POINTS = 10.0  # effective points below which two modes came out wrong by 2 percent and more


@dataclass(frozen=True, eq=False)
class RDMC:
    """n independent draws, each by its own reverse diffusion from time T = `horizon` to 0.

    n_times: points of the time grid, T and 0 included. n_init: Langevin steps at T. n_points weighted
    points start n_copies chains of n_steps transitions, whose second half is averaged. `step_size` is
    where each chain's own step starts; `adapt` is how it changes.

    T is in units of the forward process, whose stationary law is N(0, 1): the target should be centred
    and of unit scale. A small T leaves the start wrong, a large one the posterior hard to sample. The
    Langevin steps at T are large and not adjusted: they alone widen a normal p_T by up to a third.
    Cost: (n_init + n_times − 1)(n_points + n_copies (n_steps + 1)) densities a draw, of which the second
    part are gradients.
    """

    horizon: float = -math.log(0.8)
    n_times: int = 1024
    n_init: int = 16
    n_points: int = 128
    n_copies: int = 4
    n_steps: int = 32
    step_size: float = 1e-2
    adapt: Multiplicative = ADAPT

    def __post_init__(self) -> None:
        check_positive(self.horizon, "horizon")
        check_at_least(self.n_times, 2, "n_times")
        check_at_least(self.n_init, 0, "n_init")
        check_at_least(self.n_points, 1, "n_points")
        check_at_least(self.n_copies, 1, "n_copies")
        check_at_least(self.n_steps, 2, "n_steps")
        check_positive(self.step_size, "step_size")

    def sample(
        self, target: Target, n: int, *, seed: int, first_chain: int = 0,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> Samples:  # fmt: skip
        """Samples x (n, 1, *event).

        info: accept (n,); by time (n_init + n_times − 1,): `times`, mean effective number of weighted
        points `points_ess`, mean acceptance `accept_by_time`.
        Raises ValueError where no point around the start has a positive density.
        """
        check_n(n)
        target = counted(target, "RDMC")
        event = tuple(target.event_shape)
        like = torch.empty(0, device=device, dtype=dtype or torch.float32)

        def normal(stream: str, step: int = 0) -> Tensor:
            return rng.normal(
                (n, *event), seed=seed, stream=stream, step=step, first_chain=first_chain,
                device=like.device, dtype=like.dtype,
            )  # fmt: skip

        mean = PosteriorMean(self, target, n, seed, first_chain, like)
        noise_of_end = -math.expm1(-2 * self.horizon)  # 1 − e^−2T
        x = math.sqrt(noise_of_end) * normal("start")
        delta = self.horizon / (self.n_times - 1)
        with show_progress(self.n_init + self.n_times - 1, "RDMC", world(), show=progress) as bar:
            for i in range(self.n_init):
                # A Langevin step of size λ = (1 − e^−2T)/2: λ ∇ log p = (e^−T E[x_0] − x)/2.
                pull = (math.exp(-self.horizon) * mean(x, self.horizon) - x) / 2
                x = x + pull + math.sqrt(noise_of_end) * normal("diffusion", i)
                bar.update(1)
            for k in range(self.n_times - 1):
                s = self.horizon * (1 - k / (self.n_times - 1))
                score = (math.exp(-s) * mean(x, s) - x) / -math.expm1(-2 * s)
                noise = math.sqrt(math.expm1(2 * delta)) * normal("diffusion", self.n_init + k)
                x = math.exp(delta) * x + 2 * math.expm1(delta) * score + noise
                bar.update(1)

        log_prob = log_prob_of(target, x)
        info = {
            "evaluations": target.evaluations,
            "gradients": target.gradients,
            "notes": [],
            "warnings": mean.faults() + outside(log_prob),
            **mean.info(),
        }
        return Samples(x[:, None], log_prob[:, None], None, info)

    def for_budget(self, n: int, gradients: int) -> RDMC:
        """The same with n_times such that densities and gradients together are at most `gradients`.

        Raises ValueError where not even two times fit.
        """
        each = self.n_points + self.n_copies * (self.n_steps + 1)
        check_budget(n, gradients, least=n * ((self.n_init + 1) * each + 1))
        return replace(self, n_times=1 + (gradients // n - 1) // each - self.n_init)


class PosteriorMean:
    """E[X_0 | X_s = x] for n rows, and what the chains that estimate it report.

    Chains start anew at every time, from weighted points; their step sizes persist.
    """

    def __init__(
        self, settings: RDMC, target: Target, n: int, seed: int, first_chain: int, like: Tensor
    ) -> None:
        self.settings, self.target, self.seed, self.first_chain = (
            settings,
            target,
            seed,
            first_chain,
        )
        rows = n * settings.n_copies
        self.step_size = like.new_full((rows,), settings.step_size)
        self.x: Tensor | None = None  # (rows, *event) where the chains are
        self.accept = like.new_zeros(rows)
        self.nonfinite = like.new_zeros(n)
        self.lost = 0  # rows, over all times, of which no weighted point had a density
        self.calls = 0
        self.ess: list[Tensor] = []
        self.accepted: list[Tensor] = []
        self.times: list[float] = []

    def __call__(self, x: Tensor, s: float) -> Tensor:
        """x: (n, *event), at time s -> (n, *event)"""
        cfg = self.settings
        centre, variance = math.exp(s) * x, math.expm1(2 * s)
        start = self._start(centre, math.sqrt(variance))
        posterior = Tilted(self.target, centre.repeat_interleave(cfg.n_copies, 0), 1 / variance)
        moved = MALA(adapt=cfg.adapt).advance(
            posterior, start, self.step_size, cfg.n_steps, seed=self.seed,
            step=self.calls * cfg.n_steps, first_chain=self.first_chain * cfg.n_copies,
            n_mean=cfg.n_steps // 2,
        )  # fmt: skip
        self.x, self.step_size = moved.x, moved.step_size
        self.accept += moved.accept
        self.nonfinite += moved.nonfinite.reshape(len(x), -1).sum(1)
        self.accepted.append(moved.accept.mean())
        self.times.append(s)
        self.calls += 1
        assert moved.mean is not None  # n_mean is positive
        return moved.mean.reshape(len(x), cfg.n_copies, *x.shape[1:]).mean(1)

    def _start(self, centre: Tensor, scale: float) -> Tensor:
        """One of the weighted points for every chain: (n n_copies, *event)."""
        cfg, event = self.settings, centre.shape[1:]
        u = rng.uniform(
            (len(centre), cfg.n_copies), seed=self.seed, stream="importance", step=self.calls,
            substep=1, first_chain=self.first_chain, device=centre.device, dtype=centre.dtype,
        )  # fmt: skip
        parts, sizes = [], []
        for first, last in blocks(len(centre), cfg.n_points * max(1, math.prod(event))):
            points = around(
                self.target, centre[first:last], scale, cfg.n_points, antithetic=False,
                seed=self.seed, step=self.calls, first_chain=self.first_chain + first,
            )  # fmt: skip
            # Without the last edge no rounding of the sum can point past the last point.
            edges = points.weight.cumsum(1)[:, :-1].contiguous()
            pick = torch.searchsorted(edges, u[first:last].contiguous(), right=True)  # (rows, M)
            row = torch.arange(last - first, device=centre.device)[:, None]
            chosen = centre[first:last, None] + scale * points.noise[row, pick]  # (rows, M, *event)
            nowhere = points.ess == 0
            self.lost += int(nowhere.sum())
            if bool(nowhere.any()):
                chosen = torch.where(
                    columns(nowhere, chosen), self._before(first, last, nowhere), chosen
                )
            parts.append(chosen.reshape(-1, *event))
            sizes.append(points.ess)
            self.nonfinite[first:last] += points.nonfinite
        self.ess.append(torch.cat(sizes).mean())
        return torch.cat(parts)

    def _before(self, first: int, last: int, nowhere: Tensor) -> Tensor:
        """Where chains go on that have no point to start from."""
        if self.x is None:
            row = self.first_chain + first + int(nowhere.nonzero()[0, 0])
            raise ValueError(
                f"target has no finite log_prob at any of {self.settings.n_points} points around the "
                f"start of draw {row}: give a larger horizon or n_points, or another target"
            )
        m = self.settings.n_copies
        return self.x[first * m : last * m].reshape(last - first, m, *self.x.shape[1:])

    def info(self) -> dict[str, Any]:
        accept = self.accept.reshape(-1, self.settings.n_copies).mean(1) / self.calls
        return {
            "accept": accept,
            "nonfinite": int(self.nonfinite.sum()),
            "times": torch.tensor(self.times, dtype=torch.float64),
            "points_ess": torch.stack(self.ess).double().cpu(),
            "accept_by_time": torch.stack(self.accepted).double().cpu(),
        }

    def faults(self) -> list[str]:
        found = []
        size, at = torch.stack(self.ess).cpu().min(0)
        if float(size) < FEW_POINTS:
            found.append(
                f"the {self.settings.n_points} weighted points that start the inner chains count as "
                f"only {float(size):.2g} at time {self.times[int(at)]:.3g}: the chains of a draw start "
                "in the modes that these few fell in, and weights of modes are not to be trusted; "
                "take a smaller horizon or more points"
            )
        if self.lost:
            found.append(
                f"{self.lost} of {self.calls * len(self.nonfinite)} posteriors had no density at any "
                "weighted point, and their chains went on from where they were"
            )
        return found


def outside(log_prob: Tensor) -> list[str]:
    """A sentence about draws that left the support of the target."""
    bad = int((~torch.isfinite(log_prob)).sum())
    if not bad:
        return []
    return [f"{bad} of {log_prob.numel()} draws have no finite log_prob: they left the support"]
