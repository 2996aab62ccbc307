"""What the experiments with analytic flows share: the methods of the paper, and chains as it runs them.

Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763, with the settings of their public code: 32
chains from draws of the flow, no warm-up, Langevin steps that adapt in every step, while draws are kept,
too, which breaks detailed balance a little. `pysamp.sample` adapts in its warm-up only.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pysamp import metrics
from pysamp.mcmc import IMH, ISIR, MALA, AdaptiveMCMC, Ex2MCMC, Neutra, TransportSlice
from pysamp.mcmc.base import Kernel, Tunable
from pysamp.nets.flow import Flow
from pysamp.plots import CYCLE
from pysamp.samplers import Importance
from pysamp.target import Target
from pysamp.targets import Gaussian

SOURCE = "Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763"
REFERENCE_SEED = 1_000_003  # added to the seed for exact draws
FIRST_STEP = 0.01  # h of every Langevin step at first
TARGET, TOLERANCE, FACTOR, CAP = 0.75, 0.03, 1.05, 1.0

IMH_, I_SIR, MALA_, NEUTRA, TESS, IS = "IMH", "i-SIR", "MALA", "neutra-MALA", "TESS", "IS"
ADAPTIVE, FLEX2, NEUTRA_EX2 = "AdaptiveMCMC", "FlEx2MCMC", "neutra-Ex2MCMC"
METHODS = (IMH_, I_SIR, ADAPTIVE, FLEX2, NEUTRA, TESS, NEUTRA_EX2, MALA_, IS)
WITH_PROPOSALS = (IMH_, I_SIR, ADAPTIVE, FLEX2, IS)  # of the flow; the others do not need them


@dataclass(frozen=True)
class Sizes:
    """Candidates of i-SIR (the current state among them) and local steps after each global one."""

    candidates: int
    n_local: int
    neutra_candidates: int
    neutra_local: int

    def n_importance(self, n_steps: int) -> int:
        """Draws of importance sampling that are set against chains of n_steps."""
        return n_steps * self.candidates // 4


def kernel_of(
    method: str, flow: Flow, sizes: Sizes, local: Kernel | None = None, latent: Kernel | None = None
) -> Kernel:
    """The kernel of a method. Its Langevin steps are where the published ones begin, unless kernels are
    given for local moves and for those of latent space."""
    local, latent = local or MALA(FIRST_STEP), latent or MALA(FIRST_STEP)
    if method == IMH_:
        return IMH(flow)
    if method == I_SIR:
        return ISIR(flow, sizes.candidates)
    if method == ADAPTIVE:
        return AdaptiveMCMC(flow, local, sizes.n_local)
    if method == FLEX2:
        return Ex2MCMC(flow, sizes.candidates, local, sizes.n_local)
    if method == NEUTRA:
        return Neutra(latent, flow)
    if method == TESS:
        return TransportSlice(flow)
    if method == NEUTRA_EX2:
        base = Gaussian(torch.zeros(flow.dim), 1.0)
        kernel = Ex2MCMC(base, sizes.neutra_candidates, latent, sizes.neutra_local)
        return Neutra(kernel, flow)
    if method == MALA_:
        return local
    raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


@dataclass(frozen=True, eq=False)
class Result:
    """Draws of one method, as many chains as it has: importance sampling is one of weighted draws."""

    method: str
    x: Tensor  # (chain, draw, d) float64
    accept: (
        Tensor  # (chain,) of global moves where there are any, else of local ones; ESS/n of weights
    )
    local_accept: float  # NaN without local moves
    seconds: float
    log_weight: Tensor | None = None  # (draw,)

    def ess(self) -> float:
        """The least over the coordinates, of all chains; Kish's for weights."""
        if self.log_weight is not None:
            return float(metrics.ess_weights(self.log_weight))
        return float(metrics.ess(self.x, kind="mean").min())

    def facts(self) -> dict[str, Any]:
        """What is told of every method."""
        return {
            "accept": mean_error(self.accept),
            "local_accept": self.local_accept,
            "ess": self.ess(),
            "seconds": self.seconds,
        }


