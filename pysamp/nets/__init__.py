"""Flows: invertible networks with exact densities, their layers and their base densities."""

from pysamp.nets.analytic import FunnelFlow, LinearFlow
from pysamp.nets.bases import Base, Normal, Product, Torus
from pysamp.nets.coupling import AffineCoupling
from pysamp.nets.flow import Compose, Flow, Layer, as_flow, check_event, check_invertible
from pysamp.nets.mixing import InvertibleLinear, Permutation
from pysamp.nets.mlp import MLP
from pysamp.nets.realnvp import RealNVP
from pysamp.nets.spline import (
    CircularSplineCoupling,
    CircularSplineFlow,
    SplineCoupling,
    SplineFlow,
)

__all__ = [
    "AffineCoupling",
    "Base",
    "CircularSplineCoupling",
    "CircularSplineFlow",
    "Compose",
    "Flow",
    "FunnelFlow",
    "InvertibleLinear",
    "Layer",
    "LinearFlow",
    "MLP",
    "Normal",
    "Permutation",
    "Product",
    "RealNVP",
    "SplineCoupling",
    "SplineFlow",
    "Torus",
    "as_flow",
    "check_event",
    "check_invertible",
]
