"""Densities to sample: lattice fields, mixtures, posteriors, toy problems."""

from pysamp.targets.bayes import LogisticRegression
from pysamp.targets.gaussian import Bridged, Gaussian
from pysamp.targets.mixture import (
    BracketTwoModes,
    EightGaussians,
    GaussianMixture,
    ManyModes,
    Rings,
    TwoModes,
)
from pysamp.targets.on import ON, LargeN, SoftON
from pysamp.targets.phi4 import Phi4, Phi4Chain
from pysamp.targets.toy import Checkerboard, Funnel

__all__ = [
    "BracketTwoModes",
    "Bridged",
    "Checkerboard",
    "EightGaussians",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "LargeN",
    "LogisticRegression",
    "ManyModes",
    "ON",
    "Phi4",
    "Phi4Chain",
    "Rings",
    "SoftON",
    "TwoModes",
]
