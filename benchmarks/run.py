"""Run benchmark cases: python -m benchmarks.run [PATTERN] [options].

Each case first compares its variants and is not timed if they disagree; then they take turns. Rows go
to a file as JSON lines, progress to stderr, the table of ratios and goals to stdout. Exit code 1 if
a case disagreed or failed.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the number of threads must be set before these are imported
    from benchmarks.bench import Bench, On
    from pysamp.timing import Timing, Variant


def main(args: list[str] | None = None) -> int:
    options = _options(args)
    _confine(options.threads if options.device == "cpu" else None)
    import torch

    from benchmarks.bench import NotHereError, On
    from benchmarks.cases import CASES
    from benchmarks.machine import about
    from pysamp.timing import DisagreementError

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU")
    torch.set_num_threads(options.threads)
    names = [name for name in CASES if re.search(options.pattern, name)]
    if not names:
        raise SystemExit(f"no case matches {options.pattern!r}; there are: {', '.join(CASES)}")
    on = On(torch.device(options.device), options.threads, options.quick)
    common = about(on)
    ceilings = Ceilings(on)
    file = open(options.out, "w", encoding="utf-8") if options.out else None  # noqa: SIM115
    rows, failed = [], []
    agreed: dict[str, dict[str, float]] = {}
    for name in names:
        _tell(f"{name}: preparing")
        try:
            bench = CASES[name](on)
            seconds = 0.02 if options.quick else 0.05
            new = measure(bench, on, options.repeats, seconds, ceilings, agreed)
        except NotHereError as reason:
            _tell(f"{name}: skipped, {reason}")
            continue
        except DisagreementError as error:
            _tell(f"{name}: NOT TIMED, its variants disagree: {error}")
            failed.append(name)
            continue
        except Exception:
            _tell(f"{name}: failed\n{traceback.format_exc()}")
            failed.append(name)
            continue
        for row in new:
            row |= common | {"date": _now()}
            rows.append(row)
            if file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
    if file:
        file.close()
    print(table(rows))
    if failed:
        print(f"\nfailed: {', '.join(failed)}; the reasons are on stderr")
    return 1 if failed else 0


def _options(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.run")
    parser.add_argument("pattern", nargs="?", default="", help="regular expression of case names")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="fewer repeats; no torch.compile")
    options = parser.parse_args(args)
    if options.repeats is None:
        options.repeats = 3 if options.quick else 9
    if options.threads < 1 or options.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    return options


def _confine(threads: int | None) -> None:
    """The same number of threads for torch, JAX and numba; one thread stays on one processor."""
    if "torch" in sys.modules or "jax" in sys.modules:
        return  # called from a program that has chosen already
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX would take most of a GPU
    if threads is None:
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


# ---------------------------------------------------------------------------- measuring
def measure(
    bench: Bench, on: On, repeats: int, seconds: float, ceilings: Ceilings,
    agreed: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Check, time, and write a row per variant. Raises DisagreementError.

    `agreed` keeps what was found of the smaller cases that are compared in place of large ones.
    """
    import torch

    from benchmarks import goals
    from pysamp import _native
    from pysamp.quickbench import SEED
    from pysamp.timing import interleave

    case = bench.case
    devices = [on.device] if on.cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(SEED)
        if bench.times_itself:
            timings = _fresh_processes(case.variants, 1 if on.quick else 3)
            first = {name: timing.wall[0] for name, timing in timings.items()}
        else:
            first = _agree(bench, {} if agreed is None else agreed)
            _tell(f"{case.name}: {len(case.variants)} variants agree, timing")
            runs = {v.name: functools.partial(v.run, v.steps) for v in case.variants}
            repeats = min(repeats, bench.repeats or repeats)
            timings = interleave(runs, repeats=repeats, seconds=seconds, device=on.device)
    rows = [_row(bench, v, timings[v.name], on, ceilings) for v in case.variants]
    for row in rows:
        row["first"] = first.get(
            row["variant"]
        )  # wall seconds of the first run, compilation included
    goals.judge(rows, isa=str(_native.info()["cpu_isa"]))
    return rows


def _agree(bench: Bench, agreed: dict[str, dict[str, float]]) -> dict[str, float]:
    """Wall seconds of the first run of each variant, once they were found to agree."""
    from pysamp.timing import check

    if not bench.agreements:
        return check(bench.case)
    first: dict[str, float] = {}
    for case in bench.agreements:
        if case.name not in agreed:
            agreed[case.name] = check(case)
        first |= agreed[case.name]
    return first


def _fresh_processes(variants: tuple[Variant, ...], repeats: int) -> dict[str, Timing]:
    from pysamp.timing import Timing

    seconds: dict[str, list[float]] = {v.name: [] for v in variants}
    for _ in range(repeats):
        for v in variants:
            if v.name != "torch.compile" or not seconds[v.name]:  # half a minute each: once
                seconds[v.name].append(v.run(1))
    return {n: Timing(tuple(s), tuple(s), "wall", 1) for n, s in seconds.items()}


