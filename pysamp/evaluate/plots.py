"""Figures of an evaluation, from its rows only: errors over two parameters, over the budget, and runs.

The maps are those of Grenioux, Noble, Gabrié (2025, arXiv 2504.08916): error and spread of the weight
of a mode in percentage points, hatched where most runs missed a mode.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from pysamp.evaluate.rows import Cell, aggregate
from pysamp.plots import CYCLE, EXACT, VERMILLION, legend, name_axes, save

LOW, HIGH = 0.3, 60.0  # percentage points of the colour scale: below and above nothing changes
COLOURS = "YlOrRd"
DARK = 12.0  # percentage points above which numbers are white
TICKS = (0.1, 0.3, 1, 3, 10, 30)
MARKERS = "os^Dv<>PX*"


def figures(rows: Iterable[dict[str, Any]], folder: str | os.PathLike) -> list[Path]:
    """Draw what the rows can show into the folder, and say which files were written.

    map-<target>.png where parameters of the target vary; budget-<target>.png where budgets do;
    runs-<target>.png, the weights that each run found, where neither does.
    """
    rows = [row for row in rows if row["status"] == "done" and row.get("weights_exact")]
    cells = aggregate(rows)
    written = []
    for target in dict.fromkeys(cell.target for cell in cells):
        mine = [cell for cell in cells if cell.target == target]
        budgets = sorted({cell.budget for cell in mine if cell.budget is not None})
        axes = _axes(mine)
        for budget in budgets or (None,):
            if axes:
                at_budget = [cell for cell in mine if cell.budget == budget]
                for name, some in _slices(at_budget, axes):
                    end = "" if len(budgets) < 2 else f"-{budget:.0e}"
                    path = Path(folder) / f"map-{_word(target + name)}{end}.png"
                    save(error_map(some, axes[:2]), path)
                    written.append(path)
        if len(budgets) > 1:
            written.append(Path(folder) / f"budget-{_word(target)}.png")
            save(error_over_budget(mine), written[-1])
        if not axes and len(budgets) < 2:
            written.append(Path(folder) / f"runs-{_word(target)}.png")
            save(runs([row for row in rows if row["target"] == target]), written[-1])
    return written


def _word(text: str) -> str:
    return re.sub(r"[^\w.=]+", "-", text).strip("-")


def _axes(cells: Sequence[Cell]) -> list[str]:
    """Parameters with several values: numbers first, the dimension of the target last of two."""
    names = dict.fromkeys(name for cell in cells for name in cell.parameters)
    several = [n for n in names if len({_key(c.parameters.get(n)) for c in cells}) > 1]
    return sorted(several, key=lambda n: (not _numeric(cells, n), n in ("dim", "d", "n_sites")))


def _numeric(cells: Sequence[Cell], name: str) -> bool:
    return all(isinstance(cell.parameters.get(name), (int, float)) for cell in cells)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _slices(cells: Sequence[Cell], axes: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """The cells of each map: for every combination of the parameters that are no axis."""
    out: dict[str, list[Cell]] = {}
    for cell in cells:
        name = "".join(f" {axis}={cell.parameters.get(axis)}" for axis in axes[2:])
        out.setdefault(name, []).append(cell)
    return list(out.items())


# ------------------------------------------------------------------------------------- maps
def error_map(cells: Sequence[Cell], axes: Sequence[str]) -> Figure:
    """Error and spread of every sampler side by side, over one or two parameters of the target."""
    samplers = list(dict.fromkeys(cell.sampler for cell in cells))
    xs = _values(cells, axes[0])
    ys = _values(cells, axes[1]) if len(axes) > 1 else [None]
    columns = 1 if len(samplers) == 1 else 2
    lines = math.ceil(len(samplers) / columns)
    wide, high = 0.62 * len(xs) + 0.75, 0.42 * len(ys) + 0.85
    figure = Figure(figsize=(2 * columns * wide + 1.3, lines * high + 1.0), layout="constrained")
    grid = figure.add_gridspec(lines, 2 * columns)
    panels = []
    for i, sampler in enumerate(samplers):
        mine = {_place(cell, axes): cell for cell in cells if cell.sampler == sampler}
        told = any(cell.oracle for cell in mine.values())
        line, column = i // columns, 2 * (i % columns)
        for k, what in enumerate(("error", "spread")):
            ax = figure.add_subplot(grid[line, column + k])
            name = f"{sampler}{' (oracle)' if told else ''}: error" if k == 0 else "spread"
            _map(ax, mine, what, axes, xs, ys)
            name_axes(ax, name, "", axes[1] if len(axes) > 1 and k == 0 else "")
            ax.spines[:].set_visible(False)
            below = i + columns >= len(samplers)
            if below:
                ax.set_xlabel(axes[0], fontsize=10)
            ax.set_xticks(range(len(xs)), [_label(x) for x in xs] if below else [], fontsize=9)
            shown = len(axes) > 1 and k == 0
            ax.set_yticks(range(len(ys)), [_label(y) for y in ys] if shown else [], fontsize=9)
            ax.tick_params(length=0)
            panels.append(ax)
    scale = ScalarMappable(LogNorm(LOW, HIGH), COLOURS)
    bar = figure.colorbar(scale, ax=panels, aspect=30, pad=0.01, extend="both")
    bar.set_ticks(TICKS[1:], labels=[f"{t:g}" for t in TICKS[1:]])
    bar.minorticks_off()
    bar.set_label("percentage points", fontsize=10)
    figure.suptitle(_title(cells), fontsize=11, x=0.01, ha="left", weight="bold")
    if any(cell.collapse for cell in cells):
        mark = Patch(facecolor="white", edgecolor="#555555", hatch="////", linewidth=0.5)
        figure.legend(
            [mark], ["a mode missed in most runs"], loc="outside lower left", frameon=False,
            fontsize=9,
        )  # fmt: skip
    return figure


def _map(
    ax: Axes,
    mine: dict[tuple[str, ...], Cell],
    what: str,
    axes: Sequence[str],
    xs: Sequence[Any],
    ys: Sequence[Any],
) -> None:
    norm, colours = LogNorm(LOW, HIGH, clip=True), ScalarMappable(cmap=COLOURS).get_cmap()
    for j, y in enumerate(ys):
        for i, x in enumerate(xs):
            name = (_key(x), _key(y)) if len(axes) > 1 else (_key(x),)
            cell = mine.get(name)
            value = None if cell is None else getattr(cell, what)
            box: Any = {"edgecolor": "white", "lw": 0.8}
            corner = (i - 0.5, j - 0.5)
            if value is None:
                ax.add_patch(Rectangle(corner, 1, 1, facecolor="#eeeeee", **box))
                ax.text(i, j, "–", ha="center", va="center", fontsize=8, color="#777777")
                continue
            colour = colours(float(norm(max(value, LOW))))
            ax.add_patch(Rectangle(corner, 1, 1, facecolor=colour, **box))
            if cell is not None and cell.collapse:
                lines: Any = {"fill": False, "hatch": "////", "edgecolor": "#00000055", "lw": 0}
                ax.add_patch(Rectangle(corner, 1, 1, **lines))
            ink = "white" if value > DARK else "black"
            ax.text(i, j, _digits(value), ha="center", va="center", fontsize=8, color=ink)
    ax.set_xlim(-0.5, len(xs) - 0.5)
    ax.set_ylim(-0.5, len(ys) - 0.5)


def _digits(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def _values(cells: Sequence[Cell], name: str) -> list[Any]:
    """All values of a parameter: numbers in order, others as they come."""
    found = {_key(c.parameters.get(name)): c.parameters.get(name) for c in cells}
    values = list(found.values())
    return sorted(values) if _numeric(cells, name) else values


def _place(cell: Cell, axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(_key(cell.parameters.get(name)) for name in axes)


def _label(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:12]


def _title(cells: Sequence[Cell]) -> str:
    """Target, runs and draws; what differs between cells as a range."""
    runs = _range([cell.runs for cell in cells])
    n = _range([int(cell.n or 0) for cell in cells])
    first = cells[0]
    fixed = [
        f"{name}={_label(value)}"
        for name, value in first.parameters.items()
        if len(_values(cells, name)) == 1
    ]
    budget = [] if first.budget is None else [f"at most {first.budget:.0e} gradients"]
    return ", ".join([" ".join([first.target, *fixed]), f"{runs} runs of {n} draws", *budget])


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


# ------------------------------------------------------------------------------------- budgets
def error_over_budget(cells: Sequence[Cell]) -> Figure:
    """Error against the gradients that were spent, one panel for each set of parameters."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_key(cell.parameters), []).append(cell)
    columns = min(3, len(groups))
    lines = math.ceil(len(groups) / columns)
    size = (4.2 * columns + 0.4, 3.4 * lines + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    styles = _styles(cells)
    budgets = sorted({cell.budget for cell in cells if cell.budget is not None})
    lowest = 0.5 * min([LOW, *(c.floor_error for c in cells if c.floor_error)])
    for i, group in enumerate(groups.values()):
        ax = figure.add_subplot(lines, columns, i + 1)
        for sampler, style in styles.items():
            mine = [c for c in group if c.sampler == sampler and c.cost and c.error is not None]
            mine.sort(key=lambda c: c.cost or 0.0)
            x, y = [c.cost or 0.0 for c in mine], [max(c.error or 0.0, 1e-2) for c in mine]
            error = [c.error_se or 0.0 for c in mine]
            ax.errorbar(x, y, error, capsize=2, lw=1.2, ms=5, **style)
        floor = [c.floor_error for c in group if c.floor_error is not None]
        if floor:
            ax.axhline(min(floor), color=EXACT, lw=1.0, ls="--", label="exact draws")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(budgets, [f"{b:.2g}".replace("e+0", "e") for b in budgets])
        ax.set_yticks(TICKS, [f"{t:g}" for t in TICKS])
        ax.minorticks_off()
        ax.set_ylim(lowest, 80)
        name = ", ".join(f"{k}={_label(v)}" for k, v in group[0].parameters.items())
        name_axes(ax, name, "gradients of a run", "error (percentage points)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    title = f"{cells[0].target}, {_range([c.runs for c in cells])} runs, ± 1 s.e."
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", weight="bold")
    return figure


def _styles(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Colour, marker and label by sampler; an oracle is dotted."""
    out: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if cell.sampler not in out:
            i = len(out)
            label = f"{cell.sampler} (oracle)" if cell.oracle else cell.sampler
            ls = ":" if cell.oracle else "-"
            colour, marker = CYCLE[i % len(CYCLE)], MARKERS[i % len(MARKERS)]
            out[cell.sampler] = {"color": colour, "marker": marker, "label": label, "ls": ls}
    return out


# ------------------------------------------------------------------------------------- runs
def runs(rows: Sequence[dict[str, Any]]) -> Figure:
    """The weight of every mode that each run found, beside the exact one."""
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    exact = np.array(rows[0]["weights_exact"])
    figure = Figure(figsize=(max(6.0, 1.3 * len(samplers) + 1.8), 4.4), layout="constrained")
    ax = figure.add_subplot()
    width = 0.8 / len(exact)
    for i, sampler in enumerate(samplers):
        mine = [row for row in rows if row["sampler"] == sampler]
        for k, weight in enumerate(exact):
            at = i - 0.4 + width * (k + 0.5)
            found = [row["weights"][k] for row in mine]
            missed = [row["weights"][k] < 1e-3 <= weight for row in mine]
            place = at + 0.3 * width * np.linspace(-1, 1, len(found))
            colours = [VERMILLION if m else CYCLE[0] for m in missed]
            ax.scatter(place, found, s=14, c=colours, alpha=0.8, zorder=3, lw=0)
            ax.hlines(weight, at - width / 2, at + width / 2, color=EXACT, lw=1.4)
    for label, colour in (("a run", CYCLE[0]), ("a run that missed the mode", VERMILLION)):
        ax.scatter([], [], s=14, c=colour, label=label)
    ax.plot([], [], color=EXACT, lw=1.4, label="exact")
    told = {row["sampler"] for row in rows if row["oracle"]}
    names = [f"{name}\n(oracle)" if name in told else name for name in samplers]
    ax.set_xticks(range(len(samplers)), names)
    ax.set_xlim(-0.6, len(samplers) - 0.4)
    ax.set_ylim(bottom=-0.02)
    given = ", ".join(f"{k}={_label(v)}" for k, v in rows[0]["parameters"].items())
    name_axes(ax, "", "", "weight" if len(exact) == 2 else "weight of each mode")
    figure.suptitle(
        f"{' '.join([rows[0]['target'], given]).strip()}: weights of {len(exact)} modes, run by run",
        fontsize=11, x=0.01, ha="left", weight="bold",
    )  # fmt: skip
    legend(ax)
    return figure
