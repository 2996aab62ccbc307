"""Checks of arguments that the solvers share."""

from __future__ import annotations

import math


def require_interval(lo: float, hi: float) -> None:
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"lo must be below hi and both finite, got lo={lo}, hi={hi}")


def require_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_chain(n_sites: int, a: float, beta: float, h: float) -> None:
    require_count("n_sites", n_sites, 1)
    for name, value in (("a", a), ("beta", beta)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not math.isfinite(h):
        raise ValueError(f"h must be finite, got {h}")
