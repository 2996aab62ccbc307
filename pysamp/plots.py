"""Figures from Samples: what the chains did, what they found, and the exact answer wherever it is known.

Every figure is a matplotlib `Figure` of its own: no window, no current figure, no changed defaults.
The file's ending chooses the format. Colours are those of Okabe and Ito, told apart by readers of
all colour vision, and exact values are always black.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pysamp import metrics
from pysamp.samples import Samples
from pysamp.summary import TIMED, WITHIN, scalars
from pysamp.target import HasObservables, HasSampler, Target
from pysamp.targets.phi4 import Phi4Chain

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
EXACT = "#000000"
N_TRACES = 4  # chains drawn; more of them hide each other
N_POINTS = 400  # of a trace; with more of them a chain that moves fast is a block of colour
N_EXACT = 50_000  # exact draws for a reference histogram: 1 % in a bin of weight 0.2
MAX_EXACT = 400_000  # numbers in them: fields are drawn site by site, 3 µs each
N_LAST = 150  # draws of a trace in which single changes of phase can be seen
N_DOTS = 5000  # of a scatter plot
MAX_BARS = 40  # modes with a label of their own

_SYMBOLS = {
    "phi_mid": r"$\phi_{\mathrm{mid}}$",
    "energy": "energy per site",
    "log_prob": r"$\log p$ (unnormalised)",
    "phi_mid²": r"$\phi_{\mathrm{mid}}^2$",
    "phi²": r"$\phi^2$ per site",
    "magnetisation": "magnetisation $m$",
    "|magnetisation|": "$|m|$",
    "magnetisation²": "$m^2$",
    "magnetisation⁴": "$m^4$",
}


# ---------------------------------------------------------------------------- one set of draws
def plot_samples(samples: Samples, path: str | os.PathLike, target: Target | None = None) -> None:
    """Traces, marginals, weights of modes and autocorrelation on one page.

    `target` replaces the one that the samples carry; it gives observables, modes and exact values.
    """
    target = samples.target if target is None else target
    series, _, _ = scalars(samples, target)
    series.pop(WITHIN, None)
    names = list(series)
    if names[0] in TIMED:  # of a lattice field: energy and |m| first
        names = sorted(names, key=lambda n: n not in TIMED)
    summary = samples.summary(target)
    weight = _weight(samples)

    panels: list[Callable[[Axes], None]] = []
    if samples.n_draws > 1:
        panels += [
            partial(_traces, series=series[n], name=n, colour=c) for n, c in zip(names, CYCLE)
        ]
        panels = panels[:2]
    panels += [
        partial(_marginal, series=series[n], weight=weight, name=n, target=target)
        for n in names[:2]
    ]
    if samples.event_shape == (2,) and samples.names is None:
        panels[-1] = partial(_plane, samples=samples, target=target)
    if summary.modes:
        panels.append(partial(_modes, modes=summary.modes))
    elif _many(samples.info.get("accept")):
        panels.append(partial(_acceptance, accept=samples.info["accept"]))
    if samples.n_draws >= 4:
        panels.append(partial(_autocorrelation, series={n: series[n] for n in names[:4]}))

    columns = (len(panels) + 1) // 2
    figure = Figure(figsize=(max(7.4, 3.7 * columns), 7.2), layout="constrained")
    figure.suptitle(summary.title, fontsize=12, x=0.01, ha="left", weight="bold")
    # Down the columns: the trace of a quantity stands above that of the next, as do the marginals.
    for i, panel in enumerate(panels):
        panel(figure.add_subplot(2, columns, i // 2 + 1 + columns * (i % 2)))
    _verdict(figure, summary.verdict)
    save(figure, path)


def _traces(ax: Axes, series: Tensor, name: str, colour: str, most: int = N_TRACES) -> None:
    """A few chains in shades of one colour, every k-th draw."""
    n_chains, n_draws = series.shape
    shown = np.unique(np.linspace(0, n_chains - 1, min(most, n_chains)).astype(int))
    stride = max(1, n_draws // N_POINTS)
    draws = np.arange(0, n_draws, stride)
    for i, chain in enumerate(shown):
        shade = 0.35 + 0.65 * (i + 1) / len(shown)
        ax.plot(draws, _array(series[chain])[::stride], color=colour, alpha=shade, lw=0.7)
    name_axes(ax, f"{len(shown)} of {n_chains} chains", "draw", _symbol(name))
    ax.set_xlim(0, max(1, n_draws - 1))


def _marginal(ax: Axes, series: Tensor, weight: Tensor, name: str, target: Target | None) -> None:
    reference = _exact_density(name, target)
    drawn = _exact_draws(name, target) if reference is None else None
    span = _span(series, drawn if reference is None else None)
    _histogram(ax, series, weight, name, BLUE, span)
    if reference is not None:
        grid, density = reference
        ax.plot(grid, density, color=EXACT, lw=1.4, label="exact")
    elif drawn is not None:
        ax.hist(
            drawn,
            bins=60,
            range=span,
            density=True,
            histtype="step",
            color=EXACT,
            lw=1.2,
            label="exact draws",
        )
    ax.set_xlim(*span)
    if reference is not None or drawn is not None:
        legend(ax)


def _histogram(
    ax: Axes,
    series: Tensor,
    weight: Tensor,
    name: str,
    colour: str,
    span: tuple[float, float] | None = None,
    label: str = "draws",
    **style: Any,
) -> None:
    values, weights = _array(series).ravel(), _array(weight).ravel()
    good = np.isfinite(values)
    ax.hist(
        values[good],
        bins=60,
        range=span or _span(series),
        weights=weights[good],
        density=True,
        color=colour,
        label=label,
        **(style or {"alpha": 0.55}),
    )
    name_axes(ax, "marginal", _symbol(name), "density")


def _plane(ax: Axes, samples: Samples, target: Target | None) -> None:
    """Draws of a two-dimensional target, resampled if they carry weights."""
    if samples.log_weight is None:
        points = samples.flat()
        points = points[:: max(1, len(points) // N_DOTS)]
    else:
        points = samples.resample(N_DOTS)
    x = _array(points)
    if isinstance(target, HasSampler):
        reference = _array(target.sample(N_DOTS, seed=0))
        ax.plot(*reference.T, ".", color="#999999", ms=1.5, alpha=0.5, label="exact draws")
    ax.plot(*x.T, ".", color=BLUE, ms=1.5, alpha=0.5, label="draws")
    ax.set_aspect("equal", adjustable="datalim")
    name_axes(ax, "draws in the plane", "$x_0$", "$x_1$")
    legend(ax, markerscale=5)


def _modes(ax: Axes, modes: list[dict[str, Any]]) -> None:
    at = np.arange(len(modes))
    weight = np.array([m["weight"] for m in modes])
    error = np.nan_to_num(np.array([m["error"] for m in modes]))
    reference = np.array([m["exact"] for m in modes])
    if len(modes) <= MAX_BARS:
        ax.hlines(reference, at - 0.35, at + 0.35, color=EXACT, lw=1.6, label="exact", zorder=3)
        ax.set_xticks(at, [str(m["mode"]) for m in modes] if len(modes) <= 12 else None)
        ax.set_xlim(-0.7, len(modes) - 0.3)
    else:
        ax.plot(at, reference, color=EXACT, lw=1.2, label="exact", zorder=3)
    ax.errorbar(
        at, weight, error, fmt="o", color=BLUE, ms=5, capsize=4, lw=1.3, label="draws ± 1 s.e."
    )
    ax.set_ylim(0, 1.25 * max(float((weight + error).max()), float(reference.max()), 1e-9))
    name_axes(ax, "weights of the modes", "mode", "weight")
    legend(ax)


def _many(accept: Any) -> bool:
    return isinstance(accept, Tensor) and accept.numel() > 1


def _acceptance(ax: Axes, accept: Tensor) -> None:
    ax.hist(_array(accept).ravel(), bins=40, range=(0, 1), color=ORANGE, alpha=0.8)
    ax.set_xlim(0, 1)
    name_axes(ax, "acceptance over chains", "mean acceptance", "chains")


def _autocorrelation(ax: Axes, series: Mapping[str, Tensor]) -> None:
    """Around the mean of all chains, so that chains stuck in different places stay correlated."""
    found = {name: _autocorrelations(values) for name, values in series.items()}
    curves = {name: rho for name, rho in found.items() if rho is not None}
    end = max((_decayed(rho) for rho in curves.values()), default=1)
    styles = ("-", "--", "-.", ":")  # observables of one thing often decay alike
    for (name, rho), colour, style in zip(curves.items(), CYCLE, styles, strict=False):
        ax.plot(rho[:end], style, color=colour, lw=1.6, label=_symbol(name))
    ax.axhline(0, color="#999999", lw=0.8)
    ax.set_ylim(-0.15, 1.05)
    ax.set_xlim(left=0)
    name_axes(ax, "autocorrelation", "lag in draws", r"$\rho$")
    legend(ax)


def _autocorrelations(series: Tensor) -> np.ndarray | None:
    """rho(lag) of (chain, draw) for lags below half a chain; None for a constant or broken series."""
    x = _array(series)
    x = x - x.mean()
    variance = float((x * x).mean())
    n = x.shape[1]
    if not math.isfinite(variance) or variance == 0:
        return None
    length = 1 << (2 * n - 1).bit_length()  # zero padded: lags do not wrap
    power = np.abs(np.fft.rfft(x, length, axis=1)) ** 2
    covariance = np.fft.irfft(power.mean(0), length)[: n // 2]
    return covariance / (variance * (n - np.arange(n // 2)))


def _decayed(rho: np.ndarray) -> int:
    """Lags worth showing: twice the first at which rho is below 0.05, and 20 at least."""
    small = np.flatnonzero(rho < 0.05)
    return min(len(rho), max(20, 2 * int(small[0]))) if len(small) else len(rho)


# ---------------------------------------------------------------------------- plain and tempered chain
def plot_demo(results: Mapping[str, Samples], path: str | os.PathLike) -> None:
    """Samplers of one φ⁴ chain side by side: traces, marginal of the middle site, weights, fields.

    Every entry holds draws of the same `Phi4Chain`, which the samples carry as their target.
    """
    target = next(iter(results.values())).target
    if not isinstance(target, Phi4Chain):
        raise ValueError(f"results must carry a Phi4Chain, got {type(target).__name__}")
    weight_plus = target.exact.weight_plus
    colours = dict(zip(results, (VERMILLION, BLUE, GREEN, PURPLE), strict=False))
    mid = target.n_sites // 2
    top = 1.15 * max(float(_array(s.x[:, :, mid]).max()) for s in results.values())

    figure = Figure(figsize=(11, 7.4), layout="constrained")
    figure.suptitle(
        f"φ⁴ chain, {target.n_sites} sites: two phases, of weight "
        f"{weight_plus:.4f} (φ > 0) and {1 - weight_plus:.4f}",
        fontsize=12,
        x=0.01,
        ha="left",
        weight="bold",
    )
    width = 6 // min(3, len(results))
    grid = figure.add_gridspec(2, 6)
    for i, (name, samples) in enumerate(list(results.items())[:3]):
        ax = figure.add_subplot(grid[0, width * i : width * (i + 1)])
        _mid_traces(ax, samples, mid, name, colours[name])
        ax.set_ylim(-top, top)

    ax = figure.add_subplot(grid[1, 0:2])
    span = (-top, top)
    for i, (name, samples) in enumerate(results.items()):
        series, last = samples.x[:, :, mid], i == len(results) - 1
        style = (
            {"histtype": "stepfilled", "alpha": 0.45} if last else {"histtype": "step", "lw": 1.3}
        )
        _histogram(ax, series, _weight(samples), "phi_mid", colours[name], span, name, **style)
    ax.plot(*_mid_density(target), color=EXACT, lw=1.4, label="exact")
    ax.set_xlim(*span)
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])
    name_axes(ax, "marginal of the middle site", _symbol("phi_mid"), "density")
    legend(ax, ncols=2)

    _demo_weights(figure.add_subplot(grid[1, 2:4]), results, colours, target)
    _fields(figure.add_subplot(grid[1, 4:6]), list(results.values())[-1], target)
    save(figure, path)


def _mid_traces(ax: Axes, samples: Samples, mid: int, name: str, colour: str) -> None:
    """The last draws of a few chains, and how often all chains changed phase in the whole run."""
    series = samples.x[:, :, mid]
    positive = series > 0
    changes = int((positive[:, 1:] != positive[:, :-1]).sum())
    _traces(ax, series[:, -N_LAST:], "phi_mid", colour, most=4)
    ax.axhline(0, color="#999999", lw=0.8)
    shown = (
        f"last {min(N_LAST, series.shape[1])} draws, {min(4, len(series))} of {len(series)} chains"
    )
    name_axes(ax, f"{name}: {changes:,} changes of phase", shown, _symbol("phi_mid"))


def _demo_weights(
    ax: Axes, results: Mapping[str, Samples], colours: Mapping[str, str], target: Phi4Chain
) -> None:
    weight_plus = top = target.exact.weight_plus
    for i, (name, samples) in enumerate(results.items()):
        weights, errors = metrics.mode_weights(samples, target)
        plus, error = float(weights[1]), float(errors[1])  # mode 1 is the positive phase
        ax.errorbar([i], [plus], [error], fmt="o", color=colours[name], ms=7, capsize=5)
        top = max(top, plus + error)
    ax.axhline(weight_plus, color=EXACT, lw=1.4, label=f"exact {weight_plus:.4f}")
    ax.set_xticks(range(len(results)), list(results))
    ax.set_xlim(-0.6, len(results) - 0.4)
    ax.set_ylim(0, 1.3 * top)
    name_axes(ax, "weight of the + phase, ± 1 s.e.", "", r"$P(\phi_{\mathrm{mid}} > 0)$")
    legend(ax)


def _fields(ax: Axes, samples: Samples, target: Phi4Chain) -> None:
    """A few whole configurations; the ends are held at zero."""
    n = target.n_sites
    x = samples.x[:, -1]  # (chain, n_sites), the last draw
    label = target.mode(x)
    for mode, colour in ((0, SKY), (1, ORANGE)):
        for field in _array(x[label == mode][:4]):
            ax.plot(np.arange(n + 2), np.pad(field, 1), color=colour, lw=0.9)
    ax.axhline(0, color="#999999", lw=0.8)
    ax.set_xlim(0, n + 1)
    name_axes(ax, "fields drawn, both phases", "site", r"$\phi$")


# ---------------------------------------------------------------------------- exact answers
def _mid_density(target: Phi4Chain) -> tuple[np.ndarray, np.ndarray]:
    return _array(target.exact.mid_grid), _array(target.exact.mid_density)


def _exact_density(name: str, target: Target | None) -> tuple[np.ndarray, np.ndarray] | None:
    if isinstance(target, Phi4Chain) and name == "phi_mid":
        return _mid_density(target)
    return None


def _exact_draws(name: str, target: Target | None) -> np.ndarray | None:
    """The series of this name over exact draws, if the target can make them."""
    if not isinstance(target, HasSampler):
        return None
    size = math.prod(target.event_shape)
    try:
        x = target.sample(max(1, min(N_EXACT, MAX_EXACT // max(1, size))), seed=0)
    except ValueError:  # out of reach for these parameters
        return None
    series: Mapping[str, Tensor] = (
        target.observables(x) if isinstance(target, HasObservables) else {}
    )
    if name == "log_prob":
        return _array(target.log_prob(x))
    if name in series:
        return _array(series[name])
    return _array(x.flatten(1)[:, int(name[2:-1])]) if name.startswith("x[") else None


# ---------------------------------------------------------------------------- dress
def _weight(samples: Samples) -> Tensor:
    if samples.log_weight is None:
        return torch.ones_like(samples.log_prob)
    return torch.softmax(samples.log_weight.double().flatten(), 0).reshape(samples.log_prob.shape)


def _span(series: Tensor, drawn: np.ndarray | None = None) -> tuple[float, float]:
    """The range that holds all but one in a thousand at each side."""
    values = _array(series).ravel()
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return (0.0, 1.0)
    ends = [np.quantile(values, (0.001, 0.999))]
    if drawn is not None:
        ends.append(np.quantile(drawn, (0.001, 0.999)))
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    pad = 0.05 * (high - low) or 0.5
    return float(low - pad), float(high + pad)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().to("cpu", torch.float64).numpy()


def _symbol(name: str) -> str:
    if name.startswith("x["):
        return f"$x_{{{name[2:-1]}}}$"
    return _SYMBOLS.get(name, name)


def name_axes(ax: Axes, title: str, x: str, y: str) -> None:
    if title:
        ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel(x, fontsize=10)
    ax.set_ylabel(y, fontsize=10)
    ax.tick_params(labelsize=9)
    ax.spines[["top", "right"]].set_visible(False)


def legend(ax: Axes, **how: Any) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9, **how)


def _verdict(figure: Figure, verdict: list[str]) -> None:
    text = verdict[0] if verdict else "nothing wrong was found"
    more = f" (and {len(verdict) - 1} more)" if len(verdict) > 1 else ""
    colour = VERMILLION if verdict else GREEN
    figure.supxlabel(f"verdict: {text}{more}", x=0.01, ha="left", fontsize=10, color=colour)


def save(figure: Figure, path: str | os.PathLike) -> None:
    path = Path(path)
    known = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"path must end in one of {', '.join(sorted(known))}, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
