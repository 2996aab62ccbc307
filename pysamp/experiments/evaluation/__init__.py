"""Two modes of half distance a in dimension d: the published maps of error and spread, and what is shared.

Grenioux, Noble, Gabrié, Improving the evaluation of samplers on multi-modal targets (2025), arXiv
2504.08916. Error: mean |ŵ − w| of the weight of a mode; spread: its standard deviation; over runs, in
percentage points. The numbers were read off the colours of the poster's maps; `reading` is the error of
that, and 33.3 with no spread is a run that stays in the heavier mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pysamp.evaluate import Cell, Problem
from pysamp.experiments.base import Row, within
from pysamp.target import HasMoments, Target
from pysamp.targets import BracketTwoModes, Gaussian

SOURCE = "Grenioux, Noble, Gabrié (2025), arXiv 2504.08916"
A = (0.5, 2.875, 5.25, 7.625, 10.0)
DIMS = (4, 8, 16, 32, 64)
FINE_DIMS = (*DIMS, 128, 256)
COLLAPSE = 100 / 3  # error of a run that never leaves the mode of weight 2/3

Table = Mapping[int, Sequence[float]]  # d -> one number for each a


@dataclass(frozen=True)
class Published:
    """One sampler in the maps, percentage points."""

    error: Table
    spread: Table
    reading: float


def _same(value: float) -> Table:
    return {d: (value,) * len(A) for d in DIMS}


PUBLISHED = {
    "MCMC": Published(
        {4: (4.8, *(COLLAPSE,) * 4), 8: (33.0, *(COLLAPSE,) * 4)}
        | {d: (COLLAPSE,) * 5 for d in (16, 32, 64)},
        {4: (5.3, 0, 0, 0, 0), 8: (1.0, 0, 0, 0, 0)} | {d: (0.0,) * 5 for d in (16, 32, 64)},
        0.5,
    ),
    "IS-Gauss": Published(
        {
            4: (1.6, 2.5, 3.0, 3.0, 4.1),
            8: (1.6, 3.0, 5.3, 4.1, 5.7),
            16: (3.0, 7.1, 8.9, 8.9, 12.5),
            32: (8.9, 13.4, 18.2, 19.6, 18.5),
            64: (21.9, 29.3, 28.5, 29.8, 33.0),
        },
        {
            4: (1.4, 3.3, 3.7, 3.7, 4.9),
            8: (1.8, 4.1, 6.5, 4.9, 6.9),
            16: (3.7, 8.8, 11.5, 11.9, 16.2),
            32: (11.9, 16.8, 21.7, 22.9, 22.9),
            64: (25.2, 33.0, 33.4, 33.4, 35.0),
        },
        0.5,
    ),
    "IS-NF": Published(
        {
            4: (0.2, 0.7, 0.2, 0.7, 0.7),
            8: (0.7, 0.2, 0.7, 0.7, 1.6),
            16: (2.5, 1.6, 0.7, 1.6, 2.1),
            32: (7.6, 2.1, 2.1, 2.5, 16.2),
            64: (12.9, 4.1, 3.9, 11.6, 5.3),
        },
        {
            4: (0.6, 0.6, 0.6, 0.6, 1.0),
            8: (1.0, 0.6, 1.0, 0.6, 1.8),
            16: (3.3, 1.8, 1.0, 1.4, 2.2),
            32: (11.9, 2.2, 2.2, 2.9, 19.0),
            64: (17.8, 4.9, 4.1, 19.4, 6.9),
        },
        0.5,
    ),
    "VI-Gauss": Published(_same(COLLAPSE), _same(0.0), 0.5),
    "DDS": Published(
        {
            4: (0.2, 2.1, 14.8, 29.3, 25.3),
            8: (8.5, 30.3, 33.5, 35.3, 37.1),
            16: (21.9, 33.5, 37.6, 36.2, 32.6),
            32: (23.3, 33.5, 33.0, 32.6, 31.6),
            64: (9.9, 33.0, 33.0, 28.5, 31.2),
        },
        {
            4: (0.6, 0.6, 4.5, 4.1, 11.9),
            8: (13.5, 5.7, 0.2, 24.1, 34.2),
            16: (15.4, 0.2, 33, 30, 0.6),
            32: (13.8, 0.2, 0.2, 0.6, 1.0),
            64: (8.4, 0.2, 0.2, 3.7, 1.0),
        },
        0.5,
    ),
    "SMC": Published(
        {
            4: (1.0, 1.8, 2.1, 2.6, 2.9),
            8: (1.0, 2.2, 2.8, 3.1, 4.1),
            16: (1.6, 2.8, 3.5, 4.7, 7.2),
            32: (1.8, 3.1, 5.0, 6.3, 7.0),
            64: (2.8, 4.0, 5.0, 7.9, 11.4),
            128: (2.6, 4.2, 6.4, 9.6, 12.0),
            256: (3.5, 5.3, 7.0, 10.1, 12.9),
        },
        {
            4: (0.9, 2.1, 2.6, 3.2, 3.8),
            8: (1.1, 2.6, 3.6, 3.9, 5.0),
            16: (2.0, 3.5, 4.1, 5.7, 8.8),
            32: (2.1, 3.8, 6.0, 7.5, 9.0),
            64: (3.6, 4.7, 6.2, 9.7, 13.9),
            128: (3.2, 5.3, 7.4, 10.9, 15.1),
            256: (4.5, 6.5, 8.5, 12.3, 15.4),
        },
        0.2,
    ),
    "RE": Published(
        {
            4: (0.8, 0.9, 1.0, 1.0, 0.9),
            8: (0.8, 1.2, 1.3, 1.2, 1.3),
            16: (0.9, 1.3, 1.6, 1.3, 1.3),
            32: (1.3, 1.6, 2.0, 1.6, 2.0),
            64: (1.6, 1.9, 2.1, 2.6, 4.2),
            128: (1.6, 3.7, 5.9, 7.2, 8.9),
            256: (2.8, 9.2, 13.4, 14.9, 14.7),  # the last two at the end of the scale, or above
        },
        {
            4: (0.9, 0.9, 1.1, 1.1, 1.1),
            8: (0.9, 1.4, 1.5, 1.4, 1.5),
            16: (0.9, 1.7, 1.7, 1.5, 1.5),
            32: (1.5, 1.7, 2.4, 2.1, 2.6),
            64: (1.7, 2.3, 2.4, 2.7, 3.8),
            128: (2.0, 3.9, 5.6, 6.2, 7.5),
            256: (3.6, 6.9, 10.5, 9.4, 11.7),
        },
        0.2,
    ),
    "SLIPS": Published(
        {
            4: (0.8, 0.9, 0.9, 1.5, 0.8),
            8: (0.7, 0.7, 0.9, 0.9, 0.7),
            16: (0.9, 1.2, 1.2, 0.8, 0.8),
            32: (0.7, 0.9, 0.9, 0.8, 0.8),
            64: (0.8, 0.9, 0.9, 0.9, 0.8),
            128: (0.7, 1.0, 0.7, 0.8, 0.9),
            256: (0.8, 0.9, 0.7, 0.8, 0.8),
        },
        {
            4: (0.8, 0.9, 0.9, 1.5, 0.9),
            8: (0.6, 0.8, 0.9, 0.9, 0.6),
            16: (0.9, 1.1, 0.9, 0.9, 0.9),
            32: (0.8, 0.9, 0.9, 0.9, 0.9),
            64: (0.8, 0.9, 0.9, 0.9, 0.8),
            128: (0.6, 1.1, 0.8, 0.9, 0.8),
            256: (0.9, 0.8, 0.6, 0.9, 0.8),
        },
        0.2,
    ),
}


# ---------------------------------------------------------------------------- targets
def problems(dims: Iterable[int], a: Iterable[float]) -> list[Problem]:
    """Every d with every a."""
    half = list(a)
    return [
        Problem(BracketTwoModes(d, a=x), "BracketTwoModes", {"dim": d, "a": x})
        for d in dims
        for x in half
    ]


def moments(target: Target) -> Gaussian:
    """The Gaussian of the true mean and covariance. Raises TypeError where they are not known."""
    if not isinstance(target, HasMoments):
        raise TypeError(f"target must have moments, got {type(target).__name__}")
    return Gaussian(target.mean, target.covariance)


def seeds(seed: int, n: int, part: int = 0) -> range:
    """Those of n ≤ 1000 runs, which other seeds and parts < 100 do not share."""
    first = 1000 * (100 * seed + part)
    return range(first, first + n)


# ---------------------------------------------------------------------------- rows
def place(cell: Cell) -> tuple[int, float]:
    return int(cell.parameters["dim"]), float(cell.parameters["a"])


def named(cell: Cell) -> str:
    d, a = place(cell)
    oracle = " (oracle)" if cell.oracle else ""
    return f"{cell.sampler}{oracle} d={d} a={a:g}"


def published(sampler: str, d: int, a: float) -> float | None:
    """The published error, where there is one."""
    table = PUBLISHED[sampler].error.get(d) if sampler in PUBLISHED else None
    return table[A.index(a)] if table is not None and a in A else None


def found(cell: Cell) -> tuple[float, float]:
    """Error and its standard error; NaN where all runs failed, or there is one only."""
    both = (cell.error, cell.error_se)
    # Digits beyond are those of sums of weights.
    error, se = (float("nan") if value is None else round(value, 6) for value in both)
    return error, se


def limited(cells: Iterable[Cell], sampler: str) -> Iterator[Row]:
    """An error for each cell, at most 1½ times the published one and a point of noise."""
    for cell in cells:
        wanted = published(sampler, *place(cell))
        if wanted is not None:
            yield within(
                f"{named(cell)}", *found(cell), wanted, SOURCE, high=round(1.5 * wanted + 1, 2),
                reference_error=PUBLISHED[sampler].reading,
            )  # fmt: skip
