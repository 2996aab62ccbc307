"""3-D Ising class: crossings of ⟨m⁴⟩/⟨m²⟩² for spins, and for the improved φ⁴ field.

Spins: β_c and the universal value 1.6036(1) of the ratio are those of Hasenbusch, Phys. Rev. B 82, 174433
(2010). Their corrections fall as L^{−ω}, ω = 0.832; the φ⁴ field at λ = 1.1 has hardly any, and its
2κ_c = 0.3750966(4) is that of Hasenbusch, J. Phys. A 32, 4851 (1999).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pysamp.experiments.base import Chains, Experiment, Outcome, Progress, Row, near
from pysamp.experiments.scaling import Curves, curves, least_squares, polynomial
from pysamp.lattice import crossing
from pysamp.lattice_plots import plot_scaling
from pysamp.mcmc import Cycle, HeatBath, Wolff
from pysamp.targets import ON, Phi4
from pysamp.theory import ising

LAM_IMPROVED = 1.1
KAPPA_C_IMPROVED = 0.3750966 / 2  # (4)/2, at λ = 1.1: Hasenbusch (1999)


@dataclass(frozen=True)
class Settings:
    spins: Chains
    sizes: tuple[int, ...]
    field: Chains
    field_sizes: tuple[int, ...]
    reach: float  # largest |β − β_c| / β_c times L^{1/ν} of the largest size
    n_betas: int
    tolerance: float  # relative, of the critical coupling


@dataclass(frozen=True)
class Model:
    name: str
    file: str
    symbol: str  # of the coupling
    target: Callable[[int, float], Any]
    kernel: Any
    critical: float
    source: str


MODELS = (
    Model(
        "Ising", "spins.png", r"\beta", lambda size, beta: ON((size,) * 3, 1, beta), Wolff(),
        ising.BETA_C_3D, "Hasenbusch 2010",
    ),
    # Cluster moves keep |φ|: a local kernel takes turns with them.
    Model(
        "φ⁴", "field.png", r"\kappa", lambda size, kappa: Phi4((size,) * 3, kappa, LAM_IMPROVED),
        Cycle(Wolff(), HeatBath()), KAPPA_C_IMPROVED, "Hasenbusch 1999",
    ),
)  # fmt: skip


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    figures = {}
    for i, model in enumerate(MODELS):
        spins = model.name == "Ising"
        sizes = settings.sizes if spins else settings.field_sizes
        reach = settings.reach * model.critical * max(sizes) ** (-1 / ising.NU_3D)
        offset = torch.linspace(-reach, reach, settings.n_betas, dtype=torch.float64)
        progress(model.name)
        found = curves(
            model.target, model.kernel, sizes, model.critical + offset,
            settings.spins if spins else settings.field, seed=2 * seed + i, device=device,
            progress=progress,
        )  # fmt: skip
        rows += _rows(model, found, settings)
        data[model.name] = found.to_dict("Binder")
        figures[model.file] = functools.partial(
            plot_scaling, sizes, found.at, found.mean["Binder"], found.error["Binder"],
            x_c=model.critical, nu=ising.NU_3D, x_name=model.symbol,
        )  # fmt: skip
    return Outcome(rows, data, figures)


def _rows(model: Model, found: Curves, settings: Settings) -> list[Row]:
    u, error = found.mean["Binder"], found.error["Binder"]
    sizes = found.sizes
    rows = []
    for small, large in ((size, 2 * size) for size in sizes if 2 * size in sizes):
        k, j = sizes.index(small), sizes.index(large)
        at = crossing(found.at, u[k], u[j], (error[k], error[j]))
        rows.append(
            near(
                f"{model.name} crossing, L = {small}, {large}",
                at.x,
                at.x_error,
                model.critical,
                model.source,
                tolerance=settings.tolerance * model.critical * (sizes[-1] / large) ** 2,
            )
        )
    middle = len(found.at) // 2
    ratio, ratio_error = 3 * (1 - u[:, middle]), 3 * error[:, middle]
    lengths = torch.tensor(sizes, dtype=torch.float64)
    if model.name == "Ising":
        fit, errors, _ = least_squares(polynomial(lengths**-ising.OMEGA_3D, 1), ratio, ratio_error)
        value, spread = float(fit[0]), float(errors[0])
        label = "Ising ⟨m⁴⟩/⟨m²⟩², L → ∞"
    else:
        value, spread = float(ratio[-1]), float(ratio_error[-1])
        label = f"{model.name} ⟨m⁴⟩/⟨m²⟩², L = {sizes[-1]}"
    rows.append(
        near(
            label,
            value,
            spread,
            ising.BINDER_RATIO_3D,
            "Hasenbusch 2010",
            tolerance=0.02,
            reference_error=ising.BINDER_RATIO_3D_ERROR,
        )
    )
    return rows


EXPERIMENT = Experiment(
    title="3-D Ising class: crossing of ⟨m⁴⟩/⟨m²⟩² for spins and for improved φ⁴",
    source="Hasenbusch, Phys. Rev. B 82, 174433 (2010); J. Phys. A 32, 4851 (1999)",
    settings={
        "quick": Settings(
            spins=Chains(1200, 200, thin=2, ordered=True),
            sizes=(6, 8, 12, 16),
            field=Chains(500, 200, thin=2, ordered=True),
            field_sizes=(8, 16),
            reach=0.6,
            n_betas=5,
            tolerance=2e-3,
        ),
        "paper": Settings(
            spins=Chains(2000, 300, thin=3, ordered=True),
            sizes=(8, 12, 16, 24, 32),
            field=Chains(1200, 300, thin=2, ordered=True),
            field_sizes=(8, 12, 16, 24),
            reach=0.6,
            n_betas=5,
            tolerance=3e-4,
        ),
    },
    run=run,
)
