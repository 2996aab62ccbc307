"""Densities to sample: lattice fields, mixtures, posteriors, toy problems."""

from pysamp.targets.banana import Banana
from pysamp.targets.bayes import LogisticRegression
from pysamp.targets.gaussian import Bridged, Gaussian
from pysamp.targets.mixture import (
    BracketTwoModes,
    EightGaussians,
    FourModes,
    GaussianMixture,
    ManyModes,
    TwoModes,
)
from pysamp.targets.on import ON, LargeN, SoftON
from pysamp.targets.phi4 import Phi4, Phi4Chain
from pysamp.targets.sparse_logistic import SparseLogistic
from pysamp.targets.toy import Checkerboard, Funnel, Rings

__all__ = [
    "Banana",
    "BracketTwoModes",
    "Bridged",
    "Checkerboard",
    "EightGaussians",
    "FourModes",
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
    "SparseLogistic",
    "TwoModes",
]
