"""Figures of the cells of lattices, whose cases are called KIND/MOVE/SHAPE/CHAINS.

scaling: the cost of an update against the number of chains; flat once the lanes are full.
lattice: the rate of each variant at each size, a panel for each move.
layouts: the time with sites in the lanes over that with chains in the lanes, and what is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
Curves = dict[str, dict[str, list[tuple[int, float, float, float]]]]

NATIVE = "#000000"
SHADES = ("#440154", "#443983", "#31688E", "#21918C", "#35B779", "#90D743", "#C8B020")  # viridis


def cells_of(rows: Rows, kind: str) -> list[tuple[str, str, int, dict[str, Any]]]:
    """(move, shape, chains, row) of one kind."""
    found = []
    for row in rows:
        parts = row["case"].split("/")
        if len(parts) == 4 and parts[0] == kind:
            found.append((parts[1], parts[2], int(parts[3]), row))
    return found


def costs(rows: Rows) -> Curves:
    """Model -> variant -> (chains, ns an update, lower and upper quartile), by chains."""
    out: Curves = {}
    for move, shape, chains, row in cells_of(rows, "scaling"):
        ns = [1e9 * row[key] / row["work"] for key in ("median", "q1", "q3")]
        curves = out.setdefault(f"{move} {shape}", {})
        curves.setdefault(row["variant"], []).append((chains, ns[0], ns[1], ns[2]))
    for curves in out.values():
        for points in curves.values():
            points.sort()
    return out


def crossovers(rows: Rows) -> dict[str, dict[str, list[tuple[int, float, bool]]]]:
    """Move -> shape -> (chains, time of sites over time of chains in lanes, whether sites were chosen)."""
    times: dict[tuple[str, str, int], dict[str, float]] = {}
    for move, shape, chains, row in cells_of(rows, "layouts"):
        times.setdefault((move, shape, chains), {})[row["variant"]] = row["median"] / row["work"]
    out: dict[str, dict[str, list[tuple[int, float, bool]]]] = {}
    for (move, shape, chains), found in times.items():
        if not {"native", "native chains", "native sites"} <= found.keys():
            continue
        ratio = found["native sites"] / found["native chains"]
        own = found["native"]
        chosen = abs(own - found["native sites"]) < abs(own - found["native chains"])
        out.setdefault(move, {}).setdefault(shape, []).append((chains, ratio, chosen))
    for shapes in out.values():
        for points in shapes.values():
            points.sort()
    return out


def _panels(n: int, width: float, height: float, columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    rows = -(-n // columns)
    figure = Figure(figsize=(width * min(n, columns), height * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, min(n, columns), squeeze=False).flatten()
    for ax in axes[n:]:
        ax.set_axis_off()
    for ax in axes[:n]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#DDDDDD", lw=0.5)
    return figure, list(axes[:n])


def _legend(figure: Any, axes: list[Any], columns: int) -> None:
    found = {
        label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=7,
        frameon=False,
    )  # fmt: skip


def draw_scaling(rows: Rows, title: str, colours: dict[str, str], path: Path) -> None:
    found = costs(rows)
    figure, axes = _panels(len(found), 4.2, 3.2, 2)
    for ax, (name, curves) in zip(axes, found.items(), strict=True):
        for variant, points in curves.items():
            x, y, low, high = zip(*points, strict=True)
            native = variant == "native"
            colour = NATIVE if native else colours.get(variant, "#666666")
            ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
            ax.plot(x, y, marker=".", lw=1.8 if native else 1, color=colour, label=variant)
        ax.set(xscale="log", yscale="log", xlabel="chains", ylabel="ns an update")
        ax.set_title(name, fontsize=8)
    figure.suptitle(title, fontsize=8)
    _legend(figure, axes, 5)
    figure.savefig(path, dpi=150)


def draw_rates(rows: Rows, title: str, colours: dict[str, str], path: Path) -> None:
    panels: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for move, shape, chains, row in cells_of(rows, "lattice"):
        panels.setdefault(move, {}).setdefault(f"{shape} {chains}", {})[row["variant"]] = row
    figure, axes = _panels(len(panels), 3.1, 2.5, 4)
    for ax, (move, sizes) in zip(axes, panels.items(), strict=True):
        for variant in ("native", *colours):
            marks = [(k, r[variant]) for k, r in enumerate(sizes.values()) if variant in r]
            if not marks:
                continue
            native = variant == "native"
            ax.plot(
                [k for k, _ in marks], [row["rate"] for _, row in marks], ls="none", label=variant,
                marker="s" if native else ".", ms=4 if native else 6,
                color=NATIVE if native else colours[variant],
            )  # fmt: skip
        ax.set_yscale("log")
        ax.set_xticks(range(len(sizes)), sizes, rotation=90, fontsize=5)
        ax.tick_params(axis="y", which="both", labelsize=6)
        unit = next(row["unit"] for found in sizes.values() for row in found.values())
        ax.set_ylabel(f"{unit}s/ns", fontsize=6)
        ax.set_title(move, fontsize=7)
    figure.suptitle(title, fontsize=8)
    _legend(figure, axes, 7)
    figure.savefig(path, dpi=150)


def draw_layouts(rows: Rows, title: str, colours: dict[str, str], path: Path) -> None:
    found = crossovers(rows)
    figure, axes = _panels(len(found), 4.2, 3.2, 2)
    for ax, (move, shapes) in zip(axes, found.items(), strict=True):
        for colour, (shape, points) in zip(SHADES, shapes.items(), strict=False):
            ax.plot([n for n, _, _ in points], [r for _, r, _ in points], color=colour, label=shape)
            for n, ratio, sites in points:
                ax.plot(n, ratio, marker="o", ms=4, color=colour, mfc=colour if sites else "white")
        ax.axhline(1, color="black", lw=0.8)
        ax.set(xscale="log", yscale="log", xlabel="chains")
        ax.set_ylabel("sites in lanes / chains in lanes (time)", fontsize=7)
        ax.set_title(f"{move}; filled: the kernel takes sites", fontsize=7)
    figure.suptitle(title, fontsize=8)
    _legend(figure, axes, 7)
    figure.savefig(path, dpi=150)


FIGURES: dict[str, Callable[[Rows, str, dict[str, str], Path], None]] = {
    "scaling": draw_scaling,
    "lattice": draw_rates,
    "layouts": draw_layouts,
}
