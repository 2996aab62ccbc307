"""Chains on four modes in the plane with a learned flow, seen in its latent space and in data space.

Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763: modes at (±1.5, ±1.5) of variance ¼, a flow
on N(0, 1) trained forward on exact draws, 8 chains of 128 steps from the mode at the lower left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pysamp.experiments.base import Row, within
from pysamp.experiments.flow_mcmc.common import (
    I_SIR,
    NEUTRA,
    TESS,
    Result,
    Sizes,
    mean_error,
    run_chains,
)
from pysamp.experiments.flow_mcmc.learned import Recipe, forward, quality, trained
from pysamp.mcmc.neutra import PulledBack
from pysamp.nets.flow import Flow
from pysamp.plots import CYCLE, EXACT, name_axes
from pysamp.targets import Gaussian, GaussianMixture

RECIPE = Recipe(4000, 250, 1e-2, 0.98, 64, 4)
METHODS = (NEUTRA, TESS, I_SIR)
N_CHAINS, N_STEPS, CANDIDATES = 8, 128, 64
N_CHECK = 20_000  # draws that judge the flow
SIDE, GRID = 3.4, 241  # of the picture: half the width, points of a side
SHOWN, LINES = 3, 31  # chains, and states that lines join


def four_modes() -> GaussianMixture:
    signs = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
    return GaussianMixture(1.5 * signs, torch.full((4,), 0.25, dtype=torch.float64))


def run(steps: int, batch: int, seed: int, device: str | None) -> Plane:
    """Train for so many steps, and run the chains."""
    target, how = four_modes(), replace(RECIPE, n_steps=steps)
    loss = forward(target, batch, seed)
    flow = trained(how.flow(2, None, device, seed), loss, how, (steps,)).flows[steps]
    x0 = Gaussian(target.means[0], 0.25).sample(
        N_CHAINS, seed=seed + 1, device=flow.like.device, dtype=flow.like.dtype
    )
    sizes = Sizes(CANDIDATES, 1, CANDIDATES, 1)
    chains = {
        method: run_chains(method, target, flow, sizes, x0, N_STEPS, seed + 2) for method in METHODS
    }
    return Plane(target, flow, quality(flow, target, N_CHECK, seed), x0, chains)


@dataclass(frozen=True, eq=False)
class Plane:
    target: GaussianMixture
    flow: Flow
    judged: dict[str, float]
    x0: Tensor  # (chain, 2)
    chains: dict[str, Result]

    def paths(self, method: str) -> Tensor:
        """The chains with their starts (chain, 1 + steps, 2)."""
        return torch.cat([self.x0.cpu().double()[:, None], self.chains[method].x], 1)

    def changes(self, method: str) -> tuple[float, float]:
        """Changes of mode of a chain in a step, mean and error over chains."""
        x = self.paths(method)
        label = self.target.mode(x.flatten(0, 1)).reshape(x.shape[:2])
        return mean_error((label[:, 1:] != label[:, :-1]).double().mean(1))

    def rows(self) -> list[Row]:
        of_isir, error = self.changes(I_SIR)
        neutra, neutra_error = self.changes(NEUTRA)
        return [
            within("d = 2, changes of mode, i-SIR", of_isir, error, 0.75, "exact draws", low=0.6),
            within("d = 2, changes of mode, neutra", neutra, neutra_error, of_isir, I_SIR,
                   high=of_isir / 3),
        ]  # fmt: skip

    def data(self) -> dict[str, Any]:
        changes = {method: self.changes(method) for method in METHODS}
        return {"flow": self.judged, "changes of mode in a step": changes}

    def figure(self) -> Figure:
        """Latent space above data space, a column for each method; tints tell the modes."""
        figure = Figure(figsize=(9.0, 7.2), layout="constrained")
        axes = figure.subplots(2, 3, sharex="row", sharey="row")
        side = torch.linspace(-SIDE, SIDE, GRID)
        grid = torch.cartesian_prod(side, side).to(self.flow.like)
        image, _ = self.flow.forward(grid)
        latent = PulledBack(self.target, self.flow).log_prob(grid)
        for column, method in enumerate(METHODS):
            x = self.paths(method)
            z, _ = self.flow.inverse(x.flatten(0, 1).to(self.flow.like))
            above, below = axes[0, column], axes[1, column]
            _paths(above, side, latent, self.target.mode(image), z.reshape(x.shape).cpu())
            _paths(below, side, self.target.log_prob(grid), self.target.mode(grid), x)
            name_axes(above, f"{method}: latent space", "$z_0$", "$z_1$" if not column else "")
            rate = 100 * self.changes(method)[0]
            name_axes(below, f"data: {rate:.0f} % of steps change mode", "$x_0$",
                      "$x_1$" if not column else "")  # fmt: skip
        figure.supxlabel(
            f"squares: starts; lines: the first {LINES - 1} of {N_STEPS} steps; tints: the nearest mode",
            fontsize=9,
        )
        return figure


def _paths(ax: Axes, side: Tensor, log_p: Tensor, mode: Tensor, path: Tensor) -> None:
    """A few chains upon lines of equal log p; their own lines end after some steps."""
    log_p, mode = (values.reshape(GRID, GRID).T.cpu() for values in (log_p, mode))
    tints = ("#fbe3d6", "#ffffff", "#dfeaf5", "#ddefe6")
    ax.contourf(side, side, mode, (-0.5, 0.5, 1.5, 2.5, 3.5), colors=tints)
    levels = (log_p.max() - torch.tensor([6.0, 4, 2, 0.7])).tolist()
    ax.contour(side, side, log_p, levels, colors="#999999", linewidths=0.6, linestyles="solid")
    for chain, colour in zip(path[:SHOWN], CYCLE, strict=False):
        ax.plot(*chain[:LINES].T, color=colour, lw=0.6, alpha=0.7)
        ax.plot(*chain.T, ".", color=colour, ms=3)
    ax.plot(*path[:SHOWN, 0].T, "s", color=EXACT, ms=5)
    ax.set_aspect("equal")
    ax.set_xlim(-SIDE, SIDE)
    ax.set_ylim(-SIDE, SIDE)
