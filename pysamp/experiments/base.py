"""What an experiment is: settings, a run, and rows of our numbers beside exact or published ones.

A row passes where the difference is within what its rule allows and our error is small enough for that
to mean something; a number that is not finite fails. Numbers are written with the error of the last
digits in brackets, 1.1199(1), as in the tables of CODATA (Tiesinga et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pysamp import errors
from pysamp.mcmc.base import Kernel
from pysamp.plots import name_axes
from pysamp.sampling import sample

Progress = Callable[[str], None]
SCALES = ("quick", "paper")
SIGMAS = 5.0


@dataclass(frozen=True)
class Row:
    """One number of ours beside the one it should be."""

    quantity: str
    ours: float
    error: float  # one standard error
    reference: float
    reference_error: float
    allowed: float  # largest difference that passes
    precision: float  # largest error of ours that passes
    rule: str
    source: str  # of the reference
    low: float = -math.inf  # least number that passes
    high: float = math.inf  # largest one

    @property
    def difference(self) -> float:
        return self.ours - self.reference

    @property
    def z(self) -> float:
        """The difference in standard errors of both; NaN where both are 0."""
        error = math.hypot(self.error, self.reference_error)
        return self.difference / error if error > 0 else math.nan

    @property
    def ok(self) -> bool:
        # Written so that NaN fails.
        inside = math.isfinite(self.ours) and self.low <= self.ours <= self.high
        return inside and abs(self.difference) <= self.allowed and self.error <= self.precision

    def to_dict(self) -> dict[str, Any]:
        names = (
            "quantity", "ours", "error", "reference", "reference_error", "difference", "z",
            "allowed", "low", "high", "precision", "rule", "source", "ok",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def equal(
    quantity: str, ours: Any, error: Any, reference: float, source: str, *, precision: float,
    reference_error: float = 0.0,
) -> Row:  # fmt: skip
    """A row that passes within 5 standard errors, if our error is at most `precision`."""
    ours, error = float(ours), float(error)
    allowed = SIGMAS * math.hypot(error, reference_error)
    rule = f"{SIGMAS:.0f}σ, σ ≤ {precision:.2g}"
    return Row(quantity, ours, error, reference, reference_error, allowed, precision, rule, source)


def near(
    quantity: str, ours: Any, error: Any, reference: float, source: str, *, tolerance: float,
    reference_error: float = 0.0,
) -> Row:  # fmt: skip
    """A row that passes within `tolerance`, for what has systematic errors, such as finite sizes."""
    ours, error = float(ours), float(error)
    rule = f"±{tolerance:.2g}"
    return Row(
        quantity, ours, error, reference, reference_error, tolerance, tolerance, rule, source
    )


def within(
    quantity: str, ours: Any, error: Any, reference: float, source: str, *,
    low: float = -math.inf, high: float = math.inf, precision: float = math.inf,
    reference_error: float = 0.0,
) -> Row:  # fmt: skip
    """A row that passes between two limits, whatever the reference: for what a method is known to miss."""
    ours, error = float(ours), float(error)
    if math.isinf(low):
        rule = f"≤ {high:.3g}"
    else:
        rule = f"≥ {low:.3g}" if math.isinf(high) else f"{low:.3g} … {high:.3g}"
    return Row(
        quantity, ours, error, reference, reference_error, math.inf, precision, rule, source, low, high
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run found; `data` are the numbers of the figures, for JSON."""

    rows: list[Row]
    data: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Callable[[Path], None]] = field(
        default_factory=dict
    )  # file name -> drawn


@dataclass(frozen=True, eq=False)
class Experiment:
    """One paper or topic. `settings` has an entry per scale, a frozen dataclass of sizes.

    run(settings, *, seed, device, progress) -> Outcome is a function of settings and seed. With files of
    `data`, which the package has no copy of, it is also given `data`, the folder that holds them.
    """

    title: str
    source: str
    settings: Mapping[str, Any]
    run: Callable[..., Outcome]
    data: tuple[str, ...] = ()


# ---------------------------------------------------------------------------- measuring
@dataclass(frozen=True)
class Chains:
    """How much is run. With 64 chains errors come from whole chains, which are independent."""

    n_draws: int
    warmup: int
    thin: int = 1
    n_chains: int = 64
    ordered: bool = False  # start from a constant field of length 1, else from random ones


