"""Figures of lattice fields: finite-size scaling, raw curves beside the collapsed ones.

The dress is that of `plots`. Quality of a collapse: Houdayer and Hartmann (2004), as in `lattice`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pysamp.lattice import Crossing, collapse, collapse_quality
from pysamp.plots import EXACT, legend, name_axes, save

COLOURS = (0.0, 0.85)  # ends of the part of viridis that is told apart from white: small to large L


def plot_scaling(
    sizes: Sequence[int],
    x: Tensor,
    y: Tensor,
    errors: Tensor,
    path: str | os.PathLike,
    *,
    x_c: float,
    nu: float,
    kappa: float = 0.0,
    crossing: Crossing | None = None,
    x_name: str = "T",
    y_name: str = "U",
) -> None:
    """Curves of all sizes, their crossing if it is given, and what is left of them in scaled coordinates.

    x, y, errors: (sizes, k) or x (k,). x_c, nu, kappa: as in `lattice.collapse`; the quality of the
    collapse, 1 where it holds, stands in the title. The file's ending chooses the format.
    """
    y, errors = torch.as_tensor(y).double(), torch.as_tensor(errors).double()
    x = torch.as_tensor(x).double().expand_as(y)
    u, scaled = collapse(sizes, x, y, x_c=x_c, nu=nu, kappa=kappa)
    _, spread = collapse(sizes, x, errors, x_c=x_c, nu=nu, kappa=kappa)
    quality = collapse_quality(u, scaled, spread)

    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    raw, together = figure.subplots(1, 2)
    _curves(raw, sizes, x, y, errors)
    raw.axvline(x_c, color=EXACT, lw=0.9, ls=":", label=f"${x_name}_c$ = {x_c:.5g}")
    if crossing is not None:
        raw.errorbar(
            crossing.x, crossing.y, crossing.y_error, crossing.x_error, fmt="D", color=EXACT, ms=5,
            mfc="none", capsize=3, lw=1.2, zorder=5,
            label=f"crossing {crossing.x:.5g} ± {crossing.x_error:.1g}",
        )  # fmt: skip
    name_axes(raw, "all sizes", f"${x_name}$", f"${y_name}$")
    legend(raw)

    _curves(together, sizes, u, scaled, spread)
    title = rf"collapsed: $\nu$ = {nu:.4g}, S = {quality:.3g}"
    across = f"$({x_name} - {x_name}_c){_power(1 / nu)}$"
    name_axes(together, title, across, f"${y_name}{_power(kappa / nu)}$")
    save(figure, path)


def _power(exponent: float) -> str:
    return rf"\, L^{{{exponent:.4g}}}".replace("^{1}", "") if exponent else ""


def _curves(ax: Axes, sizes: Sequence[int], x: Tensor, y: Tensor, errors: Tensor) -> None:
    """One colour a size, in the order of the sizes."""
    shades = matplotlib.colormaps["viridis"](np.linspace(*COLOURS, len(sizes)))
    for size, shade, *curve in zip(sizes, shades, x, y, errors, strict=True):
        at, value, error = (part.cpu().numpy() for part in curve)
        ax.errorbar(at, value, error, fmt="o-", color=shade, ms=3, lw=1.0, label=f"L = {size}")
