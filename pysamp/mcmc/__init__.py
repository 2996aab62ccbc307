"""Markov chain Monte Carlo: kernels as frozen dataclasses, parallel tempering, warm-up."""

from pysamp.mcmc.adapt import DualAveraging, warm_up
from pysamp.mcmc.base import Info, Kernel, State, Tunable
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.langevin import MALA, ULA, Multiplicative
from pysamp.mcmc.metropolis import Metropolis
from pysamp.mcmc.tempering import ParallelTempering, ladder_geometric

__all__ = [
    "DualAveraging",
    "HMC",
    "Info",
    "Kernel",
    "MALA",
    "Metropolis",
    "Multiplicative",
    "ParallelTempering",
    "State",
    "Tunable",
    "ULA",
    "ladder_geometric",
    "warm_up",
]
