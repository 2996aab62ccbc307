"""2-D XY: the helicity modulus jumps to 2T/π at the transition, and reaches it as 1/ln L.

Nelson and Kosterlitz, Phys. Rev. Lett. 39, 1201 (1977). At T_KT the modulus of a finite lattice is

    Υ(L) = (2T/π) [1 + 1/(2 ln L + C)],

and only there: Weber and Minnhagen, Phys. Rev. B 37, 5986 (1988), find T_KT as the temperature at which one
C fits all sizes. Reference: T_KT = 0.8929(1), from β = 1.1199(1) of Hasenbusch, J. Phys. A 38, 5869 (2005).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysamp.experiments.base import Chains, Experiment, Outcome, Progress, Row, near, panels, points
from pysamp.experiments.scaling import Curves, curves
from pysamp.mcmc import Cycle, HeatBath, OverRelaxation
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.targets import ON
from pysamp.theory.lattice import T_KT, T_KT_ERROR

WHERE = "Hasenbusch 2005"


@dataclass(frozen=True)
class Settings:
    chains: Chains
    sizes: tuple[int, ...]
    temperatures: tuple[float, ...]  # T_KT is added
    fit_from: int  # smallest size of the fits
    tolerance: float  # of T_KT


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    temperatures = torch.tensor(sorted((*settings.temperatures, T_KT)), dtype=torch.float64)
    kernel = Cycle(HeatBath(), *(OverRelaxation(),) * 4)
    found = curves(
        lambda size, t: ON((size, size), 2, 1 / t), kernel, settings.sizes, temperatures,
        settings.chains, seed=seed, device=device, progress=progress,
    )  # fmt: skip
    used = [k for k, size in enumerate(settings.sizes) if size >= settings.fit_from]
    lengths = torch.tensor([settings.sizes[k] for k in used], dtype=torch.float64)
    jump, jump_error = found.mean["helicity"][used], found.error["helicity"][used]

    fits = [
        fit_constant(lengths, jump[:, k] * math.pi / (2 * t), jump_error[:, k] * math.pi / (2 * t))
        for k, t in enumerate(temperatures.tolist())
    ]
    chi2 = torch.tensor([fit[2] for fit in fits], dtype=torch.float64)
    best, best_error = least(temperatures, chi2)
    here = temperatures.tolist().index(T_KT)
    amplitude, amplitude_error = fit_amplitude(
        lengths, jump[:, here] / T_KT, jump_error[:, here] / T_KT
    )
    rows: list[Row] = [
        near("T_KT, where one C fits all sizes", best, best_error, T_KT, WHERE,
             reference_error=T_KT_ERROR, tolerance=settings.tolerance),
        near("Υ/T at 0.8929, L → ∞", amplitude, amplitude_error, 2 / math.pi,
             "Nelson and Kosterlitz 1977", tolerance=0.02),
    ]  # fmt: skip
    data = found.to_dict("helicity", "energy") | {
        "fits": [dict(zip(("C", "C error", "chi2"), fit, strict=True)) for fit in fits]
    }
    figure = _figure(settings, found, fits[here][0], temperatures, chi2 / (len(used) - 1))
    return Outcome(rows, data, {"helicity.png": functools.partial(save, figure)})


def fit_constant(lengths: Tensor, y: Tensor, error: Tensor) -> tuple[float, float, float]:
    """C of y = 1 + 1/(2 ln L + C), its error, and χ²: Gauss–Newton from the largest size."""
    start = float(1 / (y[-1] - 1) - 2 * lengths[-1].log()) if float(y[-1]) > 1 else 50.0
    lowest = float(-2 * lengths[0].log()) + 1e-3  # of C, for a finite fit
    c = max(start, lowest)
    for _ in range(200):
        x = 2 * lengths.log() + c
        slope = -(x**-2) / error
        step = float((slope * (y - 1 - 1 / x) / error).sum() / (slope**2).sum())
        new = max(c + step, (c + lowest) / 2)
        if abs(new - c) < 1e-10 * (1 + abs(c)) or new > 1e6:  # no C fits a Υ below the jump
            break
        c = new
    x = 2 * lengths.log() + c
    chi2 = float((((y - 1 - 1 / x) / error) ** 2).sum())
    return c, float((x**-4 / error**2).sum() ** -0.5), chi2


def fit_amplitude(lengths: Tensor, y: Tensor, error: Tensor) -> tuple[float, float]:
    """A of y = A [1 + 1/(2 ln L + C)], free C, with its error: χ² is scanned in C, A is linear."""
    c = torch.linspace(float(-2 * lengths[0].log()) + 0.5, 40.0, 20_001, dtype=torch.float64)
    shape = 1 + 1 / (2 * lengths.log()[:, None] + c)  # (sizes, c)
    w = (error**-2)[:, None]
    a = (w * shape * y[:, None]).sum(0) / (w * shape**2).sum(0)
    chi2 = (w * (y[:, None] - a * shape) ** 2).sum(0)
    best = int(chi2.argmin())
    inside = a[chi2 <= chi2[best] + 1]
    return float(a[best]), float(inside.max() - inside.min()) / 2


def least(x: Tensor, chi2: Tensor) -> tuple[float, float]:
    """Minimum of the parabola through the least χ² and its neighbours, and where it is 1 higher."""
    k = int(chi2.argmin().clamp(1, len(x) - 2))
    powers = torch.stack([x[k - 1 : k + 2] ** p for p in range(3)], 1)
    _, b, c = torch.linalg.solve(powers, chi2[k - 1 : k + 2]).tolist()
    return (-b / (2 * c), c**-0.5) if c > 0 else (math.nan, math.nan)


def _figure(settings: Settings, found: Curves, constant: float, t: Tensor, chi2: Tensor) -> Any:
    figure, (raw, rescaled, fit) = panels(
        ("helicity modulus", "T", "Υ"),
        ("at 0.8929, line 1 + 1/(2 ln L + C)", "L", "π Υ / 2T"),
        ("one C for all sizes", "T", "χ² per degree of freedom"),
    )
    for k, (size, colour) in enumerate(zip(settings.sizes, CYCLE, strict=False)):
        y, error = found.mean["helicity"][k], found.error["helicity"][k]
        points(raw, t, y, error, f"L = {size}", colour, fmt="o-")
    raw.plot(t, 2 * t / math.pi, color=EXACT, lw=1, label="2T/π")
    raw.axvline(T_KT, color="#999999", lw=0.8)
    legend(raw)
    here = t.tolist().index(T_KT)
    factor = math.pi / (2 * T_KT)
    y, error = found.mean["helicity"][:, here] * factor, found.error["helicity"][:, here] * factor
    points(rescaled, settings.sizes, y, error, "", CYCLE[0])
    lengths = torch.logspace(math.log10(settings.fit_from), 3, 100)
    rescaled.plot(lengths, 1 + 1 / (2 * lengths.log() + constant), color=EXACT, lw=1)
    rescaled.set_xscale("log")
    fit.plot(t, chi2, "o-", color=CYCLE[1], ms=4)
    fit.axvline(T_KT, color="#999999", lw=0.8)
    fit.set_yscale("log")
    return figure


EXPERIMENT = Experiment(
    title="2-D XY: helicity modulus and the universal jump at T_KT",
    source="Nelson, Kosterlitz, PRL 39, 1201 (1977); Weber, Minnhagen, PRB 37, 5986 (1988)",
    settings={
        "quick": Settings(
            Chains(1000, 300, thin=2, ordered=True),
            (8, 16, 24, 32, 48, 64),
            (0.85, 0.87, 0.88, 0.90, 0.92),
            16,
            0.015,
        ),
        "paper": Settings(
            Chains(3000, 1000, thin=3, ordered=True),
            (8, 16, 32, 64, 96, 128),
            (0.86, 0.875, 0.885, 0.89, 0.90, 0.91),
            32,
            0.006,
        ),
    },
    run=run,
)
