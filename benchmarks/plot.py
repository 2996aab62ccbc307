"""Draw a result file: python -m benchmarks.plot RESULTS.jsonl [--out FIGURE].

One group of bars per case: how many times faster the native kernel is than each other variant, with
the quartiles of both as error bars, and a mark at what a goal asks for. Cells of lattices have figures
of their own (plot_lattice.py), next to it: FIGURE-scaling.png, FIGURE-lattice.png, FIGURE-layouts.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.plot_lattice import FIGURES, cells_of

# Okabe and Ito's colours, for readers with any colour vision.
COLOURS = {
    "torch eager": "#0072B2", "torch expanded": "#56B4E9", "torch autograd": "#999999",
    "torch masked": "#BBBBBB", "torch.compile": "#E69F00", "jax": "#009E73", "blackjax": "#D55E00",
    "numba": "#CC79A7", "numpy": "#F0E442", "zuko": "#882255", "normflows": "#AA9944",
    "torch.mm": "#444444",
}  # fmt: skip


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.plot")
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="default: RESULTS with .png")
    options = parser.parse_args(args)
    lines = options.results.read_text(encoding="utf-8").splitlines()
    out = options.out or options.results.with_suffix(".png")
    rows = [json.loads(line) for line in lines if line]
    kinds = [kind for kind in FIGURES if cells_of(rows, kind)]
    if bars(rows) or not kinds:
        draw(rows, out)
        print(f"figure: {out}")
    for kind in kinds:
        path = out.with_stem(f"{out.stem}-{kind}")
        FIGURES[kind](rows, _title(rows[0]), COLOURS, path)
        print(f"figure: {path}")
    return 0


def bars(rows: list[dict[str, Any]]) -> dict[str, list[tuple[str, float, float, float]]]:
    """Per case: (variant, ratio of rates, lower, upper); "torch", first calls and cells are left out."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if "/" not in row["case"]:
            cases.setdefault(row["case"], {})[row["variant"]] = row
    out = {}
    for case, variants in cases.items():
        ours = variants.get("native")
        others = [name for name in COLOURS if name in variants]
        if ours is None or not others or case == "first_call":
            continue
        out[case] = [_bar(name, variants[name], ours) for name in others]
    return out


def _bar(name: str, other: dict[str, Any], ours: dict[str, Any]) -> tuple[str, float, float, float]:
    theirs = [other[key] / other["work"] for key in ("q1", "median", "q3")]
    own = [ours[key] / ours["work"] for key in ("q1", "median", "q3")]
    return name, theirs[1] / own[1], theirs[0] / own[2], theirs[2] / own[0]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the figure. Raises ValueError where no case has both native and other rows."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import LogLocator, NullLocator

    cases = bars(rows)
    if not cases:
        raise ValueError("no case has a native row and one of another variant")
    n_bars = sum(len(found) + 1 for found in cases.values())
    figure = Figure(figsize=(8, 1.3 + 0.17 * n_bars), layout="constrained")
    axes = figure.subplots()
    musts = {
        (row["case"], goal["against"]): goal["must"]
        for row in rows
        for goal in row["goals"]
        if goal["kind"] == "ratio" and row["variant"] == "native"
    }
    y, ticks, present = 0.0, [], set()
    for case, found in cases.items():
        ticks.append((y + (len(found) - 1) / 2, case))
        for name, ratio, low, high in found:
            axes.barh(y, ratio - 1, 0.9, left=1, color=COLOURS[name],
                      xerr=[[ratio - low], [high - ratio]],
                      error_kw={"lw": 0.8, "ecolor": "#444444"})  # fmt: skip
            must, label = musts.get((case, name)), 1.04 * max(high, 1)
            if must is not None:
                axes.plot([must, must], [y - 0.45, y + 0.45], color="black", lw=1.6)
                if label < 1.04 * must < 1.4 * label:  # the number would lie on the mark
                    label = 1.06 * must
            axes.text(label, y, f"{ratio:.3g}", va="center", fontsize=6.5)
            present.add(name)
            y += 1
        y += 1
    axes.set_yticks([at for at, _ in ticks], [case for _, case in ticks], fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#DDDDDD", lw=0.5)
    axes.set_axisbelow(True)
    axes.axvline(1, color="black", lw=0.6)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    left, end = axes.get_xlim()
    axes.set_xlim(min(left, 0.9), 1.3 * end)
    axes.set_xlabel("rate of the native kernel / rate of the other")
    axes.spines[["top", "right"]].set_visible(False)
    legend: list[Any] = [Patch(color=c, label=n) for n, c in COLOURS.items() if n in present]
    legend.append(Line2D([], [], color="black", lw=1.6, label="goal (must)"))
    figure.legend(handles=legend, loc="outside upper center", ncols=4, fontsize=7, frameon=False)
    axes.set_title(_title(rows[0]), fontsize=8)
    figure.savefig(path, dpi=150)


def _title(row: dict[str, Any]) -> str:
    machine, versions = row["machine"], row["versions"]
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    where = machine["gpu"] or f"{machine['cpu']['name']}, {machine['isa']}, {threads}"
    return f"{where}; pysamp {versions['git']}, torch {versions['torch']}"


if __name__ == "__main__":
    sys.exit(main())
