"""The observation process of stochastic localisation and its denoiser, as SLIPS (slips.py) runs them.

Grenioux, Noble, Gabrié, Durmus, Stochastic localization via iterative posterior sampling, ICML 2024,
arXiv 2402.10758, algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pysamp import rng
from pysamp.mcmc.langevin import MALA, Advance, Multiplicative
from pysamp.schedules import Grid, Schedule, schedule_of
from pysamp.target import Counted, Target, Tilted, log_prob_of

CHECKED = 256  # particles of the checks of the start
# Where transitions are counted from: those of a run at 0, of the checks, and of pilot 1, 2, …
CHECK_STEP, PILOT_STEP, PILOT_LENGTH = 1 << 29, 1 << 30, 1 << 28


class StartError(ValueError):
    """The target is not finite where the chains of the denoiser start."""


class Settings(Protocol):
    """What a run takes from SLIPS."""

    @property
    def schedule(self) -> Schedule | str: ...
    @property
    def n_times(self) -> int: ...
    @property
    def n_steps(self) -> int: ...
    @property
    def n_copies(self) -> int: ...
    @property
    def n_init(self) -> int: ...
    @property
    def kept(self) -> int: ...
    @property
    def burnt(self) -> int: ...
    @property
    def step_size(self) -> float: ...
    @property
    def start(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def integrator(self) -> str: ...
    @property
    def persistent(self) -> bool: ...
    def rule(self, sigma: float) -> Multiplicative: ...


class Walk:
    """The observation process of n particles, and the denoiser that drives it."""

    def __init__(
        self, settings: Settings, target: Counted, grid: Grid, sigma: float, mean: Tensor, like: Tensor,
        seed: int, n: int, first_chain: int, part: int = 0, pilots: tuple[float, ...] = (),
    ) -> None:  # fmt: skip
        self.target, self.pilots = target, pilots
        self.settings, self.grid, self.sigma, self.mean = settings, grid, sigma, mean
        self.shape = (n, *target.event_shape)
        self.like, self.seed, self.first_chain, self.part = like, seed, first_chain, part
        self.drawn = 0
        first_step = PILOT_STEP + PILOT_LENGTH * (part - 1) if part else 0
        self.denoiser = Denoiser(settings, target, sigma, seed, first_chain, first_step)
        self.start_dependence: float | None = None
        self.start_drift: float | None = None

    def noise(self) -> Tensor:
        """The next standard normal numbers (n, *event)."""
        self.drawn += 1
        return rng.normal(
            self.shape, seed=self.seed, stream="observation", step=self.drawn, substep=self.part,
            first_chain=self.first_chain, device=self.like.device, dtype=self.like.dtype,
        )  # fmt: skip

    def run(
        self, progress: Callable[[int], object], *, check: bool, y: Tensor | None = None
    ) -> Tensor:
        """x (n, *event) at the last time, from y (n, *event) at the first, or from α m + σ √t ξ."""
        s, sigma = self.settings, self.sigma
        t, snr, alpha = self.grid.t.tolist(), self.grid.snr.tolist(), self.grid.alpha.tolist()
        noise = self._noise_of_steps()
        spread = sigma * math.sqrt(t[0])
        # For π = N(m, σ²): the width of Y over that of its noise, and what keeps it in Langevin steps.
        width = growth = 1.0
        if s.start == "matched":
            width, growth = math.sqrt(1 + snr[0]), math.sqrt(1 - 0.25 / (1 + snr[0]))
        if y is None:
            y = alpha[0] * self.mean.to(self.like) + width * spread * self.noise()
        early: Tensor | None = None
        for i in range(s.n_init):
            u = self.denoiser(y, snr[0], alpha[0])
            if check and s.n_init >= 4 and i == s.n_init // 2:
                early = self.denoiser.log_prob_of_states()
            # Langevin steps of size λ = σ² t / 2, for which y + λ score is halfway to α u
            y = y + 0.5 * (alpha[0] * u - y) + growth * spread * self.noise()
            progress(1)
        for k in range(s.n_times - 1):
            u = self.denoiser(y, snr[k], alpha[k])
            if k == 0 and check:
                self.start_dependence = self.denoiser.forgets(y, u, snr[0], alpha[0])
                if early is not None:
                    self.start_drift = _drift(early, self.denoiser.log_prob_of_states())
            if s.integrator == "denoiser":
                y = y + (alpha[k + 1] - alpha[k]) * u
            else:  # A y + (A − 1) σ² t s with the score s = (α u − y) / (σ² t)
                ratio = alpha[k + 1] / alpha[k]
                y = ratio * y + (ratio - 1) * (alpha[k] * u - y)
            y = y + sigma * noise[k] * self.noise()
            progress(1)
        u = self.denoiser(y, snr[-1], alpha[-1])
        progress(1)
        return u if s.output == "mean" else self.denoiser.state()

    def _noise_of_steps(self) -> list[float]:
        t = self.grid.t
        if self.settings.integrator == "denoiser":
            return t.diff().sqrt().tolist()
        return schedule_of(self.settings.schedule).noise(t[:-1], t[1:]).sqrt().tolist()


class Denoiser:
    """u_t(y) by MALA on q_t(·|y): the mean over the last states of n_copies chains for each y.

    The chains begin at y/α at the first call, and are burnt in; then they go on from where they are, with
    the step sizes that they have. Rows are particle by particle, copy by copy.
    """

    def __init__(
        self, settings: Settings, target: Target, sigma: float, seed: int, first: int, step: int
    ) -> None:
        self.settings, self.target, self.sigma = settings, target, sigma
        self.seed, self.first, self.step = seed, first * settings.n_copies, step
        self.kernel = MALA(settings.step_size, settings.rule(sigma))
        self.started = False
        self.calls = 0

    def __call__(self, y: Tensor, snr: float, alpha: float) -> Tensor:
        """y (n, *event) -> (n, *event)"""
        s = self.settings
        centre = (y / alpha).repeat_interleave(s.n_copies, 0)
        posterior = Tilted(self.target, centre, snr / self.sigma**2)
        if not self.started:
            moved = self._advance(posterior, centre, s.step_size, s.burnt)
            self._check_start(moved.log_prob)
            self.x, self.h, self.started = moved.x, moved.step_size, True
            self.accept = torch.zeros_like(moved.accept)
            self.nonfinite = moved.nonfinite
        start = self.x if s.persistent else centre
        moved = self._advance(posterior, start, self.h, s.n_steps, s.kept)
        self.x, self.h = moved.x, moved.step_size
        self.accept = self.accept + moved.accept
        self.nonfinite = self.nonfinite + moved.nonfinite
        self.calls += 1
        assert moved.mean is not None
        return self._over_copies(moved.mean)

    def forgets(self, y: Tensor, u: Tensor, snr: float, alpha: float) -> float:
        """How much of u at y hangs on where the chains start: 0 not at all, 1 wholly.

        The chains of a few particles are run for a burn-in from the states of others; the answer is the
        mean square difference of the two means, in units of twice the variance of the states. It is NaN
        for one particle.
        """
        s, few = self.settings, min(len(y), CHECKED)
        if few < 2:
            return math.nan
        rows = few * s.n_copies
        centre = (y[:few] / alpha).repeat_interleave(s.n_copies, 0)
        posterior = Tilted(self.target, centre, snr / self.sigma**2)
        other = self.x[:rows].roll(few // 2 * s.n_copies, 0)
        moved = self.kernel.advance(
            posterior, other, self.h[:rows], s.burnt, seed=self.seed, step=CHECK_STEP,
            first_chain=self.first, n_mean=max(1, s.burnt // 2),
        )  # fmt: skip
        assert moved.mean is not None
        gap = (self._over_copies(moved.mean) - u[:few]).double().square().mean()
        states = self.x[:rows].double()
        variance = (states - states.mean(0)).square().mean()
        return float((gap / (2 * variance)).clamp(max=1.0))

    def log_prob_of_states(self) -> Tensor:
        """log π of the states of the chains of a few particles, means over copies: (few,)."""
        rows = min(len(self.x), CHECKED * self.settings.n_copies)
        return self.per_particle(log_prob_of(self.target, self.x[:rows]).double())

    def state(self) -> Tensor:
        """A state of q_t(·|y) for each y: of the first copy of its chains."""
        return self.x[:: self.settings.n_copies]

    def per_particle(self, values: Tensor) -> Tensor:
        """Means over copies: (n n_copies,) -> (n,)."""
        return values.reshape(-1, self.settings.n_copies).mean(1)

    def _over_copies(self, values: Tensor) -> Tensor:
        copies = self.settings.n_copies
        return values.reshape(-1, copies, *values.shape[1:]).mean(1)

    def _advance(
        self, posterior: Target, x: Tensor, h: Tensor | float, n: int, n_mean: int = 0
    ) -> Advance:
        moved = self.kernel.advance(
            posterior, x, h, n, seed=self.seed, step=self.step, first_chain=self.first,
            n_mean=n_mean,
        )  # fmt: skip
        self.step += n
        return moved

    def _check_start(self, log_prob: Tensor) -> None:
        bad = torch.nonzero(~torch.isfinite(log_prob)).flatten()
        if len(bad):
            row = int(bad[0])
            raise StartError(
                f"target has no finite log_prob where {len(bad)} of {len(log_prob)} chains of the "
                f"denoiser start: chain {self.first + row} has {float(log_prob[row])}; SLIPS needs a "
                "density that is finite everywhere"
            )


def _drift(early: Tensor, late: Tensor) -> float:
    """Mean difference of two series of the same particles, in standard errors; NaN for one particle."""
    if len(early) < 2:
        return math.nan
    difference = late - early
    error = difference.std() / math.sqrt(len(difference))
    return float(difference.mean() / error) if error > 0 else math.nan