@dataclass(frozen=True, eq=False)
class Measured:
    """Series of observables (chain, draw, …) float64 on the CPU, and their means with errors."""

    series: dict[str, Tensor]
    mean: dict[str, Tensor]
    error: dict[str, Tensor]


def measure(
    target: Any,
    kernel: Kernel,
    chains: Chains,
    *,
    seed: int,
    device: str | None = None,
    fields: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
) -> Measured:
    """Run chains and jackknife the means of observables, and what `target.derived` makes of them.

    For finite-size scaling also "Binder slope", the derivative of U by the factor β of the energy.

    Only observables leave the kernel, unless `fields` asks for more of the configurations: it maps them
    (n, *event_shape) to further series (n, …), and every draw is kept until it has seen them.
    """
    x0 = None
    if chains.ordered:
        x0 = torch.zeros(chains.n_chains, *target.event_shape, device=device)
        x0.view(chains.n_chains, *target.shape, -1)[..., 0] = 1.0
    samples = sample(
        target, kernel, n_chains=chains.n_chains, n_draws=chains.n_draws, warmup=chains.warmup,
        thin=chains.thin, seed=seed, device=device, x0=x0, progress=False,
        keep="x" if fields else "observables",
    )  # fmt: skip
    if fields is None:
        series = {name: samples.x[..., k] for k, name in enumerate(samples.names or ())}
    else:
        parts: dict[str, list[Tensor]] = {}
        for block in samples.blocks():
            flat = block.flatten(0, 1)
            for name, values in {**target.observables(flat), **fields(flat)}.items():
                by_chain = values.reshape(*block.shape[:2], *values.shape[1:])
                parts.setdefault(name, []).append(by_chain)
        series = {name: torch.cat(values, 1) for name, values in parts.items()}
    series = {name: values.to("cpu", torch.float64) for name, values in series.items()}
    energy = series["energy"]
    series["energy²"] = energy**2 + series.get("energy_within", 0.0)
    for power in ("magnetisation²", "magnetisation⁴"):
        series[f"energy·{power}"] = energy * series[power]
    n_sites = math.prod(target.shape)

    def derived(mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**mean, **target.derived(mean), "Binder slope": _binder_slope(mean, n_sites)}

    return Measured(series, *errors.jackknife(derived, series))


def _binder_slope(mean: Mapping[str, Tensor], n_sites: int) -> Tensor:
    """dU/dβ of U = 1 − ⟨m⁴⟩/(3⟨m²⟩²) from d⟨A⟩/dβ = −V (⟨A e⟩ − ⟨A⟩⟨e⟩), β a factor of the energy."""
    m2, m4 = mean["magnetisation²"], mean["magnetisation⁴"]
    d2, d4 = (
        -n_sites * (mean[f"energy·{a}"] - mean[a] * mean["energy"])
        for a in ("magnetisation²", "magnetisation⁴")
    )
    return (2 * m4 * d2 / m2 - d4) / (3 * m2**2)


# ---------------------------------------------------------------------------- text
def with_error(value: float, error: float) -> str:
    """1.23456(12): the last two digits of the value are uncertain by 12 of their units."""
    if not math.isfinite(value) or not math.isfinite(error):
        return f"{value:.6g}({error:.2g})"
    if error == 0:
        return f"{value:.7g}"
    digits = max(0, 1 - math.floor(math.log10(error)))  # decimals that show two digits of the error
    if digits and round(error * 10**digits) >= 100:  # 0.0996 is 0.100, not 0.0100
        digits -= 1
    bracket = f"{error:.{digits}f}" if error >= 1 else f"{round(error * 10**digits)}"
    return f"{value:.{digits}f}({bracket})"


# ---------------------------------------------------------------------------- figures
def panels(*names: tuple[str, str, str]) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, each with a title and the names of x and y."""
    figure = Figure(figsize=(5.2 * len(names), 4.2), layout="constrained")
    axes = [figure.add_subplot(1, len(names), i + 1) for i in range(len(names))]
    for ax, (title, x, y) in zip(axes, names, strict=True):
        name_axes(ax, title, x, y)
    return figure, axes


def points(ax: Axes, x: Any, y: Any, error: Any, label: str, colour: str, **how: Any) -> None:
    """Measured points with their errors."""
    style = {"fmt": "o", "ms": 4, "capsize": 2, "lw": 1, "color": colour, "label": label, **how}
    ax.errorbar(x, y, error, **style)
