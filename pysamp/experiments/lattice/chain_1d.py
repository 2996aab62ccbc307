"""One-dimensional fields against their transfer operators: Ising, XY, Heisenberg and φ⁴.

Exact: Ising (1925), Stanley, Phys. Rev. 179, 570 (1969), and the transfer matrix of φ⁴, all in
pysamp/theory/lattice.py. Each chain is drawn with another kernel; odd rings need three colours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pysamp import lattice
from pysamp.experiments.base import (
    Chains,
    Experiment,
    Measured,
    Outcome,
    Row,
    equal,
    measure,
    panels,
)
from pysamp.experiments.base import points as draw_points
from pysamp.mcmc import Cycle, HeatBath, Metropolis, OverRelaxation, SwendsenWang
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.targets import ON, Phi4
from pysamp.theory.lattice import Chain, phi4_ring, spin_chain

SOURCE = "transfer operator"


@dataclass(frozen=True)
class Case:
    name: str
    target: Any
    kernel: Any
    exact: Chain


def cases() -> list[Case]:
    def spins(
        name: str, kernel: Any, length: int, n: int, beta: float, periodic: bool = True
    ) -> Case:
        chain = spin_chain(length, n, beta, periodic)
        label = f"{name} L={length}" + ("" if periodic else " open")
        return Case(label, ON((length,), n, beta, periodic), kernel, chain)

    def phi4(kernel: Any, length: int, kappa: float, lam: float) -> Case:
        chain = phi4_ring(length, kappa, lam)
        return Case(f"φ⁴ L={length}", Phi4((length,), kappa, lam), kernel, chain)

    return [
        spins("Ising", HeatBath(), 32, 1, 1.0),
        spins("Ising", SwendsenWang(), 33, 1, 1.3),
        spins("Ising", Metropolis(), 21, 1, 0.7, periodic=False),
        spins("XY", Cycle(HeatBath(), OverRelaxation()), 24, 2, 2.0),
        spins("XY", Metropolis(width=2.0), 7, 2, 2.5),
        spins("Heisenberg", Cycle(HeatBath(), OverRelaxation()), 24, 3, 3.0),
        spins("Heisenberg", Metropolis(width=2.0), 16, 3, 2.0, periodic=False),
        spins("O(4)", Cycle(Metropolis(width=1.5), OverRelaxation()), 17, 4, 3.0),
        phi4(Metropolis(width=1.2), 15, 0.35, 0.5),
        phi4(HeatBath(), 16, 0.5, 1.0),
    ]


@dataclass(frozen=True)
class Settings:
    chains: Chains
    precision: float  # relative to the exact energy, the others in proportion


def run(
    settings: Settings, *, seed: int, device: str | None, progress: Callable[[str], None]
) -> Outcome:
    rows: list[Row] = []
    shown: list[tuple[Case, Measured]] = []
    for i, case in enumerate(cases()):
        progress(case.name)
        fields = functools.partial(_correlation, target=case.target)
        found = measure(
            case.target, case.kernel, settings.chains, seed=100 * seed + i, device=device,
            fields=fields,
        )  # fmt: skip
        rows += _rows(case, found, settings.precision)
        shown.append((case, found))
    figure, (ax,) = panels(("chains, lines exact", "r", r"$\langle \phi_0 \cdot \phi_r \rangle$"))
    data = {}
    rings = [(case, found) for case, found in shown if case.exact.periodic]
    for i, (case, found) in enumerate(rings):
        half = len(case.exact.two_point) // 2 + 1
        r, g, error = range(half), found.mean["G"][:half], found.error["G"][:half]
        ax.plot(r, case.exact.two_point[:half], color=EXACT, lw=0.8)
        colour, marker = CYCLE[i % len(CYCLE)], "os"[i // len(CYCLE)]
        draw_points(ax, r, g, error, case.name, colour, fmt=marker, ms=3)
        data[case.name] = {"G": g.tolist(), "error": error.tolist()}
    ax.set_yscale("log")
    legend(ax)
    return Outcome(rows, data, {"correlations.png": functools.partial(save, figure)})


def _correlation(x: Tensor, target: Any) -> dict[str, Tensor]:
    n = target.n_components if x.ndim == 3 else None
    return {"G": lattice.two_point(x, target.shape, n)}


def _rows(case: Case, found: Measured, precision: float) -> list[Row]:
    exact = case.exact
    expected = {
        "energy": exact.energy,
        "specific heat": exact.specific_heat,
        "magnetisation²": exact.magnetisation2,
    }
    if "phi²" in found.mean:
        expected["phi²"] = float(exact.two_point[0])
    if exact.periodic:
        expected["correlation length"] = exact.second_moment_length
    if exact.helicity is not None and exact.helicity > 0.01:  # it falls as e^{−L/ξ}
        expected["helicity"] = exact.helicity
    rough = {"specific heat": 10, "magnetisation²": 8, "helicity": 20, "correlation length": 20}
    rows = [
        equal(
            f"{case.name} {name}", found.mean[name], found.error[name], value, SOURCE,
            precision=precision * rough.get(name, 1) * abs(value),
        )
        for name, value in expected.items()
    ]  # fmt: skip
    if exact.periodic:
        g, error = found.mean["G"][3], found.error["G"][3]
        value, allowed = float(exact.two_point[3]), 3 * precision
        rows.append(equal(f"{case.name} G(3)", g, error, value, SOURCE, precision=allowed))
    return rows


EXPERIMENT = Experiment(
    title="chains of Ising, XY, Heisenberg, O(4) and φ⁴ against their transfer operators",
    source="Ising 1925; Stanley, Phys. Rev. 179, 570 (1969)",
    settings={
        "quick": Settings(Chains(n_draws=1000, warmup=500, thin=4), precision=0.003),
        "paper": Settings(
            Chains(n_draws=1000, warmup=1000, thin=40, n_chains=256), precision=0.001
        ),
    },
    run=run,
)
