"""Soft O(n) fields against n → ∞, to which they come as a + b/n.

H = ½ Σ (∇φ)² + Σ [½ r φ² + (u/4n)(φ²)²]. At n → ∞ a component is a free field whose mass solves the gap
equation m² = r + (u/V) Σ_k 1/(k̂² + m²): Stanley, Phys. Rev. 176, 718 (1968). b is the first correction,
of Gaussian fluctuations of φ²: Moshe and Zinn-Justin, Phys. Rep. 385, 69 (2003).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from pysamp.experiments.base import (
    Chains,
    Experiment,
    Outcome,
    Progress,
    Row,
    measure,
    near,
    panels,
    points,
)
from pysamp.experiments.scaling import least_squares, polynomial
from pysamp.mcmc import Cycle, HeatBath, OverRelaxation
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.targets import ON
from pysamp.theory.lattice import gap_mass2, large_n_phi2, propagator

COMPONENTS = (1, 2, 3, 4, 5, 6, 7, 8)
FITTED = (3, 4, 5, 6, 7, 8)  # to a + b/n + c/n²
GAP = "gap equation"


@dataclass(frozen=True)
class Settings:
    chains: Chains
    shape: tuple[int, ...] = (8, 8)
    r: float = 0.5
    u: float = 1.0
    tolerance: float = 0.01  # relative, of a


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    shape, r, u = settings.shape, settings.r, settings.u
    found = []
    for n in COMPONENTS:
        progress(f"n = {n}")
        # One component has no reflection that would not be a flip of its sign.
        kernel = HeatBath() if n == 1 else Cycle(HeatBath(), OverRelaxation())
        target = ON.soft(shape, n, r, u)
        found.append(measure(target, kernel, settings.chains, seed=100 * seed + n, device=device))
    inverse = 1 / torch.tensor(COMPONENTS, dtype=torch.float64)
    g = propagator(shape, gap_mass2(shape, r, u))
    a, b = large_n_phi2(shape, r, u)
    volume = g.numel()
    quantities = {  # name: in the record, its factor, the limit
        "⟨φ²⟩/n": ("phi²", 1.0, a),
        "S(0)/n": ("magnetisation²", float(volume), float(g.flatten()[0])),
        "S(k min)/n": ("structure", float(volume), float(g.flatten()[1])),
    }
    rows: list[Row] = []
    data: dict[str, Any] = {"n": list(COMPONENTS), "b of ⟨φ²⟩/n": b}
    figure, axes = panels(*((f"{name}, diamond: n → ∞", "1/n", name) for name in quantities))
    for ax, (name, (key, factor, limit)) in zip(axes, quantities.items(), strict=True):
        y = torch.stack([f.mean[key] for f in found]) * factor * inverse
        error = torch.stack([f.error[key] for f in found]) * factor * inverse
        used = [COMPONENTS.index(n) for n in FITTED]
        value, spread, _ = least_squares(polynomial(inverse[used], 2), y[used], error[used])
        rows.append(
            near(
                f"{name}, n → ∞", value[0], spread[0], limit, GAP,
                tolerance=settings.tolerance * limit * (1 if name == "⟨φ²⟩/n" else 3),
            )
        )  # fmt: skip
        if name == "⟨φ²⟩/n":
            rows.append(
                near(
                    f"b of {name} = a + b/n", value[1], spread[1], b, "1/n expansion",
                    tolerance=0.15 * abs(b),
                )
            )  # fmt: skip
            ax.plot([0, 0.5], [limit, limit + b / 2], color=EXACT, lw=0.8, label="a + b/n, exact")
        points(ax, inverse, y, error, "drawn", CYCLE[0])
        ax.plot([0], [limit], "D", color=EXACT, ms=5)
        ax.set_xlim(left=-0.02)
        legend(ax)
        data[name] = {"ours": y.tolist(), "error": error.tolist(), "limit": limit}
    return Outcome(rows, data, {"large_n.png": functools.partial(save, figure)})


EXPERIMENT = Experiment(
    title="soft O(n) fields, n = 1 … 8, and their limit n → ∞",
    source="Stanley, Phys. Rev. 176, 718 (1968); Moshe, Zinn-Justin, Phys. Rep. 385, 69 (2003)",
    settings={
        "quick": Settings(Chains(2000, 300)),
        "paper": Settings(Chains(20_000, 500, n_chains=128), tolerance=0.003),
    },
    run=run,
)