def _row(bench: Bench, v: Variant, timing: Timing, on: On, ceilings: Ceilings) -> dict[str, Any]:
    from benchmarks.bench import units_per_step

    case = bench.case
    q1, median, q3 = timing.quartiles()
    work = units_per_step(case, v) * v.steps
    moved = bench.call_bytes + bench.step_bytes * v.steps
    least = ceilings.least_seconds(bench, v, work, moved)
    ceiling = max(least, key=lambda name: least[name]) if least else None
    return {
        "case": case.name,
        "variant": v.name,
        "size": case.size,
        "dtype": v.dtype,
        "device": on.device.type,
        "threads": v.threads or on.threads,
        "median": median,  # seconds of a call, by `clock`
        "q1": q1,
        "q3": q3,
        "clock": timing.clock,
        "wall": sorted(timing.wall)[len(timing.wall) // 2],
        "repeats": len(timing.seconds),
        "calls": timing.calls,
        "steps": v.steps,
        "unit": case.unit,
        "work": work,
        "rate": work / median / 1e9,  # units per ns
        "bytes": moved,
        "flops": bench.flops * work,
        "ceiling": ceiling,
        "fraction": least[ceiling] / median if ceiling else None,
        "quick": on.quick,
        "left_out": dict(bench.left_out),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "goals": [],
    }


class Ceilings:
    """What bounds a kernel on this machine, measured in this run when first asked for."""

    def __init__(self, on: On) -> None:
        self.on = on
        self.copy = functools.lru_cache(None)(self._copy)
        self.draws = functools.lru_cache(None)(self._draws)

    def least_seconds(
        self, bench: Bench, v: Variant, work: float, moved: float
    ) -> dict[str, float]:
        """Seconds a call needs at least: for its bytes, its random numbers, its instructions."""
        import torch

        from benchmarks import goals, machine
        from pysamp.quickbench import native_on

        least = {}
        if moved:
            least["copy"] = moved / self.copy()
        if bench.draws and native_on(self.on.device):
            kind, per_unit = bench.draws
            least["random numbers"] = work * per_unit / self.draws(kind, getattr(torch, v.dtype))
        limits = goals.CUDA_LIMIT if self.on.cuda else goals.CPU_LIMIT
        limit = limits.get(bench.case.name)
        if limit and v.dtype == "float32" and self.on.threads == 1 and machine.is_modelled(self.on):
            least["instructions"] = work / limit / 1e9
        issued = machine.issued(self.on)
        if bench.instructions and issued and v.dtype == "float32":
            least["instructions"] = work * bench.instructions / 16 / issued / 1e9
        if bench.multiply_adds and not self.on.cuda and v.dtype == "float32":
            fused = machine.multiply_adds()
            if fused:
                cores = v.threads or self.on.threads
                least["multiply-adds"] = work * bench.multiply_adds / (fused * cores) / 1e9
        return least

    def _copy(self) -> float:
        """Bytes per second, read and written, of a copy in memory."""
        import torch

        n = 2**28 if self.on.cuda else 2**25
        source = torch.arange(n, dtype=torch.float32, device=self.on.device)
        out = torch.empty_like(source)
        return 8 * n / self._median(lambda: out.copy_(source))

    def _draws(self, kind: str, dtype: Any) -> float:
        """Numbers per second of the native fill."""
        from pysamp import backend, rng
        from pysamp.quickbench import SEED

        shape = (100_000 if self.on.cuda else 1000, 1000)
        draw = getattr(rng, kind)
        with backend("native"):
            seconds = self._median(
                lambda: draw(shape, seed=SEED, device=self.on.device, dtype=dtype)
            )
        return shape[0] * shape[1] / seconds

    def _median(self, run: Callable[[], Any]) -> float:
        from pysamp.timing import interleave

        timing = interleave({"": run}, repeats=5, seconds=0.02, device=self.on.device)[""]
        return timing.quartiles()[1]


# ---------------------------------------------------------------------------- the table
def table(rows: list[dict[str, Any]]) -> str:
    """The native rate of each case, how many times the others it is, and the goals."""
    from pysamp.quickbench import si

    if not any(row["variant"].startswith("native") for row in rows):
        return f"{len(rows)} rows, none of a native kernel"
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["variant"]] = row
    width = max(21, *(len(name) + 1 for name in cases))
    lines = [f"{'case':<{width}}{'native':>8} unit/s{'of ceiling':>12}   times the rate of"]
    for name, variants in cases.items():
        ours = [row for variant, row in variants.items() if variant.startswith("native")]
        if not ours:
            continue
        own = ours[0]
        fraction = f"{own['fraction']:.0%}" if own["fraction"] is not None else "–"
        ratios = (
            f"{variant} {own['rate'] / row['rate']:.3g}"
            for variant, row in variants.items()
            if row is not own
        )
        rate = f"{si(own['rate'] * 1e9):>8}{fraction:>19}"
        lines.append(f"{name:<{width}}{rate}   {', '.join(ratios)}")
    asked = [(row, goal) for row in rows for goal in row["goals"]]
    if asked:
        lines += [
            "",
            f"{'goal':<6}{'case':<{width}}{'reached':>10}{'must':>10}{'stretch':>10}   against",
        ]
    for row, goal in asked:
        number = _shown(goal["kind"])
        verdict = {True: "met", False: "MISSED", None: "not measured"}[goal["met"]]
        cells = [number(goal[key]) for key in ("reached", "must", "stretch")]
        line = f"{goal['id']:<6}{row['case']:<{width}}" + "".join(f"{cell:>10}" for cell in cells)
        lines.append(f"{line}   {goal['against']}: {verdict}")
    return "\n".join(lines)


def _shown(kind: str) -> Callable[[float | None], str]:
    def shown(value: float | None) -> str:
        if value is None:
            return "–"
        if kind == "seconds/unit":
            return f"{value * 1e6:.3g} µs" if value < 1e-3 else f"{value * 1e3:.3g} ms"
        if kind == "of ceiling":
            return f"{value:.0%}"
        return f"{value:.3g}×" if kind == "ratio" else f"{value:.3g}/ns"

    return shown


if __name__ == "__main__":
    sys.exit(main())
