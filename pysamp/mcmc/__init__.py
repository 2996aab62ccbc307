"""Markov chain Monte Carlo: kernels as frozen dataclasses, parallel tempering, warm-up."""

from pysamp.mcmc.adapt import DualAveraging, warm_up
from pysamp.mcmc.base import Info, Kernel, State, Tunable
from pysamp.mcmc.cluster import SwendsenWang, Wolff
from pysamp.mcmc.cycle import Cycle
from pysamp.mcmc.heat_bath import HeatBath
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.independent import IMH, ISIR
from pysamp.mcmc.langevin import MALA, ULA, Multiplicative
from pysamp.mcmc.metropolis import Metropolis
from pysamp.mcmc.mixed import AdaptiveMCMC, Ex2MCMC
from pysamp.mcmc.neutra import Neutra, PulledBack, TransportSlice
from pysamp.mcmc.over_relaxation import OverRelaxation
from pysamp.mcmc.tempering import ParallelTempering, ladder_geometric

__all__ = [
    "AdaptiveMCMC",
    "Cycle",
    "DualAveraging",
    "Ex2MCMC",
    "HMC",
    "HeatBath",
    "IMH",
    "ISIR",
    "Info",
    "Kernel",
    "MALA",
    "Metropolis",
    "Multiplicative",
    "Neutra",
    "OverRelaxation",
    "ParallelTempering",
    "PulledBack",
    "State",
    "SwendsenWang",
    "TransportSlice",
    "Tunable",
    "ULA",
    "Wolff",
    "ladder_geometric",
    "warm_up",
]
