"""The same lattice work by numba: scalar loops, one chain after the other, sites by colour.

Ising spins are int8 with Boltzmann factors from a table; Wolff's cluster grows from a stack, and
Swendsen and Wang's are found by union-find. setup(...) -> run(n), as in peers.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lattice_formulas import Couplings
from benchmarks.peers import Run
from pysamp.quickbench import SEED

ISING = ("ising_metropolis", "ising_heat_bath")


def _geometry(target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sites in the order of colours, and their neighbours in that order."""
    order = torch.cat(target.site_colours)
    _, table = target.couplings
    return order.to(torch.int32).numpy(), table[order].to(torch.int32).contiguous().numpy()


@functools.cache
def _seed() -> Callable[[int], None]:
    import numba

    @numba.njit
    def seed(value: int) -> None:
        np.random.seed(value)

    return seed


# ---------------------------------------------------------------------------- moves of one site
@functools.cache
def _update(move: str) -> Any:
    """update(old, sums over the neighbours, couplings) -> new: tuples of the components of one site."""
    import numba

    one, half, two = np.float32(1), np.float32(0.5), np.float32(2)
    tau = np.float32(2 * math.pi)

    @numba.njit
    def phi4_metropolis(s: Any, h: Any, c: Any) -> Any:
        kappa, lam, width = c[0], c[1], c[5]
        step = width * (two * np.float32(np.random.random()) - one)
        new = s[0] + step
        inner = (new + s[0]) * (one + lam * (new * new + s[0] * s[0] - two))
        if np.random.random() < math.exp(-step * (inner - two * kappa * h[0])):
            return (new,)
        return s

    @numba.njit
    def phi4_heat_bath(s: Any, h: Any, c: Any) -> Any:
        b = c[1]
        a = one - two * b
        least = one / (a + math.sqrt(a * a + two * two * b))
        pull = two * c[0] * h[0]
        v = abs(pull) * least
        for _ in range(2):
            v2 = v * v
            v = (np.float32(8) * b * v * v2 + abs(pull)) / (np.float32(12) * b * v2 + two * a)
        centre = max(v * v, least)
        precision = a + two * b * centre
        xi = np.float32(np.random.standard_normal())
        new = half * pull / precision + math.sqrt(half / precision) * xi
        gap = new * new - centre
        if np.random.random() < math.exp(-b * gap * gap):
            return (new,)
        return s

    @numba.njit
    def xy_metropolis(s: Any, h: Any, c: Any) -> Any:
        angle = c[5] * (two * np.float32(np.random.random()) - one)
        cos, sin = math.cos(angle), math.sin(angle)
        a, b = s[0] * cos - s[1] * sin, s[0] * sin + s[1] * cos
        if np.random.random() < math.exp(c[2] * (h[0] * (a - s[0]) + h[1] * (b - s[1]))):
            return (a, b)
        return s

    @numba.njit
    def xy_heat_bath(s: Any, h: Any, c: Any) -> Any:
        norm = math.sqrt(h[0] * h[0] + h[1] * h[1])
        k = c[2] * norm
        t = one + math.sqrt(one + two * two * k * k)
        angle = tau * (np.float32(np.random.random()) - half)
        z = math.cos(angle)
        d = one / (two * k * z + t)
        f = (t * z + two * k) * d
        w = half * t - k * f
        if np.random.random() < w * math.exp(one - w):
            g = math.sqrt(two * t) * math.sin(angle) * d
            e0, e1 = h[0] / norm, h[1] / norm
            return (e0 * f - e1 * g, e1 * f + e0 * g)
        return s

    @numba.njit
    def heisenberg_metropolis(s: Any, h: Any, c: Any) -> Any:
        z = two * np.float32(np.random.random()) - one
        rho, angle = math.sqrt(one - z * z), tau * np.float32(np.random.random())
        a, b = rho * math.cos(angle), rho * math.sin(angle)
        gain = h[0] * (a - s[0]) + h[1] * (b - s[1]) + h[2] * (z - s[2])
        if np.random.random() < math.exp(c[2] * gain):
            return (a, b, z)
        return s

    @numba.njit
    def heisenberg_heat_bath(s: Any, h: Any, c: Any) -> Any:
        norm = math.sqrt(h[0] * h[0] + h[1] * h[1] + h[2] * h[2])
        k = c[2] * norm
        u = np.float32(np.random.random())
        w = max(one + math.log(u + (one - u) * math.exp(-two * k)) / k, -one)
        rho, angle = math.sqrt(max(one - w * w, one - one)), tau * np.float32(np.random.random())
        p, m = rho * math.cos(angle), rho * math.sin(angle)
        e0, e1, e2 = h[0] / norm, h[1] / norm, h[2] / norm
        sign = one if e2 >= 0 else -one
        a = -one / (sign + e2)
        b = e0 * e1 * a
        return (
            e0 * w + (one + sign * e0 * e0 * a) * p + b * m,
            e1 * w + sign * b * p + (sign + e1 * e1 * a) * m,
            e2 * w - sign * e0 * p - e1 * m,
        )

    @numba.njit
    def soft_metropolis(s: Any, h: Any, c: Any) -> Any:
        a = s[0] + c[5] * (two * np.float32(np.random.random()) - one)
        b = s[1] + c[5] * (two * np.float32(np.random.random()) - one)
        p, q = s[0] * s[0] + s[1] * s[1], a * a + b * b
        gain = h[0] * (a - s[0]) + h[1] * (b - s[1]) - (q - p) * (c[3] + c[4] * (q + p))
        if np.random.random() < math.exp(gain):
            return (a, b)
        return s

    @numba.njit
    def xy_over_relaxation(s: Any, h: Any, c: Any) -> Any:
        factor = two * (h[0] * s[0] + h[1] * s[1]) / (h[0] * h[0] + h[1] * h[1])
        return (factor * h[0] - s[0], factor * h[1] - s[1])

    @numba.njit
    def heisenberg_over_relaxation(s: Any, h: Any, c: Any) -> Any:
        dot = h[0] * s[0] + h[1] * s[1] + h[2] * s[2]
        factor = two * dot / (h[0] * h[0] + h[1] * h[1] + h[2] * h[2])
        return (factor * h[0] - s[0], factor * h[1] - s[1], factor * h[2] - s[2])

    soft_over_relaxation = xy_over_relaxation
    return locals()[move]


