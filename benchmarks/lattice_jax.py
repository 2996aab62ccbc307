"""The same lattice work by JAX: one `jit` around a `lax.scan` over split checkerboards of all chains.

The formulas are those of lattice_formulas.py. setup(...) -> run(n), as in peers.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lattice_formulas import MOVES, Couplings
from benchmarks.lattice_torch import fourier, merge, split
from benchmarks.peers import Run, jax_scan
from pysamp.opponents import colour_rows
from pysamp.quickbench import SEED


def _sweep(move: str, c: Couplings, right: Any) -> Callable[[Any, Any], Any]:
    """(key, (even, odd)) -> (even, odd)"""
    import jax
    import jax.numpy as jnp

    formula, uniforms, normals = MOVES[move]

    def around(other: Any, right: Any) -> Any:
        total = other + jnp.where(right, jnp.roll(other, -1, -1), jnp.roll(other, 1, -1))
        for axis in range(1, other.ndim - 1):
            total = total + jnp.roll(other, 1, axis) + jnp.roll(other, -1, axis)
        return total

    def half(key: Any, field: Any, other: Any, right: Any) -> Any:
        sums = [around(component, right) for component in other]
        for_u, for_xi = jax.random.split(key)
        shape = field[0].shape
        u = jax.random.uniform(for_u, (uniforms, *shape)) if uniforms else ()
        xi = jax.random.normal(for_xi, (normals, *shape)) if normals else ()
        return formula(jnp, field, sums, u, xi, c)

    def sweep(key: Any, state: Any) -> Any:
        even, odd = state
        first, second = jax.random.split(key)
        even = half(first, even, odd, right)
        return even, half(second, odd, even, ~right)

    return sweep


def _start(target: Any, x: Tensor) -> tuple[Any, Any]:
    """((even, odd), right), a colour a list of its components."""
    import jax.numpy as jnp

    right = colour_rows(target.shape, torch.device("cpu"))
    halves = split(x.cpu(), target.shape, right)
    return tuple([jnp.asarray(a.numpy()) for a in half] for half in halves), right.numpy()


def setup_sweeps(move: str, target: Any, c: Couplings, x: Tensor) -> Run:
    start, right = _start(target, x)
    scan = jax_scan(_sweep(move, c, right), start, lambda state: state)

    def run(n: int) -> Tensor:
        even, odd = torch.from_numpy(scan(n))  # (2, m, chains, *half)
        return merge(even, odd, torch.from_numpy(right), x)

    return run


def setup_measuring(target: Any, c: Couplings, x: Tensor) -> Run:
    """n sweeps of φ⁴, measured after each: (chains, n, 4), the columns of phi4_observables."""
    import jax
    import jax.numpy as jnp

    start, right = _start(target, x)
    sweep = _sweep("phi4_metropolis", c, right)
    v, d = math.prod(target.shape), len(target.shape)
    waves = jnp.asarray(fourier(target.shape).numpy())
    key = jax.random.key(SEED)

    def measure(state: Any) -> Any:
        even, odd = (part[0] for part in state)
        columns = (jnp.where(right, odd, even), jnp.where(right, even, odd))
        phi = jnp.stack(columns, -1).reshape(len(x), *target.shape)
        ahead = functools.reduce(jnp.add, (jnp.roll(phi, -1, axis + 1) for axis in range(d)))
        square = phi * phi
        sites = square + c.lam * (square - 1) ** 2 - 2 * c.kappa * phi * ahead
        flat = phi.reshape(len(x), v)
        mean = flat.mean(1)
        structure = ((flat @ waves) ** 2).sum(1) / (d * v * v)
        squares = square.reshape(len(x), v).mean(1)
        return jnp.stack([-sites.reshape(len(x), v).sum(1), mean**2, squares, structure], 1)

    @functools.partial(jax.jit, static_argnums=2)
    def many(key: Any, state: Any, n: int) -> Any:
        def body(state: Any, key: Any) -> Any:
            state = sweep(key, state)
            return state, measure(state)

        return jax.lax.scan(body, state, jax.random.split(key, n))[1]

    def run(n: int) -> np.ndarray:
        return np.array(jax.block_until_ready(many(key, start, n))).swapaxes(0, 1)

    return run
