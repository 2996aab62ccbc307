"""Densities to sample: lattice fields, mixtures, toy problems."""

from pysamp.targets.mixture import EightGaussians, GaussianMixture, ManyModes, Rings, TwoModes
from pysamp.targets.on import ON, LargeN, SoftON
from pysamp.targets.phi4 import Phi4, Phi4Chain
from pysamp.targets.toy import Funnel

__all__ = [
    "EightGaussians",
    "Funnel",
    "GaussianMixture",
    "LargeN",
    "ManyModes",
    "ON",
    "Phi4",
    "Phi4Chain",
    "Rings",
    "SoftON",
    "TwoModes",
]
