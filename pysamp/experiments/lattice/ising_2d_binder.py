"""2-D Ising: the cumulants of all sizes cross at β_c = ln(1 + √2)/2 (Onsager, 1944).

U = 1 − ⟨m⁴⟩/(3⟨m²⟩²), Binder, Z. Phys. B 43, 119 (1981); its value at β_c on the square torus: Kamieniarz
and Blöte, J. Phys. A 26, 201 (1993). The exponents that scale the curves, ν = 1 and γ/ν = 7/4, are exact.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise

import torch

from pysamp.experiments.base import Chains, Experiment, Outcome, Progress, Row, near
from pysamp.experiments.scaling import curves, power
from pysamp.lattice import crossing
from pysamp.lattice_plots import plot_scaling
from pysamp.mcmc import Wolff
from pysamp.targets import ON
from pysamp.theory.ising import BETA_C_2D, BINDER_2D, NU_2D


@dataclass(frozen=True)
class Settings:
    chains: Chains
    sizes: tuple[int, ...]
    reach: float  # largest |β − β_c| times the largest size
    n_betas: int
    tolerance: float  # of β_c from the largest pair; that of the others grows as corrections do


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    sizes = settings.sizes
    reach = settings.reach / max(sizes)
    offset = torch.linspace(-reach, reach, settings.n_betas, dtype=torch.float64)
    found = curves(
        lambda size, beta: ON((size, size), 1, beta), Wolff(), sizes, BETA_C_2D + offset,
        settings.chains, seed=seed, device=device, progress=progress,
    )  # fmt: skip
    u, error = found.mean["Binder"], found.error["Binder"]
    rows: list[Row] = []
    for k, (small, large) in enumerate(pairwise(sizes)):
        at = crossing(found.at, u[k], u[k + 1], (error[k], error[k + 1]), seed=seed)
        name = f"L = {small}, {large}"
        rows += [
            near(
                f"β of the crossing, {name}", at.x, at.x_error, BETA_C_2D, "Onsager 1944",
                tolerance=settings.tolerance * (sizes[-1] / large) ** 2,
            ),
            near(
                f"U at the crossing, {name}", at.y, at.y_error, BINDER_2D,
                "Kamieniarz and Blöte 1993", tolerance=0.006,
            ),
        ]  # fmt: skip
    middle = settings.n_betas // 2
    chi = found.mean["magnetisation²"][:, middle], found.error["magnetisation²"][:, middle]
    b, b_error, *_ = power(sizes, *chi)
    rows.append(near("γ/ν from V⟨m²⟩ at β_c", 2 + b, b_error, 1.75, "exact", tolerance=0.02))
    slope = found.mean["Binder slope"][:, middle], found.error["Binder slope"][:, middle]
    b, b_error, *_ = power(sizes, *slope)
    rows.append(near("1/ν from dU/dβ at β_c", b, b_error, 1 / NU_2D, "exact", tolerance=0.05))
    draw = functools.partial(
        plot_scaling,
        sizes,
        found.at,
        u,
        error,
        x_c=BETA_C_2D,
        nu=NU_2D,
        crossing=at,
        x_name=r"\beta",
    )
    data = found.to_dict("Binder", "Binder slope", "magnetisation²", "susceptibility")
    return Outcome(rows, data, {"binder.png": draw})


EXPERIMENT = Experiment(
    title="2-D Ising: crossing of Binder's cumulant",
    source="Binder, Z. Phys. B 43, 119 (1981); Kamieniarz and Blöte, J. Phys. A 26, 201 (1993)",
    settings={
        "quick": Settings(Chains(4000, 200, thin=2, ordered=True), (8, 16, 32, 64), 0.2, 5, 3e-4),
        "paper": Settings(Chains(8000, 500, thin=3, ordered=True), (16, 32, 64, 128), 0.2, 5, 5e-5),
    },
    run=run,
)
