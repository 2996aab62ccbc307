"""The φ⁴ chain with a flow that learns both modes, and chains that all start in one of them.

Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763: N sites, a = 0.1, β = 20, residual RealNVP
on the coupled base, chains that start in the mode + alone. The weight of a mode is P(φ_mid > 0), and with
F₊, F₋ the free energies of the modes, β ΔF = β (F₊ − F₋) = ln P₋/P₊. Exact values are of the transfer
matrix. h is the field, b in the papers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pysamp import metrics, train
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
from pysamp.experiments.flow_mcmc.common import (
    ADAPTIVE,
    FLEX2,
    I_SIR,
    IMH_,
    MALA_,
    NEUTRA,
    SOURCE,
    Sizes,
    kernel_of,
    mean_error,
)
from pysamp.experiments.flow_mcmc.learned import PENALTY
from pysamp.mcmc import MALA
from pysamp.mcmc.adapt import warm_up
from pysamp.mcmc.base import Kernel, Tunable
from pysamp.nets import Normal, RealNVP
from pysamp.nets.flow import Flow
from pysamp.plots import CYCLE, legend, save
from pysamp.samplers import FlowMCMC, Importance
from pysamp.samplers.flow_training import Trained
from pysamp.targets import Phi4Chain

FLOW_METHODS = (IMH_, I_SIR, ADAPTIVE, FLEX2)  # those whose mode weights must be right
METHODS = (*FLOW_METHODS, NEUTRA, MALA_)
TUNE = 300  # steps in which a Langevin step is found, before chains start anew
RELAX = 1000  # Langevin steps from φ = +1, too smooth a field, to where chains start
PERIOD = 50
EXACT = "transfer matrix"
FIELDS = (0.0025, 0.005, 0.01)  # of the figure, on either side of 0


@dataclass(frozen=True)
class Training:
    """The network of one N, how it is trained, and the candidates of i-SIR.

    `use_flow`: global moves of the walkers while training; without them half of the walkers stay in each
    mode, as in the paper. `gamma`: the rate falls by it every 50 steps; as a cosine if it is 1.
    `penalty`: of the weights of scales. `accept`: the least acceptance of IMH that is asked for.
    """

    n_sites: int
    n_blocks: int
    hidden: int
    depth: int
    n_steps: int
    learning_rate: float
    gamma: float
    batch: int
    n_walkers: int
    use_flow: bool
    lag: int
    candidates: int
    accept: float
    penalty: float = 0.0

    def trained(self, target: Phi4Chain, seed: int, device: str | None) -> Trained:
        base = Normal.from_precision(target.coupled_precision)
        flow = RealNVP(self.n_sites, self.n_blocks, self.hidden, self.depth, base=base, seed=seed)
        ones = torch.ones(self.n_sites)
        decay = "cosine" if self.gamma == 1 else train.StepDecay(PERIOD, self.gamma)
        sampler = FlowMCMC(
            flow, n_walkers=self.n_walkers, batch=self.batch, n_steps=self.n_steps,
            start=torch.stack([ones, -ones]), use_flow=self.use_flow, lag=self.lag,
            learning_rate=self.learning_rate, decay=decay, weight_penalty=self.penalty,
        )  # fmt: skip
        return sampler.train(target, seed=seed, device=device)


@dataclass(frozen=True)
class Settings:
    """The sizes of a run.

    n_imh, n_isir, n_neutra, n_steps: of a chain, the last with local steps or nothing else. The first
    `warmup` share is left out. n_local: local steps after each global one.
    """

    trainings: tuple[Training, ...]
    fields: tuple[float, ...]
    n_chains: int
    n_imh: int
    n_isir: int
    n_neutra: int
    n_steps: int
    n_local: int
    n_importance: int
    warmup: float = 0.25

    def steps(self, method: str) -> int:
        own = {IMH_: self.n_imh, I_SIR: self.n_isir, NEUTRA: self.n_neutra}
        return own.get(method, self.n_steps)


@dataclass(frozen=True, eq=False)
class Chain:
    """Middle site and mean field of chains (chain, draw) from their first step, all from the mode +."""

    mid: Tensor
    mean_field: Tensor
    accept: Tensor  # (chain,) of proposals of the flow, else of Langevin steps
    skip: int

    @property
    def plus(self) -> Tensor:
        """(chain, draw) bools, of the draws that count."""
        return self.mid[:, self.skip :] > 0

    def weight(self) -> tuple[float, float]:
        """P(φ_mid > 0); the error knows of autocorrelation and of chains that never change sides."""
        target = Phi4Chain(1)  # the modes of one site are those of φ_mid
        value, error = metrics.mode_weights(self.mid[:, self.skip :, None], target)
        return float(value[1]), float(error[1])

    def square(self) -> tuple[float, float]:
        """E[φ_mid²] and its error over chains, whose means are independent."""
        return mean_error(self.mid[:, self.skip :].square().mean(1))

    def width(self) -> float:
        """√(Var(φ_mid | +) + Var(φ_mid | −)), √2 times the width of a mode where they are alike."""
        mid = self.mid[:, self.skip :]
        both = [mid[side] for side in (mid > 0, mid <= 0)]
        return math.sqrt(sum(float(x.var()) for x in both if len(x) > 1))

    def changes(self) -> float:
        """Changes of mode in 1000 steps."""
        return 1000 * float((self.plus[:, 1:] != self.plus[:, :-1]).double().mean())

    def reweighted(self, target: Phi4Chain, h: float) -> tuple[float, float]:
        """β ΔF at another field."""
        log_weight = -target.beta * (h - target.h) / target.a * self.mean_field[:, self.skip :]
        value, error = metrics.free_energy_difference(self.plus, log_weight)
        return float(value), float(error)


def run_chains(
    kernel: Kernel, target: Phi4Chain, x0: Tensor, n: int, skip: int, seed: int
) -> Chain:
    """n steps from x0, at a step size that was found by other chains where the kernel has none."""
    with torch.no_grad():
        if isinstance(kernel, Tunable) and kernel.scale() is None:
            other = kernel.init(target, x0, seed=seed + 1)
            kernel, _, _ = warm_up(kernel, target, other, TUNE)
        _, info = kernel.step(target, kernel.init(target, x0, seed=seed), n, thin=1)
    assert info.x is not None
    mid, mean_field = info.x[..., target.n_sites // 2], info.x.mean(-1)
    accept = info.extra.get("flow_accept", info.accept)
    return Chain(mid.cpu().double(), mean_field.cpu().double(), accept.cpu().double(), skip)


def relaxed(trained: Trained, target: Phi4Chain, n: int, seed: int) -> Tensor:
    """Fields (n, N) of the mode +: a constant one has weights p/q that no proposal comes near."""
    ones = torch.ones(n, target.n_sites).to(trained.flow.like)
    state, _ = trained.local.step(target, trained.local.init(target, ones, seed=seed + 2), RELAX)
    return state.x


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    found: dict[tuple[int, float], dict[str, Chain]] = {}
    acceptance: dict[tuple[int, float], Tensor] = {}
    for training in settings.trainings:
        for h in settings.fields:
            n = training.n_sites
            target = Phi4Chain(n, h=h)
            progress(f"N = {n}, h = {h:g}, training")
            trained = training.trained(target, seed, device)
            if training.use_flow:
                acceptance[n, h] = trained.history.terms["accept"]
            x0 = relaxed(trained, target, settings.n_chains, seed)
            chains = found[n, h] = {}
            k, n_local = training.candidates, settings.n_local
            sizes = Sizes(k, n_local, k, n_local)
            for method in METHODS:
                progress(f"N = {n}, h = {h:g}, {method}")
                kernel = kernel_of(method, trained.flow, sizes, trained.local, MALA())
                steps = settings.steps(method)
                skip = int(settings.warmup * steps)
                chains[method] = run_chains(kernel, target, x0, steps, skip, seed)
            weights = _importance(trained.flow, target, settings.n_importance, seed)
            data[f"N = {n}, h = {h:g}"] = {
                "importance": weights,
                "exact": {"P(+)": target.exact.weight_plus, "log_z": target.log_z},
                **{method: _measured(chain) for method, chain in chains.items()},
            }
            rows += _rows(training, target, chains, weights)
    lines = free_energies(found)
    data["accept while training"] = {
        f"N = {n}, h = {h:g}": values.tolist() for (n, h), values in acceptance.items()
    }
    data["free energy"] = {f"N = {n}": line for n, line in lines.items()}
    figures = {
        "phi4.png": functools.partial(save, _figure(found)),
        "phi4_free_energy.png": functools.partial(save, _free_energy_figure(lines, acceptance)),
    }
    return Outcome(rows, data, figures)


def _measured(chain: Chain) -> dict[str, Any]:
    return {
        "P(+)": chain.weight(),
        "P(+) of chains": chain.plus.double().mean(1).tolist(),
        "φ_mid²": chain.square(),
        "width": chain.width(),
        "accept": float(chain.accept.mean()),
        "changes of mode in 1000 steps": chain.changes(),
    }


def _importance(flow: Flow, target: Phi4Chain, n: int, seed: int) -> dict[str, float]:
    """log Z and β ΔF by independent draws of the flow."""
    like = flow.like
    with torch.no_grad():
        samples = Importance(flow).sample(
            target, n, seed=seed, device=like.device, dtype=like.dtype
        )
    assert samples.log_weight is not None
    plus = samples.x[..., target.n_sites // 2] > 0
    value, error = metrics.free_energy_difference(
        plus.transpose(0, 1).cpu().reshape(n, 1), samples.log_weight.cpu().reshape(n, 1)
    )
    return {
        "log_z": float(samples.info["log_z"]),
        "log_z error": float(samples.info["log_z_error"]),
        "share": float(samples.info["ess"]) / n,
        "free energy": float(value),
        "free energy error": float(error),
    }


def _rows(
    training: Training, target: Phi4Chain, chains: dict[str, Chain], weights: dict[str, float]
) -> list[Row]:
    exact = target.exact
    place = f"{target.n_sites}, h={target.h:g}"
    log_z, log_z_error = weights["log_z"], weights["log_z error"]
    rows = [near(f"{place}, IS, log Z", log_z, log_z_error, exact.log_z, EXACT, tolerance=0.05)]
    if target.h != 0:
        rows.append(
            equal(
                f"{place}, IS, βΔF", weights["free energy"], weights["free energy error"],
                exact.log_ratio, EXACT, precision=0.1,
            )
        )  # fmt: skip
    for method in FLOW_METHODS:
        chain = chains[method]
        label = f"{place}, {method}"
        weight = chain.weight()
        rows.append(equal(f"{label}, P(+)", *weight, exact.weight_plus, EXACT, precision=0.025))
        if target.h != 0:
            difference = chain.reweighted(target, target.h)
            rows.append(equal(f"{label}, βΔF", *difference, exact.log_ratio, EXACT, precision=0.1))
    accept, error = mean_error(chains[IMH_].accept)
    chain, weight = chains[FLEX2], chains[MALA_].weight()
    ratio = chains[NEUTRA].changes() / max(chains[IMH_].changes(), 1e-9)
    rows += [
        within(f"{place}, IMH, accept", accept, error, training.accept, "specification",
               low=training.accept),
        equal(f"{place}, {FLEX2}, φ_mid²", *chain.square(), exact.mid_square, EXACT,
              precision=0.004),
        near(f"{place}, {FLEX2}, √2 sd", chain.width(), 0.0, exact_width(target), EXACT,
             tolerance=0.01),
        within(f"{place}, MALA, P(+)", *weight, 1.0, "its start", low=0.95),
        within(f"{place}, changes neutra/IMH", ratio, 0.0, 1.0, "equal", high=0.5),
    ]  # fmt: skip
    return rows


def exact_width(target: Phi4Chain) -> float:
    """√(Var(φ_mid | +) + Var(φ_mid | −))."""
    x, p = target.exact.mid_grid, target.exact.mid_density
    total = 0.0
    for side in (x > 0, x < 0):
        weight = p[side] / p[side].sum()
        mean = (weight * x[side]).sum()
        total += float((weight * (x[side] - mean).square()).sum())
    return math.sqrt(total)


def odd(values: Sequence[float]) -> list[float]:
    """The values of an odd function on the left, at 0 and on the right of it, from those on the right."""
    return [*(-value for value in reversed(values)), 0.0, *values]


FreeEnergies = dict[str, list[list[float]]]


def free_energies(found: dict[tuple[int, float], dict[str, Chain]]) -> dict[int, FreeEnergies]:
    """β ΔF [h, value, error] of FlEx2 chains: direct at each field, and from those at h = 0."""
    lines: dict[int, FreeEnergies] = {}
    for (n, h), chains in found.items():
        line = lines.setdefault(n, {"direct": [], "reweighted": []})
        target, chain = Phi4Chain(n, h=h), chains[FLEX2]
        if bool(chain.plus.any()) and not bool(chain.plus.all()):
            line["direct"].append([h, *chain.reweighted(target, h)])
            if h == 0:
                places = [other for other in odd(FIELDS) if other != 0]
                line["reweighted"] = [[other, *chain.reweighted(target, other)] for other in places]
    return lines


# ---------------------------------------------------------------------------- figures
COLOURS = dict(zip(METHODS, CYCLE, strict=False))


def _figure(found: dict[tuple[int, float], dict[str, Chain]]) -> Figure:
    place = next((p for p in reversed(found) if p[1] != 0), next(iter(found)))
    n, h = place
    figure, (weights, relax, marginal) = panels(
        ("weight of the mode +", "", r"$P(\phi_{\mathrm{mid}} > 0)$"),
        (f"N = {n}, h = {h:g}: from the mode +", "step", "chains in the mode +"),
        (f"N = {n}, h = {h:g}: {FLEX2}", r"$\phi_{\mathrm{mid}}$", "density"),
    )
    for k, ((n_sites, field), chains) in enumerate(found.items()):
        exact = Phi4Chain(n_sites, h=field).exact.weight_plus
        label = "exact" if k == 0 else "_"
        weights.hlines(exact, k - 0.35, k + 0.35, color="#000000", lw=0.9, label=label)
        for j, (method, chain) in enumerate(chains.items()):
            name = method if k == 0 else "_"
            points(weights, k + 0.1 * (j - 2.5), *chain.weight(), name, COLOURS[method])
    names = [f"N = {n_sites}\nh = {field:g}" for n_sites, field in found]
    weights.set_xticks(range(len(found)), names)
    weights.set_ylim(0, 1.05)
    legend(weights)
    _relaxation(relax, found[place], Phi4Chain(n, h=h))
    chain, exact_density = found[place][FLEX2], Phi4Chain(n, h=h).exact
    marginal.hist(
        chain.mid[:, chain.skip :].flatten().numpy(), bins=120, density=True,
        color=COLOURS[FLEX2], alpha=0.6, label="chains",
    )  # fmt: skip
    marginal.plot(exact_density.mid_grid, exact_density.mid_density, "k-", lw=1, label="exact")
    marginal.set_xlim(-1.7, 1.7)
    legend(marginal)
    return figure


def _relaxation(ax: Axes, chains: dict[str, Chain], target: Phi4Chain) -> None:
    """How many of the chains are in the mode that they started from, in bins that widen with the steps."""
    for method, chain in chains.items():
        plus = (chain.mid > 0).double().mean(0)
        ends = sorted({round(1.25**k) for k in range(60) if 1.25**k <= len(plus)} | {len(plus)})
        bins = list(zip([0, *ends[:-1]], ends, strict=True))
        middle = [math.sqrt((begin + 1) * end) for begin, end in bins]
        share = [float(plus[begin:end].mean()) for begin, end in bins]
        style = "--" if method == MALA_ else "-"  # it may lie on neutra-MALA
        ax.plot(middle, share, style, lw=1.2, color=COLOURS[method], label=method)
    ax.axhline(target.exact.weight_plus, color="#000000", lw=0.9, label="exact")
    ax.set_xscale("log")
    ax.set_ylim(0, 1.05)


def _free_energy_figure(
    lines: dict[int, FreeEnergies], acceptance: dict[tuple[int, float], Tensor]
) -> Figure:
    names = [(f"N = {n}: {FLEX2}", "field h", r"$\beta\Delta F$") for n in lines]
    title = ("acceptance of the flow's proposals", "training step", "mean over walkers")
    figure, (*axes, growth) = panels(*names, title)
    for (n, line), ax in zip(lines.items(), axes, strict=True):
        exact = [Phi4Chain(n, h=h).exact.log_ratio for h in FIELDS]
        grid, exact = odd(FIELDS), odd(exact)
        ax.plot(grid, exact, "k-", lw=0.9, label="exact")
        for k, (name, values) in enumerate(line.items()):
            if values:
                label = "chains at this field" if name == "direct" else "from h = 0, reweighted"
                how: dict[str, Any] = {"ms": 7, "mfc": "none"} if name == "direct" else {}
                h, value, error = zip(*values, strict=True)
                points(ax, h, value, error, label, CYCLE[k], **how)
        ax.set_xticks([-0.01, -0.005, 0.0, 0.005, 0.01])
        legend(ax)
    for colour, ((n, field), accept) in zip(CYCLE, acceptance.items(), strict=False):
        growth.plot(accept.cpu(), lw=1, color=colour, label=f"N = {n}, h = {field:g}")
    growth.set_ylim(bottom=0)
    if acceptance:
        legend(growth)
    return figure


# N, blocks, hidden, depth, steps, rate, its factor, batch, walkers, global moves, lag, candidates, accept
PAPER = (
    Training(64, 5, 128, 3, 10_000, 1e-2, 0.98, 4096, 64, False, 1, 60, 0.3, PENALTY),
    Training(128, 6, 256, 3, 20_000, 1e-2, 0.98, 4096, 64, False, 1, 80, 0.1, PENALTY),
    Training(256, 10, 512, 4, 35_000, 5e-4, 0.98, 8192, 64, False, 1, 100, 0.0, PENALTY),
)
QUICK = (
    Training(64, 5, 64, 3, 400, 1e-2, 1.0, 1024, 1024, True, 5, 60, 0.3),
    Training(100, 6, 96, 3, 600, 1e-2, 1.0, 1024, 1024, True, 5, 60, 0.2),
)
EXPERIMENT = Experiment(
    title="φ⁴ chain: weights of the modes from chains that start in one",
    source=SOURCE,
    settings={
        "quick": Settings(
            trainings=QUICK, fields=(0.0, 0.0025), n_chains=64, n_imh=2000,
            n_isir=200, n_neutra=1500, n_steps=6000, n_local=25, n_importance=50_000,
        ),
        "paper": Settings(
            trainings=PAPER, fields=(0.0, 0.0025),
            n_chains=32, n_imh=4000, n_isir=1000, n_neutra=4000, n_steps=26_000, n_local=25,
            n_importance=100_000,
        ),
    },
    run=run,
)  # fmt: skip
