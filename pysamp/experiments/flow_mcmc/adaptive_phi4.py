"""A flow and its walkers on the φ⁴ chain: from a tenth of the walkers in one mode to half of them.

Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119, e2109420119, 2022, arXiv 2105.12603: a = 0.1, β = 20, h = 0. The
informed base is the free field, the white one N(0, 1/a) at each site. Differences of free energies,
β (F₊ − F₋) = ln P₋/P₊, at other fields h come from the same chains by reweighting; exact values are of the
transfer matrix.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pysamp import metrics
from pysamp.experiments.base import (
    Experiment,
    Outcome,
    Progress,
    Row,
    near,
    panels,
    points,
    within,
)
from pysamp.experiments.flow_mcmc.common import mean_error
from pysamp.mcmc import IMH
from pysamp.nets import Normal, RealNVP
from pysamp.nets.flow import Flow
from pysamp.plots import CYCLE, legend, save
from pysamp.samplers import FlowMCMC
from pysamp.samplers.flow_training import Trained
from pysamp.targets import Phi4Chain
from pysamp.train import StepDecay

INFORMED, WHITE, LOCAL = "informed", "white", "local moves alone"
START = 0.1  # of the walkers, in the mode +
FIELDS = {0.0025: 0.1, 0.005: 0.15, 0.01: 0.3}  # field: tolerance of β ΔF, of the specification
LAST = 20  # training steps whose acceptance is that of the end
EVERY = 10  # training steps between looks at the draws of the flow
EXACT = "transfer matrix"
CLAIM = "specification"


@dataclass(frozen=True)
class Sizes:
    """Of one N. The rate falls as a cosine, or by half after every `halving` steps. `accept`: asked for."""

    n_sites: int
    n_blocks: int
    hidden: int
    n_steps: int
    n_walkers: int
    batch: int
    lag: int
    accept: float
    learning_rate: float = 1e-2
    halving: int | None = None


@dataclass(frozen=True)
class Settings:
    sizes: tuple[Sizes, ...]
    n_chains: int
    n_draws: int
    n_flow: int  # draws that tell the weight of a mode in the flow


@dataclass(frozen=True, eq=False)
class Training:
    """A trained flow, its walkers, and by training step how many of both are in the mode +."""

    found: Trained
    flow_plus: dict[int, float]  # step -> share of the draws of the flow

    @property
    def plus(self) -> Tensor:
        """(steps,) of walkers."""
        return self.found.history.terms["plus"]

    @property
    def accept(self) -> Tensor | None:
        """(steps,) of proposals of the flow."""
        return self.found.history.terms.get("accept")


def trained(
    kind: str, size: Sizes, target: Phi4Chain, n_flow: int, seed: int, device: str | None
) -> Training:
    """With a look at the modes in each step."""
    n = size.n_sites
    white = Normal(mean=torch.zeros(n), covariance=1 / target.a)
    base = white if kind == WHITE else Normal.from_precision(target.coupled_precision)
    flow = RealNVP(n, size.n_blocks, size.hidden, base=base, seed=seed)
    ones, tenth = torch.ones(n), round(1 / START)
    sampler = FlowMCMC(
        flow, n_walkers=size.n_walkers, batch=size.batch, n_steps=size.n_steps, lag=size.lag,
        start=torch.stack([-ones] * (tenth - 1) + [ones]), use_flow=kind != LOCAL,
        learning_rate=size.learning_rate,
        decay="cosine" if size.halving is None else StepDecay(size.halving, 0.5),
    )  # fmt: skip
    shares: dict[int, float] = {}

    def watch(step: int, flow: Flow, x: Tensor) -> dict[str, Tensor | float]:
        if step % EVERY == 0:
            shares[step] = _in_plus(flow, target, n_flow, seed, step)
        return {"plus": target.mode(x).double().mean()}

    found = sampler.train(target, seed=seed, device=device, dtype=torch.float32, watch=watch)
    shares[size.n_steps] = _in_plus(found.flow, target, n_flow, seed, size.n_steps)
    return Training(found, shares)


def _in_plus(flow: Flow, target: Phi4Chain, n: int, seed: int, step: int) -> float:
    with torch.no_grad():
        x = flow.sample(n, seed=seed + 1, step=step)
    return float(target.mode(x).double().mean())


@dataclass(frozen=True, eq=False)
class Chains:
    """IMH chains at h = 0, (chain, draw) each."""

    mid: Tensor
    mean_field: Tensor
    accept: Tensor  # (chain,)

    def free_energy(self, target: Phi4Chain, h: float) -> tuple[float, float]:
        log_weight = -target.beta * h / target.a * self.mean_field
        value, error = metrics.free_energy_difference(self.mid > 0, log_weight)
        return float(value), float(error)


def run_chains(training: Training, target: Phi4Chain, settings: Settings, seed: int) -> Chains:
    """From walkers that are evenly spaced among all."""
    kernel = IMH(training.found.flow)
    with torch.no_grad():
        state = kernel.init(target, training.found.starts(settings.n_chains), seed=seed + 2)
        _, info = kernel.step(target, state, settings.n_draws, thin=1)
    assert info.x is not None
    mid, mean_field = info.x[..., target.n_sites // 2], info.x.mean(-1)
    return Chains(mid.cpu().double(), mean_field.cpu().double(), info.accept.cpu().double())


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    trainings: dict[int, dict[str, Training]] = {}
    lines: dict[int, list[list[float]]] = {}
    for size in settings.sizes:
        n = size.n_sites
        target = Phi4Chain(n)
        found = trainings[n] = {}
        for kind in (INFORMED, WHITE, LOCAL):
            progress(f"N = {n}, {kind}")
            found[kind] = trained(kind, size, target, settings.n_flow, seed, device)
        progress(f"N = {n}, chains")
        chains = run_chains(found[INFORMED], target, settings, seed)
        lines[n] = [[h, *chains.free_energy(target, h)] for h in FIELDS]
        rows += _rows(size, target, found, chains, lines[n], settings)
        data[f"N = {n}"] = {
            **{kind: _measured(training) for kind, training in found.items()},
            "free energy": lines[n],
            "chains, accept": float(chains.accept.mean()),
        }
    return Outcome(
        rows, data, {"adaptive_phi4.png": functools.partial(save, _figure(trainings, lines))}
    )


def _measured(training: Training) -> dict[str, Any]:
    return {
        "walkers in +": training.plus.tolist(),
        "flow in +": training.flow_plus,
        "accept": None if training.accept is None else training.accept.tolist(),
    }


def _last(values: Tensor) -> tuple[float, float]:
    """Mean of the last training steps; the error takes them as independent."""
    return mean_error(values[-LAST:])


def _rows(
    size: Sizes, target: Phi4Chain, found: dict[str, Training], chains: Chains,
    line: list[list[float]], settings: Settings,
) -> list[Row]:  # fmt: skip
    place = f"N = {size.n_sites}"
    informed, white, local = found[INFORMED], found[WHITE], found[LOCAL]
    assert informed.accept is not None and white.accept is not None
    of_walkers, of_flow = 0.5 / math.sqrt(size.n_walkers), 0.5 / math.sqrt(settings.n_flow)
    first, (last, error) = float(informed.accept[0]), _last(informed.accept)
    other, other_error = _last(white.accept)
    least = 0.6 / math.sqrt(size.n_walkers)  # binomial, of a tenth: twice 0.3
    rows = [
        near(f"{place}, walkers in +", informed.plus[-1], of_walkers, 0.5, EXACT, tolerance=0.06),
        near(f"{place}, flow in +", informed.flow_plus[size.n_steps], of_flow, 0.5, EXACT,
             tolerance=0.1),
        within(f"{place}, accept, first step", first, 0.0, 0.01, CLAIM, high=0.01),
        within(f"{place}, accept, at the end", last, error, size.accept, CLAIM, low=size.accept),
        within(f"{place}, accept, white base", other, other_error, last, INFORMED, high=0.5 * last),
        near(f"{place}, local alone, walkers in +", local.plus[-1], 0.0, START, "start",
             tolerance=least),
        near(f"{place}, local alone, flow in +", local.flow_plus[size.n_steps], of_flow, START,
             "start", tolerance=0.06),
    ]  # fmt: skip
    weight, weight_error = metrics.mode_weights(chains.mid[..., None], Phi4Chain(1))
    square, square_error = mean_error(chains.mid.square().mean(1))
    rows += [
        near(f"{place}, chains, P(+)", weight[1], weight_error[1], 0.5, EXACT, tolerance=0.03),
        near(f"{place}, chains, φ_mid²", square, square_error, target.exact.mid_square, EXACT,
             tolerance=0.01),
    ]  # fmt: skip
    for h, value, value_error in line:
        exact = Phi4Chain(size.n_sites, h=h).exact.log_ratio
        label = f"{place}, βΔF at h = {h:g}"
        rows.append(near(label, value, value_error, exact, EXACT, tolerance=FIELDS[h]))
    return rows


def _figure(
    trainings: dict[int, dict[str, Training]], lines: dict[int, list[list[float]]]
) -> Figure:
    n = max(trainings)
    figure, (modes, accept, energies) = panels(
        (f"N = {n}: from 10 % in the mode +", "training step", "share in the mode +"),
        ("acceptance of the flow's proposals", "training step", "mean over walkers"),
        ("chains at h = 0, reweighted", "field h", r"$\beta\Delta F$"),
    )
    for colour, (kind, training) in zip(CYCLE, trainings[n].items(), strict=False):
        name = kind if kind == LOCAL else f"{kind} base"
        style = "-" if kind != LOCAL else "--"
        modes.plot(
            training.plus.cpu(), style, color=colour, lw=1.4, label=f"walkers, {name}", zorder=3
        )
        modes.plot(
            list(training.flow_plus), list(training.flow_plus.values()), ".", ms=4, alpha=0.6,
            color=colour, label=f"flow, {name}",
        )  # fmt: skip
    modes.axhline(0.5, color="#000000", lw=0.8, label="exact")
    modes.set_ylim(0, 1)
    legend(modes)
    for k, (n_sites, found) in enumerate(trainings.items()):
        for kind, style in ((INFORMED, "-"), (WHITE, "--")):
            values = found[kind].accept
            if values is not None:
                label = f"N = {n_sites}, {kind} base"
                accept.plot(values.cpu(), style, color=CYCLE[k], lw=1.2, label=label)
        grid = [0.0, *FIELDS]
        exact = [Phi4Chain(n_sites, h=h).exact.log_ratio for h in grid]
        energies.plot(grid, exact, "-", color=CYCLE[k], lw=0.9, label=f"N = {n_sites}, exact")
        h, value, error = zip(*lines[n_sites], strict=True)
        points(energies, h, value, error, f"N = {n_sites}, chains", CYCLE[k])
    legend(accept)
    legend(energies)
    return figure


EXPERIMENT = Experiment(
    title="φ⁴ chain: a flow and its walkers find the weights of the modes",
    source="Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119, e2109420119, 2022, arXiv 2105.12603",
    settings={
        "quick": Settings(
            (Sizes(16, 5, 64, 500, 1000, 1000, 5, 0.2), Sizes(32, 5, 64, 500, 1000, 1000, 5, 0.2)),
            n_chains=64, n_draws=3000, n_flow=2000,
        ),
        "paper": Settings(
            (Sizes(100, 10, 100, 20_000, 100, 1000, 1, 0.1, halving=10_000),),
            n_chains=100, n_draws=10_000, n_flow=10_000,
        ),
    },
    run=run,
)  # fmt: skip
