"""Four Gaussian modes with a learned flow: the weights of modes that chains find, from two starts.

Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763, with the settings of their public code: a
flow on a base of the target's variances, trained forward on exact draws, and chains with the flow as it is
after 5 % of that training (10 % from d = 256 on), an imperfect map on purpose. Training ends there; at the
quick scale it has fewer steps and smaller batches. Published numbers were not available; `PROTOTYPE` is an
independent run of 2000 steps of batch 2048 at d = 16.

Error of a chain: the largest |p_k − ¼| over the shares p_k of its draws that are nearest to mode k. Chains
start at exact draws, as many in each mode, so that they are in equilibrium at once; or all in mode 0. The
picture in two dimensions shows why Langevin steps in latent space seldom change modes: what a flow maps
onto the ground between modes is nearly as empty there as in data space, and lies along narrow walls.
Elliptical slices in the same space leap across the walls: their shares are as good as those of IMH.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
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
    within,
)
from pysamp.experiments.flow_mcmc import plane
from pysamp.experiments.flow_mcmc.common import (
    ADAPTIVE,
    FLEX2,
    I_SIR,
    IMH_,
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
    Training,
    forward,
    interpolated,
    quality,
    trained,
)
from pysamp.nets import Normal
from pysamp.nets.flow import Flow
from pysamp.plots import EXACT, save
from pysamp.targets import FourModes, Gaussian, GaussianMixture

N_STEPS = {16: 700, 32: 900, 64: 1100, 128: 1300, 256: 1500}
CANDIDATES = {16: 120, 32: 140, 64: 160, 128: 180, 256: 200}
N_LOCAL = 5
EARLY, EARLY_LARGE, LARGE = 0.05, 0.10, 256  # share of the training; from d = LARGE on
FIRST = Recipe(50_000, 100, 1e-2, 0.99, 64, 4)  # of d = 16
LAST = Recipe(90_000, 200, 1e-4, 0.99, 256, 8)  # of d = 256
EACH, ONE = "each mode", "one mode"  # where chains start
# of the prototype at d = 16: acceptance of chains, largest error of pooled weights, errors of chains
PROTOTYPE = {"accept": 0.657, "pooled": 0.007, IMH_: 0.036, NEUTRA: 0.216}
OF_PROTOTYPE = "prototype"
CLAIM = "claim of the paper"


@dataclass(frozen=True)
class Settings:
    dims: tuple[int, ...]
    methods: tuple[str, ...]
    batch: int
    steps: int | None  # of training, the published early checkpoint if None
    stages: tuple[
        float, ...
    ]  # shares of these steps after which the first of dims is looked at, too
    stage_methods: tuple[str, ...]
    n_check: int  # draws that judge a flow
    plane_steps: int
    plane_batch: int
    n_chains: int = 32
    chain_steps: int | None = None  # of a chain, the published number if None


def recipe(dim: int) -> Recipe:
    return interpolated(dim, 16, FIRST, 256, LAST)


def early(dim: int) -> int:
    """Training steps until the published checkpoint."""
    n = int(EARLY * recipe(dim).n_steps)
    return n if dim < LARGE else round(EARLY_LARGE / EARLY) * n


def train(dim: int, settings: Settings, seed: int, device: str | None) -> Training:
    """The flow of a dimension after all its steps, and after those of each stage at the first one."""
    target, how = FourModes(dim), recipe(dim)
    base = Normal(mean=torch.zeros(dim), covariance=target.covariance.diagonal().clone())
    steps = settings.steps or early(dim)
    stages = settings.stages if dim == settings.dims[0] else ()
    stops = sorted({*(max(1, round(share * steps)) for share in stages), steps})
    flow = how.flow(dim, base, device, seed)
    return trained(flow, forward(target, settings.batch, seed), how, stops)


def start(target: GaussianMixture, counts: tuple[int, ...], seed: int, flow: Flow) -> Tensor:
    """Exact draws (Σ counts, d) of the components, so many of each."""
    like = flow.like
    parts = [
        Gaussian(target.means[k], 1.0).sample(
            n, seed=seed + 1, first_chain=k * sum(counts), device=like.device, dtype=like.dtype
        )
        for k, n in enumerate(counts)
    ]
    return torch.cat(parts)


# ---------------------------------------------------------------------------- measuring
def run_method(
    method: str, target: GaussianMixture, flow: Flow, where: str, settings: Settings, seed: int
) -> Result:
    dim, n_chains = flow.dim, settings.n_chains
    candidates = CANDIDATES.get(dim, 100)
    n_steps = settings.chain_steps or N_STEPS[dim]
    sizes = Sizes(candidates, N_LOCAL, candidates, N_LOCAL)
    if method == IS:
        return run_importance(target, flow, sizes.n_importance(n_steps), seed)
    each = n_chains // 4
    x0 = start(target, (each,) * 4 if where == EACH else (n_chains, 0, 0, 0), seed, flow)
    return run_chains(method, target, flow, sizes, x0, n_steps, seed + 2)


def measured(result: Result, target: GaussianMixture) -> dict[str, Any]:
    label = target.mode(result.x.flatten(0, 1)).reshape(result.x.shape[:2])  # (chain, draw)
    log_weight = torch.zeros(label.shape, dtype=torch.float64)
    if result.log_weight is not None:
        log_weight = result.log_weight.double()[None]
    weight = torch.softmax(log_weight, 1)
    shares = torch.stack([((label == k) * weight).sum(1) for k in range(4)], 1)  # (chain, 4)
    pooled, pooled_error = metrics.mode_weights(result.x, target, log_weight)
    chains = zip(result.x, label, log_weight, strict=True)
    kl = torch.tensor([within_modes(x, k, w, target) for x, k, w in chains])
    everything = within_modes(result.x.flatten(0, 1), label.flatten(), log_weight.flatten(), target)
    return {
        "error": mean_error((shares - 0.25).abs().amax(1)),
        "shares": shares.tolist() if len(shares) > 1 else [],
        "pooled": pooled.tolist(),
        "pooled error": pooled_error.tolist(),
        "largest pooled gap": float((pooled - 0.25).abs().max()),
        **result.facts(),
        "KL in modes, median chain": float(kl.median()),
        "KL in modes, all draws": everything,
        "rhat": float(metrics.rhat(result.x).max()),
    }  # fmt: skip


def within_modes(x: Tensor, label: Tensor, log_weight: Tensor, target: GaussianMixture) -> float:
    """Mean over modes of KL(mode | Gaussian of the draws nearest to it), ∞ where one has too few."""
    unit = torch.eye(x.shape[1], dtype=torch.float64)
    found = []
    for k in range(4):
        mine = label == k
        if int(mine.sum()) < 2:
            return math.inf
        kl, _ = metrics.gaussian_kl(x[mine], target.means[k], unit, log_weight=log_weight[mine])
        found.append(float(kl))
    return sum(found) / 4


def of_exact_draws(target: GaussianMixture, settings: Settings, seed: int) -> dict[str, Any]:
    """What is measured of as many chains of independent draws."""
    (dim,), n = target.event_shape, settings.n_chains
    n_steps = settings.chain_steps or N_STEPS[dim]
    x = target.sample(n * n_steps, seed=seed + REFERENCE_SEED, dtype=torch.float64)
    result = Result("exact draws", x.reshape(n, n_steps, dim), torch.ones(n), math.nan, 0.0)
    return measured(result, target)


Found = dict[tuple[str, str], dict[str, Any]]  # by start and method


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    stages: dict[int, dict[str, Any]] = {}
    for dim in settings.dims:
        target = FourModes(dim)
        progress(f"d = {dim}, training")
        training = train(dim, settings, seed, device)
        last = max(training.flows)
        flow = training.flows[last]
        found: Found = {}
        for method in settings.methods:
            for where in (EACH, ONE):
                if method == IS and where == ONE:  # it has no start
                    found[where, method] = found[EACH, method]
                    continue
                progress(f"d = {dim}, {where}, {method}")
                result = run_method(method, target, flow, where, settings, seed)
                found[where, method] = measured(result, target)
        judged = quality(flow, target, settings.n_check, seed)
        data[f"d = {dim}"] = {
            "training steps": last, "batch": settings.batch, "flow": judged,
            "loss": training.loss[:: max(1, last // 100)].tolist(),
            "exact draws": of_exact_draws(target, settings, seed),
            **{f"{where}, {method}": m for (where, method), m in found.items()},
        }  # fmt: skip
        rows += _rows(dim, judged, found)
        if dim == settings.dims[0]:
            stages = _stages(training, target, found, settings, seed, progress)
    data["stages"] = stages
    progress("d = 2")
    picture = plane.run(settings.plane_steps, settings.plane_batch, seed, device)
    rows += picture.rows()
    data["plane"] = picture.data()
    return Outcome(
        rows, data,
        {
            "mixture.png": functools.partial(save, _figure(settings, data)),
            "latent.png": lambda path: save(picture.figure(), path),
        },
    )  # fmt: skip


def _stages(
    training: Training, target: GaussianMixture, found: Found, settings: Settings, seed: int,
    progress: Progress,
) -> dict[int, dict[str, Any]]:  # fmt: skip
    """Chains from one mode with the flow as it was on the way: by training steps, then by method."""
    stages: dict[int, dict[str, Any]] = {}
    for steps, flow in training.flows.items():
        stages[steps] = {"flow": quality(flow, target, settings.n_check, seed)}
        for method in settings.stage_methods:
            if flow is training.flows[max(training.flows)] and (ONE, method) in found:
                stages[steps][method] = found[ONE, method]
                continue
            progress(f"d = {flow.dim}, after {steps} steps, {method}")
            result = run_method(method, target, flow, ONE, settings, seed)
            stages[steps][method] = measured(result, target)
    return stages


def _rows(dim: int, judged: dict[str, float], found: Found) -> list[Row]:
    rows = [
        near(f"d = {dim}, log Z", judged["log_z"], judged["log_z error"], 0.0, "exact", tolerance=0.05)
    ]  # fmt: skip
    if (EACH, IMH_) in found:
        accept, error = found[EACH, IMH_]["accept"]
        rows.append(
            equal(f"d = {dim}, IMH, accept of chains", accept, error, judged["accept"], "exact draws",
                  precision=0.02, reference_error=judged["accept error"])
        )  # fmt: skip
        if dim == 16:
            wanted = PROTOTYPE["accept"]
            rows.append(within("d = 16, IMH, accept", accept, error, wanted, OF_PROTOTYPE, low=0.5))
    for method in (IMH_, I_SIR):
        if (ONE, method) in found:
            gap = found[ONE, method]["largest pooled gap"]
            error = max(found[ONE, method]["pooled error"])
            label = f"d = {dim}, {ONE}, {method}, gap"
            rows.append(within(label, gap, error, PROTOTYPE["pooled"], OF_PROTOTYPE, high=0.03))
    for where in (EACH, ONE):
        for method in (IMH_, I_SIR):
            if {(where, method), (where, NEUTRA)} <= found.keys():
                rows.append(_ratio(dim, where, method, found))
    if dim == 16:
        for method, low, high in ((IMH_, -math.inf, 0.05), (NEUTRA, 0.1, math.inf)):
            if (ONE, method) in found:
                value, error = found[ONE, method]["error"]
                label = f"d = 16, {ONE}, {method.split('-')[0]}, error"
                wanted = PROTOTYPE[method]
                rows.append(within(label, value, error, wanted, OF_PROTOTYPE, low=low, high=high))
    return rows


def _ratio(dim: int, where: str, method: str, found: Found) -> Row:
    """Of the errors of neutra-MALA and of proposals of the flow."""
    (a, da), (b, db) = (found[where, m]["error"] for m in (NEUTRA, method))
    ratio = a / b
    error = ratio * math.hypot(da / a, db / b)
    label = f"d = {dim}, {where}, neutra/{method}"
    if dim == 16 and where == ONE and method == IMH_:
        wanted = PROTOTYPE[NEUTRA] / PROTOTYPE[IMH_]
        return within(label, ratio, error, wanted, OF_PROTOTYPE, low=3.0)
    return within(label, ratio, error, 1.0, CLAIM, low=1.0)


# ---------------------------------------------------------------------------- figure
def _figure(settings: Settings, data: dict[str, Any]) -> Figure:
    first, dims = settings.dims[0], settings.dims
    gap, kl = "largest |share of a mode − ¼| of a chain", "KL in modes, all draws"
    figure, axes = panels(
        (f"all {settings.n_chains} chains start in one mode", "d", gap),
        (f"d = {first}, all start in one mode", "training steps of the flow", gap),
        (f"{settings.n_chains // 4} chains start in each mode", "d", "KL of a mode to its draws"),
    )
    by_dim: Curves = {}
    by_stage: Curves = {}
    of_kl: Curves = {}
    for method in settings.methods:
        for dim in dims:
            found = data[f"d = {dim}"]
            if method != IS:  # it has no chains
                place = [dim, *found[f"{ONE}, {method}"]["error"]]
                by_dim.setdefault(method, []).append(place)
            of_kl.setdefault(method, []).append([dim, found[f"{EACH}, {method}"][kl], 0.0])
    for steps, found in data["stages"].items():
        for method in settings.stage_methods:
            by_stage.setdefault(method, []).append([steps, *found[method]["error"]])
    floors = [data[f"d = {dim}"]["exact draws"] for dim in dims]
    errors = [floor["error"][0] for floor in floors]
    for ax, curves, x, floor in (
        (axes[0], by_dim, dims, errors),
        (axes[1], by_stage, list(data["stages"]), [errors[0]] * len(data["stages"])),
        (axes[2], of_kl, dims, [floor[kl] for floor in floors]),
    ):
        draw_curves(ax, curves, floor[0])
        ax.lines[-1].remove()  # the level of exact draws, which is not that of all dimensions
        ax.plot(x, floor, ":", color=EXACT, lw=1.5, label="exact draws")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.autoscale(axis="y")
    for ax in (axes[0], axes[2]):
        ax.set_xticks(dims, [str(dim) for dim in dims])
        ax.xaxis.set_minor_locator(NullLocator())
    for ax in axes[:2]:
        ax.set_ylim(0.014, 1.1)
    handles, labels = axes[2].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9
    )
    return figure


EXPERIMENT = Experiment(
    title="four modes: proposals of a flow change modes, latent Langevin steps seldom do",
    source=SOURCE,
    settings={
        "quick": Settings(
            (16, 32), (IMH_, I_SIR, ADAPTIVE, FLEX2, NEUTRA, TESS, MALA_, IS), 2048, 2000,
            (0.025, 0.05, 0.1, 0.25), (IMH_, I_SIR, NEUTRA, TESS), 20_000, 1000, 1024,
        ),
        "paper": Settings(
            (16, 32, 64, 128, 256), (IMH_, I_SIR, ADAPTIVE, FLEX2, NEUTRA, TESS, MALA_, IS), 8192,
            None, (0.02, 0.04, 0.1, 0.2, 0.5), (IMH_, I_SIR, ADAPTIVE, FLEX2, NEUTRA, TESS),
            100_000, 4000, 4096,
        ),
    },
    run=run,
)  # fmt: skip
