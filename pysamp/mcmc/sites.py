"""Sweeps of single-site moves over lattice fields: programs of them, natively or in torch.

A step is a program of sweeps, such as one heat bath and two over-relaxations; sweep i of K in step t has
the counter t K + i, which keys its random numbers. A sweep goes colour by colour: sites of one colour do
not interact, so a colour may be updated at once and the result is that of updating its sites in turn.
The numbers of a site belong to its rank in the order of colours. Fields without a fixed length move one
component at a time, a pass over the lattice each, whose number is the substep of the random numbers.

The moves and their papers are moves.py (Metropolis et al., 1953, and later ones).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pysamp.mcmc import fused
from pysamp.mcmc.base import (
    Info,
    State,
    arrived,
    check_spins,
    check_start,
    check_steps,
    name_of,
)
from pysamp.mcmc.moves import Move, Sweep, move_of
from pysamp.mcmc.records import Windows, check_windows
from pysamp.reference import dot, renormalises
from pysamp.target import (
    Counted,
    HasLocal,
    HasLocalField,
    HasQuartic,
    HasSites,
    Target,
    log_prob_of,
)

MAX_HEAT_BATH = 3  # components of unit spins that have a heat bath


# ---------------------------------------------------------------------------- what the kernels call
def sweeps(
    target: Target, state: State, moves: tuple[Move, ...], n: int, thin: int | None,
    scale: Tensor | None = None,
) -> tuple[State, Info]:  # fmt: skip
    """n steps, each the sweeps `moves` in turn; with `thin`, also every thin-th state.

    scale: (rows,) half-width δ of Metropolis' proposals. `Info.accept` is the mean accepted fraction of
    the sweeps that can refuse, 1 without any; "nonfinite" counts refusals by a density NaN or +∞.
    """
    check_steps(n, thin)
    done = _native(target, state, moves, n, thin, scale, None)
    if done is None:
        x, kept, tally = state.x, [], _Tally(target, state, moves)
        for k, x in enumerate(_run(target, state, moves, n, scale, tally), 1):
            if thin and k % thin == 0:
                kept.append(x.clone())
        done = x, tally.info(n, torch.stack(kept, 1) if thin else None)
    return arrived(target, state, *done, n)


def measure(
    target: Target, state: State, moves: tuple[Move, ...], n: int, thin: int, every: int,
    scale: Tensor | None = None,
) -> tuple[State, Info]:  # fmt: skip
    """n steps with a record of every thin of them: the mean of those after every `every` steps.

    `Info.x` is (n_chains, n // thin, 9), as capabilities.HasRecord has it, and `Info.log_prob` its first
    column. Raises ValueError for a target without a record.
    """
    check_windows(target, n, thin, every)
    done = _native(target, state, moves, n, thin, scale, every)
    if done is None:
        tally, windows = _Tally(target, state, moves), Windows(target, thin, every)
        x = state.x
        for x in _run(target, state, moves, n, scale, tally):
            windows.add(x)
        done = x, tally.info(n, windows.records())
    x, info = done
    assert info.x is not None
    return arrived(target, state, x, info._replace(log_prob=info.x[..., 0]), n)


def measure_steps(
    step: Callable[[State, int], tuple[State, Info]], target: Target, state: State, n: int,
    thin: int, every: int,
) -> tuple[State, Info]:  # fmt: skip
    """`measure` around any `step(state, n)`."""
    check_windows(target, n, thin, every)
    windows, parts = Windows(target, thin // every, 1), []
    for _ in range(n // every):
        state, info = step(state, every)
        parts.append(info)
        windows.add(state.x)
    x = windows.records()
    return state, add_up(parts)._replace(x=x, log_prob=x[..., 0])


def add_up(parts: list[Info]) -> Info:
    """The report of calls of equally many steps: counts are added, the rest is averaged."""
    extra = {}
    for name in parts[0].extra:
        total = functools.reduce(torch.add, (part.extra[name] for part in parts))
        extra[name] = total if name == "nonfinite" else total / len(parts)
    accept = functools.reduce(torch.add, (part.accept for part in parts))
    return Info(accept / len(parts), extra)


def start(target: Target, x: Tensor, seed: int, first_chain: int) -> State:
    """The state of a kernel of site moves at `x`. Raises ValueError where x is no field of the target."""
    log_prob = log_prob_of(target, x)
    check_start(log_prob, first_chain)
    if is_spins(target):
        check_spins(x, first_chain)
    return State(x, log_prob, None, seed, 0, first_chain)


# ---------------------------------------------------------------------------- what a target can do
def is_spins(target: Target) -> bool:
    """Whether it lives on vectors of length 1."""
    return isinstance(target, HasSites) and target.unit_length


def check_moves(target: Target, moves: tuple[Move, ...]) -> None:
    """Raises ValueError where a move is not one of the target's."""
    spins = is_spins(target)
    for move in moves:
        if move == "metropolis" and not spins:
            if not isinstance(target, HasLocal):
                raise ValueError(
                    "moves='site' needs a target with local_difference and colours, got "
                    f"{name_of(target)}"
                )
            continue
        kernel = {"metropolis": "Metropolis", "heat_bath": "HeatBath"}.get(move, "OverRelaxation")
        if not isinstance(target, HasSites):
            raise ValueError(
                f"{kernel} needs the sites of a lattice field or of a spin model, got {name_of(target)}"
            )
        m = target.n_components
        if move == "reflect" and m == 1:
            raise ValueError(
                f"OverRelaxation needs at least 2 components, got 1 of {name_of(target)}"
            )
        if move == "heat_bath" and spins and m > MAX_HEAT_BATH:
            raise ValueError(
                f"HeatBath draws spins of at most {MAX_HEAT_BATH} components, got {m} of "
                f"{name_of(target)}: take Metropolis and OverRelaxation in a Cycle"
            )
        if move == "heat_bath" and not spins:
            if not isinstance(target, HasQuartic):
                raise ValueError(
                    f"HeatBath needs conditional densities (quartic), got {name_of(target)}"
                )
        elif not isinstance(target, HasLocalField):
            raise ValueError(
                f"{kernel} needs the local field of each site, which {name_of(target)} has not"
            )


def check_integrable(target: Target, x: Tensor) -> None:
    """Refuse conditional densities exp(−A v² − B v⁴ + b v) that have no integral."""
    while isinstance(target, Counted):
        target = target.base
    if isinstance(target, HasQuartic) and isinstance(target, HasSites):
        a, b, _ = target.quartic(x, target.site_colours[0][:1].to(x.device), 0)
        if bool(((b < 0) | ((b == 0) & (a <= 0))).any()):
            raise ValueError(
                "HeatBath needs conditional densities exp(−A v² − B v⁴ + …) with B > 0, or with B = 0 "
                f"and A > 0, got A = {float(a.min())}, B = {float(b.min())} of {name_of(target)}"
            )


def can_refuse(target: Target, move: Move) -> bool:
    """Whether the move is ever refused, so that an acceptance belongs to it."""
    if move == "heat_bath" and is_spins(target):
        assert isinstance(target, HasSites)
        return target.n_components == 2
    return move != "reflect"


# ---------------------------------------------------------------------------- the two paths
def _native(
    target: Target, state: State, moves: tuple[Move, ...], n: int, thin: int | None,
    scale: Tensor | None, every: int | None,
) -> tuple[Tensor, Info] | None:  # fmt: skip
    check_moves(target, moves)
    if isinstance(target, HasSites):
        return fused.sweeps(target, state, moves, n, thin, scale, every)
    if every is not None:
        return None
    assert scale is not None  # a lattice of a user, which has Metropolis only
    colours, starts = _colours(target, state.x.device)
    return fused.sites(target, state, n, thin, scale, torch.cat(colours), starts)


def _colours(target: Target, device: torch.device) -> tuple[list[Tensor], list[int]]:
    """Sites by colour, and the ranks at which the colours begin."""
    if isinstance(target, HasSites):
        given = target.site_colours
    else:
        assert isinstance(target, HasLocal)
        given = target.colours
    colours = [colour.to(device) for colour in given]
    return colours, [0, *itertools.accumulate(len(colour) for colour in colours)]


class _Tally:
    """What the sweeps of a call report."""

    def __init__(self, target: Target, state: State, moves: tuple[Move, ...]) -> None:
        self.refusing = sum(can_refuse(target, move) for move in moves)
        self.accept, self.nonfinite = torch.zeros_like(state.log_prob).repeat(2, 1)

    def add(self, moved: Tensor, bad: Tensor, proposed: int) -> None:
        self.accept = self.accept + moved / proposed
        self.nonfinite = self.nonfinite + bad

    def info(self, n: int, x: Tensor | None) -> Info:
        accept = self.accept / (n * self.refusing) if self.refusing else self.accept + 1.0
        return Info(accept, {"nonfinite": self.nonfinite}, x)


def _run(
    target: Target, state: State, moves: tuple[Move, ...], n: int, scale: Tensor | None,
    tally: _Tally,
) -> Iterator[Tensor]:  # fmt: skip
    """x after each of n steps, always in the same memory."""
    m, spins = 1, False
    if isinstance(target, HasSites):
        m, spins = target.n_components, target.unit_length
    x = state.x.clone(memory_format=torch.contiguous_format)
    phi = x.view(len(x), math.prod(x.shape[1:]) // m, m)
    colours, starts = _colours(target, x.device)
    programme = [(move_of(move, m, spins), can_refuse(target, move)) for move in moves]
    proposed = phi.shape[1] * (1 if spins else m)
    for step in range(state.step, state.step + n):
        for k, (move, refuses) in enumerate(programme):
            counter = step * len(moves) + k
            sweep = Sweep(target, x, phi, colours, starts, scale, state, counter)
            moved, bad = move(sweep)
            if refuses:
                tally.add(moved, bad, proposed)
            if spins and m > 1 and renormalises(counter):
                phi.mul_((1.5 - dot(phi, phi) * 0.5)[..., None])
        yield x
