"""Exact answers in float64: transfer matrices, exact draws, quadrature and finite Markov chains.

Functions take parameters, never targets.
"""

from pysamp.exact.chain import Phi4ChainExact, phi4_chain
from pysamp.exact.chain_draws import phi4_chain_draws
from pysamp.exact.lattice import Phi4LatticeExact, phi4_lattice
from pysamp.exact.markov import stationary_distribution
from pysamp.exact.quadrature import Moments1d, Moments2d, moments_1d, moments_2d

__all__ = [
    "Moments1d",
    "Moments2d",
    "Phi4ChainExact",
    "Phi4LatticeExact",
    "moments_1d",
    "moments_2d",
    "phi4_chain",
    "phi4_chain_draws",
    "phi4_lattice",
    "stationary_distribution",
]
