"""2-D Ising: energy and specific heat on finite tori against the exact solution.

Kaufman, Phys. Rev. 76, 1232 (1949); Ferdinand and Fisher, Phys. Rev. 185, 832 (1969). Every kernel for
one-component spins takes part, and lattices of odd and of unequal extents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pysamp.experiments.base import Chains, Experiment, Outcome, Row, equal, measure, panels, points
from pysamp.mcmc import Cycle, HeatBath, Metropolis, SwendsenWang, Wolff
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.targets import ON
from pysamp.theory.ising import BETA_C_2D, torus

SOURCE = "Kaufman 1949"


@dataclass(frozen=True)
class Settings:
    chains: Chains
    sizes: tuple[int, ...]  # of the curves, drawn by Swendsen–Wang
    betas: tuple[float, ...]  # β_c is added
    precision: float  # relative error of the energy; ten times that of the specific heat


def local_cases() -> list[tuple[str, Any, tuple[int, int], float]]:
    """Other kernels, where they are fast."""
    return [
        ("Metropolis", Metropolis(), (12, 12), 0.38),
        ("Metropolis odd", Metropolis(), (9, 15), 0.35),
        ("heat bath", HeatBath(), (16, 16), 0.40),
        ("heat bath odd", HeatBath(), (13, 8), 0.5),
        ("Wolff", Wolff(), (24, 24), BETA_C_2D),
        ("Wolff + heat bath", Cycle(Wolff(), HeatBath()), (15, 20), 0.46),
    ]


def run(
    settings: Settings, *, seed: int, device: str | None, progress: Callable[[str], None]
) -> Outcome:
    cases: list[tuple[str, Any, tuple[int, int], float]] = local_cases()
    betas = sorted((*settings.betas, BETA_C_2D))
    cases += [
        ("SW", SwendsenWang(), (size, size), beta) for size in settings.sizes for beta in betas
    ]
    rows: list[Row] = []
    data: dict[str, Any] = {"cases": []}
    for i, (name, kernel, shape, beta) in enumerate(cases):
        label = f"{name} {shape[0]}×{shape[1]} β={beta:.4f}"
        progress(label)
        found = measure(
            ON(shape, 1, beta), kernel, settings.chains, seed=100 * seed + i, device=device
        )
        exact = torus(shape, beta)
        entry: dict[str, Any] = {"kernel": name, "shape": shape, "beta": beta}
        for quantity, short, value, factor in (
            ("energy", "e", exact.energy, 1),
            ("specific heat", "c", exact.specific_heat, 20),
        ):
            ours, error = float(found.mean[quantity]), float(found.error[quantity])
            precision = factor * settings.precision * abs(value)
            rows.append(equal(f"{label} {short}", ours, error, value, SOURCE, precision=precision))
            entry[quantity] = {"ours": ours, "error": error, "exact": value}
        data["cases"].append(entry)
    return Outcome(rows, data, {"curves.png": functools.partial(save, _figure(settings, data))})


def _figure(settings: Settings, data: dict[str, Any]) -> Any:
    figure, axes = panels(
        ("energy per site, lines exact", "β", "e"), ("specific heat, lines exact", "β", "c")
    )
    low, high = min(settings.betas) - 0.02, max(settings.betas) + 0.02
    line = torch.linspace(low, high, 241).tolist()
    for size, colour in zip(settings.sizes, CYCLE, strict=False):
        exact = [torus((size, size), beta) for beta in line]
        axes[0].plot(line, [e.energy for e in exact], color=EXACT, lw=0.7)
        axes[1].plot(line, [e.specific_heat for e in exact], color=EXACT, lw=0.7)
        drawn = [c for c in data["cases"] if c["kernel"] == "SW" and c["shape"][0] == size]
        for ax, quantity in zip(axes, ("energy", "specific heat"), strict=True):
            values = [c[quantity] for c in drawn]
            points(
                ax, [c["beta"] for c in drawn], [v["ours"] for v in values],
                [v["error"] for v in values], f"L = {size}", colour,
            )  # fmt: skip
    legend(axes[0])
    return figure


EXPERIMENT = Experiment(
    title="Ising model on finite tori: energy and specific heat against the exact solution",
    source="Kaufman, Phys. Rev. 76, 1232 (1949); Ferdinand and Fisher, Phys. Rev. 185, 832 (1969)",
    settings={
        "quick": Settings(
            Chains(1000, 300, ordered=True), (8, 16, 32, 64), (0.38, 0.42, 0.46, 0.5), 0.003
        ),
        "paper": Settings(
            Chains(3000, 500, ordered=True),
            (8, 16, 32, 64, 128),
            (0.36, 0.40, 0.43, 0.45, 0.48, 0.52),
            0.0015,
        ),
    },
    run=run,
)
