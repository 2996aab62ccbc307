"""Bananas with a flow in training: what each method makes of a map that is poor at first, then better.

Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763, with the settings of their public code:
pairs of sd 10 and 3, bent along a parabola (pysamp.targets.Banana); a flow on N(0, 1) trained by its own
draws (backward); chains from draws of the flow as it then is. Published numbers were not available.

The flow stays too narrow: its couplings widen a coordinate by e at most, and its training passes over
what it does not draw. Independent proposals and weights inherit that, which the sliced total variation
hardly shows; the mass of the bent coordinates x₁ beyond three standard deviations, x₁ > 9, does. Langevin
steps in latent space leave the range of the flow, if slowly.

Importance sampling is judged with its weights. The public code leaves them out at this place and so judges
the draws of the flow, which are given here, too. While few weights dominate, the distance of the weighted
draws is flattered: they get a kernel as wide as a handful of points asks for.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pysamp import metrics
from pysamp.experiments.base import Experiment, Outcome, Progress, Row, equal, near, within
from pysamp.experiments.flow_mcmc.common import (
    FLEX2,
    I_SIR,
    IS,
    MALA_,
    NEUTRA,
    REFERENCE_SEED,
    SOURCE,
    TESS,
    Curves,
    Result,
    Sizes,
    draw_curves,
    mean_error,
    run_chains,
    run_importance,
)
from pysamp.experiments.flow_mcmc.learned import (
    Recipe,
    backward,
    interpolated,
    quality,
    trained,
)
from pysamp.nets.flow import Flow
from pysamp.plots import CYCLE, EXACT, legend, name_axes, save
from pysamp.targets import Banana

FIRST = Recipe(1000, 75, 1e-2, 0.98, 64, 3)  # of d = 16
LAST = Recipe(7000, 300, 1e-5, 0.98, 400, 12)  # of d = 512
SIZES = Sizes(candidates=60, n_local=10, neutra_candidates=60, neutra_local=10)
FLOW = "flow"  # its draws as they are
TAIL = 9.0  # three standard deviations of a bent coordinate
CLAIM = "claim of the paper"
POOR = 0.1  # share of the training up to which the map is called poor
GREY = "#888888"
STEPS = "training steps of the flow"


@dataclass(frozen=True)
class Settings:
    dims: tuple[int, ...]
    stages: tuple[float, ...]  # shares of the training after which the flow is used
    methods: tuple[str, ...]
    batch: int
    n_chains: int
    n_directions: int
    n_check: int  # draws that judge a flow
    chain_steps: int = 1024
    steps: int | None = None  # of training, the published number if None


def recipe(dim: int) -> Recipe:
    return interpolated(dim, 16, FIRST, 512, LAST)


Found = dict[tuple[float, str], dict[str, Any]]  # by share of the training and method


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    floors: dict[int, float] = {}
    for dim in settings.dims:
        target, how = Banana(dim), recipe(dim)
        n = settings.chain_steps
        exact = target.sample(10 * n, seed=seed + REFERENCE_SEED, dtype=torch.float64)
        floors[dim] = _floor(target, exact, settings, seed)
        rows.append(_exact_variance(target, exact))
        progress(f"d = {dim}, training")
        n_steps = settings.steps or how.n_steps
        steps = {share: max(1, round(share * n_steps)) for share in settings.stages}
        loss = backward(target, settings.batch, seed)
        training = trained(how.flow(dim, None, device, seed), loss, how, list(steps.values()))
        found: Found = {}
        judged: dict[float, dict[str, float]] = {}
        for share in settings.stages:
            flow = training.flows[steps[share]]
            judged[share] = quality(flow, target, settings.n_check, seed)
            x0 = flow.sample(settings.n_chains, seed=seed + 1)
            for method in settings.methods:
                if method == MALA_ and (settings.stages[0], MALA_) in found:
                    continue  # but for its start it does not know the flow
                progress(f"d = {dim}, {steps[share]} steps, {method}")
                result = _result(method, target, flow, x0, settings, seed)
                found[share, method] = _measured(result, exact, settings)
        data[f"d = {dim}"] = {
            "training steps": n_steps, "floor": floors[dim],
            "loss": training.loss[:: max(1, n_steps // 100)].tolist(),
            "flow": {steps[share]: q for share, q in judged.items()},
            **{f"{steps[share]} steps, {method}": m for (share, method), m in found.items()},
        }  # fmt: skip
        rows += _rows(dim, settings, found, floors[dim])
    figure = _figure(settings, floors, data)
    return Outcome(rows, data, {"banana.png": functools.partial(save, figure)})


def _result(
    method: str, target: Banana, flow: Flow, x0: Tensor, settings: Settings, seed: int
) -> Result:
    if method not in (IS, FLOW):
        return run_chains(method, target, flow, SIZES, x0, settings.chain_steps, seed + 2)
    result = run_importance(target, flow, SIZES.n_importance(settings.chain_steps), seed)
    if method == IS:
        return result
    return Result(FLOW, result.x, torch.ones(1), math.nan, result.seconds)


def _measured(result: Result, exact: Tensor, settings: Settings) -> dict[str, Any]:
    tv = metrics.sliced_total_variation(
        result.x, exact, settings.n_directions, log_weight_x=result.log_weight
    )
    log_weight = torch.zeros(result.x.shape[1], dtype=torch.float64)
    if result.log_weight is not None:
        log_weight = result.log_weight.double()
    weight = torch.softmax(log_weight, 0)
    bent = result.x[:, :, 1::2]
    return {
        "tv": mean_error(tv),
        "median tv": median_error(tv),
        "variance": mean_error(bent.square().mean(2) @ weight),
        "tail": mean_error((bent > TAIL).double().mean(2) @ weight),
        **result.facts(),
    }


def median_error(values: Tensor) -> tuple[float, float]:
    """Over chains, of which one that sticks would spoil the mean; the error is that of a normal sample."""
    median = values.double().median()
    deviation = 1.4826 * (values - median).abs().median()
    return float(median), math.sqrt(math.pi / 2 / len(values)) * float(deviation)


def _floor(target: Banana, exact: Tensor, settings: Settings, seed: int) -> float:
    """The distance of independent draws, as many as a chain has."""
    n = settings.chain_steps
    x = target.sample(4 * n, seed=seed + REFERENCE_SEED + 1, dtype=torch.float64)
    tv = metrics.sliced_total_variation(x.reshape(4, n, -1), exact, settings.n_directions)
    return float(tv.mean())


def exact_tail() -> float:
    """P(x₁ > TAIL): the normal law of z₁, summed over z₀."""
    target = Banana(2)
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    density = torch.exp(-0.5 * z.square())
    beyond = torch.special.ndtr(target.bend * target.scale**2 * (z.square() - 1) - TAIL)
    return float((density * beyond).sum() / density.sum())


def _exact_variance(target: Banana, exact: Tensor) -> Row:
    square = exact[:, 1::2].square()  # pairs are independent, draws of a pair are not
    error = float(square.mean(1).std()) / math.sqrt(len(square))
    wanted = float(target.covariance[1, 1])
    label = f"d = {target.dim}, Var of x₁, exact draws"
    return equal(label, float(square.mean()), error, wanted, "1 + 2 b² a⁴", precision=0.2)


def _rows(dim: int, settings: Settings, found: Found, floor: float) -> list[Row]:
    rows: list[Row] = []

    def ratio(
        label: str, one: tuple[float, str], other: tuple[float, str], high: float, what: str = "tv"
    ) -> None:
        if {one, other} <= found.keys():
            (a, da), (b, db) = found[one][what], found[other][what]
            error = a / b * math.hypot(da / a, db / b)
            rows.append(within(f"d = {dim}, {label}", a / b, error, 1.0, CLAIM, high=high))

    stages = settings.stages
    first, last = stages[0], stages[-1]
    for share in stages:
        if share <= POOR:
            when = "start" if share == first else f"{100 * share:.0f} %"
            ratio(f"{when}, TV neutra/i-SIR", (share, NEUTRA), (share, I_SIR), 0.9)
    neutra = {share: found[share, NEUTRA]["tv"][0] for share in stages if (share, NEUTRA) in found}
    if neutra:
        worst = max(neutra, key=lambda share: neutra[share])
        ratio("worst, TV neutra/MALA", (worst, NEUTRA), (first, MALA_), 1.1)
    ratio("end, TV i-SIR/neutra", (last, I_SIR), (last, NEUTRA), 0.9, "median tv")
    if (last, I_SIR) in found:
        tv, error = found[last, I_SIR]["median tv"]
        label = f"d = {dim}, end, TV i-SIR"
        rows.append(within(label, tv, error, floor, "exact draws", high=0.15))
    if (last, NEUTRA) in found:
        value, error = found[last, NEUTRA]["tail"]
        label = f"d = {dim}, end, P(x₁ > {TAIL:g}), neutra"
        rows.append(near(label, value, error, exact_tail(), "quadrature", tolerance=0.012))
    if (last, I_SIR) in found:
        value, error = found[last, I_SIR]["tail"]
        label = f"d = {dim}, end, P(x₁ > {TAIL:g}), i-SIR"
        rows.append(within(label, value, error, exact_tail(), "quadrature", high=0.016))
    return rows


# ---------------------------------------------------------------------------- figures
def _figure(settings: Settings, floors: dict[int, float], data: dict[str, Any]) -> Figure:
    """Distances above masses of the tail, a column for each dimension (three of many), and the flow."""
    dims = settings.dims
    shown = dims if len(dims) <= 3 else (dims[0], dims[len(dims) // 2], dims[-1])
    figure = Figure(figsize=(5.2 * (len(shown) + 1), 8.0), layout="constrained")
    axes = figure.subplots(2, len(shown) + 1)
    tail = f"share of bent coordinates beyond {TAIL:g}"
    for column, dim in enumerate(shown):
        above, below = axes[:, column]
        for ax, what, level in ((above, "tv", floors[dim]), (below, "tail", exact_tail())):
            _curves(ax, data[f"d = {dim}"], what, level)
        name_axes(above, f"d = {dim}", "", "sliced TV of a chain" if not column else "")
        name_axes(below, "", STEPS, tail if not column else "")
        above.set_yscale("log")
        above.set_ylim(0.025, 1.1)
        below.set_ylim(0, 0.03)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9
    )
    for dim, colour in zip(dims, (*CYCLE, GREY), strict=False):
        judged = data[f"d = {dim}"]["flow"]
        for ax, what in zip(axes[:, -1], ("accept", "log_z"), strict=True):
            y, error = zip(*((q[what], q[f"{what} error"]) for q in judged.values()), strict=True)
            ax.errorbar(list(judged), y, error, fmt="o-", ms=3, lw=1, color=colour,
                        label=f"d = {dim}")  # fmt: skip
    name_axes(axes[0, -1], "the flow", "", "acceptance of its draws in equilibrium")
    name_axes(axes[1, -1], "", STEPS, "log Z of its draws, 0 in truth")
    axes[0, -1].set_yscale("log")
    axes[0, -1].set_ylim(1e-5, 1)
    axes[1, -1].set_ylim(-12, 1)
    axes[1, -1].axhline(0, color=EXACT, lw=1.5, ls=":")
    legend(axes[0, -1], loc="lower right")
    return figure


def _curves(ax: Axes, data: dict[str, Any], what: str, level: float) -> None:
    """Means over chains against training steps, and the exact level."""
    curves: Curves = {}
    for name, found in data.items():
        steps, _, method = name.partition(" steps, ")
        if method:
            curves.setdefault(method, []).append([int(steps), *found[what]])
    plain = curves.pop(MALA_, None)  # it does not know the flow
    draw_curves(ax, curves, level)
    ax.lines[-1].set(linestyle=":", linewidth=1.5)
    if FLOW in curves:
        x, y, _ = zip(*curves[FLOW], strict=True)
        ax.plot(x, y, color=GREY, lw=4, alpha=0.4, zorder=0, label="draws of the flow")
    if plain:
        ax.axhline(plain[0][1], color=GREY, lw=1.2, ls="--", label="plain MALA")


EXPERIMENT = Experiment(
    title="bananas: neutra with a poor map, proposals of the flow with a better one",
    source=SOURCE,
    settings={
        "quick": Settings(
            (16, 32), (0.0, 0.05, 0.1, 0.25, 0.5, 1.0),
            (I_SIR, FLEX2, NEUTRA, TESS, MALA_, IS, FLOW), 4096, 16, 32, 20_000,
        ),
        "paper": Settings(
            (16, 32, 64, 128, 256, 512), tuple(k / 20 for k in range(21)),
            (I_SIR, FLEX2, NEUTRA, TESS, MALA_, IS, FLOW), 4096, 128, 128, 100_000,
        ),
    },
    run=run,
)  # fmt: skip