@functools.cache
def _sweeps(move: str, z: int, m: int) -> Any:
    import numba

    update = _update(move)

    @numba.njit
    def total(field: Any, neighbours: Any, rank: int, a: int) -> Any:
        out = field[neighbours[rank, 0], a]
        for k in range(1, z):
            out += field[neighbours[rank, k], a]
        return out

    # Tuples live in registers; with arrays of m numbers in their place numba takes twice as long.
    @numba.njit
    def one(field: Any, neighbours: Any, rank: int, i: int, c: Any) -> None:
        h = (total(field, neighbours, rank, 0),)
        (field[i, 0],) = update((field[i, 0],), h, c)

    @numba.njit
    def two(field: Any, neighbours: Any, rank: int, i: int, c: Any) -> None:
        h = (total(field, neighbours, rank, 0), total(field, neighbours, rank, 1))
        field[i, 0], field[i, 1] = update((field[i, 0], field[i, 1]), h, c)

    @numba.njit
    def three(field: Any, neighbours: Any, rank: int, i: int, c: Any) -> None:
        h = (total(field, neighbours, rank, 0), total(field, neighbours, rank, 1),
             total(field, neighbours, rank, 2))  # fmt: skip
        s = (field[i, 0], field[i, 1], field[i, 2])
        field[i, 0], field[i, 1], field[i, 2] = update(s, h, c)

    move_site = (one, two, three)[m - 1]

    @numba.njit
    def sweeps(x: Any, order: Any, neighbours: Any, c: Any, n: int) -> None:
        for chain in range(len(x)):
            for _ in range(n):
                for rank in range(len(order)):
                    move_site(x[chain], neighbours, rank, order[rank], c)

    return sweeps


def setup_sweeps(move: str, target: Any, c: Couplings, x: Tensor) -> Run:
    if move in ISING:
        return _setup_ising(move, target, x)
    order, neighbours = _geometry(target)
    m = target.n_components
    sweeps = _sweeps(move, neighbours.shape[1], m)
    constants = tuple(map(np.float32, dataclasses.astuple(c)))
    start = x.reshape(len(x), -1, m).cpu().numpy()
    _seed()(SEED)

    def run(n: int) -> np.ndarray:
        field = start.copy()
        sweeps(field, order, neighbours, constants, n)
        return field.reshape(x.shape)

    return run


