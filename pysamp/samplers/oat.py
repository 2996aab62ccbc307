"""One at a time: noisy measurements of a point, drawn one after another, and the point denoised from them.

    y_m = x + σ ξ_m,   ȳ_m = (y_1 + … + y_m)/m,   σ_m = σ/√m,   p_σ = π ∗ N(0, σ²)
    ∇ log p(y_m | y_1 … y_m−1) = (x̂_m(ȳ_m) − y_m)/σ²,   x̂_m(ȳ) = ȳ + σ_m² ∇ log p_σ_m(ȳ) = E[x | y_1 … y_m]

The second row follows from ∏ N(y_i; x, σ²) ∝ N(ȳ_m; x, σ_m²) exp(−(Σ|y_i|² − m|ȳ_m|²)/(2σ²)).
Saremi, Park, Bach, Chain of log-concave Markov chains (2023), arXiv 2305.19473, with the settings of the
comparison in Grenioux, Noble, Gabrié, Durmus (2024), arXiv 2402.10758. The smoothed score is estimated by
self-normalised importance sampling with antithetic normal z, σ_m ∇ log p_σ_m(ȳ) = Σ w z, w ∝ γ(ȳ + σ_m z),
and y_m is moved by the underdamped integrator of Sachs, Leimkuhler, Danos, Entropy 19, 647 (2017):

    y += δσ v/2;   v += δ (x̂ − y)/(2σ);   v ← ζv + √(1 − ζ²) ξ;   v += δ (x̂ − y)/(2σ);   y += δσ v/2

with ζ = e^−γδ, whose positions are right for normal densities whatever the δ. Time is in units of the
curvature 1/σ² of a lone measurement, which bounds the one of all: δ < 2 is stable. Two points of the code
published with the comparison are not followed: it damps by e^−γ instead of e^−γδ, takes σ where the inverse
mass σ² is due, and starts v at 0; here v starts from its stationary law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pysamp import rng
from pysamp.distributed import show_progress, world
from pysamp.mcmc.base import columns
from pysamp.samplers.arguments import check_at_least, check_budget, check_n, check_positive, counted
from pysamp.samplers.importance import (
    around,
    blocks,
)
from pysamp.samplers.rdmc import FEW_POINTS, outside
from pysamp.samples import Samples
from pysamp.target import Target, log_prob_of


@dataclass(frozen=True, eq=False)
class OAT:
    """n independent draws x̂ from n_measurements each; gradient-free.

    sigma: noise of a measurement; conditionals are log-concave from about the radius of the target on.
    n_steps Langevin steps of size `step_size` (δ) for a measurement, with damping `friction` (γδ) each: of
    the displacement of a start in a normal density of curvature 1/4 to 1, 8 steps of the default leave at
    most 6 %, those of the papers (0.05, 0.0625) up to 70 %. n_pairs: pairs of points ±z of each estimate of
    the score.

    The result is a posterior mean: a normal mode of variance v comes out with v²/(v + σ²/n_measurements).
    Cost: 2 n_pairs (n_steps + 1) n_measurements densities a draw.
    """

    sigma: float = 1.0
    n_measurements: int = 128
    n_steps: int = 8
    n_pairs: int = 256
    step_size: float = 1.0
    friction: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.sigma, "sigma")
        check_at_least(self.n_measurements, 1, "n_measurements")
        check_at_least(self.n_steps, 1, "n_steps")
        check_at_least(self.n_pairs, 1, "n_pairs")
        check_positive(self.step_size, "step_size")
        if self.step_size >= 2:
            raise ValueError(
                f"step_size must be below 2, where the integrator is stable, got {self.step_size}"
            )
        check_positive(self.friction, "friction")

    def sample(
        self, target: Target, n: int, *, seed: int, first_chain: int = 0,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> Samples:  # fmt: skip
        """Samples x (n, 1, *event).

        info: by measurement (n_measurements,) the mean effective number of weighted points `points_ess`.
        Raises ValueError where no point around the start has a positive density.
        """
        check_n(n)
        target = counted(target, "OAT")
        event = tuple(target.event_shape)
        like = torch.empty(0, device=device, dtype=dtype or torch.float32)
        denoise = Denoised(self, target, n, seed, first_chain, like)
        draws = 0

        def normal() -> Tensor:
            nonlocal draws
            draws += 1
            return rng.normal(
                (n, *event), seed=seed, stream="diffusion", step=draws - 1, first_chain=first_chain,
                device=like.device, dtype=like.dtype,
            )  # fmt: skip

        sigma, delta = self.sigma, self.step_size
        keep = math.exp(-self.friction)
        stir = math.sqrt(-math.expm1(-2 * self.friction))
        # The mean of y_1 … y_m−1, and the point denoised from it.
        before = x = like.new_zeros(n, *event)
        with show_progress(self.n_measurements, "OAT", world(), show=progress) as bar:
            for m in range(1, self.n_measurements + 1):
                y, v = x + sigma * normal(), normal()
                for _ in range(self.n_steps):
                    y = y + delta * sigma / 2 * v
                    kick = delta / 2 * (denoise(before + (y - before) / m, m) - y) / sigma
                    v = keep * (v + kick) + stir * normal() + kick
                    y = y + delta * sigma / 2 * v
                before = before + (y - before) / m
                x = denoise(before, m)
                bar.update(1)

        log_prob = log_prob_of(target, x)
        noise = sigma / math.sqrt(self.n_measurements)
        note = (
            "OAT returns posterior means, which lie closer together than draws of the target: the noise "
            f"of {self.n_measurements} measurements has sd {noise:.3g}"
        )
        info = {
            "evaluations": target.evaluations,
            "gradients": target.gradients,
            "nonfinite": int(denoise.nonfinite.sum()),
            "points_ess": denoise.sizes(),
            "notes": [note],
            "warnings": denoise.faults() + outside(log_prob),
        }
        return Samples(x[:, None], log_prob[:, None], None, info)

    def for_budget(self, n: int, gradients: int) -> OAT:
        """The same with n_measurements such that its densities (it needs nothing else) fit in `gradients`.

        Raises ValueError where not even one measurement fits.
        """
        each = 2 * self.n_pairs * (self.n_steps + 1)
        check_budget(n, gradients, least=n * (each + 1))
        return replace(self, n_measurements=(gradients // n - 1) // each)


class Denoised:
    """x̂_m(ȳ) = ȳ + σ_m Σ w z, and how many points it rested on."""

    def __init__(
        self, settings: OAT, target: Target, n: int, seed: int, first_chain: int, like: Tensor
    ) -> None:
        self.settings, self.target, self.seed, self.first_chain = (
            settings,
            target,
            seed,
            first_chain,
        )
        self.nonfinite = like.new_zeros(n)
        self.ess = like.new_zeros(settings.n_measurements)  # of each measurement, summed over calls
        self.calls = 0
        self.lost = 0

    def __call__(self, y: Tensor, m: int) -> Tensor:
        cfg, parts = self.settings, []
        scale = cfg.sigma / math.sqrt(m)
        for first, last in blocks(len(y), 2 * cfg.n_pairs * max(1, math.prod(y.shape[1:]))):
            points = around(
                self.target, y[first:last], scale, cfg.n_pairs, antithetic=True, seed=self.seed,
                step=self.calls, first_chain=self.first_chain + first,
            )  # fmt: skip
            nowhere = points.ess == 0
            self.lost += int(nowhere.sum())
            if self.calls == 0 and bool(nowhere.any()):
                row = self.first_chain + first + int(nowhere.nonzero()[0, 0])
                raise ValueError(
                    f"target has no finite log_prob at any of {2 * cfg.n_pairs} points around the start "
                    f"of draw {row}: give another sigma, or more pairs"
                )
            weight = columns(points.weight.reshape(-1), points.noise.flatten(0, 1))
            pull = (weight * points.noise.flatten(0, 1)).reshape(points.noise.shape).sum(1)
            parts.append(y[first:last] + scale * pull)
            self.ess[m - 1] += points.ess.sum()
            self.nonfinite[first:last] += points.nonfinite
        self.calls += 1
        return torch.cat(parts)

    def sizes(self) -> Tensor:
        return (self.ess.double() / (len(self.nonfinite) * (self.settings.n_steps + 1))).cpu()

    def faults(self) -> list[str]:
        found = []
        size, at = self.sizes().min(0)
        if float(size) < FEW_POINTS:
            found.append(
                f"the {2 * self.settings.n_pairs} points of an estimate of the score count as only "
                f"{float(size):.2g} at measurement {int(at) + 1}: the scores are wrong there, and weights "
                "of modes are not to be trusted; take more pairs or a smaller sigma"
            )
        if self.lost:
            found.append(
                f"{self.lost} of {self.calls * len(self.nonfinite)} estimates of the score had no point "
                "of positive density, and were taken as 0"
            )
        return found
