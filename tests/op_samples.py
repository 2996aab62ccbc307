"""Inputs for every op of the table: typical, minimal, empty, strided, odd sizes.

SAMPLES[name](device, dtype) yields (label, arguments). LEVEL[name] is the agreement that is promised:
"equal" to the last bit, or "close" to rounding.
"""

import math

import torch

from pysamp import couplings, energies, reference

LEVEL = {
    "bits": "equal",
    "uniform": "equal",
    "normal": "equal",
    "log_uniform": "equal",
    "sum32": "equal",
    "phi4": "equal",
    "soft": "equal",
    "spins": "equal",
    "mixture": "close",
    "rings": "close",
    "funnel": "close",
    "logistic": "close",
    "affine_couplings": "close",
    "affine_couplings_vjp": "close",
}


def noise(n, m, device, dtype, step=0):
    like = torch.empty(0, dtype=dtype, device=device)
    return reference.normal(like, n, m, 2024, step, 200 << 24, 0, 0)


def _random(device, dtype):
    like = torch.empty(0, dtype=dtype, device=device)
    for label, n_chains, n, first_chain, first in [
        ("typical", 5, 200, 0, 0),
        ("one", 1, 1, 0, 0),
        ("no chains", 0, 4, 0, 0),
        ("no numbers", 3, 0, 0, 0),
        ("long row", 1, 10_007, 3, 0),
        ("many short rows", 67, 3, 2**31, 0),
        ("skips numbers", 4, 130, 1, 5),
        ("last chain", 2, 9, 2**32 - 2, 2),
    ]:
        yield (
            label,
            (like, n_chains, n, 2**63 + 12345 - 2**64, 2**32 - 1, 17 << 24 | 5, first_chain, first),
        )


def _bits(device, dtype):
    yield from _random(device, torch.int32)


def _sum32(device, dtype):
    for label, n, m in [
        ("typical", 7, 100),
        ("one", 1, 1),
        ("no rows", 0, 5),
        ("no columns", 3, 0),
        ("exactly 32", 2, 32),
        ("33", 2, 33),
        ("a chunk", 2, 4096),
        ("chunks", 3, 4096 * 2 + 17),
        ("more than 32 chunks", 1, 4096 * 33 + 1),
    ]:
        yield label, (noise(n, m, device, dtype),)
    yield "strided", (noise(6, 90, device, dtype)[::2, ::3],)


def _lattice(shape, periodic, m, device):
    neighbours = reference.lattice_neighbours(shape, periodic)
    table = neighbours.flatten().to(device=device, dtype=torch.int32)
    return table, [neighbours.shape[0], neighbours.shape[1], int(periodic), m]


def _phi4(device, dtype):
    params = torch.tensor([1.7, 0.3, -0.4, 0.6, 1.0], dtype=dtype, device=device)
    empty = torch.empty(0, dtype=torch.int32, device=device)
    yield "open chain", (noise(37, 100, device, dtype), params, empty, [100, 2, 0, 1])
    yield "ring", (noise(3, 31, device, dtype), params, empty, [31, 2, 1, 1])
    yield "one site", (noise(2, 1, device, dtype), params, empty, [1, 2, 0, 1])
    yield "no fields", (noise(0, 9, device, dtype), params, empty, [9, 2, 0, 1])
    for label, shape, periodic in [("2-d", (4, 5), True), ("3-d open", (3, 4, 5), False)]:
        event = math.prod(shape)
        table, layout = _lattice(shape, periodic, 1, device)
        yield label, (noise(18, event, device, dtype), params, table, layout)
    yield "strided", (noise(6, 80, device, dtype)[::2, ::2], params, empty, [40, 2, 0, 1])


def _vectors(params, device, dtype):
    """Fields of several components."""
    params = torch.tensor(params, dtype=dtype, device=device)
    for label, n, shape, periodic, m in [
        ("three components", 18, (4, 5), True, 3),
        ("one component", 5, (3, 4, 5), True, 1),
        ("eight components", 3, (3, 2, 3), False, 8),
        ("a ring", 4, (9,), True, 2),
        ("an open chain", 17, (6,), False, 2),
        ("no fields", 0, (3, 3), True, 2),
    ]:
        table, layout = _lattice(shape, periodic, m, device)
        yield label, (noise(n, math.prod(shape) * m, device, dtype), params, table, layout)
    empty = torch.empty(0, dtype=torch.int32, device=device)
    yield "strided", (noise(6, 80, device, dtype)[::2, ::2], params, empty, [20, 2, 1, 2])


def _soft(device, dtype):
    yield from _vectors([1.3, 0.0, -0.4, 0.6, 0.2], device, dtype)


def _spins(device, dtype):
    yield from _vectors([0.7], device, dtype)


def _mixture(device, dtype):
    def parameters(k, d):
        weights = noise(1, k, device, dtype, step=1).flatten()
        means = noise(1, k * d, device, dtype, step=2).flatten() * 2
        precisions = noise(1, k * d, device, dtype, step=3).flatten().abs() + 0.5
        return torch.cat((weights, means, precisions)), torch.empty(
            0, dtype=torch.int32, device=device
        )

    for label, n, k, d in [
        ("typical", 33, 8, 2),
        ("one component", 4, 1, 3),
        ("one dimension", 5, 3, 1),
        ("no points", 0, 3, 2),
        ("many components", 9, 45, 5),
        ("long events", 4, 3, 130),
    ]:
        yield label, (noise(n, d, device, dtype), *parameters(k, d), [k, d])
    yield "strided", (noise(10, 12, device, dtype)[::2, ::3], *parameters(3, 4), [3, 4])


def _toy(device, dtype, *params):
    params = torch.tensor(params, dtype=dtype, device=device)
    return params, torch.empty(0, dtype=torch.int32, device=device)


