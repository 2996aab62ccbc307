"""The φ⁴ chain: what SLIPS gets right of it, and parallel tempering where it does not.

Grenioux, Noble, Gabrié, Durmus, ICML 2024, arXiv 2402.10758. Exact values by transfer matrix. With the
published σ = 0.49 kinks are left in a tenth of the fields of d = 32 and in more at d = 100. With the σ of
the density, one copy of the chains and a long burn-in they go; but chains do not cross between the phases,
so that the weights are those of the start, ½ and ½ for any h. Parallel tempering on the bridge from the
Gaussian of the same coupling, whose mass gives the lowest mode the width of the wells at ±1, finds them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysamp import metrics
from pysamp.experiments.base import (
    Experiment,
    Outcome,
    Progress,
    Row,
    equal,
    near,
    panels,
    points,
    within,
)
from pysamp.experiments.slips.common import GEOM11, SOURCE, Grid, draws, published
from pysamp.mcmc import HMC, ParallelTempering
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.samplers import SLIPS
from pysamp.sampling import sample
from pysamp.targets import Gaussian, Phi4Chain

SCHEDULE, T_END = GEOM11, 1 - 2.22e-3
PUBLISHED_SIGMA = math.sqrt(4.5**2 / 100 + 0.2**2)
EXACT_NAME = "transfer matrix"
Estimate = tuple[float, float]  # and its error


@dataclass(frozen=True)
class Settings:
    small: int  # particles with 32 sites
    n: int  # particles with 100 sites
    n_times: int
    burn_in: int
    fields: tuple[float, ...]
    slips_fields: tuple[float, ...]
    n_chains: int  # of parallel tempering
    n_draws: int
    warmup: int
    tolerance: float  # of E φ_mid² and the logarithm of the weights' ratio
    n_sites: int = 100
    n_rungs: int = 8


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    progress("SLIPS, 32 sites, as published")
    target = Phi4Chain(32)
    sampler = published(
        Grid(SCHEDULE, T_END, (0.35,)), 0.35, settings.n_times, sigma=PUBLISHED_SIGMA
    )
    found, more = _slips(sampler, target, settings.small, seed, device)
    square, kink, log_prob = found["φ_mid²"], found["kinks"], found["log p"]
    exact = target.exact
    rows += [
        within("d = 32, E φ_mid², published", *square, exact.mid_square, EXACT_NAME, low=0.68, high=0.83),
        within("d = 32, kinks, published", *kink, 0.0008, "prototype of others", low=0.05, high=0.2),
        within("d = 32, E log p, published", *log_prob, -exact.energy, EXACT_NAME, low=-40.5, high=-37.5),
    ]  # fmt: skip
    data["SLIPS, 32 sites"] = {**found, **more}
    tuned = SLIPS(
        schedule=SCHEDULE, t0=0.02, t_end=T_END, sigma=_sigma(settings.n_sites), n_copies=1,
        n_init=0, burn_in=settings.burn_in, n_times=settings.n_times,
    )  # fmt: skip
    plus: dict[str, list[tuple[float, float, float]]] = {"SLIPS": [], "parallel tempering": []}
    for h in settings.slips_fields:
        progress(f"SLIPS, h = {h:g}")
        target = Phi4Chain(settings.n_sites, h=h)
        found, more = _slips(tuned, target, settings.n, seed, device)
        data[f"SLIPS, h = {h:g}"] = {**found, **more}
        plus["SLIPS"].append((h, *found["P+"]))
        if h == 0:
            rows += [
                near("SLIPS, h = 0, E φ_mid²", *found["φ_mid²"], target.exact.mid_square, EXACT_NAME,
                     tolerance=settings.tolerance / 10 if settings.n >= 4096 else 0.04),
                within("SLIPS, h = 0, kinks", *found["kinks"], 0.0, "nearly none", high=0.01),
            ]  # fmt: skip
        else:
            rows.append(
                within(
                    f"SLIPS, h = {h:g}, P+ of the start", *found["P+"], target.exact.weight_plus,
                    EXACT_NAME, low=0.42, high=0.58,
                )
            )  # fmt: skip
    for h in settings.fields:
        progress(f"parallel tempering, h = {h:g}")
        target = Phi4Chain(settings.n_sites, h=h)
        found, more = _tempered(target, settings, seed, device)
        data[f"parallel tempering, h = {h:g}"] = {**found, **more}
        p, error = found["P+"]
        plus["parallel tempering"].append((h, p, error))
        ratio, spread = math.log((1 - p) / p), error / (p * (1 - p))
        exact_ratio = target.exact.log_ratio if h else 0.0  # by symmetry, without the rounding
        rows.append(
            near(f"PT, h = {h:g}, log P−/P+", ratio, spread, exact_ratio, EXACT_NAME,
                 tolerance=settings.tolerance)
        )  # fmt: skip
        rows.append(
            equal(f"PT, h = {h:g}, E φ_mid²", *found["φ_mid²"], target.exact.mid_square, EXACT_NAME,
                  precision=0.01)
        )  # fmt: skip
    figure = _figure(settings, plus)
    data["P+"] = plus
    return Outcome(rows, data, {"phi4.png": functools.partial(save, figure)})


def _sigma(n_sites: int) -> float:
    """The root of the variance per site of fields ±1, of a published table."""
    return 0.832 if n_sites == 100 else 0.845


def _slips(
    sampler: SLIPS, target: Phi4Chain, n: int, seed: int, device: str | None
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    samples = sampler.sample(target, n, seed=seed, device=device)
    found = _answers(draws(samples)[:, None], target)
    found["log p"] = _by_chain(samples.log_prob.to("cpu", torch.float64))
    weights, errors = metrics.mode_weights(samples, target)
    found["P+"] = float(weights[1]), float(errors[1])
    return found, {key: samples.info[key] for key in ("start_dependence", "notes")}


def _tempered(
    target: Phi4Chain, settings: Settings, seed: int, device: str | None
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    kernel = ParallelTempering(
        HMC(n_leapfrog=10), n_rungs=settings.n_rungs, reference=free_field(target)
    )
    samples = sample(
        target, kernel, n_chains=settings.n_chains, n_draws=settings.n_draws,
        warmup=settings.warmup, seed=seed, device=device, progress=False,
    )  # fmt: skip
    found = _answers(samples.x.to("cpu", torch.float64), target)
    # All chains start at one field; an error from whole chains holds whatever their correlation is.
    plus = (samples.x[:, :, target.n_sites // 2] > 0).to("cpu", torch.float64)
    found["P+"] = _by_chain(plus)
    found["log p"] = _by_chain(samples.log_prob.to("cpu", torch.float64))
    return found, {
        "swap_accept": samples.info["swap_accept"].mean(0).tolist(),
        "round_trip_rate": float(samples.info["round_trip_rate"].mean()),
    }


def free_field(target: Phi4Chain) -> Gaussian:
    """N(0, (J Δ + m²)⁻¹) of the coupling J of the chain, with m² such that its lowest mode, a half wave
    of amplitude A, has E A² = 1."""
    d, coupling = target.n_sites, target.beta * target.a * target.n_sites
    modes = torch.arange(1, d + 1, dtype=torch.float64)
    waves = torch.sin(torch.outer(modes, modes) * (math.pi / (d + 1))) * math.sqrt(2 / (d + 1))
    lattice = 2 - 2 * torch.cos(modes * (math.pi / (d + 1)))
    square = 2 / (d + 1) - coupling * lattice[0]
    covariance = (waves / (coupling * lattice + square)) @ waves
    return Gaussian(torch.zeros(d), (covariance + covariance.T) / 2)


def _answers(x: Tensor, target: Phi4Chain) -> dict[str, Estimate]:
    """Of the middle site of fields x (chain, draw, d)."""
    mid = x[:, :, target.n_sites // 2]
    return {"φ_mid²": _by_chain(mid.square()), "kinks": _by_chain((mid.abs() < 0.5).double())}


def _by_chain(values: Tensor) -> Estimate:
    means = values.reshape(len(values), -1).mean(1)
    return float(means.mean()), float(means.std() / math.sqrt(len(means)))


def _figure(settings: Settings, plus: dict[str, list[tuple[float, float, float]]]) -> Any:
    figure, axes = panels(
        (f"weight of the light phase, d = {settings.n_sites}, line exact", "h", "P(φ_mid > 0)"),
        ("its logarithm", "h", "log P−/P+"),
    )
    top = 1.1 * max(0.0025, *settings.fields)
    line = [top * k / 10 for k in range(11)]
    exact = [Phi4Chain(settings.n_sites, h=h).exact for h in line]
    axes[0].plot(line, [e.weight_plus for e in exact], color=EXACT, lw=0.8)
    axes[1].plot(line, [e.log_ratio for e in exact], color=EXACT, lw=0.8)
    for (label, found), colour in zip(plus.items(), (CYCLE[1], CYCLE[0]), strict=True):
        h, p, error = (torch.tensor(v) for v in zip(*found, strict=True))
        points(axes[0], h, p, error, label, colour)
        points(axes[1], h, ((1 - p) / p).log(), error / (p * (1 - p)), label, colour)
    legend(axes[0])
    return figure


EXPERIMENT = Experiment(
    title="SLIPS on the φ⁴ chain beside exact answers, and parallel tempering",
    source=SOURCE,
    settings={
        "quick": Settings(256, 512, 256, 100_000, (0.0, 0.0025), (0.0, 0.0025), 128, 300, 150, 0.3),
        "paper": Settings(
            1024, 8192, 1024, 100_000, (0.0, 0.0009, 0.002, 0.0025, 0.0035),
            (0.0, 0.0009, 0.002, 0.0025, 0.0035), 256, 1200, 200, 0.1,
        ),
    },
    run=run,
)  # fmt: skip
