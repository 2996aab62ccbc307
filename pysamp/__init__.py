"""Sampling of unnormalised densities in statistical physics and Bayesian inference."""

import torch as _torch  # noqa: F401  first: the extensions then share its OpenMP runtime

from pysamp._native import backend

__version__ = "0.1.0"
