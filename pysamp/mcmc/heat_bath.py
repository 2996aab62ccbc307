"""Heat bath: every site in turn is drawn from its conditional density, given its neighbours.

For spins of length 1 that is exp(h·s) with the local field h: of an Ising spin exactly; of an XY spin by
one try of Best and Fisher, Appl. Statist. 28, 152 (1979); of a Heisenberg spin exactly, by inversion
(Miyatake, Yamamoto, Kim, Toyonaga, Nagai, J. Phys. C 19, 2539, 1986). A component of a φ⁴ or soft O(n)
field has exp(−A v² − B v⁴ + b v), and one try by rejection from a normal density. A refused try keeps the
old value and does not depend on it, so the conditional density stays invariant.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pysamp.mcmc import sites
from pysamp.mcmc.base import Info, State
from pysamp.target import Target


@dataclass(frozen=True)
class HeatBath:
    """One sweep over the lattice a step; there is nothing to tune.

    For spins of length 1 with n ≤ 3 components, and for fields with quartic conditional densities, also
    tempered or, for fields, tilted. `Info.accept` is the fraction of tries taken: 1 for n = 1 and 3,
    above 0.66 for XY, and for fields near 1 unless the conditional density has two peaks.
    Cost: V local fields a step, for n-component fields n V.

    Raises ValueError for other targets, and where a conditional density has no integral.
    """

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        sites.check_moves(target, ("heat_bath",))
        state = sites.start(target, x, seed, first_chain)
        sites.check_integrable(target, x)
        return state

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        return sites.sweeps(target, state, ("heat_bath",), n, thin)

    def measure(
        self, target: Target, state: State, n: int, *, thin: int, every: int = 1
    ) -> tuple[State, Info]:
        """n steps; `Info.x` is a record (capabilities.HasRecord) of every thin steps, the mean of those
        after every `every` of them, (n_chains, n // thin, 9), and `Info.log_prob` its first column."""
        return sites.measure(target, state, ("heat_bath",), n, thin, every)
