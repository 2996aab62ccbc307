"""Settings that the experiments on SLIPS share, and a scan over its start time t0 beside a noise floor.

Grenioux, Noble, Gabrié, Durmus, ICML 2024, arXiv 2402.10758: grids of the public code, of which one T or
t_end is taken, that of log g² = 5. Which t0 was selected for a target was not found, so that whole
curves are given; the best of them is known by the truth alone and called oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pysamp import metrics
from pysamp.experiments.base import Progress, Row, within
from pysamp.mcmc import Multiplicative
from pysamp.metrics import Floor
from pysamp.plots import CYCLE, EXACT
from pysamp.samplers import SLIPS
from pysamp.samples import Samples

SOURCE = "Grenioux, Noble, Gabrié, Durmus, ICML 2024, arXiv 2402.10758"
FLOOR = "exact draws"
EXACT_SEED = 1_000_003  # added to the seed for exact draws


@dataclass(frozen=True)
class Grid:
    """A schedule, its last time, and the start times that were searched."""

    schedule: str
    t_end: float
    t0: tuple[float, ...]


STANDARD, GEOM11, GEOM21 = "standard", "geom(1, 1)", "geom(2, 1)"
# of the mixtures in two dimensions, the rings and the funnel
TOYS = (
    Grid(STANDARD, 150.0, (0.1, 0.2, 0.4, 1.0, 1.2)),
    Grid(GEOM11, 1 - 6.62e-3, (0.10, 0.15, 0.20)),
    Grid(GEOM21, 1 - 6.58e-3, (0.30, 0.35, 0.45)),
)
# of two modes and of logistic regression
HARD = (
    Grid(STANDARD, 150.0, (0.03, 0.05, 0.1, 0.2, 0.4)),
    Grid(GEOM11, 1 - 6.62e-3, (0.03, 0.05, 0.1, 0.15, 0.25)),
    Grid(GEOM21, 1 - 6.58e-3, (0.15, 0.20, 0.25, 0.35, 0.45)),
)


def some(grids: Sequence[Grid], *schedules: str) -> tuple[Grid, ...]:
    return tuple(grid for grid in grids if grid.schedule in schedules)


def published(grid: Grid, t0: float | None, n_times: int, **scale: Any) -> SLIPS:
    """The method as it was published: its start and steps, posterior means, and a scale R, tau or sigma."""
    return SLIPS(
        schedule=grid.schedule, t_end=grid.t_end, t0=t0, n_times=n_times, output="mean",
        start="published", adapt=Multiplicative(), **scale,
    )  # fmt: skip


def draws(samples: Samples) -> Tensor:
    """(n, *event) float64 on the CPU."""
    return samples.x[:, 0].to("cpu", torch.float64)


# ---------------------------------------------------------------------------- scans of t0
@dataclass(frozen=True)
class Toy:
    """Sizes of an experiment on a small target."""

    n: int
    n_times: int
    margin: float  # above the noise floor
    grids: tuple[Grid, ...] = TOYS
    n_floors: int = 8


@dataclass(frozen=True, eq=False)
class Point:
    grid: Grid
    t0: float
    x: Tensor  # (n, *event)
    value: float
    info: Mapping[str, Any] = field(repr=False)

    @property
    def label(self) -> str:
        return f"{name(self.grid.schedule)}, t0 = {self.t0:g}"


def name(schedule: str) -> str:
    return schedule[0].upper() + schedule[1:].replace(", ", ",")


@dataclass(frozen=True, eq=False)
class Scan:
    """A metric of draws against exact draws for every start time of some schedules."""

    points: list[Point]
    floor: Floor

    @property
    def noise(self) -> float:
        """The standard deviation of one value of the metric."""
        return stdev(self.floor.values)

    @property
    def best(self) -> Point:
        return min(self.points, key=lambda point: point.value)

    def at(self, schedule: str, t0: float) -> Point:
        return next(p for p in self.points if (p.grid.schedule, p.t0) == (schedule, t0))

    def row(self, quantity: str, value: float, margin: float) -> Row:
        """At most the floor and a margin; one standard error is that of a value on the floor."""
        return within(
            quantity, value, self.noise, self.floor.mean, FLOOR, high=self.floor.mean + margin,
            reference_error=self.noise / math.sqrt(len(self.floor.values)),
        )  # fmt: skip

    def data(self) -> dict[str, Any]:
        return {
            "floor": {"mean": self.floor.mean, "values": list(self.floor.values)},
            "scan": [
                {
                    "schedule": p.grid.schedule, "t0": p.t0, "value": p.value,
                    "accept": float(p.info["accept"].mean()),
                    "start_dependence": p.info["start_dependence"],
                    "notes": p.info["notes"], "warnings": p.info.get("warnings", []),
                }
                for p in self.points
            ],
        }  # fmt: skip

    def draw(self, ax: Axes, label: str = "floor of exact draws") -> None:
        """Curves over t0, one for each schedule, above the band of the floor."""
        ax.axhspan(self.floor.low, self.floor.high, color=EXACT, alpha=0.12, lw=0, label=label)
        ax.axhline(self.floor.mean, color=EXACT, lw=0.8)
        schedules = dict.fromkeys(point.grid.schedule for point in self.points)
        for schedule, colour in zip(schedules, CYCLE, strict=False):
            these = [point for point in self.points if point.grid.schedule == schedule]
            ax.errorbar(
                [p.t0 for p in these], [p.value for p in these], self.noise, fmt="o-", ms=4,
                capsize=2, lw=1, color=colour, label=name(schedule),
            )  # fmt: skip
        ax.set_xscale("log")
        times = sorted({point.t0 for point in self.points})
        ax.set_xticks([t for t in (0.1, 0.15, 0.2, 0.3, 0.4, 1.0) if times[0] <= t <= times[-1]])
        ax.minorticks_off()
        ax.xaxis.set_major_formatter("{x:g}")


Metric = Callable[[Tensor, Tensor], Any]


def exact_draws(target: Any, n: int, seed: int) -> Tensor:
    return target.sample(n, seed=seed + EXACT_SEED).double()


def noise_floor(metric: Metric, target: Any, settings: Toy, seed: int) -> Floor:
    first = seed + EXACT_SEED + 1
    return metrics.noise_floor(metric, target, settings.n, repeats=settings.n_floors, seed=first)


def scan(
    target: Any, metric: Metric, floor: Floor, settings: Toy, *, seed: int, device: str | None,
    progress: Progress, label: str = "", **scale: Any,
) -> Scan:  # fmt: skip
    exact = exact_draws(target, settings.n, seed)
    points = []
    for grid, t0 in start_times(settings.grids):
        progress(f"{label}{name(grid.schedule)}, t0 = {t0:g}")
        sampler = published(grid, t0, settings.n_times, **scale)
        samples = sampler.sample(target, settings.n, seed=seed, device=device)
        x = draws(samples)
        points.append(Point(grid, t0, x, float(metric(x, exact)), samples.info))
    return Scan(points, floor)


def start_times(grids: Sequence[Grid]) -> Iterator[tuple[Grid, float]]:
    for grid in grids:
        for t0 in grid.t0:
            yield grid, t0


def largest_gap(x: Tensor, target: Any) -> float:
    """The largest |weight − exact weight| of a mode."""
    found, _ = metrics.mode_weights(x[:, None], target)
    return float(metrics.mode_weight_error(found, target.mode_weights))


def weight_row(quantity: str, x: Tensor, target: Any, limit: float) -> Row:
    """Weights of modes, whose largest gap is at most `limit`; one error is that of a lone weight."""
    weights = target.mode_weights
    error = math.sqrt(float((weights * (1 - weights)).max()) / len(x))
    return within(quantity, largest_gap(x, target), error, 0.0, "exact", high=limit)
