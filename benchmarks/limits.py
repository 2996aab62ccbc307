"""How many vector instructions a lattice move needs for 16 units in float32, at least.

Counted from the functors of csrc/moves.h, measure.h and clusters.h, an operation of the text an
instruction, in a vector of 16 lanes: + − × ÷ √, a comparison, a select, a shift, a conversion. Loads and
stores are not counted, as they overlap, nor is what depends on neither lane nor site. Divisions and
roots count as one although the divider takes longer over them. The compiled loop of φ⁴ Metropolis in
two dimensions has 140 (docs/decisions/0005) where the text gives 130: a bound is good to a tenth.

With the instructions that a core issues in a nanosecond (machine.py) this is the limit model:
units/ns ≤ 16 · issued / instructions.
"""

from __future__ import annotations

from collections.abc import Callable

WORD = 34  # of Philox: 136 instructions make 64 words of 16 lanes
LOG = 28  # log_portable: 7 to split the number, 19 of the polynomial, 2 to put ln 2 back
EXP = 27  # exp_portable: 4 clamp, 8 reduce, 12 of the polynomial, 3 put 2^n back
UNIFORM = 4  # shift, or, −, − or +
LOG_UNIFORM = 4 + LOG  # shift, convert, +, ×
NORMAL = 30  # half a pair: logarithm 32, × and √, angle 2, cosine 13, sine 9, two products
TURN = 25  # cos_quarter 11, sin_quarter 9, c² − s² 3, 2cs 2
DECIDE = 8  # two comparisons, and, select, two for each of the counts


def around(d: int, n: int = 1) -> int:
    """Σ over the neighbours of n components."""
    return n * (2 * d - 1)


def phi4_metropolis(d: int) -> float:
    # proposal 2, v² + u² + … 4, h 2, v + u, quartic·v₄ + square 2, ×, −, v − u, ×
    return 2 * WORD + UNIFORM + LOG_UNIFORM + around(d) + 15 + DECIDE


def phi4_heat_bath(d: int) -> float:
    # b 2, |b| 2, start of v: a cube root and 7, Newton 2 × 9, C 3, a 2, v' 6, (v'² − C)² 5, comparison,
    # select, count 2
    return 2 * WORD + NORMAL + LOG_UNIFORM + around(d) + LOG + EXP + 48


def phi4_measured(d: int) -> float:
    # energy of a site: φ² 2, bonds 4 and their sum, quartic 7, sums 2; m 1; waves 2 for each of 2d
    return phi4_metropolis(d) + around(d) + 15 + 1 + 4 * d


def phi4_hmc(d: int) -> float:
    """A leapfrog of ten: score 7, momentum 2, position 2; momenta drawn and energies once."""
    once = WORD + NORMAL + 4 + around(d) + 10
    return around(d) + 7 + 4 + once / 10


def ising_metropolis(d: int) -> float:
    # h 1, −u, v − u, ×; min(r, 0) − 1/16 3
    return WORD + LOG_UNIFORM + around(d) + 7 + DECIDE


def ising_heat_bath(d: int) -> float:
    # h 1, −2h, + 1, ÷, comparison, select
    return WORD + UNIFORM + EXP + around(d) + 6


def rotation(d: int) -> float:
    """Metropolis of XY and Heisenberg spins: two components turn.

    δy 1, turn, a' and b' 6, h 2, log ratio 5, one select more than DECIDE has.
    """
    return 2 * WORD + UNIFORM + LOG_UNIFORM + around(d, 2) + TURN + 15 + DECIDE


def xy_heat_bath(d: int) -> float:
    # h 2, q 3, k 1, τ 4, 2k 1, d 2, f 3, g 4, w 3, ln w + 1 − w < ln u 3, e 6, s' 6, selects 2, count 2
    return 2 * WORD + UNIFORM + LOG_UNIFORM + around(d, 2) + TURN + LOG + 42


def heisenberg_heat_bath(d: int) -> float:
    # h 3, q 5, k 1, −2k 1, argument 5, ÷k and + 1 2, series 12, its choice 2, clamp 4, ρ 3, p and m 2,
    # e 7, sign 2, a and b 4, s' 26
    return 2 * WORD + 2 * UNIFORM + EXP + LOG + around(d, 3) + TURN + 79


def over_relaxation(n: int) -> Callable[[int], float]:
    """h n, s·h and h² 4n − 2, the factor 4, s' 2n: nothing is drawn."""
    return lambda d: around(d, n) + 7 * n + 2


def soft_metropolis(d: int) -> float:
    """Two passes of φ⁴ with the square of the other component, 2."""
    return 2 * (phi4_metropolis(d) + 2)


def bonds(d: int) -> float:
    """Four words a site: d bonds of 5, and a coin."""
    return 4 * WORD + d * (LOG_UNIFORM + 5) + UNIFORM + 2


def scalar(instructions: float) -> float:
    """Those of one unit, of which four issue while two vectors do, as vectors for 16 units."""
    return 16 * instructions / 2


def swendsen_wang(d: int) -> float:
    # A site: its run 4, bonds of the other axes 4 each, label and size 5, reflection 5. The search of
    # a union is not counted.
    return bonds(d) + scalar(14 + 4 * (d - 1))


def wolff(d: int) -> float:
    # A flipped site: 2d bonds of 11 (neighbour, bond, mark, comparison, choice, stack, whether its
    # vector was drawn), its place on the stack 4, reflection 3. The vectors at the rim of a cluster
    # are drawn too, and not counted.
    return bonds(d) + scalar(22 * d + 7)


LIMITS: dict[str, Callable[[int], float]] = {
    "phi4_metropolis": phi4_metropolis,
    "phi4_heat_bath": phi4_heat_bath,
    "phi4_measured": phi4_measured,
    "phi4_hmc": phi4_hmc,
    "ising_metropolis": ising_metropolis,
    "ising_heat_bath": ising_heat_bath,
    "ising_wolff": wolff,
    "ising_swendsen_wang": swendsen_wang,
    "xy_metropolis": rotation,
    "xy_heat_bath": xy_heat_bath,
    "xy_over_relaxation": over_relaxation(2),
    "heisenberg_metropolis": rotation,
    "heisenberg_heat_bath": heisenberg_heat_bath,
    "heisenberg_over_relaxation": over_relaxation(3),
    "soft_metropolis": soft_metropolis,
    "soft_over_relaxation": over_relaxation(2),
}
