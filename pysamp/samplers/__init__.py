"""Samplers that make all their draws in one go."""

from pysamp.samplers.annealed import AIS, SMC
from pysamp.samplers.flow_mcmc import FlowMCMC
from pysamp.samplers.gaussian_vi import GaussianVI
from pysamp.samplers.importance import Importance
from pysamp.samplers.oat import OAT
from pysamp.samplers.rdmc import RDMC
from pysamp.samplers.slips import SLIPS

__all__ = ["AIS", "FlowMCMC", "GaussianVI", "Importance", "OAT", "RDMC", "SLIPS", "SMC"]