def _rings(device, dtype):
    for label, n, k, width in [
        ("typical", 33, 4, 0.5),
        ("one ring", 5, 1, 0.15),
        ("narrow", 40, 7, 0.1),
        ("no points", 0, 3, 0.2),
    ]:
        made = _toy(device, dtype, 1 / width, 1 / width**2, 2.5)
        yield label, (2 * noise(n, 2, device, dtype), *made, [k])
    made = _toy(device, dtype, 2.0, 4.0, 2.5)
    yield "strided", (noise(10, 6, device, dtype)[::2, ::3], *made, [3])
    yield "the origin", (torch.zeros((2, 2), dtype=dtype, device=device), *made, [3])


def _funnel(device, dtype):
    made = _toy(device, dtype, 1 / 3, 9.7)
    for label, n, d in [
        ("typical", 33, 10),
        ("two", 5, 2),
        ("no points", 0, 3),
        ("long events", 3, 130),
    ]:
        yield label, (noise(n, d, device, dtype), *made, [d])
    yield "strided", (noise(10, 12, device, dtype)[::2, ::3], *made, [4])
    far = torch.tensor([[60.0, 1.0], [-60.0, 0.0]], dtype=dtype, device=device)
    yield "far along the neck", (far, *made, [2])


def _logistic(device, dtype):
    def parameters(rows, d):
        prior = torch.tensor([1.0, 0.16, 3.0], dtype=dtype, device=device)
        data = energies.logistic_blocks(noise(rows, d, device, dtype, step=1))
        return torch.cat([prior, data]), torch.empty(0, dtype=torch.int32, device=device)

    for label, n, rows, d in [
        ("typical", 33, 21, 5),
        ("one row", 4, 1, 3),
        ("a bias alone", 5, 9, 1),
        ("no points", 0, 8, 2),
        ("whole blocks", 3, 16, 4),
        ("many rows", 3, 1100, 3),
        ("Sonar's size", 5, 166, 61),
    ]:
        yield label, (0.5 * noise(n, d, device, dtype), *parameters(rows, d), [rows, d])
    yield "strided", (noise(10, 12, device, dtype)[::2, ::3], *parameters(9, 4), [9, 4])
    yield "far out", (200 * noise(6, 4, device, dtype), *parameters(9, 4), [9, 4])


def _couplings(device, dtype):
    def given(n, sizes, inverse, label):
        shape = couplings.Shape(
            *sizes
        )  # dim, couplings, hidden, hidden layers, networks, alternate
        weights = noise(1, shape.n_parameters(), device, dtype, step=1)[0] / shape.hidden**0.5
        x = noise(n, shape.dim, device, dtype)
        return f"{label}, inverse={inverse}", (x, weights, 0.5, shape.layout(), inverse)

    for label, n, sizes in [
        ("typical", 5, (3, 2, 4, 2, 2, False)),
        ("joint", 33, (6, 4, 19, 1, 1, False)),
        ("alternate", 20, (7, 3, 8, 2, 2, True)),
        ("joint and alternate", 18, (5, 4, 13, 3, 1, True)),
        ("three hidden layers", 18, (8, 2, 9, 3, 2, False)),
        ("two coordinates, one unit", 9, (2, 2, 1, 1, 1, False)),
        ("one coupling", 7, (3, 1, 5, 1, 2, True)),
        ("one point", 1, (9, 4, 20, 2, 2, False)),
        ("no points", 0, (4, 2, 6, 1, 2, False)),
    ]:
        for inverse in (False, True):
            yield given(n, sizes, inverse, label)
    yield given(50, (64, 2, 128, 2, 1, False), False, "wide and joint")
    yield given(3, (41, 2, 300, 1, 2, True), True, "wide and separate")
    # around one, two and three vectors of every kind, and into a second tile
    for n in (2, 3, 4, 7, 8, 12, 15, 16, 17, 24, 25, 31, 33, 47, 48, 49, 97):
        yield given(n, (5, 2, 11, 2, 2, False), n % 3 == 0, f"{n} points")
    shape = couplings.Shape(3, 2, 7, 2, 2, False)
    weights = noise(2, shape.n_parameters(), device, dtype, step=1).T[:, 0] / 3
    x = noise(10, 9, device, dtype)
    yield "strided", (x[::2, ::3], weights, 0.5, shape.layout(), False)
    x = 30 * x[:, :3].contiguous()  # where tanh is 1
    yield "far out", (x, 3 * weights, 0.5, shape.layout(), False)


def _couplings_vjp(device, dtype):
    for number, (label, arguments) in enumerate(_couplings(device, dtype)):
        n, d = arguments[0].shape
        image, _ = couplings.affine_couplings(*arguments)
        of_image = noise(n, d, device, dtype, step=2)
        of_log_det = noise(1, n, device, dtype, step=3)[0]
        if label == "strided":
            of_image = noise(2 * n, 2 * d, device, dtype, step=2)[::2, ::2]
            of_log_det = noise(n, 3, device, dtype, step=3)[:, 1]
        # far out the sums over points are large, and so is their rounding
        both = number < 6 or label == "strided"
        for weights in (True, False) if both else (label != "far out",):
            given = (*arguments, image, of_image, of_log_det, weights)
            yield f"{label}, weights={weights}", given


SAMPLES = {
    "bits": _bits,
    "uniform": _random,
    "normal": _random,
    "log_uniform": _random,
    "sum32": _sum32,
    "phi4": _phi4,
    "soft": _soft,
    "spins": _spins,
    "mixture": _mixture,
    "rings": _rings,
    "funnel": _funnel,
    "logistic": _logistic,
    "affine_couplings": _couplings,
    "affine_couplings_vjp": _couplings_vjp,
}
