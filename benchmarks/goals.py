"""What is asked of the native kernels, case by case: C1 … on one CPU core, G1 … on an H200.

Each ratio is that of the native rate to the fastest of the variants named. "must" gates a release,
"stretch" is what prototypes or the literature show possible. Limits count instructions: of compiled
inner loops on a core that issues 6.9 AVX-512 instructions/ns, of SASS on an H200 at 1.98 GHz; those of
lattice moves are limits.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Goal:
    """`must` and `stretch` of one variant: a ratio of rates, a rate, a time a unit, a share of a bound."""

    id: str
    must: float
    stretch: float | None = None
    kind: Literal["ratio", "units/ns", "seconds/unit", "of ceiling"] = "ratio"
    against: tuple[str, ...] = ()
    variant: str = "native"
    avx2: float | None = None  # `must` where the kernels are those for AVX2
    times_threads: bool = False  # must and stretch are per thread


EAGER, JAX = ("torch eager",), ("jax",)
FLOWS = ("realnvp_64_forward", "realnvp_64_inverse", "realnvp_128_forward", "realnvp_128_inverse")

CPU: dict[str, tuple[Goal, ...]] = {
    "uniform_fill": (Goal("C1", 4, 5, against=("torch eager", "numpy"), avx2=2),),
    "normal_fill": (Goal("C2", 3, 4, against=("torch eager", "numpy"), avx2=1.7),),
    "phi4_2d_16": (Goal("C3", 8, 11, against=JAX, avx2=5), Goal("C3", 10, against=EAGER)),
    "phi4_2d_64": (Goal("C3", 8, 11, against=JAX, avx2=5), Goal("C3", 10, against=EAGER)),
    "phi4_3d_16": (Goal("C4", 20, 25, against=("torch masked",)),),
    "mala_chain": (
        Goal("C6", 12, 16, against=("blackjax", "jax"), avx2=8),
        Goal("C6", 12, 16, against=EAGER, avx2=8),
    ),
    "ula_chain": (
        Goal("C7", 10, 14, against=JAX, avx2=7),
        Goal("C7", 10, 14, against=EAGER, avx2=7),
    ),
    "hmc_chain": (Goal("C8", 14, 20, against=JAX), Goal("C8", 17, against=("blackjax",))),
    "mala_mixture_8_2": (Goal("C9", 15, 25, against=("jax", "blackjax")),),
    "mala_mixture_2_64": (Goal("C9", 8, 12, against=("jax", "blackjax")),),
    "mala_mixture_8_64": (Goal("C9", 15, 25, against=("jax", "blackjax")),),
    "mala_mixture_16_128": (Goal("C9", 12, 15, against=("jax", "blackjax")),),
    **dict.fromkeys(
        FLOWS,
        (
            Goal("C12", 1.5, 1.75, against=JAX),
            Goal("C12", 2, against=("torch eager", "torch")),
            Goal("C12", 4, against=("zuko",)),
            Goal("C12", 0.65, kind="of ceiling", against=("multiply-adds",)),
        ),
    ),
    "mala_chain_16": (
        Goal("C14", 2.5e-6, 1.7e-6, "seconds/unit"),
        Goal("C14", 10, against=JAX),
    ),
    "first_call": (Goal("C15", 50e-3, 10e-3, "seconds/unit"),),
    "slips_8_gaussians": (Goal("C13", 25, 50, against=("torch",)),),
    "slips_phi4": (Goal("C13", 20, 35, against=("torch",)),),
    "phi4_2d_16_isa": (Goal("C16", 2.5, 3, against=JAX, variant="native baseline"),),
    "phi4_2d_16_float64": (Goal("C16", 0.5, 0.6, against=("native float32",)),),
    "phi4_2d_16_scaling": (
        Goal("C17", 0.85, 0.95, against=("native 1 thread",), times_threads=True),
    ),
    "mala_chain_scaling": (
        Goal("C17", 0.85, 0.95, against=("native 1 thread",), times_threads=True),
    ),
}

# The moves of lattices: C3 and C4 as they were set for φ⁴, C5 for O(3) against torch with a mask. Split
# checkerboards do half the work of masked ones, so that against them C4 and C5 ask for half the ratio.
_IN_2D = (Goal("C3", 8, 11, against=JAX, avx2=5), Goal("C3", 10, against=EAGER))
_IN_3D = (Goal("C4", 10, 12.5, against=EAGER),)
_O3 = (Goal("C5", 12, 17, against=EAGER),)
_MOVES = ("phi4_metropolis", "phi4_heat_bath", "ising_metropolis", "ising_heat_bath",
          "xy_metropolis", "xy_heat_bath")  # fmt: skip
CPU |= {f"lattice/{move}/64x64/64": _IN_2D for move in _MOVES}
CPU |= {f"lattice/{move}/32x32x32/64": _IN_3D for move in _MOVES}
for _move in ("heisenberg_metropolis", "heisenberg_over_relaxation"):
    CPU[f"lattice/{_move}/32x32x32/64"] = _O3
    CPU[f"goal/{_move}/16x16x16/32"] = (Goal("C5", 24, 35, against=("torch masked",)),)

CUDA: dict[str, tuple[Goal, ...]] = {
    "phi4_2d_64": (
        Goal("G1", 250, 380, "units/ns"),
        Goal("G1", 15, against=EAGER),
        Goal("G1", 2, against=("torch.compile", "jax")),
    ),
    "phi4_2d_16": (Goal("G2", 150, 300, "units/ns"), Goal("G2", 100, against=EAGER)),
    "goal/heisenberg_metropolis/16x16x16/2048": (
        Goal("G4", 110, 180, "units/ns"),
        Goal("G4", 10, against=("torch eager", "torch masked")),
    ),
    "mala_chain": (Goal("G5", 200, 310, "units/ns"), Goal("G5", 15, against=EAGER)),
    "mala_chain_4096": (Goal("G5", 150, None, "units/ns"), Goal("G5", 50, against=EAGER)),
    "ula_chain": (Goal("G6", 350, 540, "units/ns"), Goal("G6", 15, against=EAGER)),
    "hmc_chain": (Goal("G6", 900, 1400, "units/ns"), Goal("G6", 15, against=EAGER)),
    "mala_mixture_8_2": (Goal("G7", 60, 100, "units/ns"), Goal("G7", 15, against=EAGER)),
    "mala_mixture_8_64": (Goal("G7", 2.5, 4.5, "units/ns"), Goal("G7", 15, against=EAGER)),
    **dict.fromkeys(
        FLOWS[:2],
        (
            Goal("G9", 0.075, 0.1, "units/ns"),
            Goal("G9", 1.5, against=("torch eager", "torch")),
        ),
    ),
}

# Units/ns that the counted instructions allow.
CPU_LIMIT = {
    "uniform_fill": 2.9, "normal_fill": 1.8, "phi4_2d_16": 1.05, "phi4_2d_64": 1.05,
    "phi4_3d_16": 0.99, "mala_chain": 1.42, "ula_chain": 1.58, "hmc_chain": 5.5,
    "mala_mixture_8_64": 0.0144,
}  # fmt: skip
CUDA_LIMIT = {
    "uniform_fill": 2190, "normal_fill": 1520, "phi4_2d_16": 519, "phi4_2d_64": 519,
    "mala_chain": 430, "mala_chain_4096": 430, "ula_chain": 757, "hmc_chain": 2010,
    "mala_mixture_8_2": 139, "mala_mixture_8_64": 7.3,
    "realnvp_64_forward": 0.146, "realnvp_64_inverse": 0.146,  # 459 kFLOP at 67 TFLOP/s
}  # fmt: skip


def judge(rows: list[dict[str, Any]], *, isa: str | None) -> None:
    """Write into the rows of a case, next to the variant that a goal is for, what was reached.

    Goals of the CPU are for one thread, but for those of scaling.
    """
    name, cuda = rows[0]["case"], rows[0]["device"] == "cuda"
    threads = max(row["threads"] for row in rows)
    if not cuda and threads != 1 and not name.endswith("_scaling"):
        return
    by_name = {row["variant"]: row for row in rows}
    for goal in (CUDA if cuda else CPU).get(name, ()):
        row = by_name.get(goal.variant)
        if row is None:
            continue
        must, stretch = goal.must, goal.stretch
        if goal.avx2 is not None and not cuda and isa == "x86-64-v3":
            must = goal.avx2
        if goal.times_threads:
            must, stretch = must * threads, stretch * threads if stretch else None
        reached, against = _reached(goal, row, by_name)
        asked = {"id": goal.id, "kind": goal.kind, "must": must, "stretch": stretch}
        met = None
        if reached is not None:
            met = reached <= must if goal.kind == "seconds/unit" else reached >= must
        row["goals"].append(asked | {"against": against, "reached": reached, "met": met})


def _reached(
    goal: Goal, row: dict[str, Any], by_name: dict[str, dict[str, Any]]
) -> tuple[float | None, str]:
    if goal.kind == "units/ns":
        return row["rate"], "units/ns"
    if goal.kind == "seconds/unit":
        return 1e-9 / row["rate"], "seconds"
    if goal.kind == "of ceiling":
        return row["fraction"] if row["ceiling"] in goal.against else None, goal.against[0]
    here = [by_name[name] for name in goal.against if name in by_name]
    if not here:
        return None, " or ".join(goal.against)
    best = max(here, key=lambda other: other["rate"])
    return row["rate"] / best["rate"], best["variant"]
