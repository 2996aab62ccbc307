"""Neal's funnel with a flow whose neck is right and whose width is wrong by a factor 1/√β.

Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763; numbers of their figures were not
available. The acceptance of independent proposals in equilibrium is known: flow and target differ by a
scale in d − 1 Gaussian coordinates, so it is 2 I((d − 1)/2, (d − 1)/2; 1/(1 + s²)) with s² = max(β, 1/β)
and I the regularised incomplete beta function. It is met by many short chains from exact draws: one chain
sticks for long where the flow is too narrow. Distances of chains: Kolmogorov-Smirnov on random directions.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pysamp import metrics
from pysamp.experiments.base import Experiment, Outcome, Progress, Row, near, panels, within
from pysamp.experiments.flow_mcmc.common import (
    FLEX2,
    I_SIR,
    IMH_,
    MALA_,
    METHODS,
    NEUTRA,
    REFERENCE_SEED,
    SOURCE,
    Curves,
    Result,
    Sizes,
    draw_curves,
    mean_error,
    run_method,
)
from pysamp.mcmc import IMH
from pysamp.nets.analytic import FunnelFlow
from pysamp.plots import legend, save
from pysamp.targets import Funnel

N_STEPS = {16: 500, 32: 550, 64: 600, 128: 650, 256: 700}
NEUTRA_CANDIDATES = {16: 60, 32: 100, 64: 100, 128: 100, 256: 120}
SIZES = Sizes(candidates=60, n_local=10, neutra_candidates=60, neutra_local=40)
BETAS = tuple(round(10 ** (-1 + 2 * k / 11), 4) for k in range(12))
N_BINS = 1024


@dataclass(frozen=True)
class Settings:
    dims: tuple[int, ...]
    betas: tuple[float, ...]
    methods: tuple[str, ...]
    n_chains: int
    n_directions: int
    accept_chains: int  # whose acceptance is compared with the exact one
    accept_steps: int
    accept: tuple[tuple[int, float], ...] = ((16, 2.0), (16, 1.5), (64, 1.2))  # d, β
    steps: int | None = None  # of a chain, the published number if None


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    for dim, beta in settings.accept:
        progress(f"d = {dim}, β = {beta:g}, acceptance")
        rows.append(_acceptance(dim, beta, settings, seed, device))
    curves: dict[int, Curves] = {}
    floors: dict[int, float] = {}
    for dim in settings.dims:
        target, n_steps = Funnel(dim), settings.steps or N_STEPS[dim]
        sizes = replace(SIZES, neutra_candidates=NEUTRA_CANDIDATES.get(dim, 100))
        n_exact = 3 * n_steps * settings.n_chains
        exact = target.sample(n_exact, seed=seed + REFERENCE_SEED, dtype=torch.float64)
        floors[dim] = _floor(target, exact, n_steps, settings, seed)
        curves[dim] = {}
        found: dict[tuple[float, str], dict[str, Any]] = {}
        for beta in settings.betas:
            flow = FunnelFlow(dim, beta).to(device or "cpu", torch.float64)
            x0 = flow.sample(settings.n_chains, seed=seed + 1)
            for method in settings.methods:
                if method == MALA_ and beta != settings.betas[0]:
                    continue  # but for its start it does not know the flow
                progress(f"d = {dim}, β = {beta:g}, {method}")
                result = run_method(method, target, flow, sizes, x0, n_steps, seed)
                measured = _measured(result, exact, settings)
                found[beta, method] = measured
                curves[dim].setdefault(method, []).append([beta, *measured["ks"]])
        data[f"d = {dim}"] = {f"β = {beta:g}, {method}": m for (beta, method), m in found.items()}
        rows += _rows(dim, settings, found, floors[dim])
    data["floors"] = floors
    figure = _figure(settings, curves, floors)
    return Outcome(rows, data, {"funnel.png": functools.partial(save, figure)})


def exact_acceptance(dim: int, beta: float) -> float:
    """The formula of the header, by Simpson's rule for the incomplete beta function.

    With x = sin²(φ): I(n/2, n/2; x) ~ ∫ (sin φ cos φ)^(n-1) dφ, and half of it to π/4.
    """
    n = dim - 1
    end = math.asin(math.sqrt(1 / (1 + max(beta, 1 / beta))))
    k = torch.arange(4001, dtype=torch.float64)
    weight = torch.where(k % 2 == 1, 4.0, 2.0)
    weight[0] = weight[-1] = 1.0

    def integral(to: float) -> float:
        phi = k / 4000 * to
        return float((weight * (2 * phi).sin() ** (n - 1)).sum()) * to / 12_000

    return integral(end) / integral(math.pi / 4)


def _acceptance(dim: int, beta: float, settings: Settings, seed: int, device: str | None) -> Row:
    """IMH from exact draws."""
    target, flow = Funnel(dim), FunnelFlow(dim, beta).to(device or "cpu", torch.float64)
    kernel = IMH(flow)
    x0 = target.sample(
        settings.accept_chains, seed=seed + REFERENCE_SEED, device=device, dtype=torch.float64
    )
    _, info = kernel.step(target, kernel.init(target, x0, seed=seed + 2), settings.accept_steps)
    return near(
        f"d = {dim}, β = {beta:g}, IMH, accept", *mean_error(info.accept.cpu()),
        exact_acceptance(dim, beta), "exact", tolerance=0.01,
    )  # fmt: skip


def _floor(target: Funnel, exact: Tensor, n_steps: int, settings: Settings, seed: int) -> float:
    """The distance of independent draws, as many as a chain has."""
    n = settings.n_chains * n_steps
    x = target.sample(n, seed=seed + REFERENCE_SEED + 1, dtype=torch.float64)
    x = x.reshape(settings.n_chains, n_steps, -1)
    ks = metrics.sliced_ks_histogram(x, exact, settings.n_directions, N_BINS)
    return float(ks.mean())


def _measured(result: Result, exact: Tensor, settings: Settings) -> dict[str, Any]:
    ks = metrics.sliced_ks_histogram(
        result.x, exact, settings.n_directions, N_BINS, log_weight_x=result.log_weight
    )
    facts = result.facts()
    return {
        **facts,
        "ks": mean_error(ks),
        "ess_per_second": facts["ess"] / max(result.seconds, 1e-9),
    }


def _rows(
    dim: int, settings: Settings, found: dict[tuple[float, str], dict[str, Any]], floor: float
) -> list[Row]:
    rows = []
    for method in (IMH_, I_SIR):
        if (1.0, method) in found:
            ks, error = found[1.0, method]["ks"]
            label = f"d = {dim}, β = 1, {method}, KS"
            rows.append(within(label, ks, error, floor, "exact draws", high=floor + 0.01))
    for beta in (min(settings.betas), max(settings.betas)):
        if (beta, NEUTRA) in found and (beta, IMH_) in found:
            ratio = found[beta, NEUTRA]["ks"][0] / found[beta, IMH_]["ks"][0]
            label = f"d = {dim}, β = {beta:g}, KS neutra/KS IMH"
            rows.append(within(label, ratio, 0.0, 0.5, "claim of the paper", high=0.5))
    return rows


def _figure(settings: Settings, curves: dict[int, Curves], floors: dict[int, float]) -> Figure:
    figure, axes = panels(
        *((f"d = {dim}: too wide – right – too narrow", "β", "sliced KS") for dim in settings.dims)
    )
    for dim, ax in zip(settings.dims, axes, strict=True):
        ordered = {m: sorted(c) for m, c in curves[dim].items() if m != MALA_}
        draw_curves(ax, ordered, floors[dim])
        if MALA_ in curves[dim]:
            ax.axhline(
                curves[dim][MALA_][0][1], color="#666666", lw=0.8, ls=":", label="plain MALA"
            )
        ax.set_xscale("log")
    legend(axes[0])
    return figure


EXPERIMENT = Experiment(
    title="the funnel with a flow of the wrong width",
    source=SOURCE,
    settings={
        "quick": Settings(
            (16, 64), (1.0, 0.1, 0.3511, 0.6579, 1.5199, 2.8480, 10.0),
            (IMH_, I_SIR, FLEX2, NEUTRA, MALA_), 32, 32, 16_384, 16,
        ),
        "paper": Settings((16, 32, 64, 128, 256), (1.0, *BETAS), METHODS, 32, 128, 65_536, 64),
    },
    run=run,
)  # fmt: skip