def run_chains(
    method: str, target: Target, flow: Flow, sizes: Sizes, x0: Tensor, n_steps: int, seed: int
) -> Result:
    """n_steps kept from the first step on, as the paper's code runs a method from x0 (chain, d)."""
    kernel = kernel_of(method, flow, sizes)
    begin = time.perf_counter()
    state = kernel.init(target, x0, seed=seed)
    if not isinstance(kernel, Tunable):
        _, info = kernel.step(target, state, n_steps, thin=1)
        assert info.x is not None
        x, accept, local = info.x, info.accept, math.nan
    else:
        rows, h = [], FIRST_STEP
        moves = torch.zeros(2, len(x0), dtype=torch.float64)  # sums of acceptance: global, local
        steps = [0, 0]
        for _ in range(n_steps):
            state, info = kernel.with_scale(h).step(target, state)
            rows.append(state.x)
            of_flow = int("flow_moves" in info.extra and bool(info.extra["flow_moves"].max() > 0))
            steps[1 - of_flow] += 1
            moves[1 - of_flow] += info.accept.double().cpu()
            if not of_flow:
                h = adapted(h, float(info.accept.double().mean()))
        x = torch.stack(rows, 1)
        mean = [m / max(1, s) for m, s in zip(moves, steps, strict=True)]
        accept, local = (mean[0] if steps[0] else mean[1]), float(mean[1].mean())
    seconds = time.perf_counter() - begin
    return Result(method, x.cpu().double(), accept.cpu().double(), local, seconds)


def adapted(h: float, accept: float) -> float:
    """The next step size from the mean acceptance of the last step."""
    if accept - TARGET > TOLERANCE:
        return h * FACTOR
    if TARGET - accept > TOLERANCE:
        return h / FACTOR
    return min(h, CAP)


def run_importance(target: Target, flow: Flow, n: int, seed: int) -> Result:
    begin = time.perf_counter()
    like = flow.like
    samples = Importance(flow).sample(target, n, seed=seed, device=like.device, dtype=like.dtype)
    seconds = time.perf_counter() - begin
    log_weight = samples.log_weight
    assert log_weight is not None
    share = torch.tensor([float(samples.info["ess"]) / n], dtype=torch.float64)
    x = samples.x.transpose(0, 1).cpu().double()
    return Result(IS, x, share, math.nan, seconds, log_weight[:, 0].cpu())


def run_method(
    method: str, target: Target, flow: Flow, sizes: Sizes, x0: Tensor, n_steps: int, seed: int
) -> Result:
    """Chains, or as much of importance sampling."""
    if method == IS:
        return run_importance(target, flow, sizes.n_importance(n_steps), seed)
    return run_chains(method, target, flow, sizes, x0, n_steps, seed)


def mean_error(values: Tensor) -> tuple[float, float]:
    """Over chains; the error of one value is unknown, and 0 here."""
    values = values.double()
    mean = float(values.mean())
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, error if error > 1e-12 * abs(mean) else 0.0  # less is rounding


Curves = dict[str, list[list[Any]]]  # method -> [place, value, error] for each flow


def draw_curves(ax: Axes, curves: Curves, floor: float) -> None:
    """A line for each method: full with proposals of the flow, dashed without."""
    colours = [*CYCLE, "#999999", "#666666", "#000000"]
    for method, colour in zip(METHODS, colours, strict=True):
        if method not in curves:
            continue
        place, value, error = zip(*curves[method], strict=True)
        style = "-" if method in WITH_PROPOSALS else "--"
        ax.errorbar(place, value, error, fmt="o" + style, ms=3, lw=1, color=colour, label=method)
    ax.axhline(floor, color="#000000", lw=0.8, label="exact draws")
    ax.set_ylim(bottom=0)
