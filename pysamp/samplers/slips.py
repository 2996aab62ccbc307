"""SLIPS: sampling by stochastic localisation, with posterior means found by short Markov chains.

    Y_t = α(t) X + σ W_t,  X ~ π;      dY_t = α′(t) u_t(Y_t) dt + σ dB_t,   u_t(y) = E[X | Y_t = y]

Y_t/α(t) → X as t → T_gen. The denoiser u_t is the mean of

    q_t(x|y) ∝ π(x) exp(−g²(t) |x − y/α(t)|² / (2σ²)),

estimated by MALA whose chains, and whose step sizes, persist from one time to the next. Y starts at t₀
from Langevin steps with the score (α u − y)/(σ² t). Source: Grenioux, Noble, Gabrié, Durmus, Stochastic
localization via iterative posterior sampling, ICML 2024, arXiv 2402.10758.

Beyond the paper: `output="sample"` returns a state of the last chains, whose law is π if that of Y is
right; the paper returns the denoiser, which narrows a Gaussian mode of variance s² to s⁴/(s² + σ²/g²).
`start="matched"` draws the first Y, and scales the noise of its Langevin steps, such that a normal π of
variance σ² is met exactly, where the published steps leave Y too wide by up to a third. And σ and t₀ may
be left out. Without a ground truth the mean and the scale of π come from pilot runs, each of which looks
through the window of the one before, the first through a wide one; and Y starts at the latest time at
which its law is log-concave for all π of that scale, g²(t₀) = σ²/(R² − τ²), or 1/d where only the variance
is known. What can be checked without a truth is whether the denoiser at t₀ forgets where its chains start;
where it does not, the weights of modes rest on the start. Nor is the law of Y right where log π of the
chains' states still drifts during the Langevin steps. The verdict says both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pysamp.distributed import show_progress, world
from pysamp.mcmc.langevin import Multiplicative
from pysamp.samplers.arguments import (
    check_at_least,
    check_budget,
    check_n,
    check_number,
    check_positive,
    counted,
)
from pysamp.samplers.localisation import CHECKED, StartError, Walk
from pysamp.samples import Samples
from pysamp.schedules import Schedule, check_time, log_concave_times, schedule_of, snr_grid
from pysamp.target import Counted, Target, log_prob_of

SNR_END = 150.0  # g² at t_end where none is given: log g² = 5.0, as in most runs of the paper
PILOT = 4  # pilot runs at most, to find the mean and the scale of the target
PILOT_PARTICLES, PILOT_TIMES = 256, 32
NARROWED = 6  # times that a pilot may begin again with a third of its width
SETTLED = 0.1  # change of ln σ below which the pilots end
NOTED, FORGETS = 0.5, 0.9  # share of the variance of u at t0 that hangs on where its chains start
MOST_STEPS = 1 << 28  # transitions of a chain; the numbers beyond serve the checks and the pilots
DRIFT = 4.0  # standard errors by which log π may change in the last half of the Langevin steps


@dataclass(frozen=True, eq=False)
class SLIPS:
    """n independent draws by stochastic localisation.

    schedule: "standard", "geom(a, b)", "geom-inf(a)", or a Schedule. n_times K: times, equidistant in
    log g², from t0 to t_end (left out: g² = 150).
    sigma: σ, best the root of the variance of the target per coordinate. Instead of it R and tau, for
    a target U + N with |U| ≤ R and N ~ N(0, τ²): σ² = R²/d + τ². With neither, pilot runs find it, and
    the mean of the target if that is left out, too (0 otherwise). They begin with σ = reach; modes much
    further out are missed.
    t0: the start; left out, g²(t0) = σ²/(R² − τ²), or 1/d.
    n_copies chains of n_steps transitions for each particle and time, of which the last n_keep (half
    of them) are averaged; before the first, burn_in transitions (50 n_steps). n_init: Langevin steps of
    Y at t0. step_size: the first of the chains, which adapt it one by one by the rule `adapt`; left out,
    that of the paper with max(1, σ²) as the largest step. start: "matched" or "published", see above.
    output: "sample" or "mean". persistent: whether chains go on at the next time, or begin anew at y/α.
    integrator: "denoiser" freezes u in a step, "score" freezes t ∇log p_t and is exact in the rest.

    The published settings are output="mean", start="published", adapt=Multiplicative(), and a sigma, t0
    and t_end for each target.
    Cost in gradients a particle: n_copies ((n_steps + 1)(n_times + n_init) + burn_in + 1), and a check of
    the start and pilot runs of 256 particles each.

    `info` has "sigma", "t0", "t_end", "start_dependence" (0 to 1) and "start_drift" (in standard errors),
    see above, "accept" (n,), "step_size" (n,) at the end, "nonfinite", "evaluations", "gradients".
    Raises ValueError, TypeError for arguments; ValueError for a target that is not finite where chains
    start, or has no gradient.
    """

    schedule: Schedule | str = "geom(1, 1)"
    n_times: int = 1024
    t0: float | None = None
    t_end: float | None = None
    sigma: float | None = None
    R: float | None = None
    tau: float = 0.0
    mean: Tensor | None = None
    n_steps: int = 32
    n_copies: int = 4
    n_keep: int | None = None
    n_init: int = 10
    burn_in: int | None = None
    step_size: float = 1e-5
    adapt: Multiplicative | None = None
    reach: float = 10.0
    start: Literal["matched", "published"] = "matched"
    output: Literal["sample", "mean"] = "sample"
    persistent: bool = True
    integrator: Literal["denoiser", "score"] = "denoiser"

    def __post_init__(self) -> None:
        schedule = schedule_of(self.schedule)
        for name, least in (("n_times", 2), ("n_steps", 1), ("n_copies", 1), ("n_init", 0)):
            check_at_least(getattr(self, name), least, name)
        if self.burn_in is not None:
            check_at_least(self.burn_in, 1, "burn_in")
        if self.n_keep is not None:
            check_at_least(self.n_keep, 1, "n_keep")
        if self.kept > self.n_steps:
            raise ValueError(f"n_keep must be at most n_steps = {self.n_steps}, got {self.n_keep}")
        for name in ("sigma", "R", "step_size", "reach"):
            if (value := getattr(self, name)) is not None:
                check_positive(value, name)
        if self.sigma is not None and self.R is not None:
            raise ValueError(f"sigma and R exclude each other, got {self.sigma} and {self.R}")
        check_number(self.tau, "tau")
        if not 0 <= self.tau < math.inf or (self.tau and self.R is None):
            raise ValueError(f"tau must be finite, not negative, and come with R, got {self.tau}")
        if self.R is not None and self.tau >= self.R:
            raise ValueError(f"tau must be smaller than R = {self.R}, got {self.tau}")
        if self.adapt is not None and not isinstance(self.adapt, Multiplicative):
            raise TypeError(f"adapt must be a Multiplicative or None, got {self.adapt!r}")
        if (self.n_times + self.n_init) * self.n_steps + self.burnt > MOST_STEPS:
            raise ValueError(
                f"n_times must leave at most 2^28 transitions to a chain, got {self.n_times} times of "
                f"{self.n_steps}"
            )
        if self.mean is not None and not bool(torch.isfinite(torch.as_tensor(self.mean)).all()):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if self.t_end is not None:
            check_time(schedule, self.t_end, "t_end")
        for name, choices in (
            ("output", ("sample", "mean")),
            ("start", ("matched", "published")),
            ("integrator", ("denoiser", "score")),
        ):
            if getattr(self, name) not in choices:
                got = getattr(self, name)
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {got!r}")
        if self.t0 is not None:
            check_time(schedule, self.t0)
            snr_grid(schedule, self.t0, self.last_time(), self.n_times)

    # ---- settings that follow from others ----------------------------------------------------------
    @property
    def kept(self) -> int:
        return max(1, self.n_steps // 2) if self.n_keep is None else self.n_keep

    @property
    def burnt(self) -> int:
        return 50 * self.n_steps if self.burn_in is None else self.burn_in

    def rule(self, sigma: float) -> Multiplicative:
        """How the chains adapt their steps, which for a wide target must be long ones."""
        return Multiplicative(cap=max(1.0, sigma**2)) if self.adapt is None else self.adapt

    def last_time(self) -> float:
        return _time(schedule_of(self.schedule), SNR_END) if self.t_end is None else self.t_end

    def start_time(self, dim: int, sigma: float) -> float:
        """t₀, given or by the rule."""
        if self.t0 is not None:
            return self.t0
        schedule = schedule_of(self.schedule)
        if self.R is not None and self.tau > 0:
            return log_concave_times(schedule, sigma, self.R, self.tau)[1]
        return _time(schedule, 1 / dim)

    def for_budget(self, n: int, gradients: int) -> SLIPS:
        """The same with as many times as n particles may have for `gradients` gradients in all.

        Where they would be fewer than 32, there are fewer copies of the chains, and then a shorter
        burn-in. Raises ValueError where even that is not enough.
        """
        check_budget(n, gradients)
        least = 0
        for copies, burn_in in ((self.n_copies, self.burnt), (1, self.burnt), (1, self.n_steps)):
            spare = (gradients - self._extra(n, copies, burn_in)) / n
            n_times = int((spare / copies - burn_in - 1) / (self.n_steps + 1)) - self.n_init
            if n_times >= 32 or (burn_in == self.n_steps and n_times >= 2):
                return replace(self, n_times=n_times, n_copies=copies, burn_in=burn_in)
            least = n * self._cost(2, copies, burn_in) + self._extra(n, copies, burn_in)
        raise ValueError(
            f"gradients must be at least {least} for {n} particles of SLIPS, got {gradients}"
        )

    def _extra(self, n: int, copies: int, burn_in: int) -> int:
        """Gradients of the check of the start, and of pilot runs."""
        check = min(n, CHECKED) * copies * (burn_in + 1)
        pilot = PILOT_PARTICLES * self._cost(PILOT_TIMES, copies, burn_in)
        return check + (PILOT * pilot if self._pilots else 0)

    def _cost(self, n_times: int, copies: int, burn_in: int) -> int:
        """Gradients of a particle."""
        return copies * ((self.n_steps + 1) * (n_times + self.n_init) + burn_in + 1)

    @property
    def _pilots(self) -> bool:
        return self.sigma is None and self.R is None

    # ---- draws -------------------------------------------------------------------------------------
    def sample(
        self,
        target: Target,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> Samples:
        """Particles first_chain … first_chain + n: x (n, 1, *event). Each is a function of the seed."""
        walk = self.walk(target, n, seed=seed, first_chain=first_chain, device=device, dtype=dtype)
        with show_progress(self.n_init + self.n_times, "SLIPS", world(), show=progress) as bar:
            x = walk.run(bar.update, check=first_chain == 0)
        denoiser, t0 = walk.denoiser, float(walk.grid.t[0])
        log_prob = log_prob_of(walk.target, x)
        info: dict[str, Any] = {
            "sigma": walk.sigma,
            "t0": t0,
            "t_end": float(walk.grid.t[-1]),
            "accept": denoiser.per_particle(denoiser.accept / denoiser.calls),
            "step_size": denoiser.per_particle(denoiser.h.log()).exp(),
            "nonfinite": int(denoiser.nonfinite.sum()),
            "evaluations": walk.target.evaluations,
            "gradients": walk.target.gradients,
        }
        notes: list[str] = []
        warnings: list[str] = []
        if walk.pilots:
            info["pilot_sigmas"] = list(walk.pilots)
            notes.append(
                f"sigma and mean were found by pilot runs that began with sigma = {self.reach:g}: modes "
                "that they did not reach are missing, which shows nowhere"
            )
        if (share := walk.start_dependence) is not None:
            info["start_dependence"] = share
            if share > NOTED:
                (warnings if share > FORGETS else notes).append(
                    f"at t0 = {t0:.3g} the denoiser remembers where its chains start (share "
                    f"{share:.2f} of its variance): weights of modes rest on the start, not on the target"
                )
        if (drift := walk.start_drift) is not None:
            info["start_drift"] = drift
            if abs(drift) > DRIFT:
                warnings.append(
                    f"Y had not settled at t0 = {t0:.3g} after {self.n_init} Langevin steps: log p of "
                    f"the chains' states still changes, by {drift:+.1f} standard errors; raise n_init or "
                    "burn_in, or choose another t0"
                )
        info |= {"notes": notes, "warnings": warnings}
        return Samples(x[:, None], log_prob[:, None], None, info, target)

    def walk(
        self,
        target: Target,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Walk:
        """The observation process of n particles, before its start, with all that was left out found."""
        check_n(n)
        target = counted(target, "SLIPS")
        like = torch.empty(0, device=device, dtype=dtype or torch.float32)
        dim = math.prod(target.event_shape)
        mean = torch.zeros(target.event_shape) if self.mean is None else torch.as_tensor(self.mean)
        if tuple(mean.shape) != tuple(target.event_shape):
            raise ValueError(
                f"mean must have shape {tuple(target.event_shape)}, got {tuple(mean.shape)}"
            )
        pilots: list[float] = []
        if self._pilots:
            mean, pilots = self._pilot(target, mean, seed, like)
            sigma = pilots[-1]
        elif self.sigma is not None:
            sigma = float(self.sigma)
        else:
            assert self.R is not None
            sigma = math.sqrt(self.R**2 / dim + self.tau**2)
        t0 = self.start_time(dim, sigma)
        grid = snr_grid(schedule_of(self.schedule), t0, self.last_time(), self.n_times)
        return Walk(
            self, target, grid, sigma, mean, like, seed, n, first_chain, pilots=tuple(pilots)
        )

    def _pilot(
        self, target: Counted, mean: Tensor, seed: int, like: Tensor
    ) -> tuple[Tensor, list[float]]:
        """Mean and σ of the target from runs of few particles, beginning with σ = reach.

        Where a target is not finite so far out, as one whose density underflows, with a third of it.
        """
        sigma, narrowed = float(self.reach), 0
        found: list[float] = []
        while len(found) < PILOT:
            short = replace(self, n_times=PILOT_TIMES, output="sample", sigma=sigma)
            t0 = short.start_time(mean.numel(), sigma)
            grid = snr_grid(schedule_of(self.schedule), t0, self.last_time(), PILOT_TIMES)
            # with numbers of their own
            walk = Walk(
                short, target, grid, sigma, mean, like, seed, PILOT_PARTICLES, 0, len(found) + 1
            )
            try:
                x = walk.run(lambda steps: None, check=False).to("cpu", torch.float64)
            except StartError:
                narrowed += 1
                if narrowed > NARROWED:
                    raise
                sigma /= 3
                continue
            if self.mean is None:
                mean = x.mean(0)
            new = float((x - mean).square().mean().sqrt())
            if not 0 < new < math.inf:
                raise ValueError(f"sigma must be given: a pilot run found {new} for it")
            settled = abs(math.log(new / sigma)) < SETTLED
            sigma = new
            found.append(sigma)
            if settled:
                break
        return mean, found


def _time(schedule: Schedule, snr: float) -> float:
    return float(schedule.time(torch.tensor(snr, dtype=torch.float64)))
