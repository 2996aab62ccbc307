"""Compare two result files: python -m benchmarks.compare OLD NEW.

A row is matched by case, variant, size, dtype, device, threads. The ratio is the new time of a unit
over the old one; its spread goes from (lower quartile new / upper quartile old) to (upper new / lower
old). A slowdown is a native row whose whole spread lies above 1 and whose ratio exceeds 1 + tolerance:
quartiles do not show what differs between runs. Peers are printed too: where they move along, it is
the machine. Exit codes: 0, 1 a slowdown, 2 nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

KEYS = ("case", "variant", "size", "dtype", "device", "threads")
TOLERANCE = 0.08  # between runs on a machine that does other things as well


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.compare")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--any-machine", action="store_true", help="also across machines")
    options = parser.parse_args(args)
    old, new = read(options.old), read(options.new)
    if not (old.keys() & new.keys()):
        print("the files have no row in common", file=sys.stderr)
        return 2
    machines = {_machine(row) for row in (*old.values(), *new.values())}
    if len(machines) > 1 and not options.any_machine:
        print(f"different machines: {'; '.join(sorted(machines))}", file=sys.stderr)
        return 2
    text, slower = compare(old, new, options.tolerance)
    print(text)
    return 1 if slower else 0


def read(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows by what identifies them; of rows written twice the later one."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)
    return {tuple(row[key] for key in KEYS): row for row in rows}


def compare(
    old: dict[tuple[Any, ...], dict[str, Any]],
    new: dict[tuple[Any, ...], dict[str, Any]],
    tolerance: float = TOLERANCE,
) -> tuple[str, list[str]]:
    """The table, and the names of native rows that became slower."""
    width = max((len(key[0]) + 1 for key in new), default=22)
    lines = [f"{'case':<{width}}{'variant':<18}{'old':>12}{'new':>12}{'new/old':>9}   spread"]
    slower = []
    for key in (k for k in new if k in old):
        a, b = _per_unit(old[key]), _per_unit(new[key])
        ratio, low, high = b[1] / a[1], b[0] / a[2], b[2] / a[0]
        verdict = ""
        if low > 1 and ratio > 1 + tolerance:
            verdict = "slower"
        elif high < 1 and ratio < 1 - tolerance:
            verdict = "faster"
        if verdict == "slower" and key[1].startswith("native"):
            slower.append(f"{key[0]}, {key[1]}")
        times = f"{_seconds(a[1]):>12}{_seconds(b[1]):>12}{ratio:>9.3f}"
        line = f"{key[0]:<{width}}{key[1]:<18}{times}   {low:.3f} to {high:.3f}  {verdict}"
        lines.append(line.rstrip())
    for name, here, there in (("old", old, new), ("new", new, old)):
        alone = _alone(here, there)
        if alone:
            lines.append(f"only in {name}: {', '.join(alone)}")
    lines.append(f"slower: {'; '.join(slower)}" if slower else "no native row is slower")
    return "\n".join(lines), slower


def _alone(here: dict[tuple[Any, ...], Any], there: dict[tuple[Any, ...], Any]) -> list[str]:
    """What only one file has: cases, and variants of cases that both have."""
    shared = {key[0] for key in there}
    missing = (key for key in here if key not in there)
    return list(dict.fromkeys(f"{k[0]} ({k[1]})" if k[0] in shared else k[0] for k in missing))


def _per_unit(row: dict[str, Any]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile of the seconds of a unit."""
    return row["q1"] / row["work"], row["median"] / row["work"], row["q3"] / row["work"]


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-12:.3g} ps"


def _machine(row: dict[str, Any]) -> str:
    machine = row["machine"]
    cpu = machine["cpu"]
    return f"{cpu['name']} ({cpu['family']}, {cpu['model']}), {machine['isa']}, {machine['gpu']}"


if __name__ == "__main__":
    sys.exit(main())
