"""Checks of arguments that the samplers of this package share.

Errors name the argument and its value. The methods: Grenioux et al. (2024), arXiv 2402.10758, and those
that each module names.
"""

from __future__ import annotations

import math
from typing import Any

from pysamp.mcmc.langevin import refuse_spins
from pysamp.target import Counted, HasSites, Target


def counted(target: Target, sampler: str) -> Counted:
    """The target of a sampler that places points freely in R^d, counting; spins of length 1 are refused."""
    if isinstance(target, HasSites) and target.unit_length:
        refuse_spins(target, sampler)
    return Counted(target)


def check_n(n: Any) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a positive int, got {n!r}")


def check_at_least(value: Any, least: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")


def check_number(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_positive(value: Any, name: str) -> None:
    check_number(value, name)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_budget(n: Any, gradients: Any, least: int = 1) -> None:
    """Refuse a budget that is smaller than the least possible cost of n draws."""
    check_n(n)
    if isinstance(gradients, bool) or not isinstance(gradients, int):
        raise TypeError(f"gradients must be an int, got {gradients!r}")
    if gradients < least:
        raise ValueError(f"gradients must be at least {least} for n = {n} draws, got {gradients}")
