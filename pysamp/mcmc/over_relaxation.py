"""Over-relaxation: every site in turn is reflected about its local field, at the same energy.

    s' = 2 (s·h/h²) h − s,   h = J Σ_{y~x} s_y.

Creutz, Phys. Rev. D 36, 515 (1987); Brown and Woch, Phys. Rev. Lett. 58, 2394 (1987). Sweeps in the order
of the sites move a field along coherently, and lower the exponent z of the autocorrelation time towards 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pysamp.mcmc import sites
from pysamp.mcmc.base import Info, State
from pysamp.target import Target


@dataclass(frozen=True)
class OverRelaxation:
    """One sweep over the lattice a step; never refused, nothing random, nothing to tune.

    It keeps the energy and the lengths of the sites, so alone it does not sample: let it take turns with
    `HeatBath` or `Metropolis` in a `Cycle`. For spins and soft fields of n ≥ 2 components.
    Cost: V local fields a step.

    Raises ValueError for one component, and for targets without a local field, such as tilted ones.
    """

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        sites.check_moves(target, ("reflect",))
        return sites.start(target, x, seed, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        return sites.sweeps(target, state, ("reflect",), n, thin)

    def measure(
        self, target: Target, state: State, n: int, *, thin: int, every: int = 1
    ) -> tuple[State, Info]:
        """As `HeatBath.measure`."""
        return sites.measure(target, state, ("reflect",), n, thin, every)
