"""Stochastic localisation from end to end: runs of SLIPS, whose unit is a transition of its chains.

run(n) is a whole run of n times and 4 Langevin steps, after a burn-in of as many transitions as a time
has: with every evaluation, the moves of Y, the averages, and Python around them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from benchmarks.bench import Bench, Counting, On
from benchmarks.single import MALA_FLOPS, mixture_flops
from pysamp import _native, opponents
from pysamp.opponents import Energy
from pysamp.quickbench import CHAIN, native_on
from pysamp.samplers.slips import SLIPS
from pysamp.schedules import Grid, schedule_of, snr_grid
from pysamp.target import Target
from pysamp.targets import EightGaussians
from pysamp.timing import Case, Variant

STEPS, COPIES, LANGEVIN = 32, 4, 4
PARTICLES = 1024  # 4096 chains
SEED = 5


def _settings(sigma: float, t0: float, n_times: int) -> SLIPS:
    return SLIPS(
        sigma=sigma, t0=t0, n_times=max(2, n_times), n_steps=STEPS, n_copies=COPIES, n_init=LANGEVIN,
        burn_in=STEPS, step_size=1e-3, start="published",
    )  # fmt: skip


def plain(
    energy: Energy, settings: SLIPS, grid: Grid, shape: tuple[int, int], device: torch.device
) -> Tensor:
    """The same by plain torch."""
    assert settings.sigma is not None
    sigma = settings.sigma
    rule = settings.rule(sigma)
    t, snr, alpha = grid.t.tolist(), grid.snr.tolist(), grid.alpha.tolist()
    low, high = rule.thresholds()
    spread = sigma * math.sqrt(t[0])
    y = spread * torch.randn(shape, device=device)
    x = (y / alpha[0]).repeat_interleave(COPIES, 0)
    h = torch.full((len(x), 1), settings.step_size, device=device)

    def posterior(x: Tensor, centre: Tensor, precision: float) -> tuple[Tensor, Tensor]:
        value, score = energy(x)
        d = x - centre
        return value - 0.5 * precision * torch.linalg.vecdot(d, d), score.sub_(d, alpha=precision)

    def transitions(y: Tensor, k: int) -> Tensor:
        nonlocal x, h
        centre, precision = (y / alpha[k]).repeat_interleave(COPIES, 0), snr[k] / sigma**2
        log_p, score = posterior(x, centre, precision)
        total = torch.zeros_like(x)
        for step in range(STEPS):
            noise = torch.randn_like(x)
            x_new = torch.addcmul(x, h, score).add_((2 * h).sqrt() * noise)
            log_new, score_new = posterior(x_new, centre, precision)
            back = (x - x_new).addcmul_(h, score_new, value=-1)
            ratio = log_new - log_p + 0.5 * torch.linalg.vecdot(noise, noise)
            ratio -= torch.linalg.vecdot(back, back) / (4 * h[:, 0])
            move = torch.rand_like(log_p).log() < ratio
            x = torch.where(move[:, None], x_new, x)
            score = torch.where(move[:, None], score_new, score)
            log_p = torch.where(move, log_new, log_p)
            ratio = ratio[:, None]
            up = torch.where(ratio > high, rule.factor, 1.0)
            h = (h * torch.where(ratio < low, 1 / rule.factor, up)).clamp(max=rule.cap)
            if step >= STEPS - settings.kept:
                total += x
        return (total / settings.kept).reshape(shape[0], COPIES, -1).mean(1)

    transitions(y, 0)
    for _ in range(LANGEVIN):
        u = transitions(y, 0)
        y = y + 0.5 * (alpha[0] * u - y) + spread * torch.randn_like(y)
    for k in range(len(t) - 1):
        u = transitions(y, k)
        y = y + (alpha[k + 1] - alpha[k]) * u
        y = y + sigma * math.sqrt(t[k + 1] - t[k]) * torch.randn_like(y)
    transitions(y, len(t) - 1)
    return x[::COPIES]


def _case(
    on: On, name: str, target: Target, energy: Callable[[Tensor], Energy], sigma: float, t0: float,
    flops: float,
) -> Bench:  # fmt: skip
    n = 16 * PARTICLES if on.cuda else PARTICLES
    (dim,) = target.event_shape
    like = torch.empty(0, device=on.device)

    def counted(run: Callable[[SLIPS], Tensor]) -> Counting:
        def call(n_times: int) -> tuple[Tensor, float]:
            settings = _settings(sigma, t0, n_times)
            done = settings.n_times + LANGEVIN + 1  # and the burn-in
            return run(settings), float(n * COPIES * STEPS * done)

        return Counting(call)

    def ours(backend: Literal["native", "torch"]) -> Callable[[SLIPS], Tensor]:
        def run(settings: SLIPS) -> Tensor:
            with _native.backend(backend):
                walk = settings.walk(target, n, seed=SEED, device=on.device)
                return walk.run(lambda steps: None, check=False)

        return run

    def theirs(settings: SLIPS) -> Tensor:
        grid = snr_grid(schedule_of(settings.schedule), t0, settings.last_time(), settings.n_times)
        return plain(energy(like), settings, grid, (n, dim), on.device)

    def observe(x: Tensor) -> dict[str, Tensor]:
        x = x.to(like)
        square = (x**2).flatten(1).mean(1)
        return {"square": square, "log p": target.log_prob(x), "first": x[:, 0]}

    variants = [Variant("torch", counted(ours("torch")), 2)]
    if native_on(on.device):
        variants.append(Variant("native", counted(ours("native")), 32, "close"))
    variants.append(Variant("torch eager", counted(theirs), 4))
    work = n * COPIES * STEPS
    case = Case(name, f"{dim}, {n} particles", "transition", work, tuple(variants), observe, 2)
    return Bench(case, flops=flops, draws=("normal", dim))


def slips_8_gaussians(on: On) -> Bench:
    target = EightGaussians()
    return _case(
        on, "slips_8_gaussians", target, lambda like: opponents.mixture_energy(target, like),
        7.12, 0.1, mixture_flops(8, 2) + 2 * 16,
    )  # fmt: skip


def slips_phi4(on: On) -> Bench:
    return _case(
        on, "slips_phi4", CHAIN, lambda like: opponents.chain_energy(CHAIN), 0.832, 0.1,
        100 * (MALA_FLOPS + 5),
    )  # fmt: skip
