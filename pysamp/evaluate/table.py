"""The text of an evaluation: which sampler fails where, and how; at most 100 columns wide."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pysamp.evaluate.rows import Cell, aggregate

WIDTH = 100
NAMES = 30  # columns of a target and its parameters
HEAD = f"{'runs':>5}{'n':>7}{'cost':>9}{'error':>7}{'floor':>7}{'spread':>8}  what went wrong"
MAX_REASONS = 12  # reasons of failed runs that are printed; all are in the rows


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Cells sampler by sampler, with the cost of a run beside, and what went wrong in words."""
    rows = list(rows)
    cells = aggregate(rows)
    return "\n".join(_lines(rows, cells))


def _lines(rows: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> Iterator[str]:
    for sampler in dict.fromkeys(cell.sampler for cell in cells):
        mine = [cell for cell in cells if cell.sampler == sampler]
        told = list(dict.fromkeys(hint for cell in mine for hint in cell.oracle))
        yield from textwrap.wrap(
            f"{sampler}   " + (f"ORACLE: {'; '.join(told)}" if told else "no oracle"), WIDTH
        )
        for target in dict.fromkeys(cell.target for cell in mine):
            yield f"  {_short(target, NAMES - 3):<{NAMES - 2}}{HEAD}"
            for cell in mine:
                if cell.target == target:
                    yield from _cell(cell)
        yield ""
    good = sum(not cell.faults for cell in cells)
    yield f"{good} of {len(cells)} cells without a fault"
    yield from textwrap.wrap(
        "error: mean |ŵ − w| and spread: sd ŵ over runs, in percentage points of the weight of a "
        "mode; floor: the error of n independent exact draws; cost: gradients of a run (evaluations "
        "where there are none). ORACLE: the sampler was told something of the answer. What went wrong: "
        "runs that failed, had draws that are not finite, or missed a mode; importance weights worth "
        "less than one draw in a hundred; spread ×: times that of exact draws; biased: mean of ŵ − w, "
        "beyond chance; error ×: times the floor; variance inside: of coordinates in a mode, against "
        "exact draws; above floor: a distance that exact draws do not have.",
        WIDTH,
    )
    yield from _reasons(rows)


def _cell(cell: Cell) -> Iterator[str]:
    name = _name(cell)
    cost = "–" if cell.cost is None else f"{cell.cost:.1e}" if cell.cost else "0"
    runs = f"{cell.runs}" if not cell.failed else f"{cell.runs}/{cell.runs + cell.failed}"
    numbers = (
        f"{runs:>5}{_count(cell.n):>7}{cost:>9}{_points(cell.error):>7}{_points(cell.floor_error):>7}"
        f"{_points(cell.spread):>8}"
    )
    if len(name) > NAMES:
        yield name[:WIDTH]
        name = ""
    room = WIDTH - NAMES - len(numbers) - 2
    said = textwrap.wrap("; ".join(cell.faults) or "–", room)
    yield f"{name:<{NAMES}}{numbers}  {said[0]}"
    for more in said[1:]:
        yield f"{'':<{NAMES + len(numbers) + 2}}{more}"
    found = [_metric(n, m) for n, m in cell.metrics.items()]
    if cell.log_z_bias is not None:
        error = "" if cell.log_z_se is None else f" ± {cell.log_z_se:.1g}"
        found.append(f"log Z off by {cell.log_z_bias:+.2g}{error}")
    if found:
        yield from textwrap.wrap(
            "; ".join(found), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )


def _name(cell: Cell) -> str:
    parts = [f"{k}={_short(v)}" for k, v in cell.parameters.items()]
    budget = [] if cell.budget is None else [f"≤{cell.budget:.2g}"]
    return "    " + " ".join([*parts, *budget])


def _short(value: Any, longest: int = 20) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _metric(name: str, found: dict[str, float | None]) -> str:
    mean, low, high = (found.get(k) for k in ("mean", "floor_low", "floor_high"))
    value = "not finite" if mean is None else f"{mean:.3g}"
    spread = "" if found.get("sd") is None else f" ± {found['sd']:.1g}"
    floor = "" if low is None or high is None else f" (floor {low:.2g} to {high:.2g})"
    return f"{name} {value}{spread}{floor}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _points(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.1f}"


def _reasons(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    failed = [row for row in rows if row["status"] == "failed"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in failed:
        # Reasons that differ by the seed or another number alone are one.
        name = (row["sampler"], re.sub(r"[\d.]+", "#", row["reason"]))
        groups.setdefault(name, []).append(row)
    if not groups:
        return
    yield ""
    for (sampler, _), group in list(groups.items())[:MAX_REASONS]:
        reason = group[0]["reason"]
        yield from textwrap.wrap(
            f"failed: {sampler} in {len(group)} runs, first {group[0]['target']} "
            f"{group[0]['parameters']} seed {group[0]['seed']}: {' '.join(reason.split())}",
            WIDTH,
            subsequent_indent="        ",
        )
    if len(groups) > MAX_REASONS:
        yield f"and {len(groups) - MAX_REASONS} more reasons, in the rows"
