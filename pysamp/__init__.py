"""Sampling of unnormalised densities in statistical physics and Bayesian inference.

    import pysamp as ps

    target = ps.targets.Phi4Chain(n_sites=100, h=0.0025)
    samples = ps.sample(target, ps.MALA(), n_chains=256, n_draws=500, warmup=500)
    print(samples.summary())

Names are imported when they are first used, so that the command line starts at once. `_native`, the
only module that imports compiled code, imports torch first: both then share one OpenMP runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pysamp import errors, exact, lattice, metrics, nets, rng, targets
    from pysamp._native import backend, include_path
    from pysamp.check import check_target
    from pysamp.mcmc import (
        HMC,
        IMH,
        ISIR,
        MALA,
        ULA,
        AdaptiveMCMC,
        Cycle,
        Ex2MCMC,
        HeatBath,
        Metropolis,
        Multiplicative,
        Neutra,
        OverRelaxation,
        ParallelTempering,
        SwendsenWang,
        TransportSlice,
        Wolff,
    )
    from pysamp.samplers import AIS, OAT, RDMC, SLIPS, SMC, FlowMCMC, GaussianVI, Importance
    from pysamp.samples import Samples
    from pysamp.sampling import resume, sample
    from pysamp.selftest import doctor
    from pysamp.target import Boltzmann, Counted, NativeEnergy, Tempered, Tilted

_MODULES = ("errors", "exact", "lattice", "metrics", "nets", "rng", "targets")
_HOME = {
    "backend": "_native",
    "include_path": "_native",
    "check_target": "check",
    "doctor": "selftest",
    "AdaptiveMCMC": "mcmc",
    "Cycle": "mcmc",
    "Ex2MCMC": "mcmc",
    "HMC": "mcmc",
    "HeatBath": "mcmc",
    "IMH": "mcmc",
    "ISIR": "mcmc",
    "MALA": "mcmc",
    "ULA": "mcmc",
    "Metropolis": "mcmc",
    "Multiplicative": "mcmc",
    "Neutra": "mcmc",
    "OverRelaxation": "mcmc",
    "ParallelTempering": "mcmc",
    "SwendsenWang": "mcmc",
    "TransportSlice": "mcmc",
    "Wolff": "mcmc",
    "AIS": "samplers",
    "FlowMCMC": "samplers",
    "GaussianVI": "samplers",
    "Importance": "samplers",
    "OAT": "samplers",
    "RDMC": "samplers",
    "SLIPS": "samplers",
    "SMC": "samplers",
    "resume": "sampling",
    "sample": "sampling",
    "Samples": "samples",
    "Boltzmann": "target",
    "Counted": "target",
    "NativeEnergy": "target",
    "Tempered": "target",
    "Tilted": "target",
}

__all__ = [
    "AIS",
    "AdaptiveMCMC",
    "Boltzmann",
    "Counted",
    "Cycle",
    "Ex2MCMC",
    "FlowMCMC",
    "GaussianVI",
    "HMC",
    "HeatBath",
    "IMH",
    "ISIR",
    "Importance",
    "MALA",
    "Metropolis",
    "Multiplicative",
    "NativeEnergy",
    "Neutra",
    "OAT",
    "OverRelaxation",
    "ParallelTempering",
    "RDMC",
    "SLIPS",
    "SMC",
    "Samples",
    "SwendsenWang",
    "Tempered",
    "Tilted",
    "TransportSlice",
    "ULA",
    "Wolff",
    "backend",
    "check_target",
    "doctor",
    "errors",
    "exact",
    "include_path",
    "lattice",
    "metrics",
    "nets",
    "resume",
    "rng",
    "sample",
    "targets",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"pysamp.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"pysamp.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pysamp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