# ---------------------------------------------------------------------------- Ising
@functools.cache
def _ising(move: str, z: int) -> Any:
    import numba

    @numba.njit
    def metropolis(s: Any, order: Any, neighbours: Any, weight: Any, n: int) -> None:
        for chain in range(len(s)):
            spins = s[chain]
            for _ in range(n):
                for rank in range(len(order)):
                    h = 0
                    for k in range(z):
                        h += spins[neighbours[rank, k]]
                    i = order[rank]
                    if np.random.random() < weight[h * spins[i] + z]:
                        spins[i] = -spins[i]

    @numba.njit
    def heat_bath(s: Any, order: Any, neighbours: Any, weight: Any, n: int) -> None:
        for chain in range(len(s)):
            spins = s[chain]
            for _ in range(n):
                for rank in range(len(order)):
                    h = 0
                    for k in range(z):
                        h += spins[neighbours[rank, k]]
                    spins[order[rank]] = 1 if np.random.random() < weight[h + z] else -1

    return metropolis if move == "ising_metropolis" else heat_bath


def _setup_ising(move: str, target: Any, x: Tensor) -> Run:
    order, neighbours = _geometry(target)
    z = neighbours.shape[1]
    h = np.arange(-z, z + 1)
    weight = np.exp(-2 * target.beta * h)  # of a flip, h the product of the spin with the sum
    if move == "ising_heat_bath":
        weight = 1 / (1 + weight)  # of +1, h the sum
    sweeps = _ising(move, z)
    start = x.reshape(len(x), -1).cpu().numpy().astype(np.int8)
    _seed()(SEED)

    def run(n: int) -> np.ndarray:
        spins = start.copy()
        sweeps(spins, order, neighbours, weight, n)
        return spins.astype(np.float32).reshape(x.shape)

    return run


@functools.cache
def _clusters(wolff: bool, z: int) -> Any:
    import numba

    @numba.njit
    def grow(s: Any, neighbours: Any, join: float, n: int) -> int:
        flipped = 0
        stack = np.empty(s.shape[1], dtype=np.int32)
        for chain in range(len(s)):
            spins = s[chain]
            for _ in range(n):
                site = np.random.randint(len(spins))
                old = spins[site]
                spins[site] = -old
                stack[0] = site
                size = top = 1
                while top:
                    top -= 1
                    site = stack[top]
                    for k in range(z):
                        other = neighbours[site, k]
                        if spins[other] == old and np.random.random() < join:
                            spins[other] = -old
                            stack[top] = other
                            top += 1
                            size += 1
                flipped += size
        return flipped

    @numba.njit
    def root(parent: Any, i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    @numba.njit
    def label(s: Any, neighbours: Any, join: float, n: int) -> int:
        sites = s.shape[1]
        parent = np.empty(sites, dtype=np.int32)
        turn = np.empty(sites, dtype=np.bool_)
        for chain in range(len(s)):
            spins = s[chain]
            for _ in range(n):
                for i in range(sites):
                    parent[i] = i
                    turn[i] = np.random.random() < 0.5
                for i in range(sites):
                    for k in range(1, z, 2):
                        other = neighbours[i, k]
                        if spins[other] == spins[i] and np.random.random() < join:
                            a, b = root(parent, i), root(parent, other)
                            if a < b:
                                parent[b] = a
                            else:
                                parent[a] = b
                for i in range(sites):
                    if turn[root(parent, i)]:
                        spins[i] = -spins[i]
        return len(s) * sites * n

    return grow if wolff else label


def setup_clusters(target: Any, x: Tensor, *, wolff: bool) -> Callable[[int], tuple[Any, float]]:
    """run(n): n moves; the spins, and how many of them were flipped (Wolff) or labelled."""
    _, table = target.couplings
    neighbours = table.to(torch.int32).numpy()
    moves = _clusters(wolff, neighbours.shape[1])
    start = x.reshape(len(x), -1).cpu().numpy().astype(np.int8)
    join = 1 - math.exp(-2 * target.beta)
    _seed()(SEED)

    def run(n: int) -> tuple[np.ndarray, float]:
        spins = start.copy()
        done = moves(spins, neighbours, join, n)
        return spins.astype(np.float32).reshape(x.shape), float(done)

    return run
