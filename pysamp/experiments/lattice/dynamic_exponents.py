"""2-D Ising at β_c: autocorrelation times grow as L^z.

Single-site Metropolis: z = 2.1667(5), Nightingale and Blöte, Phys. Rev. B 62, 1089 (2000), who fit their
times with corrections in powers of L⁻², as is done here. Cluster moves,
Swendsen and Wang, Phys. Rev. Lett. 58, 86 (1987), Wolff, Phys. Lett. A 228, 379 (1989): 0.2–0.3 at these
sizes, if not a logarithm. A Wolff step turns ⟨|C|⟩ sites over, so its time in sweeps is τ ⟨|C|⟩/V, and
⟨|C|⟩/V = ⟨m²⟩.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from pysamp.errors import integrated_time
from pysamp.experiments.base import (
    Chains,
    Experiment,
    Outcome,
    Progress,
    Row,
    equal,
    measure,
    near,
    panels,
    points,
)
from pysamp.experiments.scaling import power
from pysamp.mcmc import Metropolis, SwendsenWang, Wolff
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.targets import ON
from pysamp.theory.ising import BETA_C_2D, Z_METROPOLIS_2D, Z_METROPOLIS_2D_ERROR, Z_WOLFF_2D, torus


@dataclass(frozen=True)
class Algorithm:
    name: str
    sizes: str  # the entry of the settings
    kernel: Any
    slowest: str  # the observable whose τ is fitted
    z: float
    z_error: float
    source: str
    tolerance: float
    correction: float | None = None  # power of 1/L that is fitted, too


ALGORITHMS = (
    Algorithm(
        "Metropolis", "metropolis", Metropolis(), "magnetisation", Z_METROPOLIS_2D, Z_METROPOLIS_2D_ERROR,
        "Nightingale and Blöte 2000", 0.15, 2.0,
    ),
    Algorithm(
        "Swendsen–Wang", "swendsen_wang", SwendsenWang(), "energy", sum(Z_WOLFF_2D) / 2, 0.05,
        "Swendsen and Wang 1987, later work", 0.1,
    ),
    Algorithm(
        "Wolff", "wolff", Wolff(), "energy", sum(Z_WOLFF_2D) / 2, 0.05, "Wolff 1989, later work", 0.1,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    metropolis: tuple[int, ...]  # sizes
    swendsen_wang: tuple[int, ...]
    wolff: tuple[int, ...]
    local_draws: int  # of every chain, about eight a correlation time
    cluster_draws: int
    n_chains: int


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    figure, (ax,) = panels(("2-D Ising at β_c, lines fitted", "L", "τ in sweeps"))
    for i, (algorithm, colour) in enumerate(zip(ALGORITHMS, CYCLE, strict=False)):
        sizes = getattr(settings, algorithm.sizes)
        times = []
        for k, size in enumerate(sizes):
            progress(f"{algorithm.name} L={size}")
            *found, check = _time(algorithm, size, settings, 1000 * seed + 100 * i + k, device)
            times.append(found)
            rows.append(check)
        tau, error = torch.tensor(times, dtype=torch.float64).T
        z, z_error, chi2, curve = power(sizes, tau, error, algorithm.correction)
        rows.append(
            near(
                f"z of {algorithm.name}", z, z_error, algorithm.z, algorithm.source,
                reference_error=algorithm.z_error, tolerance=algorithm.tolerance,
            )
        )  # fmt: skip
        data[algorithm.name] = {
            "sizes": list(sizes), "tau": tau.tolist(), "error": error.tolist(), "z": z,
            "chi2 per dof": chi2,
        }  # fmt: skip
        points(ax, sizes, tau, error, f"{algorithm.name}, z = {z:.2f}", colour)
        lengths = torch.logspace(math.log10(sizes[0]), math.log10(sizes[-1]), 50).double()
        ax.plot(lengths, curve(lengths), color=EXACT, lw=0.8)
    ax.set_xscale("log")
    ax.set_yscale("log")
    legend(ax)
    return Outcome(rows, data, {"exponents.png": functools.partial(save, figure)})


def _time(
    algorithm: Algorithm, size: int, settings: Settings, seed: int, device: str | None
) -> tuple[float, float, Row]:
    """τ_int in sweeps with its error, and a row that says whether the density is right."""
    local = algorithm.name == "Metropolis"
    # τ of the magnetisation is about 0.7 L^2.17 sweeps.
    thin = max(1, round(0.1 * size**Z_METROPOLIS_2D)) if local else 1
    chains = Chains(
        n_draws=settings.local_draws if local else settings.cluster_draws,
        warmup=70 * thin if local else 200,
        thin=thin,
        n_chains=settings.n_chains,
        ordered=not local,  # from random spins Wolff's clusters stay small for long
    )
    found = measure(
        ON((size, size), 1, BETA_C_2D), algorithm.kernel, chains, seed=seed, device=device
    )
    time = integrated_time(found.series[algorithm.slowest])
    unit = float(thin)
    if algorithm.name == "Wolff":
        unit = float(found.mean["magnetisation²"])  # = ⟨|C|⟩/V
    exact = torus((size, size), BETA_C_2D).energy
    check = equal(
        f"{algorithm.name} L={size} energy", found.mean["energy"], found.error["energy"], exact,
        "Kaufman 1949", precision=0.01,
    )  # fmt: skip
    return time.tau * unit, time.error * unit, check


EXPERIMENT = Experiment(
    title="2-D Ising: dynamic exponents of Metropolis, Swendsen–Wang and Wolff",
    source="Nightingale and Blöte, Phys. Rev. B 62, 1089 (2000); Wolff, Phys. Lett. A 228, 379 (1989)",
    settings={
        "quick": Settings((6, 8, 12, 16, 24), (8, 16, 32, 64), (16, 32, 64, 128), 8000, 1500, 64),
        "paper": Settings(
            (6, 8, 12, 16, 24, 32), (16, 32, 64, 128), (16, 32, 64, 128, 256), 20_000, 5000, 64
        ),
    },
    run=run,
)
