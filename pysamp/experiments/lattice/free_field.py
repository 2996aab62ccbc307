"""Free fields: the spectrum that is drawn against the lattice propagator 1/(J k̂² + m²).

λ = 0 in the action of Lüscher and Weisz, Nucl. Phys. B 290, 25 (1987); the soft O(n) model at u = 0; and
its limit n → ∞, a free field whose mass solves the gap equation (Stanley, Phys. Rev. 176, 718 (1968)).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pysamp import lattice
from pysamp.experiments.base import (
    Chains,
    Experiment,
    Measured,
    Outcome,
    Progress,
    Row,
    equal,
    measure,
    near,
    panels,
    points,
)
from pysamp.mcmc import HMC, Cycle, HeatBath, Metropolis, OverRelaxation, SwendsenWang
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.targets import ON, Phi4
from pysamp.theory.lattice import gap_mass2, lattice_momenta_squared, phi4_propagator, propagator

SOURCE = "propagator"


@dataclass(frozen=True)
class Case:
    name: str
    target: Any
    kernel: Any
    spectrum: Tensor  # ⟨|φ_k|²⟩/V summed over components


def cases() -> list[Case]:
    # HMC's trajectories stay below half a period of the fastest mode, after which a mode would be where
    # it began but for its sign: 0.3 · 4 < π/√3.8.
    def phi4(name: str, kernel: Any, shape: tuple[int, ...], kappa: float) -> Case:
        return Case(name, Phi4(shape, kappa, 0.0), kernel, phi4_propagator(shape, kappa))

    square, r, u = (12, 12), -1.0, 4.0
    return [
        phi4("heat bath 16×16", HeatBath(), (16, 16), 0.23),
        phi4("Metropolis 9×12", Metropolis(width=1.0), (9, 12), 0.22),
        phi4("HMC 8×8×8", HMC(step_size=0.3, n_leapfrog=4), (8, 8, 8), 0.15),
        phi4("SW + heat bath 10×10", Cycle(SwendsenWang(), HeatBath()), (10, 10), 0.23),
        Case(
            "O(2) with reflections",
            ON.soft(square, 2, 0.2, 0.0),
            Cycle(HeatBath(), OverRelaxation()),
            2 * propagator(square, 0.2),
        ),
        Case(
            "n → ∞ heat bath",
            ON.large_n(square, r, u),
            HeatBath(),
            propagator(square, gap_mass2(square, r, u)),
        ),
    ]


@dataclass(frozen=True)
class Settings:
    chains: Chains
    precision: float  # relative


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    figure, (ax,) = panels(
        ("free fields, lines exact", r"$\hat k^2$", r"$\langle|\phi_k|^2\rangle/V$")
    )
    for i, (case, colour) in enumerate(zip(cases(), CYCLE, strict=True)):
        progress(case.name)
        found = measure(
            case.target, case.kernel, settings.chains, seed=100 * seed + i, device=device,
            fields=functools.partial(_spectrum, target=case.target),
        )  # fmt: skip
        rows += _rows(case, found, settings.precision)
        # One of each pair k, −k, in the order of k̂².
        momenta = lattice_momenta_squared(case.target.shape).flatten()
        order = momenta.argsort(stable=True)
        s, error = found.mean["S"].flatten()[order], found.error["S"].flatten()[order]
        ax.plot(momenta[order], case.spectrum.flatten()[order], color=EXACT, lw=0.7)
        points(ax, momenta[order], s, error, case.name, colour, ms=2)
        data[case.name] = {"k²": momenta[order].tolist(), "S": s.tolist(), "error": error.tolist()}
    ax.set_yscale("log")
    legend(ax)
    return Outcome(rows, data, {"spectrum.png": functools.partial(save, figure)})


def _spectrum(x: Tensor, target: Any) -> dict[str, Tensor]:
    n = target.n_components if x.ndim > 1 + len(target.shape) else None
    return {"S": lattice.structure_factor(x, target.shape, n)}


def _rows(case: Case, found: Measured, precision: float) -> list[Row]:
    exact = case.spectrum
    components = case.target.n_components
    d = exact.ndim
    corner = tuple(extent // 2 for extent in exact.shape)
    smallest = (0,) * (d - 1) + (1,)
    expected = {
        "energy": (found.mean["energy"], found.error["energy"], components / 2, 1),
        "specific heat": (
            found.mean["specific heat"], found.error["specific heat"], components / 2, 10,
        ),
        "φ²": (found.mean["phi²"], found.error["phi²"], float(exact.mean()), 2),
    }  # fmt: skip
    for name, k in (("S(0)", (0,) * d), ("S(k min)", smallest), ("S(k max)", corner)):
        expected[name] = (found.mean["S"][k], found.error["S"][k], float(exact[k]), 10)
    rows = [
        equal(
            f"{case.name} {name}", ours, error, value, SOURCE, precision=factor * precision * value
        )
        for name, (ours, error, value, factor) in expected.items()
    ]
    # S(k) = S(−k): half of the modes are independent, and χ² of them varies by √(2/modes).
    chi2 = float((((found.mean["S"] - exact) / found.error["S"]) ** 2).mean())
    tolerance = 5 * math.sqrt(4 / exact.numel())
    rows.append(near(f"{case.name} χ²/modes", chi2, 0.0, 1.0, SOURCE, tolerance=tolerance))
    return rows


EXPERIMENT = Experiment(
    title="free fields against the lattice propagator",
    source="Lüscher and Weisz, Nucl. Phys. B 290, 25 (1987); Stanley, Phys. Rev. 176, 718 (1968)",
    settings={
        "quick": Settings(Chains(500, 300, thin=5), precision=0.004),
        "paper": Settings(Chains(500, 500, thin=30, n_chains=128), precision=0.001),
    },
    run=run,
)
