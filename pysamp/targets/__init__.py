"""Densities to sample: lattice fields, mixtures, toy problems."""

from pysamp.targets.mixture import EightGaussians, GaussianMixture, ManyModes, Rings, TwoModes
from pysamp.targets.phi4 import Phi4, Phi4Chain
from pysamp.targets.toy import Funnel

__all__ = [
    "EightGaussians",
    "Funnel",
    "GaussianMixture",
    "ManyModes",
    "Phi4",
    "Phi4Chain",
    "Rings",
    "TwoModes",
]
