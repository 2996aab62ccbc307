"""Closed-form and transfer-matrix results that simulations and learned samplers are checked against."""

from pysamp.theory import ising, lattice

__all__ = ["ising", "lattice"]
